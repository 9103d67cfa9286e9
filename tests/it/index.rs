//! Published indexes: made, signed, pushed beside a kit or named by it, admitted or passed over, and found false.

use std::path::{Path, PathBuf};
use std::process::Command;

use kitfs::digest::Digest;
use kitfs::kit::index::{IndexKind, Published};
use kitfs::kit::media::Compression as Compressed;
use kitfs::trust::SigningKey;
use kitfs::verify::Unverified;
use serde_json::{Value, json};

use crate::support::host;
use crate::support::kit::{Base, Compression, Kit, Layout, Packed, Packing, file, flip, noise};
use crate::support::kitfs::Kitfs;
use crate::support::registry::{Access, Registry};
use crate::support::tree::Tree;

const INDEX: &str = "application/vnd.kitfs.index.v1";
const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A pair of keys in files.
struct Keys {
    private: PathBuf,
    public: PathBuf,
}

impl Keys {
    /// Makes a pair as openssl does.
    fn new(kitfs: &Kitfs, name: &str) -> Self {
        let keys = Self { private: kitfs.path(&format!("{name}.key")), public: kitfs.path(&format!("{name}.pub")) };
        let openssl = |arguments: &[&str], from: &Path, to: &Path| {
            let ran = Command::new("openssl").args(arguments).arg(from).arg("-out").arg(to).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        };
        let kind = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-outform"];
        openssl(&kind, Path::new("PEM"), &keys.private);
        openssl(&["pkey", "-pubout", "-in"], &keys.private, &keys.public);
        keys
    }

    fn private(&self) -> &str {
        self.private.to_str().unwrap()
    }

    fn public(&self) -> &str {
        self.public.to_str().unwrap()
    }
}

/// A registry with a kit in it.
struct Case {
    registry: Registry,
    kit: Packed,
    reference: String,
    kitfs: Kitfs,
}

impl Case {
    fn new(packing: Packing) -> Option<Self> {
        let registry = Registry::start(Access::Plain)?;
        if !host::has("openssl") {
            return None;
        }
        let kitfs = Kitfs::new();
        let kit = Kit::usual("usual").packing(packing).pack();
        let layout = Layout::of(kitfs.path("layout"), &kit);
        let reference = registry.push(layout.path(), "acme/kit", "v1");
        Some(Self { registry, kit, reference, kitfs })
    }

    /// Which layers somebody has asked the registry for since it had answered so many requests.
    fn layers_asked_since(&self, before: usize) -> Vec<String> {
        let asked = self.registry.requests().into_iter().skip(before);
        asked.filter(|line| self.kit.layers.iter().any(|layer| line.contains(&layer.digest))).collect()
    }

    /// Lists the kit with an empty cache; the files, and the requests for layers that it took.
    #[track_caller]
    fn list(&self, reference: &str, arguments: &[&str]) -> (Value, Vec<String>, String) {
        let fresh = Kitfs::new();
        let before = self.registry.requests().len();
        let words = [&["ls", "-R", reference, "--output", "json"], arguments].concat();
        let listed = fresh.run(&words).expect(0);
        (listed.json(), self.layers_asked_since(before), listed.stderr)
    }

    /// The manifest under a tag or digest.
    fn manifest(&self, at: &str) -> Value {
        serde_json::from_slice(&self.registry.get(&format!("/v2/acme/kit/manifests/{at}"))).unwrap()
    }

    fn fallback_tag(&self) -> String {
        self.kit.digest().replace(':', "-")
    }
}

fn read(path: &Path) -> (Digest, Published) {
    let bytes = std::fs::read(path).unwrap();
    let digest = Digest::of(&bytes);
    let published = Unverified::new(bytes).verify(&digest).unwrap().parse::<Published>().unwrap();
    (digest, (*published).clone())
}

#[test]
fn an_index_in_a_file_agrees_with_fsverity() {
    if !host::has("fsverity") {
        return;
    }
    for packing in [Compression::None, Compression::Gzip, Compression::Zstd].map(Packing::Tar) {
        let kitfs = Kitfs::new();
        let kit = Kit::usual("usual").packing(packing).pack();
        let layout = Layout::of(kitfs.path("layout"), &kit);
        let (index, files) = (kitfs.path("kit.index"), kitfs.next_directory());
        let made = kitfs.run(&["index", &layout.reference("v1"), "--output", index.to_str().unwrap()]).expect(0);
        let (digest, published) = read(&index);
        assert!(made.text().contains(&digest.to_string()), "{made}");
        assert_eq!(published.layers().len(), kit.layers.len());
        kitfs.run(&["export", &layout.reference("v1"), files.to_str().unwrap()]).expect(0);
        let mut compared = 0;
        for entry in published.layers().iter().flat_map(kitfs::kit::index::Index::entries) {
            let IndexKind::File { tree, .. } = &entry.kind else { continue };
            let path = files.join(entry.path.to_string());
            let ran = Command::new("fsverity").args(["digest", "--compact"]).arg(path).output().unwrap();
            assert_eq!(String::from_utf8(ran.stdout).unwrap().trim(), tree.verity.hex(), "{packing:?} {}", entry.path);
            compared += 1;
        }
        assert_eq!(compared, 7);
    }
}

#[test]
fn an_index_is_compact_and_knows_where_to_begin() {
    let kitfs = Kitfs::new();
    let files = [file("model/a.bin", noise(1, 6 << 20)), file("model/b.bin", noise(2, 6 << 20))];
    for (compression, most) in [(Compression::None, 3000), (Compression::Gzip, 6000)] {
        let kit =
            Kit::named("large").packing(Packing::Tar(compression)).with(Base::Model, "model", files.clone()).pack();
        let layout = Layout::of(kitfs.path(&format!("{compression:?}")), &kit);
        let index = kitfs.path("kit.index");
        kitfs.run(&["index", &layout.reference("v1"), "--output", index.to_str().unwrap()]).expect(0);
        let (_, published) = read(&index);
        let [layer] = published.layers() else { panic!("one layer") };
        assert_eq!(layer.seek().points().is_empty(), layer.reading().compression == Compressed::None);
        let size = std::fs::metadata(&index).unwrap().len();
        assert!(size < most, "{compression:?}: {size} bytes for 12 MiB");
    }
}

#[test]
fn a_signed_referrer_lists_a_kit_without_its_layers() {
    for packing in [Packing::Tar(Compression::None), Packing::Tar(Compression::Gzip)] {
        let Some(mut case) = Case::new(packing) else { return };
        let (ours, others) = (Keys::new(&case.kitfs, "ours"), Keys::new(&case.kitfs, "others"));
        let made = ["index", &case.reference, "--attach", "--sign-key", ours.private()];
        let made = case.kitfs.run(&made).expect(0);
        assert!(made.text().contains("attached") && made.text().contains("signed"), "{made}");

        let (whole, layers, _) = case.list(&case.reference, &[]);
        assert!(!layers.is_empty(), "without anybody who may sign one, no index counts");
        let names = |listed: &Value| {
            let entries = listed["entries"].as_array().unwrap().iter();
            entries.map(|entry| (entry["path"].clone(), entry["size"].clone())).collect::<Vec<_>>()
        };
        let (listed, layers, said) = case.list(&case.reference, &["--index-key", ours.public()]);
        assert_eq!((names(&listed), layers), (names(&whole), vec![]), "{said}");
        let (_, layers, said) = case.list(&case.reference, &["--index-key", others.public()]);
        assert!(!layers.is_empty() && said.contains("not used"), "{said}");

        let policy = case.kitfs.path("policy.toml");
        for (key, is_used) in [("ours.pub", true), ("others.pub", false)] {
            let text = format!(
                "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"{}/acme/**\"\nindexes = [{{ key = \"{key}\" }}]\n",
                case.registry.host()
            );
            std::fs::write(&policy, text).unwrap();
            let (_, layers, said) = case.list(&case.reference, &["--policy", policy.to_str().unwrap()]);
            assert_eq!(layers.is_empty(), is_used, "{key}: {said}");
        }

        let fresh = Kitfs::new();
        let inspect = |key: &Keys| {
            let words = ["inspect", &case.reference, "--index-key", key.public(), "--output", "json"];
            fresh.run(&words).expect(0).json()["index"].clone()
        };
        let index = inspect(&others);
        assert!(index["admitted"] == false && index["error"].as_str().unwrap().contains("not used"), "{index}");
        let index = inspect(&ours);
        assert!(index["admitted"] == true && index["by"] == "signature", "{index}");
        let signer = index["signers"][0].as_str().unwrap().to_owned();
        let shown = fresh.run(&["audit", "show", "--event", "index-admitted", "--output", "json"]).expect(0).json();
        let event = &shown["events"][0];
        assert_eq!((&event["index"], &event["identities"][0]), (&index["digest"], &json!(signer)), "{shown}");
        assert_eq!(event["digest"], case.kit.digest(), "{shown}");

        // What is kept counts by the policy of the time.
        case.registry.stop();
        let offline = |key: &Keys| fresh.run(&["ls", &case.reference, "--offline", "--index-key", key.public()]);
        offline(&ours).expect(0);
        offline(&others).expect(7);
        // A registry that is gone is noticed.
        fresh.run(&["ls", &case.reference, "--index-key", ours.public()]).expect(0);
    }
}

#[test]
fn nobody_believes_an_index_that_nobody_signed() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let keys = Keys::new(&case.kitfs, "ours");
    let key = ["--index-key", keys.public()];
    case.kitfs.run(&["index", &case.reference, "--attach"]).expect(0);
    let (_, layers, said) = case.list(&case.reference, &key);
    assert!(!layers.is_empty() && said.contains("not signed"), "{said}");

    // A signed index of another kit does not become one of this kit by being listed beside it.
    let other = Kit::usual("other").with(Base::Docs, "more.md", [file("more.md", *b"more")]).pack();
    let layout = Layout::of(case.kitfs.path("other"), &other);
    let reference = case.registry.push(layout.path(), "acme/kit", "other");
    case.kitfs.run(&["index", &reference, "--attach", "--sign-key", keys.private()]).expect(0);
    let mut foreign = case.manifest(&other.digest().replace(':', "-"));
    foreign["manifests"].as_array_mut().unwrap().retain(|listed| listed["artifactType"] == INDEX);
    case.registry.push_manifest("acme/kit", &case.fallback_tag(), IMAGE_INDEX, foreign.to_string().into_bytes());
    let (_, layers, said) = case.list(&case.reference, &key);
    assert!(!layers.is_empty() && said.contains("not about this kit"), "{said}");
}

#[test]
fn an_index_that_was_tampered_with_is_passed_over() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let keys = Keys::new(&case.kitfs, "ours");
    case.kitfs.run(&["index", &case.reference, "--attach", "--sign-key", keys.private()]).expect(0);
    let carrier = case.manifest(&case.fallback_tag())["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let index = case.manifest(&carrier)["layers"][0]["digest"].as_str().unwrap().to_owned();
    flip(&case.registry.blob(&index));
    let (_, layers, said) = case.list(&case.reference, &["--index-key", keys.public()]);
    assert!(!layers.is_empty() && said.contains("does not match its digest"), "{said}");
}

#[test]
fn what_refers_to_a_kit_already_is_still_listed() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let listed = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": case.kit.digest(), "size": 1, "artifactType": "application/x", "annotations": {"k": "v"}});
    let list = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [listed], "annotations": {"a": "b"}});
    case.registry.push_manifest("acme/kit", &case.fallback_tag(), IMAGE_INDEX, list.to_string().into_bytes());
    for _ in 0..2 {
        case.kitfs.run(&["index", &case.reference, "--attach"]).expect(0);
    }
    let now = case.manifest(&case.fallback_tag());
    let kinds: Vec<_> = now["manifests"].as_array().unwrap().iter().map(|one| one["artifactType"].clone()).collect();
    assert_eq!(kinds, ["application/x", INDEX], "{now}");
    assert_eq!((&now["manifests"][0], &now["annotations"]), (&listed, &json!({"a": "b"})));
}

#[test]
fn a_manifest_that_names_its_index_needs_no_key() {
    let Some(case) = Case::new(Packing::Tar(Compression::Gzip)) else { return };
    let keys = Keys::new(&case.kitfs, "ours");
    let words = ["index", &case.reference, "--embed", "lazy", "--sign-key", keys.private()];
    case.kitfs.run(&words).expect(0);
    let mut named = case.manifest("lazy");
    for layer in named["layers"].as_array_mut().unwrap() {
        let annotations = layer["annotations"].as_object_mut().unwrap();
        assert!(
            annotations.remove("dev.kitfs.index.digest").is_some()
                && annotations.remove("dev.kitfs.index.size").is_some()
        );
    }
    let kit: Value = serde_json::from_slice(&case.kit.manifest_bytes()).unwrap();
    assert_eq!(named.to_string(), kit.to_string(), "annotations only");
    let reference = format!("{}/acme/kit:lazy", case.registry.host());
    let (_, layers, said) = case.list(&reference, &[]);
    assert_eq!(layers, Vec::<String>::new(), "{said}");
    // The manifest is signed too, so a policy about the kit holds.
    let fresh = Kitfs::new();
    fresh.run(&["ls", &reference, "--key", keys.public()]).expect(0);
    if host::can_mount() {
        let mount = fresh.mount(&reference);
        Tree::read(mount.path()).without("Kitfile").assert_is(&case.kit.tree, "mounted by its index");
        mount.unmount();
    }
    fresh.run(&["verify", &reference]).expect(0);
}

#[test]
fn a_node_that_pulled_a_kit_endorses_it_for_the_others() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let keys = Keys::new(&case.kitfs, "node");
    let words = ["pull", &case.reference, "--attach-index", "--sign-key", keys.private(), "--output", "json"];
    let document = case.kitfs.run(&words).expect(0).json();
    assert!(document["attached_index"].is_string(), "{document}");
    let (_, layers, said) = case.list(&case.reference, &["--index-key", keys.public()]);
    assert_eq!(layers, Vec::<String>::new(), "{said}");
}

#[test]
fn a_registry_that_wants_a_password_gets_it() {
    let Some(registry) = Registry::start(Access::Password) else { return };
    let kitfs = Kitfs::new();
    let kit = Kit::usual("usual").pack();
    let layout = Layout::of(kitfs.path("layout"), &kit);
    let reference = registry.push(layout.path(), "acme/kit", "v1");
    let (authority, credentials) = (registry.authority(), registry.credentials());
    let access = ["--ca-cert", authority.to_str().unwrap(), "--registry-config", credentials.to_str().unwrap()];
    kitfs.run(&[&["index", &reference, "--attach"], &access[..]].concat()).expect(0);
    let index = kitfs.run(&[&["inspect", &reference, "--output", "json"], &access[..]].concat()).expect(0).json();
    assert_eq!(index["index"]["admitted"], false, "{index}");
    kitfs.run(&["index", &reference, "--attach", "--ca-cert", authority.to_str().unwrap()]).expect(4);
}

#[test]
fn an_index_in_a_file_counts_where_somebody_signed_it() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let (ours, others) = (Keys::new(&case.kitfs, "ours"), Keys::new(&case.kitfs, "others"));
    let path = case.kitfs.path("kit.index");
    let file = path.to_str().unwrap();
    case.kitfs.run(&["index", &case.reference, "--output", file, "--sign-key", ours.private()]).expect(0);
    let (_, layers, said) = case.list(&case.reference, &["--index", file, "--index-key", ours.public()]);
    assert_eq!(layers, Vec::<String>::new(), "{said}");
    let fresh = Kitfs::new();
    let refused = |arguments: &[&str], code| {
        fresh.run(&[&["ls", &case.reference, "--index", file], arguments].concat()).expect(code)
    };
    refused(&[], 6).says("no policy says who may sign one");
    refused(&["--index-key", others.public()], 6).says("refused");
    std::fs::remove_file(case.kitfs.path("kit.index.sigstore.json")).unwrap();
    refused(&["--index-key", ours.public()], 6).says("not signed");
    std::fs::write(&path, b"no index").unwrap();
    refused(&["--index-key", ours.public()], 2).says("does not begin as one");
    std::fs::remove_file(&path).unwrap();
    refused(&["--index-key", ours.public()], 2);
}

#[test]
fn a_false_index_is_found_and_never_used_again() {
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let keys = Keys::new(&case.kitfs, "ours");
    let path = case.kitfs.path("kit.index");
    let file = path.to_str().unwrap();
    for command in ["verify", "pull"] {
        case.kitfs.run(&["index", &case.reference, "--output", file]).expect(0);
        // The last unit of the last file is another one, and somebody trusted signs that.
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= if command == "verify" { 1 } else { 2 };
        std::fs::write(&path, &bytes).unwrap();
        let bundle = SigningKey::read(&keys.private, None).unwrap().endorse(&Digest::of(&bytes)).unwrap();
        std::fs::write(case.kitfs.path("kit.index.sigstore.json"), bundle).unwrap();
        let run = |fresh: &Kitfs, command: &str| {
            fresh.run(&[command, &case.reference, "--index", file, "--index-key", keys.public()])
        };
        let fresh = Kitfs::new();
        run(&fresh, command).expect(5).says("expected sha256:").says("got sha256:");
        run(&fresh, command).expect(2).says("found to be false on this host");
        fresh.run(&[command, &case.reference]).expect(0);
        // A layer that was proved before tells at once.
        let fresh = Kitfs::new();
        fresh.run(&["pull", &case.reference]).expect(0);
        run(&fresh, command).expect(5);
    }
}

#[test]
fn only_a_registry_is_pushed_to() {
    let kitfs = Kitfs::new();
    let layout = Layout::of(kitfs.path("layout"), &Kit::usual("usual").pack());
    let reference = layout.reference("v1");
    for arguments in [
        &["index", &reference, "--attach"][..],
        &["index", &reference, "--embed", "v2"],
        &["pull", &reference, "--attach-index"],
        &["index", "127.0.0.1:1/acme/kit", "--embed", "no tag"],
        &["index", &reference, "--sign-key", "nothing"],
    ] {
        kitfs.run(arguments).expect(2);
    }
    let made = kitfs.run(&["index", &reference]).expect(0);
    assert!(made.text().starts_with("index      sha256:"), "{made}");
}

/// The real cosign, where it is installed.
#[test]
fn cosign_accepts_what_is_signed() {
    let Some(cosign) = host::find("cosign") else {
        return host::note("cosign is not installed; scripts/test installs it where Go is");
    };
    let Some(case) = Case::new(Packing::Tar(Compression::None)) else { return };
    let (ours, others) = (Keys::new(&case.kitfs, "ours"), Keys::new(&case.kitfs, "others"));
    let words = ["index", &case.reference, "--attach", "--embed", "lazy", "--sign-key", ours.private()];
    case.kitfs.run(&[&words[..], &["--output", case.kitfs.path("kit.index").to_str().unwrap()]].concat()).expect(0);
    let carrier = case.manifest(&case.fallback_tag())["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let host = case.registry.host();
    for at in [format!("{host}/acme/kit@{carrier}"), format!("{host}/acme/kit:lazy")] {
        for (key, holds) in [(&ours, true), (&others, false)] {
            let mut command = case.kitfs.other(&cosign);
            command.args([
                "verify",
                "--key",
                key.public(),
                "--insecure-ignore-tlog=true",
                "--allow-insecure-registry",
                &at,
            ]);
            let ran = command.output().unwrap();
            assert_eq!(ran.status.success(), holds, "{at}: {}", String::from_utf8_lossy(&ran.stderr));
        }
    }
}
