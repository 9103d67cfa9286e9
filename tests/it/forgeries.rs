//! Forgeries: signatures that hold, changed by somebody who has none of the keys.
//!
//! Fresh ones by the real cosign, where it is installed, with every kind of key; and certificates with log entries
//! from the fixtures, which nobody can make here.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kitfs::digest::Digest;
use kitfs::trust::{Limits, Material, PublicKey, TrustedRoot, examine};
use serde_json::{Value, json};

use crate::support::host;
use crate::support::kit::{Base, Kit, Layout, Packed, file};
use crate::support::kitfs::Kitfs;
use crate::support::registry::{Access, Registry};
use crate::support::shared::shared;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A registry, and the real cosign that signs in it.
struct Notary {
    cosign: std::path::PathBuf,
    registry: Registry,
    kitfs: Kitfs,
}

impl Notary {
    fn new() -> Option<Self> {
        let Some(cosign) = host::find("cosign") else {
            host::note("cosign is not installed; scripts/test installs it where Go is");
            return None;
        };
        let registry = Registry::start(Access::Plain)?;
        host::has("openssl").then(|| Self { cosign, registry, kitfs: Kitfs::new() })
    }

    fn run(&self, command: &mut Command) {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A pair of keys as `openssl genpkey` makes them, imported into cosign; the path of the public one.
    fn key(&self, name: &str, kind: &[&str]) -> String {
        let path = |end: &str| self.kitfs.path(&format!("{name}.{end}"));
        self.run(Command::new("openssl").arg("genpkey").args(kind).arg("-out").arg(path("pem")));
        let mut import = self.kitfs.other(&self.cosign);
        import.env("COSIGN_PASSWORD", "").args(["import-key-pair", "-y", "--key"]).arg(path("pem"));
        self.run(import.arg("--output-key-prefix").arg(self.kitfs.path(name)));
        path("pub").to_str().unwrap().to_owned()
    }

    /// Signs a kit with a key, in the form of cosign 3 (bundles) or that of cosign 2 (tags).
    fn sign(&self, kit: &str, key: &str, bundles: bool) {
        let mut command = self.kitfs.other(&self.cosign);
        command.env("COSIGN_PASSWORD", "").args(["sign", "-y", "--use-signing-config=false", "--tlog-upload=false"]);
        command.args(["--allow-insecure-registry", "--key", &key.replace(".pub", ".key")]);
        self.run(command.arg(format!("--new-bundle-format={bundles}")).arg(kit));
    }

    /// Puts a kit into a repository.
    fn push(&self, repository: &str, kit: &Packed) -> String {
        let layout = Layout::of(self.kitfs.path(&repository.replace('/', "-")), kit);
        self.registry.push(layout.path(), repository, "v1");
        format!("{}/{repository}@{}", self.registry.host(), kit.digest())
    }

    fn manifest(&self, repository: &str, name: &str) -> Value {
        serde_json::from_slice(&self.registry.get(&format!("/v2/{repository}/manifests/{name}"))).unwrap()
    }

    fn blob(&self, repository: &str, descriptor: &Value) -> Vec<u8> {
        self.registry.get(&format!("/v2/{repository}/blobs/{}", descriptor["digest"].as_str().unwrap()))
    }

    /// The only bundle beside a kit.
    fn bundle(&self, repository: &str, kit: &Packed) -> Vec<u8> {
        let referrers = self.manifest(repository, &kit.digest().replace(':', "-"));
        let referrer = self.manifest(repository, referrers["manifests"][0]["digest"].as_str().unwrap());
        self.blob(repository, &referrer["layers"][0])
    }

    /// The only signature in the form of tags: its layer, and the payload.
    fn tagged(&self, repository: &str, kit: &Packed) -> (Value, Vec<u8>) {
        let manifest = self.manifest(repository, &format!("{}.sig", kit.digest().replace(':', "-")));
        let layer = manifest["layers"][0].clone();
        let payload = self.blob(repository, &layer);
        (layer, payload)
    }
}

fn kit(name: &str) -> Packed {
    Kit::named(name).with(Base::Model, "m", [file("m/weights.bin", name.as_bytes())]).pack()
}

/// A layout of a kit with signatures in the form of tags beside it.
pub fn tagged_layout(kitfs: &Kitfs, name: &str, kit: &Packed, layers: &[(Value, Vec<u8>)]) -> String {
    let layout = Layout::of(kitfs.path(name), kit);
    let layers: Vec<_> = layers
        .iter()
        .map(|(layer, payload)| {
            let (mut layer, digest) = (layer.clone(), Digest::of(payload).to_string());
            layout.put(&digest, payload);
            layer["digest"] = digest.into();
            layer["size"] = payload.len().into();
            layer
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}).to_string();
    layout.add(MANIFEST, manifest.as_bytes(), Some(&format!("{}.sig", kit.digest().replace(':', "-"))));
    layout.reference("v1")
}

const KEYS: [(&str, &[&str]); 5] = [
    ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("p521", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
    ("rsa3072", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
    ("ed25519", &["-algorithm", "ed25519"]),
];

/// Bundles after a change each, and whether they still hold.
fn changed_bundles(bundle: &[u8], of_other_kit: &[u8], other_kit: &Digest) -> Vec<(&'static str, Vec<u8>, bool)> {
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let (whole, other) = (read(bundle), read(of_other_kit));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = whole.clone();
        change(&mut changed);
        changed.to_string().into_bytes()
    };
    let text = String::from_utf8(bundle.to_vec()).unwrap();
    let payload = String::from_utf8(STANDARD.decode(whole["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap());
    let payload = payload.unwrap();
    let at = payload.find("\"sha256\"").unwrap();
    let about_other = payload.replace(&payload[at + 10..at + 10 + 64], &other_kit.hex());
    let twice = payload.replacen('{', "{\"predicateType\":\"x\",", 1);
    let signature = STANDARD.decode(whole["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap()).unwrap();
    let flipped: Vec<_> = signature.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 9)).collect();
    vec![
        ("as it is", bundle.to_vec(), true),
        ("written otherwise", serde_json::to_vec_pretty(&whole).unwrap(), true),
        ("another hint", with(&|it| it["verificationMaterial"]["publicKey"]["hint"] = "x".into()), true),
        ("nulls", with(&|it| it["verificationMaterial"]["timestampVerificationData"] = Value::Null), true),
        ("cut short", bundle[..bundle.len() - 9].to_vec(), false),
        ("something behind", [bundle, b"{}"].concat(), false),
        ("a member twice", text.replacen('{', "{\"mediaType\":\"x\",", 1).into_bytes(), false),
        ("another version", with(&|it| it["mediaType"] = "application/vnd.dev.sigstore.bundle.v9+json".into()), false),
        ("about another kit", with(&|it| it["dsseEnvelope"]["payload"] = STANDARD.encode(&about_other).into()), false),
        ("a member of it twice", with(&|it| it["dsseEnvelope"]["payload"] = STANDARD.encode(&twice).into()), false),
        ("another type", with(&|it| it["dsseEnvelope"]["payloadType"] = "application/json".into()), false),
        ("a bit", with(&|it| it["dsseEnvelope"]["signatures"][0]["sig"] = STANDARD.encode(&flipped).into()), false),
        ("no signature", with(&|it| it["dsseEnvelope"]["signatures"] = json!([])), false),
        ("an empty one", with(&|it| it["dsseEnvelope"]["signatures"][0]["sig"] = "".into()), false),
        (
            "two signatures",
            with(&|it| {
                let one = it["dsseEnvelope"]["signatures"][0].clone();
                it["dsseEnvelope"]["signatures"] = json!([one, one]);
            }),
            false,
        ),
        (
            "another kit's signature",
            with(&|it| it["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"].clone()),
            false,
        ),
        ("another kit's envelope", with(&|it| it["dsseEnvelope"] = other["dsseEnvelope"].clone()), false),
        (
            "a certificate for the key",
            with(&|it| it["verificationMaterial"] = json!({"certificate": {"rawBytes": "MAA="}})),
            false,
        ),
        ("an entry that is none", with(&|it| it["verificationMaterial"]["tlogEntries"] = json!([{}])), false),
    ]
}

#[test]
fn what_cosign_signed_is_not_forged() {
    let Some(notary) = Notary::new() else { return };
    let kitfs = &notary.kitfs;
    let (ours, other) = (kit("ours"), kit("other"));
    let digests = [&ours, &other].map(|kit| kit.digest().parse::<Digest>().unwrap());
    let keys = KEYS.map(|(name, kind)| notary.key(name, kind));
    let public: Vec<_> = keys.iter().map(|key| PublicKey::from_pem(&std::fs::read(key).unwrap()).unwrap()).collect();
    let root = TrustedRoot::embedded().unwrap();
    for ((name, _), key) in KEYS.iter().zip(&keys) {
        let mut bundles = Vec::new();
        let mut tagged = Vec::new();
        for (which, kit) in [("ours", &ours), ("other", &other)] {
            let repository = format!("{name}/{which}");
            let reference = notary.push(&repository, kit);
            notary.sign(&reference, key, true);
            bundles.push(notary.bundle(&repository, kit));
            notary.sign(&reference, key, false);
            tagged.push(notary.tagged(&repository, kit));
        }
        let reference = format!("{}/{name}/ours:v1", notary.registry.host());
        let stranger = if *name == "p256" { &keys[1] } else { &keys[0] };
        kitfs.run(&["ls", &reference, "--key", key]).expect(0);
        kitfs.run(&["ls", &reference, "--key", stranger]).expect(6);

        for (change, bundle, holds) in changed_bundles(&bundles[0], &bundles[1], &digests[1]) {
            for (about, is_right) in [(&digests[0], true), (&digests[1], false)] {
                let material = Material::of_bundle(bundle.clone(), change);
                let findings = examine(&material, about, &public, &root, &Limits::default());
                let is_found = findings.endorsements.len() == 1;
                // The whole envelope of the other kit is a signature of the other kit.
                let expected = (holds && is_right) || (change == "another kit's envelope" && !is_right);
                assert_eq!(is_found, expected, "{name}, {change}: {findings:?}");
                assert!(is_found || !findings.rejected[0].reason.is_empty());
            }
        }

        let (layer, payload) = &tagged[0];
        let (other_layer, other_payload) = &tagged[1];
        let edited = String::from_utf8(payload.clone()).unwrap();
        let renamed = edited.replace("/ours", "/else").into_bytes();
        let about_other = edited.replace(&digests[0].hex(), &digests[1].hex()).into_bytes();
        let noise: Vec<_> = (0..40_u32)
            .map(|number| {
                let mut layer = layer.clone();
                layer["annotations"][SIGNATURE] =
                    STANDARD.encode(format!("{:?}", Digest::of(&number.to_le_bytes()))).into();
                (layer, payload.clone())
            })
            .collect();
        let one_good = [&noise[..], &[(layer.clone(), payload.clone())]].concat();
        let padded = [&payload[..], &vec![b' '; 1 << 20]].concat();
        let changes = [
            ("as it is", &ours, vec![(layer.clone(), payload.clone())], 0),
            ("beside another kit", &other, vec![(layer.clone(), payload.clone())], 6),
            ("another name", &ours, vec![(layer.clone(), renamed)], 6),
            ("another digest", &other, vec![(layer.clone(), about_other)], 6),
            ("another payload", &ours, vec![(layer.clone(), other_payload.clone())], 6),
            ("another signature", &ours, vec![(other_layer.clone(), payload.clone())], 6),
            ("the other kit's", &ours, vec![(other_layer.clone(), other_payload.clone())], 6),
            ("much behind", &ours, vec![(layer.clone(), padded)], 6),
            ("nothing but noise", &ours, noise, 6),
            ("one of many", &ours, one_good, 0),
        ];
        // What a payload says is read the same whatever key signed it.
        let asked = if *name == "p256" { changes.len() } else { 2 };
        for (change, kit, layers, exit) in changes.into_iter().take(asked) {
            let place = format!("{name}-{}", change.replace([' ', '\''], "-"));
            let reference = tagged_layout(kitfs, &place, kit, &layers);
            kitfs.run(&["ls", &reference, "--key", key]).expect(exit);
        }
    }

    // Somebody moves the list of referrers: what one kit's bundle says does not count for the other.
    let list = notary.registry.get(&format!("/v2/p256/ours/manifests/{}", ours.digest().replace(':', "-")));
    let stolen = notary.push("p256/ours", &other);
    notary.registry.push_manifest("p256/ours", &other.digest().replace(':', "-"), INDEX, list);
    kitfs.run(&["ls", &stolen, "--key", &keys[0]]).expect(6).says("about something else");
}

/// What somebody signed with a certificate, from the fixtures.
struct Certified {
    manifest: Digest,
    bundle: Value,
}

impl Certified {
    fn of(folder: &Path, layout: &str) -> Self {
        let layout = folder.join("layouts").join(layout);
        let read = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).ok();
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten();
        let bundle = blobs.filter_map(|blob| read(&blob.path())).find(|blob| blob["verificationMaterial"].is_object());
        let index = read(&layout.join("index.json")).unwrap();
        let mut manifests = index["manifests"].as_array().unwrap().iter();
        let tagged = manifests.find(|it| it["annotations"]["org.opencontainers.image.ref.name"] == "1.0").unwrap();
        Self { manifest: tagged["digest"].as_str().unwrap().parse().unwrap(), bundle: bundle.unwrap() }
    }

    fn holds(&self, bundle: &Value, root: &TrustedRoot, keys: &[PublicKey]) -> Result<(), String> {
        let material = Material::of_bundle(bundle.to_string(), "changed");
        let findings = examine(&material, &self.manifest, keys, root, &Limits::default());
        match &findings.endorsements[..] {
            [] => Err(findings.rejected[0].reason.clone()),
            [endorsement] if !keys.is_empty() && endorsement.log().is_none() => {
                Err(endorsement.doubts().collect::<Vec<_>>().join("; "))
            }
            _ => Ok(()),
        }
    }
}

/// A path into a bundle, and what is done there.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Value), bool);

/// Applies each change at its place, and says which of them did not end as they should.
fn check_changes(certified: &Certified, root: &TrustedRoot, keys: &[PublicKey], changes: &[Change<'_>]) {
    certified.holds(&certified.bundle, root, keys).unwrap();
    let mut wrong = Vec::new();
    for (number, (place, change, holds)) in changes.iter().enumerate() {
        let mut bundle = certified.bundle.clone();
        change(bundle.pointer_mut(place).unwrap_or_else(|| panic!("{place} is not there")));
        let result = certified.holds(&bundle, root, keys);
        if result.is_ok() != *holds {
            wrong.push(format!("{number} {place}: {result:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Text in base64, with one bit of it flipped.
fn flip(value: &mut Value) {
    let mut bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    *value = STANDARD.encode(bytes).into();
}

fn set(to: impl Into<Value>) -> impl Fn(&mut Value) {
    let to = to.into();
    move |value| *value = to.clone()
}

/// The last line of a checkpoint, with another signature.
fn resign(value: &mut Value) {
    let text = value.as_str().unwrap();
    let (rest, signature) = text.trim_end().rsplit_once(' ').unwrap();
    let mut signature = STANDARD.decode(signature).unwrap();
    signature[20] ^= 1;
    *value = format!("{rest} {}\n", STANDARD.encode(signature)).into();
}

fn as_version(version: &'static str) -> impl Fn(&mut Value) {
    move |bundle| {
        bundle["mediaType"] = format!("application/vnd.dev.sigstore.bundle+json;version={version}").into();
        let certificate = bundle["verificationMaterial"]["certificate"].take();
        bundle["verificationMaterial"].as_object_mut().unwrap().remove("certificate");
        bundle["verificationMaterial"]["x509CertificateChain"] = json!({"certificates": [certificate]});
    }
}

/// The same with a promise alone, which was enough for the first version.
fn without_proof(version: &'static str) -> impl Fn(&mut Value) {
    move |bundle| {
        as_version(version)(bundle);
        bundle.pointer_mut(ENTRY).unwrap().as_object_mut().unwrap().remove("inclusionProof").unwrap();
    }
}

const ENTRY: &str = "/verificationMaterial/tlogEntries/0";

#[test]
fn what_a_certificate_signed_is_not_forged() {
    let Some(folder) = shared("fixtures/signed") else { return };
    let root = TrustedRoot::from_file(&folder.join("trusted_root.json")).unwrap();
    let email = Certified::of(&folder, "keyless-email");
    let (github, tiled) = (Certified::of(&folder, "keyless-github"), Certified::of(&folder, "keyless-email-rekor2"));
    let stamped = Certified::of(&folder, "keyless-rekor1-tsa");
    let at = |inner: &str| format!("{ENTRY}/{inner}");
    let (proof, checkpoint) = (at("inclusionProof"), at("inclusionProof/checkpoint/envelope"));
    let entry_of_github = github.bundle.pointer(ENTRY).unwrap().clone();
    let entry_of_tiled = tiled.bundle.pointer(ENTRY).unwrap().clone();
    let drop =
        |name: &'static str| move |value: &mut Value| std::mem::drop(value.as_object_mut().unwrap().remove(name));
    let twice = |value: &mut Value| {
        let first = value[0].clone();
        value.as_array_mut().unwrap().push(first);
    };
    let beside = |other: &Value| {
        let other = other.clone();
        move |value: &mut Value| value.as_array_mut().unwrap().push(other.clone())
    };
    let material_of = |other: &Certified, name: &'static str| {
        let other = other.bundle["verificationMaterial"][name].clone();
        move |value: &mut Value| value[name] = other.clone()
    };
    let changes: &[Change<'_>] = &[
        ("", &as_version("0.1"), true),
        ("", &as_version("0.2"), true),
        ("", &without_proof("0.1"), true),
        ("", &without_proof("0.2"), false),
        ("/mediaType", &set("application/vnd.dev.sigstore.bundle+json;version=0.3"), true),
        ("/mediaType", &set("application/vnd.dev.sigstore.bundle+json;version=0.9"), false),
        ("/mediaType", &set("application/json"), false),
        ("/dsseEnvelope/signatures", &twice, false),
        ("/dsseEnvelope/signatures/0/sig", &flip, false),
        ("/dsseEnvelope/payload", &flip, false),
        ("/dsseEnvelope", &set(github.bundle["dsseEnvelope"].clone()), false),
        ("/verificationMaterial/certificate/rawBytes", &flip, false),
        ("/verificationMaterial", &material_of(&github, "certificate"), false),
        ("/verificationMaterial", &set(json!({"publicKey": {"hint": "x"}})), false),
        ("/verificationMaterial", &drop("tlogEntries"), false),
        ("/verificationMaterial/tlogEntries", &set(json!([])), false),
        ("/verificationMaterial/tlogEntries", &twice, false),
        ("/verificationMaterial/tlogEntries", &set(json!([entry_of_github])), false),
        ("/verificationMaterial/tlogEntries", &beside(&entry_of_github), false),
        ("/verificationMaterial/tlogEntries", &set(json!([entry_of_tiled])), false),
        (ENTRY, &drop("inclusionProof"), false),
        (ENTRY, &drop("inclusionPromise"), false),
        (ENTRY, &drop("canonicalizedBody"), false),
        (&at("integratedTime"), &set("1700000000"), false),
        (&at("integratedTime"), &set("0"), false),
        (&at("logIndex"), &set("7000"), false),
        (&at("logId/keyId"), &flip, false),
        (&at("logId/keyId"), &set(STANDARD.encode([0; 32])), false),
        (&at("kindVersion/version"), &set("0.0.2"), false),
        (&at("kindVersion/kind"), &set("hashedrekord"), false),
        (&at("inclusionPromise/signedEntryTimestamp"), &flip, false),
        (&at("canonicalizedBody"), &flip, false),
        (&at("inclusionProof/logIndex"), &set("7000"), false),
        (&at("inclusionProof/treeSize"), &set("7000"), false),
        (&at("inclusionProof/rootHash"), &flip, false),
        (&proof, &drop("checkpoint"), false),
        (&proof, &set(entry_of_github["inclusionProof"].clone()), false),
        (&checkpoint, &set(entry_of_tiled["inclusionProof"]["checkpoint"]["envelope"].clone()), false),
        (&checkpoint, &resign, false),
        (&checkpoint, &set(""), false),
    ];
    check_changes(&email, &root, &[], changes);

    let stamps = "/verificationMaterial/timestampVerificationData/rfc3161Timestamps";
    let changes: &[Change<'_>] = &[
        (stamps, &set(json!([])), false),
        (stamps, &set(stamped.bundle.pointer(stamps).unwrap().clone()), false),
        (stamps, &beside(&stamped.bundle.pointer(stamps).unwrap()[0]), false),
        (&format!("{stamps}/0/signedTimestamp"), &flip, false),
        (&format!("{stamps}/0/signedTimestamp"), &set(""), false),
        (ENTRY, &|entry: &mut Value| entry["integratedTime"] = "1700000000".into(), true),
        (&at("canonicalizedBody"), &flip, false),
        (&at("inclusionProof/hashes"), &beside(&STANDARD.encode([0; 32]).into()), false),
        (&checkpoint, &resign, false),
        (&checkpoint, &set(email.bundle.pointer(&checkpoint).unwrap().clone()), false),
        ("/verificationMaterial/tlogEntries", &set(email.bundle["verificationMaterial"]["tlogEntries"].clone()), false),
    ];
    check_changes(&tiled, &root, &[], changes);

    // A timestamp and no entry is not enough; an entry whose time a timestamp contradicts is not either.
    let changes: &[Change<'_>] = &[
        ("/verificationMaterial/tlogEntries", &set(json!([])), false),
        (stamps, &set(tiled.bundle.pointer(stamps).unwrap().clone()), false),
        (stamps, &set(json!([])), true),
        (ENTRY, &drop("inclusionPromise"), true),
        (ENTRY, &drop("inclusionProof"), false),
    ];
    check_changes(&stamped, &root, &[], changes);

    // A key needs no entry. One that is there and is wrong is not one that was demanded.
    let key = [PublicKey::from_pem(&std::fs::read(folder.join("keys/p256.pub")).unwrap()).unwrap()];
    let logged = Certified::of(&folder, "bundle-rekor1");
    let changes: &[Change<'_>] = &[
        ("/verificationMaterial/publicKey/hint", &set("x"), true),
        ("/verificationMaterial/tlogEntries", &set(json!([])), false),
        ("/verificationMaterial/tlogEntries", &twice, false),
        ("/verificationMaterial/tlogEntries", &beside(&entry_of_github), false),
        ("/verificationMaterial/tlogEntries", &set(json!([entry_of_github])), false),
        (&at("inclusionPromise/signedEntryTimestamp"), &flip, false),
        (&at("integratedTime"), &set("1700000000"), false),
        (&checkpoint, &resign, false),
        (&at("inclusionProof/treeSize"), &set("7000"), false),
    ];
    check_changes(&logged, &root, &key, changes);
}
