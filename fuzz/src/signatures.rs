//! What decides whether a kit is mounted: signatures, policies, and the log of what was decided.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use kitfs::audit;
use kitfs::audit::Anchor;
use kitfs::digest::Digest;
use kitfs::kit::name::KitPath;
use kitfs::policy::{Named, Policies, Request, Verdict};
use kitfs::store;
use kitfs::trust::{
    Findings, Limits, Material, Message, ModelSigners, PublicKey, TrustedRoot, examine, examine_artifact, examine_model,
};

/// The key that signed some of the seeds.
static KEY: LazyLock<PublicKey> =
    LazyLock::new(|| PublicKey::from_pem(include_bytes!("../data/key.pub")).expect("it is a key"));

/// The Sigstores of the others, as one.
pub(super) static ROOT: LazyLock<TrustedRoot> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), include_bytes!("../data/trusted_root.json")).expect("our own file");
    TrustedRoot::from_file(file.path()).expect("it is a root")
});

/// What the holders of the certificates in the seeds signed.
pub(super) const ARTIFACT: &[u8] = include_bytes!("../data/artifact.bin");

/// Who they are.
pub(super) const IDENTITY: &str = "release@acme.example (https://accounts.acme.example)";

/// Nothing that was not signed by these two becomes a signature.
fn check(findings: &Findings) {
    for endorsement in &findings.endorsements {
        let name = endorsement.signer().name();
        assert!(name == KEY.fingerprint() || name == IDENTITY, "{name}");
    }
    assert!(findings.rejected.iter().all(|rejected| !rejected.reason.is_empty()));
}

/// A Sigstore bundle: as the signature of a file, of a kit, and of a model.
pub fn bundle(data: &[u8]) {
    let (keys, limits) = ([KEY.clone()], Limits::default());
    let material = Material::of_bundle(data, "fuzz");
    let digest = Digest::of(b"a kit");
    check(&examine_artifact(&material, &Message::of(ARTIFACT), &keys, &ROOT, &limits));
    let of_kit = examine(&material, &digest, &keys, &ROOT, &limits);
    assert!(of_kit.endorsements.is_empty(), "nobody signed this kit");
    let signers = ModelSigners { keys: &keys, authorities: &[] };
    let (models, rejected) = examine_model(data, "fuzz", signers, &ROOT, &limits);
    assert!(!models.is_empty() || !rejected.is_empty());
}

/// What lies beside a manifest, as it is stored: payloads, envelopes, bundles, certificates, log entries.
pub fn material(data: &[u8]) {
    let Ok(material) = Material::of_bytes(data) else { return };
    let again = Material::of_bytes(&material.encode().expect("it was read")).expect("it was just written");
    assert_eq!(again, material);
    let findings = examine(&material, &Digest::of(b"a kit"), std::slice::from_ref(&KEY), &ROOT, &Limits::default());
    assert!(findings.endorsements.is_empty(), "nobody signed this kit");
}

/// A key whose owner signs anything.
static SIGNER: LazyLock<(Ed25519KeyPair, PublicKey)> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("it has 32 bytes");
    let spki = [&hex::decode("302a300506032b6570032100").expect("it is hexadecimal"), pair.public_key().as_ref()];
    let key = PublicKey::from_der(&spki.concat()).expect("it is a key");
    (pair, key)
});

/// What somebody signed, as cosign's payload, as a statement about a kit, and as one about the files of a model.
pub fn signature(data: &[u8]) {
    let (pair, key) = &*SIGNER;
    let (keys, limits, kit) = (std::slice::from_ref(key), Limits::default(), Digest::of(b"a kit"));
    let annotation = STANDARD.encode(pair.sign(data));
    let annotations = BTreeMap::from([("dev.cosignproject.cosign/signature", annotation)]);
    // As it would be stored: one item, found somewhere, of the first form, and nothing that is unusable.
    let item = ("fuzz", 0_u32, annotations, data.to_vec());
    let stored = postcard::to_extend(&(vec![item], Vec::<(String, String)>::new()), vec![1]).expect("it is data");
    let payload = Material::of_bytes(&stored).expect("it is the format of materials");

    let kind = "application/vnd.in-toto+json";
    let encoded = [format!("DSSEv1 {} {kind} {} ", kind.len(), data.len()).as_bytes(), data].concat();
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(data), "payloadType": kind,
            "signatures": [{"sig": STANDARD.encode(pair.sign(&encoded))}],
        },
    });
    let bundle = bundle.to_string().into_bytes();

    for material in [payload, Material::of_bundle(bundle.clone(), "fuzz")] {
        let findings = examine(&material, &kit, keys, &ROOT, &limits);
        assert_eq!(findings.endorsements.len() + findings.rejected.len(), 1);
        assert!(findings.endorsements.is_empty() || is_about(data, &kit), "it is not about the kit");
    }
    let files = [("a", 1), ("b/c", 6), ("empty", 0), ("m/a", 1), ("m/model.sig", 9)];
    let files = files.map(|(path, size)| (KitPath::parse(path.as_bytes()).expect("it is a path"), size));
    let files = BTreeMap::from(files);
    let (models, _) = examine_model(&bundle, "fuzz", ModelSigners { keys, authorities: &[] }, &ROOT, &limits);
    for model in models {
        let Ok(plan) = model.manifest.plan(&files, None) else { continue };
        for (path, size) in &files {
            let mut parts: Vec<_> = plan.parts.iter().filter(|part| part.path == *path).collect();
            parts.sort_by_key(|part| (part.range.start, part.range.end));
            let end = parts.iter().fold(0, |end, part| {
                assert_eq!(part.range.start, end, "parts tile a file");
                part.range.end
            });
            assert!(parts.is_empty() || end == *size, "all of a file is signed, or nothing");
        }
    }
}

/// Whether a digest of the manifest stands anywhere in the text, however it is escaped.
fn is_about(data: &[u8], kit: &Digest) -> bool {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return false };
    value.to_string().to_lowercase().contains(&kit.hex())
}

/// A policy, which then decides about an unsigned kit.
pub fn policy(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("policy.toml");
    std::fs::write(folder.path().join("key.pub"), include_bytes!("../data/key.pub")).expect("our own directory");
    std::fs::write(&file, data).expect("our own directory");
    if let Ok(policies) = Policies::of_file(&file) {
        assert_ne!(decide(&policies, b"{}", b"{}"), Verdict::None, "a policy that was read decides");
    }
}

/// A manifest and a Kitfile, one line each, as the input of Rego. What Rego cannot read refuses.
pub fn document(data: &[u8]) {
    static POLICIES: LazyLock<Policies> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let module = "package kitfs\nimport rego.v1\nallow if input.manifest.layers[0].size == 1\n";
        let rule = "version = 1\ndefault = \"deny\"\n[[rule]]\nmatch = \"**\"\n[[rule.rego]]\nfile = \"r.rego\"\n";
        std::fs::write(folder.path().join("r.rego"), module).expect("our own directory");
        std::fs::write(folder.path().join("policy.toml"), rule).expect("our own directory");
        Policies::of_file(&folder.path().join("policy.toml")).expect("it is a policy")
    });
    let line = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (manifest, kitfile) = data.split_at(line);
    let verdict = decide(&POLICIES, manifest, kitfile.get(1..).unwrap_or_default());
    assert!(matches!(verdict, Verdict::Allow | Verdict::Deny));
}

fn decide(policies: &Policies, manifest: &[u8], kitfile: &[u8]) -> Verdict {
    let request = Request {
        reference: "ghcr.io/acme/llm:v1",
        names: vec!["ghcr.io/acme/llm".into()],
        tag: Some("v1"),
        named: Named::Tag,
        digest: Digest::of(manifest),
        manifest,
        kitfile: Some(kitfile),
        parent: None,
        child: None,
    };
    policies.decide(&request, &Material::default(), &Limits::default()).verdict()
}

/// An audit log: every line is one or is not, and a log that this host did not write is told from one that it did.
pub fn audit(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = audit::default_file(folder.path());
    std::fs::write(&file, data).expect("our own directory");
    let read = audit::lines(&file).expect("it can be opened").filter(Result::is_ok).count();
    let verified = verify(&file, folder.path());
    assert!(verified.error.is_some() || verified.lines as usize <= read, "a line that holds can be read");
}

fn verify(file: &Path, state: &Path) -> audit::Verification {
    let key = store::local_key(&state.join("key")).expect("our own directory");
    audit::verify(file, state, key, &Anchor::default()).expect("it can be read")
}
