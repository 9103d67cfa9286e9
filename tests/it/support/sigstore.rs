//! A private Sigstore: an authority for certificates with its certificate log, transparency logs as Rekor v1 and v2
//! keep them, and an authority for timestamps, all of whose keys are here. So anything can be signed and logged, what
//! no honest one would log too, and every kind of key can be certified.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::der::{bits, extension, integer, name, octets, oid, sequence, set, short_time, time, tlv};
use super::keys::{Hash, KeyKind, Pair};

/// When everything here happens: seconds.
pub const NOW: i64 = 1_780_000_000;

const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const SHA256_ID: &str = "2.16.840.1.101.3.4.2.1";
const STAMPS: &str = "1.3.6.1.4.1.11129.2.4.2";
pub const CODE_SIGNING: &str = "1.3.6.1.5.5.7.3.3";
const TIME_STAMPING: &str = "1.3.6.1.5.5.7.3.8";
/// INTEGER: what every certificate is numbered here.
const SERIAL: [u8; 4] = [2, 2, 1, 7];

/// What stands in a certificate.
#[derive(Clone, Debug)]
pub struct Certified {
    /// GeneralName of who it is for.
    pub name: Vec<u8>,
    pub from: i64,
    pub until: i64,
    /// What the key is for.
    pub usage: &'static str,
    pub issuer: &'static str,
    pub more: Vec<Vec<u8>>,
    pub seen: Seen,
}

/// What the certificate log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Yes,
    No,
    Twice,
    ByAnother,
    OfAnother,
}

impl Certified {
    pub const IDENTITY: &str = "release@acme.example";
    pub const ISSUER: &str = "https://accounts.acme.example";

    /// What Fulcio certifies.
    pub fn new() -> Self {
        Self {
            name: tlv(0x81, Self::IDENTITY),
            from: NOW - 60,
            until: NOW + 540,
            usage: CODE_SIGNING,
            issuer: Self::ISSUER,
            more: Vec::new(),
            seen: Seen::Yes,
        }
    }
}

/// An authority: a root, and an intermediate that issues.
#[derive(Debug)]
pub struct Authority {
    intermediate: Pair,
    /// As a trusted root names it, the anchor last.
    pub chain: Vec<Vec<u8>>,
}

impl Authority {
    /// One that certifies keys for that usage, and whose intermediate is valid until then.
    pub fn new(usage: &str, until: i64) -> Self {
        let (root, intermediate) = (Pair::new(KeyKind::P256), Pair::new(KeyKind::P256));
        let may = |path: &[u8]| extension("2.5.29.19", true, sequence(&[&[1, 1, 0xff], path]));
        let signs = extension("2.5.29.15", true, [3, 2, 1, 6]);
        let usage = extension("2.5.29.37", false, sequence(&[&oid(usage)]));
        let anchor = [may(&[]), signs.clone(), key_ids(&root, &root)].concat();
        let anchor = issue(&root, "root", &name("root"), &root.spki, [NOW - 90_000, NOW + 600_000_000], &anchor);
        let below = [may(&integer(0)), signs, usage, key_ids(&intermediate, &root)].concat();
        let below = issue(&root, "root", &name("authority"), &intermediate.spki, [NOW - 90_000, until], &below);
        Self { intermediate, chain: vec![below, anchor] }
    }

    /// A certificate by the intermediate.
    pub fn issue(&self, pair: &Pair, subject: &[u8], validity: [i64; 2], extensions: &[u8]) -> Vec<u8> {
        let extensions = [extensions, &key_ids(pair, &self.intermediate)].concat();
        issue(&self.intermediate, "authority", subject, &pair.spki, validity, &extensions)
    }
}

/// A certificate (RFC 5280, 4.1).
fn issue(by: &Pair, issuer: &str, subject: &[u8], spki: &[u8], validity: [i64; 2], extensions: &[u8]) -> Vec<u8> {
    let to_be_signed = to_be_signed(issuer, subject, spki, validity, extensions);
    sequence(&[&to_be_signed, &sequence(&[&oid(ECDSA_SHA256)]), &bits(&by.sign(&to_be_signed))])
}

fn to_be_signed(issuer: &str, subject: &[u8], spki: &[u8], [from, until]: [i64; 2], extensions: &[u8]) -> Vec<u8> {
    sequence(&[
        &tlv(0xa0, integer(2)),
        &SERIAL,
        &sequence(&[&oid(ECDSA_SHA256)]),
        &name(issuer),
        &sequence(&[&short_time(from), &short_time(until)]),
        subject,
        spki,
        &tlv(0xa3, sequence(&[extensions])),
    ])
}

/// The extensions that name the keys of a certificate's holder and of its issuer.
fn key_ids(of: &Pair, by: &Pair) -> Vec<u8> {
    let id = |pair: &Pair| Hash::Sha256.of(&pair.spki)[..20].to_vec();
    let of = extension("2.5.29.14", false, octets(id(of)));
    [of, extension("2.5.29.35", false, sequence(&[&tlv(0x80, id(by))]))].concat()
}

/// The instance.
#[derive(Debug)]
pub struct Sigstore {
    pub authority: Authority,
    certificate_log: Pair,
    log1: Pair,
    log2: Pair,
    stamps: Authority,
    stamper: Pair,
    stamper_certificate: Vec<u8>,
}

/// Kinds of transparency logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    V1,
    V2,
}

/// Who signs: a key, and its certificate if it has one.
#[derive(Clone, Debug)]
pub struct Signer {
    pub pair: Pair,
    pub certificate: Option<Vec<u8>>,
}

impl Sigstore {
    pub fn new() -> Self {
        Self::with_intermediate_until(NOW + 90_000_000)
    }

    /// One whose authority issues with a certificate that ends then.
    pub fn with_intermediate_until(until: i64) -> Self {
        let stamps = Authority::new(TIME_STAMPING, NOW + 90_000_000);
        let stamper = Pair::new(KeyKind::P256);
        let usage = extension("2.5.29.37", true, sequence(&[&oid(TIME_STAMPING)]));
        let usage = [usage, extension("2.5.29.15", true, [3, 2, 7, 0x80])].concat();
        let stamper_certificate = stamps.issue(&stamper, &name("stamps"), [NOW - 9_000, NOW + 9_000_000], &usage);
        Self {
            authority: Authority::new(CODE_SIGNING, until),
            certificate_log: Pair::new(KeyKind::P256),
            log1: Pair::new(KeyKind::P256),
            log2: Pair::new(KeyKind::Ed25519),
            stamps,
            stamper,
            stamper_certificate,
        }
    }

    /// `trusted_root.json`.
    pub fn root(&self) -> Value {
        let valid = json!({"start": "2026-01-01T00:00:00Z"});
        let log = |url: &str, id: Vec<u8>, pair: &Pair, details: &str| {
            json!({
                "baseUrl": url, "hashAlgorithm": "SHA2_256", "logId": {"keyId": base64(id)},
                "publicKey": {"rawBytes": base64(&pair.spki), "keyDetails": details, "validFor": valid},
            })
        };
        let authority = |url: &str, chain: Vec<&Vec<u8>>| {
            let chain: Vec<_> = chain.iter().map(|der| json!({"rawBytes": base64(der)})).collect();
            json!({
                "subject": {"organization": "acme", "commonName": "root"}, "uri": url,
                "certChain": {"certificates": chain}, "validFor": valid,
            })
        };
        let certificate_log = &self.certificate_log;
        let stamps = [&self.stamper_certificate].into_iter().chain(&self.stamps.chain).collect();
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [
                log("https://log1.example", self.id(Log::V1), &self.log1, "PKIX_ECDSA_P256_SHA_256"),
                log("https://log2.example", self.id(Log::V2), &self.log2, "PKIX_ED25519"),
            ],
            "certificateAuthorities": [authority("https://ca.example", self.authority.chain.iter().collect())],
            "ctlogs": [log("https://ct.example", Hash::Sha256.of(&certificate_log.spki), certificate_log,
                           "PKIX_ECDSA_P256_SHA_256")],
            "timestampAuthorities": [authority("https://tsa.example", stamps)],
        })
    }

    /// The root, as a file.
    pub fn root_file(&self, path: PathBuf) -> PathBuf {
        std::fs::write(&path, self.root().to_string()).unwrap();
        path
    }

    /// Rekor v1 goes by the hash of its key; v2 by that of its name and its key (C2SP, "signed-note").
    fn id(&self, log: Log) -> Vec<u8> {
        match log {
            Log::V1 => Hash::Sha256.of(&self.log1.spki),
            Log::V2 => {
                let raw = &self.log2.spki[self.log2.spki.len() - 32..];
                Hash::Sha256.of(&[b"log2.example\n\x01", raw].concat())
            }
        }
    }

    /// Certifies a key.
    pub fn certify(&self, pair: &Pair, certified: &Certified) -> Signer {
        let Certified { name, from, until, usage, issuer, more, seen } = certified;
        let mut extensions = [
            extension("2.5.29.15", true, [3, 2, 7, 0x80]),
            extension("2.5.29.37", false, sequence(&[&oid(usage)])),
            extension("2.5.29.17", true, sequence(&[name])),
            extension("1.3.6.1.4.1.57264.1.1", false, issuer),
            extension("1.3.6.1.4.1.57264.1.8", false, tlv(0x0c, issuer)),
            more.concat(),
            key_ids(pair, &self.authority.intermediate),
        ]
        .concat();
        let validity = [*from, *until];
        let subject = sequence(&[]);
        let seen_spki = if *seen == Seen::OfAnother { &self.log1.spki } else { &pair.spki };
        let bare = to_be_signed("authority", &subject, seen_spki, validity, &extensions);
        let log = if *seen == Seen::ByAnother { &self.log1 } else { &self.certificate_log };
        let stamp = self.certificate_timestamp(&bare, log, (*from as u64) * 1000);
        let stamps = match seen {
            Seen::No => Vec::new(),
            Seen::Twice => vec![stamp.clone(), stamp],
            Seen::Yes | Seen::ByAnother | Seen::OfAnother => vec![stamp],
        };
        if !stamps.is_empty() {
            let list = stamps.iter().flat_map(|stamp| with_len(stamp)).collect::<Vec<_>>();
            extensions.extend(extension(STAMPS, false, octets(with_len(&list))));
        }
        let certificate = issue(&self.authority.intermediate, "authority", &subject, &pair.spki, validity, &extensions);
        Signer { pair: pair.clone(), certificate: Some(certificate) }
    }

    /// That the certificate log has seen a certificate (RFC 6962, 3.2).
    fn certificate_timestamp(&self, bare: &[u8], log: &Pair, millisecond: u64) -> Vec<u8> {
        let issuer = Hash::Sha256.of(&self.authority.intermediate.spki);
        let len = &(bare.len() as u32).to_be_bytes()[1..];
        let time = millisecond.to_be_bytes();
        let signed = [&[0, 0], &time[..], &[0, 1], &issuer, len, bare, &[0, 0]].concat();
        let id = Hash::Sha256.of(&log.spki);
        [&[0], &id[..], &time, &[0, 0, 4, 3], &with_len(&log.sign(&signed))].concat()
    }

    /// An entry in a log.
    pub fn logged(&self, log: Log, body: &Value, at: i64) -> Value {
        let id = self.id(log);
        let (pair, origin) = match log {
            Log::V1 => (&self.log1, "log1.example - 1234"),
            Log::V2 => (&self.log2, "log2.example"),
        };
        let name = origin.split(' ').next().unwrap();
        let encoded = base64(body.to_string());
        let leaf = |content: &[u8]| Hash::Sha256.of(&[&[0], content].concat());
        let (before, this) = (leaf(b"another"), leaf(body.to_string().as_bytes()));
        let over_both = base64(Hash::Sha256.of(&[&[1], &before[..], &this].concat()));
        let note = format!("{origin}\n2\n{over_both}\n");
        let signature = base64([&id[..4], &pair.sign(note.as_bytes())].concat());
        let mut entry = json!({
            "logIndex": "1", "logId": {"keyId": base64(&id)},
            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
            "inclusionProof": {
                "logIndex": "1", "rootHash": over_both, "treeSize": "2", "hashes": [base64(before)],
                "checkpoint": {"envelope": format!("{note}\n\u{2014} {name} {signature}\n")},
            },
            "canonicalizedBody": encoded,
        });
        if log == Log::V1 {
            let id = hex::encode(id);
            let promised = format!(r#"{{"body":"{encoded}","integratedTime":{at},"logID":"{id}","logIndex":1}}"#);
            entry["integratedTime"] = at.to_string().into();
            entry["inclusionPromise"] = json!({"signedEntryTimestamp": base64(pair.sign(promised.as_bytes()))});
        }
        entry
    }

    /// A timestamp (RFC 3161, RFC 5652) over bytes.
    pub fn stamp(&self, over: &[u8], at: i64) -> Vec<u8> {
        let sha256 = sequence(&[&oid(SHA256_ID)]);
        let info = sequence(&[
            &integer(1),
            &oid("1.3.6.1.4.1.57264.2"),
            &sequence(&[&sha256, &octets(Hash::Sha256.of(over))]),
            &integer(7),
            &time(at),
        ]);
        let certificate = &self.stamper_certificate;
        let attribute = |id: &str, value: &[u8]| sequence(&[&oid(id), &set(&[value])]);
        let signed_with = sequence(&[&sequence(&[&sequence(&[&octets(Hash::Sha256.of(certificate))])])]);
        let attributes = set(&[
            &attribute("1.2.840.113549.1.9.3", &oid("1.2.840.113549.1.9.16.1.4")),
            &attribute("1.2.840.113549.1.9.4", &octets(Hash::Sha256.of(&info))),
            &attribute("1.2.840.113549.1.9.16.2.47", &signed_with),
        ]);
        let signer = sequence(&[
            &integer(1),
            &sequence(&[&name("authority"), &SERIAL]),
            &sha256,
            &[&[0xa0], &attributes[1..]].concat(),
            &sequence(&[&oid(ECDSA_SHA256)]),
            &octets(self.stamper.sign(&attributes)),
        ]);
        let data = sequence(&[
            &integer(3),
            &set(&[&sha256]),
            &sequence(&[&oid("1.2.840.113549.1.9.16.1.4"), &tlv(0xa0, octets(info))]),
            &tlv(0xa0, certificate),
            &set(&[&signer]),
        ]);
        let token = sequence(&[&oid("1.2.840.113549.1.7.2"), &tlv(0xa0, data)]);
        sequence(&[&sequence(&[&integer(0)]), &token])
    }

    /// The signature of a file, in a bundle.
    pub fn sign_file(&self, signer: &Signer, content: &[u8], log: Log) -> Value {
        let (hash, _) = signer.pair.kind.registered();
        let signature = signer.pair.sign_file(content);
        let entry = self.logged(log, &signer.record(log, hash, content, &signature), NOW);
        let message = json!({
            "messageDigest": {"algorithm": hash.names().1, "digest": base64(hash.of(content))},
            "signature": base64(&signature),
        });
        self.bundle(signer, ("messageSignature", message), entry, log, &signature)
    }

    /// A statement, signed in a bundle.
    pub fn sign_statement(&self, signer: &Signer, statement: &str, log: Log) -> Value {
        let encoded = pre_authentication(statement);
        let (hash, _) = signer.pair.kind.registered();
        let signature = signer.pair.sign(&encoded);
        let body = match log {
            Log::V1 => signer.envelope(statement, &signature),
            Log::V2 => signer.record(log, hash, &encoded, &signature),
        };
        let entry = self.logged(log, &body, NOW);
        let envelope = json!({
            "payload": base64(statement), "payloadType": STATEMENT, "signatures": [{"sig": base64(&signature)}],
        });
        self.bundle(signer, ("dsseEnvelope", envelope), entry, log, &signature)
    }

    /// Cosign's payload, signed in the annotations of a layer.
    pub fn sign_payload(&self, signer: &Signer, payload: &[u8]) -> Value {
        let (hash, _) = signer.pair.kind.registered();
        let signature = signer.pair.sign_file(payload);
        let entry = self.logged(Log::V1, &signer.record(Log::V1, hash, payload, &signature), NOW);
        let promise = json!({
            "SignedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
            "Payload": {
                "body": entry["canonicalizedBody"], "integratedTime": NOW, "logIndex": 1,
                "logID": hex::encode(self.id(Log::V1)),
            },
        });
        let mut annotations = json!({
            "dev.cosignproject.cosign/signature": base64(&signature),
            "dev.sigstore.cosign/bundle": promise.to_string(),
        });
        if signer.certificate.is_some() {
            annotations["dev.sigstore.cosign/certificate"] = signer.pem().into();
            annotations["dev.sigstore.cosign/chain"] = "".into();
        }
        annotations
    }

    fn bundle(
        &self,
        signer: &Signer,
        (kind, content): (&str, Value),
        entry: Value,
        log: Log,
        signature: &[u8],
    ) -> Value {
        let mut material = match &signer.certificate {
            Some(certificate) => json!({"certificate": {"rawBytes": base64(certificate)}}),
            None => json!({"publicKey": {"hint": "x"}}),
        };
        material["tlogEntries"] = json!([entry]);
        if log == Log::V2 {
            material["timestampVerificationData"] = self.stamped(signature, NOW);
        }
        let media_type = "application/vnd.dev.sigstore.bundle.v0.3+json";
        json!({"mediaType": media_type, "verificationMaterial": material, kind: content})
    }

    /// What a bundle holds of a timestamp.
    pub fn stamped(&self, over: &[u8], at: i64) -> Value {
        json!({"rfc3161Timestamps": [{"signedTimestamp": base64(self.stamp(over, at))}]})
    }
}

impl Signer {
    /// Who has a key and no certificate.
    pub fn uncertified(kind: KeyKind) -> Self {
        Self { pair: Pair::new(kind), certificate: None }
    }

    /// The certificate, or else the key.
    pub fn pem(&self) -> String {
        match &self.certificate {
            Some(certificate) => pem("CERTIFICATE", certificate),
            None => pem("PUBLIC KEY", &self.pair.spki),
        }
    }

    /// What a log writes down about a signature over a digest: `hashedrekord`.
    pub fn record(&self, log: Log, hash: Hash, content: &[u8], signature: &[u8]) -> Value {
        let ((v1, v2), digest) = (hash.names(), hash.of(content));
        match log {
            Log::V1 => json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
                "data": {"hash": {"algorithm": v1, "value": hex::encode(digest)}},
                "signature": {"content": base64(signature),
                              "publicKey": {"content": base64(self.pem())}},
            }}),
            Log::V2 => {
                let details = self.pair.kind.registered().1;
                let verifier = match &self.certificate {
                    Some(der) => json!({"keyDetails": details, "x509Certificate": {"rawBytes": base64(der)}}),
                    None => json!({"keyDetails": details, "publicKey": {"rawBytes": base64(&self.pair.spki)}}),
                };
                json!({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": {
                    "data": {"algorithm": v2, "digest": base64(digest)},
                    "signature": {"content": base64(signature), "verifier": verifier},
                }}})
            }
        }
    }

    /// What Rekor v1 writes down about an envelope: `dsse`.
    pub fn envelope(&self, payload: &str, signature: &[u8]) -> Value {
        let hash = |content: &[u8]| json!({"algorithm": "sha256", "value": hex::encode(Hash::Sha256.of(content))});
        json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "envelopeHash": hash(b"as it was sent"), "payloadHash": hash(payload.as_bytes()),
            "signatures": [{"signature": base64(signature),
                            "verifier": base64(self.pem())}],
        }})
    }
}

pub const STATEMENT: &str = "application/vnd.in-toto+json";

/// What a signature of an envelope is over (DSSE, "PAE").
pub fn pre_authentication(payload: &str) -> Vec<u8> {
    format!("DSSEv1 {} {STATEMENT} {} {payload}", STATEMENT.len(), payload.len()).into_bytes()
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// PEM (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    x509_cert::der::pem::encode_string(label, Default::default(), der).unwrap()
}

/// A vector of TLS (RFC 8446, 3.4), with its length in two bytes.
fn with_len(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}
