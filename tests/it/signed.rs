//! The truth table of kits that the real cosign signed (`fixtures/signed/cases.json`), row by row through the command
//! line: from the layout, from a registry, and with the registry gone once the kit was pulled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kitfs::digest::Digest;
use serde_json::Value;

use crate::support::kitfs::{Kitfs, Output};
use crate::support::random::Random;
use crate::support::registry::{Access, Registry};
use crate::support::shared;

/// One row about a kit.
struct Row<'a> {
    case: &'a Value,
    folder: &'a Path,
}

/// The folder of the signed kits, and the rows about them.
fn table() -> Option<(PathBuf, Vec<Value>)> {
    let folder = shared::shared("fixtures/signed")?;
    let table: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let mut cases = table["cases"].as_array().unwrap().clone();
    cases.retain(|case| case["command"] == "verify");
    assert!(cases.len() > 150, "the table is about kits");
    Some((folder, cases))
}

/// Whether the condition on an attestation is written as a pointer or in Rego.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Pointer,
    Rego,
}

/// Text as TOML quotes it.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Row<'_> {
    fn name(&self) -> &str {
        self.case["name"].as_str().unwrap()
    }

    /// The folder of the layout, and what stands behind it in the reference.
    fn layout(&self) -> (&str, &str) {
        let reference = self.case["ref"].as_str().unwrap().strip_prefix("oci:layouts/").unwrap();
        reference.split_at(reference.find([':', '@']).unwrap())
    }

    fn is(&self, kind: &str) -> bool {
        self.case["kind"] == kind
    }

    /// The exit codes that are right.
    fn exits(&self) -> Vec<i64> {
        let more = self.case["also_accept"].as_array().into_iter().flatten();
        more.chain([&self.case["exit"]]).map(|code| code.as_i64().unwrap()).collect()
    }

    /// The options of the row; its policy, if it states one, is written in kitfs's format.
    fn options(&self, kitfs: &Kitfs, condition: Condition) -> Vec<String> {
        let mut options: Vec<_> =
            self.case["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
        if self.case["policy"].is_object() {
            let path = kitfs.path("policy.toml");
            std::fs::write(&path, self.policy(condition)).unwrap();
            options.extend(["--policy".to_owned(), path.to_str().unwrap().to_owned()]);
        }
        options
    }

    fn policy(&self, condition: Condition) -> String {
        let policy = &self.case["policy"];
        let file = |value: &Value| quoted(self.folder.join(value.as_str().unwrap()).to_str().unwrap());
        let signer = |wanted: &Value| match &wanted["key"] {
            Value::Null => format!(
                "{{ identity = {}, issuer = {} }}",
                quoted(wanted["identity"].as_str().unwrap()),
                quoted(wanted["issuer"].as_str().unwrap())
            ),
            key => format!("{{ key = {} }}", file(key)),
        };
        let mut text = "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\n".to_owned();
        if policy["trusted_root"].is_string() {
            text += &format!("trusted_root = {}\n", file(&policy["trusted_root"]));
        }
        if let Some(signature) = policy.get("signature") {
            text += &format!("[[rule.signature]]\nany = [{}]\n", signer(signature));
            if let Some(log) = signature.get("log") {
                text += &format!("log = {log}\n");
            }
            for (name, value) in signature["annotations"].as_object().into_iter().flatten() {
                text += &format!("annotations.{} = {value}\n", quoted(name));
            }
        }
        if let Some(attestation) = policy.get("attestation") {
            let kind = &attestation["predicateType"];
            text += &format!("[[rule.attestation]]\npredicate_type = {kind}\nany = [{}]\n", signer(attestation));
            match (&attestation["where"], &attestation["rego"], condition) {
                (_, rego @ Value::String(_), Condition::Rego) => text += &format!("rego = {}\n", file(rego)),
                (Value::Object(wanted), ..) => {
                    text +=
                        &format!("where = [{{ pointer = {}, equals = {} }}]\n", wanted["pointer"], wanted["equals"]);
                }
                _ => {}
            }
        }
        text
    }

    /// Runs a command over a kit with the row's options.
    fn run(&self, kitfs: &Kitfs, command: &[&str], reference: &str, condition: Condition) -> Output {
        let mut words: Vec<_> = command.iter().chain(&[reference, "-o", "json"]).map(|&word| word.to_owned()).collect();
        words.extend(self.options(kitfs, condition));
        kitfs.command(&words).current_directory(self.folder).run()
    }

    /// What is wrong with the end of a command, if something is.
    fn complaint(&self, output: &Output) -> Option<String> {
        let exits = self.exits();
        (!exits.contains(&output.code.into()))
            .then(|| format!("{}: {} and not {exits:?}\n{output}", self.name(), output.code))
    }

    /// `verify` must end as the table says, and its document must say the same.
    fn complaint_of_verify(&self, output: &Output) -> Option<String> {
        let complaint = self.complaint(output);
        if complaint.is_some() || !matches!(output.code, 0 | 6) {
            return complaint;
        }
        let document = output.json();
        let asks = self.case["policy"].is_object() || self.case["args"] != serde_json::json!([]);
        let (decision, status) = match (output.code, asks) {
            (0, false) => ("none", "verified"),
            (0, true) => ("allow", "verified"),
            _ => ("deny", "unchecked"),
        };
        let layers = document["layers"].as_array().unwrap();
        let holds = document["ok"] == (output.code == 0)
            && document["policy"]["decision"] == decision
            && document["policy"]["reasons"].as_array().is_some_and(|reasons| reasons.is_empty() != asks)
            && !layers.is_empty()
            && layers.iter().all(|layer| layer["status"] == status);
        (!holds).then(|| format!("{}: the document says otherwise\n{output}", self.name()))
    }
}

#[test]
fn the_truth_table_holds_in_layouts() {
    let Some((folder, cases)) = table() else { return };
    let kitfs = Kitfs::new();
    let mut complaints = Vec::new();
    for case in &cases {
        let row = Row { case, folder: &folder };
        let (layout, version) = row.layout();
        let reference = match generated(&row, &kitfs) {
            Some(made) => format!("oci:{}{version}", made.display()),
            None => format!("oci:layouts/{layout}{version}"),
        };
        for condition in [Condition::Pointer, Condition::Rego] {
            if condition == Condition::Pointer || case["policy"]["attestation"]["rego"].is_string() {
                complaints.extend(row.complaint_of_verify(&row.run(&kitfs, &["verify"], &reference, condition)));
            }
        }
    }
    assert!(complaints.is_empty(), "{} are wrong:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn the_truth_table_holds_in_a_registry_and_without_it_once_pulled() {
    let Some((folder, cases)) = table() else { return };
    let kitfs = Kitfs::new();
    let mut complaints = Vec::new();
    // What is spoiled in a registry is spoiled for every kit in it.
    let (alone, together): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case["kind"] == "content");
    for cases in alone.chunks(1).chain([&together[..]]) {
        let Some(registry) = Registry::start(Access::Plain) else { return };
        complaints.extend(check_in(registry, &kitfs, &folder, cases));
    }
    assert!(complaints.is_empty(), "{} are wrong:\n{}", complaints.len(), complaints.join("\n"));
}

/// Checks rows in a registry, and without it once their kits are pulled. Returns what is wrong.
fn check_in(mut registry: Registry, kitfs: &Kitfs, folder: &Path, cases: &[&Value]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut pushed = BTreeMap::new();
    for case in cases {
        let row = Row { case, folder };
        let (layout, version) = row.layout();
        let made = generated(&row, kitfs);
        let repository = if made.is_some() { row.name() } else { layout };
        let reference = pushed.entry(format!("{repository}{version}")).or_insert_with(|| {
            push(&registry, &made.unwrap_or_else(|| folder.join("layouts").join(layout)), folder, repository);
            format!("{}/{repository}{version}", registry.host())
        });
        let output = row.run(kitfs, &["verify"], reference, Condition::Pointer);
        // A registry may see by itself that something is spoiled, and not give it away.
        if !(row.is("content") && output.code == 7) {
            complaints.extend(row.complaint_of_verify(&output));
        }
    }
    for (kit, reference) in &pushed {
        // Without a policy: who pulls need not be who decides.
        let pulled = kitfs.run(&["pull", reference]);
        let spoiled = kit.starts_with("tampered-layer") || kit.starts_with("tampered-manifest");
        assert_eq!(pulled.code == 0, !spoiled, "{kit}: {pulled}");
    }
    registry.stop();
    for (number, case) in cases.iter().enumerate() {
        let row = Row { case, folder };
        let (layout, version) = row.layout();
        let repository = if row.is("generated") { row.name() } else { layout };
        let reference = &pushed[&format!("{repository}{version}")];
        // To find out that nobody answers takes a while: most are told.
        let command: &[&str] = if number % 25 == 0 { &["ls"] } else { &["ls", "--offline"] };
        let output = row.run(kitfs, command, reference, Condition::Pointer);
        match row.is("content") {
            // What could not be pulled is not there, or is refused; nothing of it is shown.
            true if output.code != 0 && output.text().is_empty() => {}
            true => complaints.push(format!("{}: {output}", row.name())),
            false => complaints.extend(row.complaint(&output)),
        }
    }
    complaints
}

#[test]
fn the_last_good_signature_of_a_thousand_is_found_where_that_many_are_looked_at() {
    let Some((folder, cases)) = table() else { return };
    let kitfs = Kitfs::new();
    let case = cases.iter().find(|case| case["name"] == "generate-many-last-good").unwrap();
    let row = Row { case, folder: &folder };
    let reference = format!("oci:{}:1.0", generated(&row, &kitfs).unwrap().display());
    let key = folder.join("keys/p256.pub");
    let run = |option: &str, value: &str| {
        kitfs.run(&["verify", &reference, "--key", key.to_str().unwrap(), option, value, "-o", "json"])
    };
    run("--max-signatures", "1000").expect(0);
    run("--max-signatures", "999").expect(6).says("at most 999");
    run("--max-signatures", "0").expect(2).says("--max-signatures");
    let plain = format!("oci:{}:1.0", folder.join("layouts/sig-p256").display());
    let run = |option: &str, value: &str| {
        kitfs.run(&["verify", &plain, "--key", key.to_str().unwrap(), option, value, "-o", "json"])
    };
    run("--max-signature-size", "10").expect(6).says("at most 10");
    run("--max-signature-size", "10kB").expect(0);
    let bundle = format!("oci:{}:1.0", folder.join("layouts/bundle-p256").display());
    kitfs
        .run(&["ls", &bundle, "--key", key.to_str().unwrap(), "--max-attestation-size", "100"])
        .expect(6)
        .says("at most 100");
    let config = kitfs.path("config.toml");
    std::fs::write(&config, "max-attestation-size = 100\n").unwrap();
    let words = ["ls", &bundle, "--key", key.to_str().unwrap(), "--config", config.to_str().unwrap()];
    kitfs.run(&words).expect(6).says("at most 100");
}

#[test]
fn signatures_in_a_cache_that_is_tampered_with_admit_nothing() {
    let Some((folder, _)) = table() else { return };
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let kitfs = Kitfs::new();
    let key = folder.join("keys/p256.pub").into_os_string().into_string().unwrap();
    let kits = ["sig-p256", "bundle-p256"].map(|layout| {
        push(&registry, &folder.join("layouts").join(layout), &folder, layout);
        let reference = format!("{}/{layout}:1.0", registry.host());
        kitfs.run(&["pull", &reference]).expect(0);
        reference
    });
    let list = |reference: &str| kitfs.run(&["ls", "--offline", reference, "--key", &key]);
    kits.iter().for_each(|kit| drop(list(kit).expect(0)));
    let kept = std::fs::read_dir(kitfs.path("cache/v1/material")).unwrap().flatten();
    let kept: Vec<_> = kept.map(|file| (file.path(), std::fs::read(file.path()).unwrap())).collect();
    assert!(kept.len() >= kits.len(), "{kept:?}");
    let mut random = Random::new(5);
    for round in 0..40 {
        for (number, (path, content)) in kept.iter().enumerate() {
            let mut bytes = content.clone();
            let at = random.below(bytes.len());
            match round % 4 {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes.truncate(at),
                2 => bytes.extend(content),
                _ => bytes.clone_from(&kept[(number + 1) % kept.len()].1),
            }
            std::fs::remove_file(path).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        for kit in &kits {
            let output = list(kit);
            assert!([6, 7].contains(&output.code) && output.stdout.is_empty(), "round {round}: {output}");
        }
    }
    // What the registry has is kept again.
    for kit in &kits {
        kitfs.run(&["ls", kit, "--key", &key]).expect(0);
        list(kit).expect(0);
    }
}

/// Pushes a layout into a registry, spoiled blobs too, which no registry would take: their whole twins from other
/// layouts go first, and are spoiled behind its back.
pub fn push(registry: &Registry, layout: &Path, folder: &Path, repository: &str) {
    let blobs = |layout: &Path| {
        let read = std::fs::read_dir(layout.join("blobs/sha256")).into_iter().flatten().flatten();
        read.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect::<BTreeMap<_, _>>()
    };
    let is_whole = |name: &str, path: &Path| Digest::of(&std::fs::read(path).unwrap()).hex() == name;
    let all = blobs(layout);
    let spoiled: Vec<_> = all.iter().filter(|(name, path)| !is_whole(name, path)).collect();
    if spoiled.is_empty() {
        return registry.push_all(layout, repository);
    }
    let mended = tempfile::tempdir().unwrap();
    copy(layout, mended.path());
    let others: Vec<_> =
        std::fs::read_dir(folder.join("layouts")).unwrap().flatten().map(|entry| blobs(&entry.path())).collect();
    for (name, _) in &spoiled {
        let twin = others.iter().filter_map(|blobs| blobs.get(*name)).find(|path| is_whole(name, path)).unwrap();
        std::fs::copy(twin, mended.path().join("blobs/sha256").join(name)).unwrap();
    }
    registry.push_all(mended.path(), repository);
    for (name, path) in spoiled {
        std::fs::copy(path, registry.blob(&format!("sha256:{name}"))).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let blobs = to.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for blob in std::fs::read_dir(from.join("blobs/sha256")).unwrap().flatten() {
        std::fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
    }
    for name in ["index.json", "oci-layout"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// The layout of a row that is too large to keep, made as its text says; none for other rows.
fn generated(row: &Row<'_>, kitfs: &Kitfs) -> Option<PathBuf> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let generate = row.case.get("generate")?;
    let to = kitfs.path(row.name());
    copy(&row.folder.join(generate["from"].as_str().unwrap()), &to);
    let blobs = to.join("blobs/sha256");
    let keep = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (Value::from(digest.to_string()), Value::from(bytes.len()))
    };
    let mut index: Value = serde_json::from_slice(&std::fs::read(to.join("index.json")).unwrap()).unwrap();
    let is_sig = |descriptor: &&mut Value| {
        descriptor["annotations"]["org.opencontainers.image.ref.name"].as_str().is_some_and(|it| it.ends_with(".sig"))
    };
    let descriptor = index["manifests"].as_array_mut().unwrap().iter_mut().find(is_sig).unwrap();
    let path = |digest: &Value| blobs.join(digest.as_str().unwrap().trim_start_matches("sha256:"));
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(path(&descriptor["digest"])).unwrap()).unwrap();
    let layer = manifest["layers"][0].clone();
    match generate["do"].as_str().unwrap() {
        "repeat-signature" => {
            let noisy = (0..generate["count"].as_u64().unwrap()).map(|number| {
                let mut layer = layer.clone();
                if generate["good_at"] != number {
                    let noise = format!("{:?}", Digest::of(&number.to_le_bytes()));
                    let noise = STANDARD.encode(&noise.as_bytes()[..70]);
                    layer["annotations"]["dev.cosignproject.cosign/signature"] = noise.into();
                }
                layer
            });
            manifest["layers"] = noisy.collect();
        }
        "big-payload" => {
            let mut payload: Value = serde_json::from_slice(&std::fs::read(path(&layer["digest"])).unwrap()).unwrap();
            payload["optional"] = serde_json::json!({"pad": ""});
            let missing = generate["size"].as_u64().unwrap() as usize - payload.to_string().len();
            payload["optional"]["pad"] = "a".repeat(missing).into();
            let (digest, size) = keep(payload.to_string().as_bytes());
            manifest["layers"][0]["digest"] = digest;
            manifest["layers"][0]["size"] = size;
        }
        other => panic!("{other} is not known"),
    }
    let (digest, size) = keep(manifest.to_string().as_bytes());
    descriptor["digest"] = digest;
    descriptor["size"] = size;
    std::fs::write(to.join("index.json"), index.to_string()).unwrap();
    Some(to)
}
