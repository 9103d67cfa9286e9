//! Signatures of the real cosign against a private Sigstore: what holds, and where they are looked for.
//!
//! The truth table stands in `fixtures/signed/cases.json`. Here its rows are asked of the library, with what a policy
//! would demand of them; what the commands make of it is tested in `signed`.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use kitfs::buffers::Buffers;
use kitfs::digest::Digest;
use kitfs::reference::Reference;
use kitfs::source::{Options, Source};
use kitfs::trust::{
    Certificate, Endorsement, Findings, Kind, Limits, Material, PublicKey, Signer, TrustedRoot, examine,
};
use regex::Regex;
use serde_json::Value;

use crate::support::kitfs::Kitfs;
use crate::support::shared::shared;

/// The table, and where it stands.
struct Table {
    folder: PathBuf,
    cases: Vec<Value>,
}

impl Table {
    fn open() -> Option<Self> {
        let folder = shared("fixtures/signed")?;
        let text = std::fs::read(folder.join("cases.json")).unwrap();
        let table: Value = serde_json::from_slice(&text).unwrap();
        Some(Self { folder, cases: table["cases"].as_array().unwrap().clone() })
    }

    /// The rows about kits whose signatures decide alone.
    fn about_kits(&self) -> impl Iterator<Item = Row<'_>> {
        let other = ["content", "arguments", "blob", "generated"];
        let rows = self.cases.iter().filter(move |case| !other.contains(&case["kind"].as_str().unwrap()));
        rows.map(|case| Row { case, folder: &self.folder })
    }
}

/// One row about a kit.
struct Row<'a> {
    case: &'a Value,
    folder: &'a Path,
}

/// Whom a row asks for.
enum Wanted {
    Key(String),
    Holder(Regex, Regex),
}

impl Row<'_> {
    fn name(&self) -> &str {
        self.case["name"].as_str().unwrap()
    }

    fn layout(&self) -> (&str, &str) {
        let reference = self.case["ref"].as_str().unwrap().strip_prefix("oci:layouts/").unwrap();
        let at = reference.find([':', '@']).unwrap();
        reference.split_at(at)
    }

    fn reference(&self) -> String {
        let (layout, version) = self.layout();
        format!("oci:{}{version}", self.folder.join("layouts").join(layout).display())
    }

    fn arguments(&self) -> impl Iterator<Item = (&str, &str)> {
        let arguments = self.case["args"].as_array().unwrap();
        arguments.chunks(2).map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
    }

    fn key(&self, path: &str) -> PublicKey {
        PublicKey::from_pem(&std::fs::read(self.folder.join(path)).unwrap()).unwrap()
    }

    /// All keys of the instance, as if they all were trusted: who made what must come out right.
    fn keys(&self) -> Vec<PublicKey> {
        ["ed25519", "p256-other", "p256", "p384", "rsa2048"].map(|name| self.key(&format!("keys/{name}.pub"))).into()
    }

    fn root(&self) -> TrustedRoot {
        let given = self.arguments().find(|(name, _)| *name == "--trusted-root").map(|(_, file)| file);
        match given.or(self.case["policy"]["trusted_root"].as_str()) {
            Some(file) => TrustedRoot::from_file(&self.folder.join(file)).unwrap(),
            None => TrustedRoot::embedded().unwrap(),
        }
    }

    /// Whom the flags ask for: any of them.
    fn wanted(&self) -> Vec<Wanted> {
        let (mut wanted, mut identity, mut issuer) = (Vec::new(), None, None);
        let whole = |text: &str| Regex::new(&format!(r"\A(?:{text})\z")).unwrap();
        for (name, value) in self.arguments() {
            match name {
                "--key" => wanted.push(Wanted::Key(self.key(value).fingerprint())),
                "--certificate-identity" => identity = Some(whole(&regex::escape(value))),
                "--certificate-identity-regexp" => identity = Some(whole(value)),
                "--certificate-oidc-issuer" => issuer = Some(whole(&regex::escape(value))),
                "--certificate-oidc-issuer-regexp" => issuer = Some(whole(value)),
                _ => {}
            }
        }
        wanted.extend(identity.zip(issuer).map(|(identity, issuer)| Wanted::Holder(identity, issuer)));
        wanted
    }

    fn is_by(&self, block: &Value, endorsement: &Endorsement) -> bool {
        match (block["key"].as_str(), endorsement.signer()) {
            (Some(key), signer) => signer.name() == self.key(key).fingerprint(),
            (None, Signer::Certificate(Certificate { identity, issuer, .. })) => {
                block["identity"] == identity.as_str() && block["issuer"] == issuer.as_str()
            }
            (None, Signer::Key { .. } | Signer::Certified { .. }) => false,
        }
    }

    /// What the row's flags and its policy say to what was found.
    fn accepts(&self, findings: &Findings) -> bool {
        let signatures = || findings.endorsements.iter().filter(|endorsement| *endorsement.kind() == Kind::Signature);
        let wanted = self.wanted();
        let by_flags = wanted.is_empty() || signatures().any(|it| wanted.iter().any(|wanted| wanted.is(it)));
        let signature = &self.case["policy"]["signature"];
        let by_signature = signature.is_null()
            || signatures().any(|it| {
                let annotations: BTreeMap<String, String> =
                    serde_json::from_value(signature["annotations"].clone()).unwrap_or_default();
                self.is_by(signature, it)
                    && (signature["log"] != true || it.log().is_some())
                    && annotations.iter().all(|(name, value)| it.annotations().get(name) == Some(value))
            });
        let attestation = &self.case["policy"]["attestation"];
        let by_attestation = attestation.is_null()
            || findings.endorsements.iter().any(|it| {
                let Some(statement) = it.attestation() else { return false };
                let condition = &attestation["where"];
                attestation["predicateType"] == statement.predicate_type.as_str()
                    && self.is_by(attestation, it)
                    && (condition.is_null()
                        || statement.raw.pointer(condition["pointer"].as_str().unwrap()) == Some(&condition["equals"]))
            });
        by_flags && by_signature && by_attestation
    }
}

impl Wanted {
    fn is(&self, endorsement: &Endorsement) -> bool {
        match (self, endorsement.signer()) {
            (Self::Key(wanted), Signer::Key { fingerprint }) => wanted == fingerprint,
            (Self::Holder(wanted, by), Signer::Certificate(Certificate { identity, issuer, .. })) => {
                wanted.is_match(identity) && by.is_match(issuer)
            }
            _ => false,
        }
    }
}

/// Looks for what lies beside a kit.
async fn collect(reference: &str) -> (Digest, Material) {
    let reference: Reference = reference.parse().unwrap();
    let timeout = Duration::from_secs(20);
    let options = Options { plain_http: false, ca_cert: Vec::new(), registry_config: None, timeout };
    let source = Source::open(&reference, &options, &Buffers::new(1)).await.unwrap();
    let digest = source.resolve().await.unwrap();
    (digest, Material::collect(&source, &digest, &Limits::default()).await.unwrap())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_truth_table_holds_whoever_else_is_trusted() {
    let Some(table) = Table::open() else { return };
    let runtime = runtime();
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for row in table.about_kits() {
        let (digest, material) = runtime.block_on(collect(&row.reference()));
        // What is stored beside a kit is what was found.
        let material = Material::of_bytes(&material.encode().unwrap()).unwrap();
        let findings = examine(&material, &digest, &row.keys(), &row.root(), &Limits::default());
        let (accepts, expected) = (row.accepts(&findings), &row.case["expect"]);
        asked += 1;
        if *expected != "either" && accepts != (*expected == "accept") {
            let rejected: Vec<_> = findings.rejected.iter().map(|it| format!("{}: {}", it.found, it.reason)).collect();
            let held: Vec<_> =
                findings.endorsements.iter().map(|it| (it.signer().name(), it.log().is_some())).collect();
            wrong.push(format!("{}: should {expected}; held {held:?}; rejected {rejected:?}", row.name()));
        }
    }
    assert!(asked > 100, "{asked} rows");
    assert!(wrong.is_empty(), "{} of {asked} rows are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn bundles_of_files_hold_for_the_right_file_and_signer() {
    let Some(table) = Table::open() else { return };
    let kitfs = Kitfs::new();
    for case in table.cases.iter().filter(|case| case["kind"] == "blob") {
        let mut arguments = vec!["verify-bundle"];
        arguments.extend(case["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()));
        let exit = case["exit"].as_i64().unwrap() as i32;
        eprintln!("{}", case["name"]);
        kitfs.command(&arguments).current_directory(&table.folder).run().expect(exit);
    }
}

#[test]
fn extensions_of_a_certificate_can_be_read() {
    let Some(table) = Table::open() else { return };
    let row = table.about_kits().find(|row| row.name() == "keyless-github").unwrap();
    let (digest, material) = runtime().block_on(collect(&row.reference()));
    let findings = examine(&material, &digest, &[], &row.root(), &Limits::default());
    let [endorsement] = &findings.endorsements[..] else { panic!("{findings:?}") };
    let Signer::Certificate(certificate) = endorsement.signer() else { panic!("{endorsement:?}") };
    assert_eq!(certificate.extensions["source_repository_uri"], "https://github.com/acme/models");
    assert!(certificate.extensions.contains_key("build_trigger"), "{certificate:?}");
    assert!(endorsement.logged_at().is_some());
    assert_eq!(endorsement.subject(), Some(&digest));
}

/// A registry that answers as it is told to, one request a connection, and says what it was asked.
pub struct Script {
    pub host: String,
    asked: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

/// Status, further headers, body.
pub type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

impl Script {
    pub fn run(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        use std::io::{BufRead as _, BufReader, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let log = std::sync::Arc::clone(&asked);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                // Whoever tries TLS first sends no line that is text.
                let Some(first) = lines.next().filter(|line| line.contains("HTTP/1.1")) else { continue };
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
                log.lock().unwrap().push(target.clone());
                let (status, headers, body) = answer(&target);
                let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
                stream.write_all(head.as_bytes()).ok();
                if !first.starts_with("HEAD ") {
                    stream.write_all(&body).ok();
                }
            }
        });
        Self { host, asked }
    }

    fn collect(&self, manifest: &Digest) -> Result<Material, kitfs::trust::TrustError> {
        let reference: Reference = format!("{}/kit@{manifest}", self.host).parse().unwrap();
        let timeout = Duration::from_secs(3);
        let options = Options { plain_http: true, ca_cert: Vec::new(), registry_config: None, timeout };
        runtime().block_on(async {
            let source = Source::open(&reference, &options, &Buffers::new(1)).await.unwrap();
            Material::collect(&source, manifest, &Limits::default()).await
        })
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index_of(digests: &[Digest]) -> Vec<u8> {
    let manifests: Vec<_> = digests.iter().map(|digest| serde_json::json!({"digest": digest, "size": 1})).collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes()
}

#[test]
fn a_registry_that_fails_is_not_one_without_signatures() {
    let manifest = Digest::of(b"kit");
    for (failing, status, exit) in [
        (".sig", 500, 7),
        (".att", 403, 4),
        ("/referrers/", 503, 7),
        ("/referrers/", 403, 4),
        ("/manifests/sha256-", 401, 4),
        ("/referrers/", 401, 4),
    ] {
        let script = Script::run(move |target| match target.contains(failing) {
            true => (status, Vec::new(), Vec::new()),
            false => (404, Vec::new(), Vec::new()),
        });
        let error = script.collect(&manifest).unwrap_err();
        assert_eq!(error.fault().exit_code(), exit, "{failing} {status}: {error:?}");
    }
    let nothing = Script::run(|_| (404, Vec::new(), Vec::new()));
    assert!(nothing.collect(&manifest).unwrap().is_empty());
}

#[test]
fn a_list_of_referrers_is_read_page_by_page() {
    let bundle = b"{}".to_vec();
    let referrer = |number: u8| {
        let layer = serde_json::json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "digest": Digest::of(b"{}"), "size": 2,
        });
        serde_json::json!({"layers": [layer], "annotations": {"number": number.to_string()}}).to_string().into_bytes()
    };
    let (first, second) = (referrer(1), referrer(2));
    let (of_first, of_second) = (Digest::of(&first), Digest::of(&second));
    let script = Script::run(move |target| {
        let kind = vec![("Content-Type", INDEX.to_owned())];
        let next = ("Link", r#"</v2/kit/referrers/x?n=1&last=a>; rel="next""#.to_owned());
        match target {
            _ if target.contains("/referrers/") && target.ends_with("last=a") => (200, kind, index_of(&[of_second])),
            _ if target.contains("/referrers/") => (200, [kind, vec![next]].concat(), index_of(&[of_first])),
            _ if target.ends_with(&of_first.to_string()) => (200, Vec::new(), first.clone()),
            _ if target.ends_with(&of_second.to_string()) => (200, Vec::new(), second.clone()),
            _ if target.contains("/blobs/") => (200, Vec::new(), bundle.clone()),
            _ => (404, Vec::new(), Vec::new()),
        }
    });
    let manifest = Digest::of(b"kit");
    let material = script.collect(&manifest).unwrap();
    let findings = examine(&material, &manifest, &[], &TrustedRoot::embedded().unwrap(), &Limits::default());
    assert_eq!(findings.rejected.len(), 2, "{findings:?}");
    let asked = script.asked.lock().unwrap();
    assert!(asked.iter().any(|target| target.starts_with(&format!("/v2/kit/referrers/{manifest}?n=1"))), "{asked:?}");
}

#[test]
fn what_lies_beside_a_kit_does_not_fill_the_memory() {
    let layers: Vec<_> = (0..6_u8)
        .map(|number| {
            let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
            serde_json::json!({"mediaType": kind, "digest": Digest::of(&[number]), "size": 15 << 20})
        })
        .collect();
    let referrer = serde_json::json!({ "layers": layers }).to_string().into_bytes();
    let of_referrer = Digest::of(&referrer);
    let script = Script::run(move |target| match target {
        _ if target.contains("/referrers/") => {
            (200, vec![("Content-Type", INDEX.to_owned())], index_of(&[of_referrer]))
        }
        _ if target.ends_with(&of_referrer.to_string()) => (200, Vec::new(), referrer.clone()),
        _ => (404, Vec::new(), Vec::new()),
    });
    let manifest = Digest::of(b"kit");
    let material = script.collect(&manifest).unwrap();
    let findings = examine(&material, &manifest, &[], &TrustedRoot::embedded().unwrap(), &Limits::default());
    let reasons: Vec<_> = findings.rejected.iter().map(|rejected| rejected.reason.as_str()).collect();
    assert_eq!(reasons.iter().filter(|reason| reason.contains("bytes of signatures and attestations")).count(), 2);
    assert_eq!(reasons.len(), 6, "{reasons:?}");
    let asked = script.asked.lock().unwrap();
    assert!(!asked.iter().any(|target| target.ends_with(&Digest::of(&[5]).to_string())), "{asked:?}");
}

#[test]
fn a_bundle_with_a_flipped_bit_never_names_another_signer() {
    use kitfs::trust::{Message, examine_artifact};
    let Some(table) = Table::open() else { return };
    let root = TrustedRoot::from_file(&table.folder.join("trusted_root.json")).unwrap();
    let keys = [PublicKey::from_pem(&std::fs::read(table.folder.join("keys/p256.pub")).unwrap()).unwrap()];
    let artifact = std::fs::read(table.folder.join("blobs/artifact.bin")).unwrap();
    let message = Message::of(&artifact);
    for name in ["key.json", "key-rekor1.json", "email-rekor1.json", "email-rekor2.json"] {
        let bundle = std::fs::read(table.folder.join("blobs").join(name)).unwrap();
        let who = |bundle: &[u8]| -> Vec<String> {
            let material = Material::of_bundle(bundle, name);
            let findings = examine_artifact(&material, &message, &keys, &root, &Limits::default());
            findings.endorsements.iter().map(|it| it.signer().name()).collect()
        };
        let signer = who(&bundle);
        assert_eq!(signer.len(), 1, "{name}");
        for at in (0..bundle.len()).step_by(5) {
            let mut flipped = bundle.clone();
            flipped[at] ^= 1 << (at % 8);
            let found = who(&flipped);
            assert!(found.is_empty() || found == signer, "{name} {at}: {found:?}");
            assert!(who(&bundle[..at]).is_empty(), "{name} cut at {at}");
        }
    }
}
