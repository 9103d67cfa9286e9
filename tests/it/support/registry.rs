//! A real registry, Debian's `docker-registry`, on a free port of the loopback address.
//!
//! Kits are pushed into it over HTTP like any client does. Its access log tells what was asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use serde_json::Value;
use tempfile::TempDir;

use super::host;

/// The user that a registry with [`Access::Password`] knows.
pub const USER: &str = "reader";
/// Their password.
pub const PASSWORD: &str = "not:so secret";

/// How a registry speaks and whom it serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// HTTP, for everybody.
    Plain,
    /// HTTPS with a certificate of its own authority, for everybody.
    Tls,
    /// The same for [`USER`] alone.
    Password,
}

/// A registry that runs until it is dropped.
pub struct Registry {
    folder: TempDir,
    access: Access,
    port: u16,
    process: Option<Child>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Registry {
    /// Starts one, or says why not.
    pub fn start(access: Access) -> Option<Self> {
        let needs: &[&str] = match access {
            Access::Plain => &["docker-registry"],
            Access::Tls => &["docker-registry", "openssl"],
            Access::Password => &["docker-registry", "openssl", "htpasswd"],
        };
        if !needs.iter().all(|program| host::has(program)) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("kitfs-registry-").tempdir().expect("a temporary directory");
        let mut client = reqwest::Client::builder().no_proxy();
        if access != Access::Plain {
            make_certificates(folder.path());
            let authority = std::fs::read(folder.path().join("ca.pem")).expect("just made");
            let authority = reqwest::Certificate::from_pem(&authority).expect("openssl writes PEM");
            client = client.add_root_certificate(authority);
        }
        if access == Access::Password {
            let made = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().expect("htpasswd");
            std::fs::write(folder.path().join("htpasswd"), made.stdout).expect("our own directory");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = client.build().expect("a client");
        let mut registry = Self { folder, access, port: 0, process: None, client, runtime };
        // Another test may take the port between our look and the registry's; then the next one.
        let is_up = (0..5).any(|_| {
            registry.port = free_port();
            registry.resume()
        });
        assert!(is_up, "docker-registry does not start: {}", registry.errors());
        Some(registry)
    }

    /// Starts it again on its port, with what it held before. False if it did not come up.
    pub fn resume(&mut self) -> bool {
        let file = |name: &str| {
            let path = self.folder.path().join(name);
            std::fs::OpenOptions::new().create(true).append(true).open(path).expect("our own directory")
        };
        std::fs::write(self.folder.path().join("config.yml"), self.configuration()).expect("our own directory");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.folder.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(file("access.log"))
            .stderr(file("errors.log"))
            .spawn()
            .expect("docker-registry is installed");
        let child = self.process.insert(child);
        let port = self.port;
        host::soon(20, || match child.try_wait() {
            Ok(None) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
            _ => true,
        }) && matches!(child.try_wait(), Ok(None))
    }

    /// Kills it; what it holds stays for [`resume`](Self::resume).
    pub fn stop(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn configuration(&self) -> String {
        let folder = self.folder.path().display();
        let mut text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {folder}/store}}\n  \
             delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{}\n",
            self.port
        );
        if self.access != Access::Plain {
            writeln!(text, "  tls: {{certificate: {folder}/leaf.pem, key: {folder}/leaf.key}}").expect("a string");
        }
        if self.access == Access::Password {
            writeln!(text, "auth:\n  htpasswd: {{realm: kits, path: {folder}/htpasswd}}").expect("a string");
        }
        text
    }

    /// Its address, as references name it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The file with the certificate of its authority.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A file like Docker's `config.json` that holds the password.
    pub fn credentials(&self) -> PathBuf {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let document = serde_json::json!({"auths": {self.host(): {"auth": auth}}});
        let file = self.folder.path().join("config.json");
        std::fs::write(&file, document.to_string()).expect("our own directory");
        file
    }

    /// Where it keeps a blob, to spoil it or take it away behind its back.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("the tests use SHA-256");
        self.folder.path().join(format!("store/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// The requests so far for what repositories hold: blobs and manifests, pushes left out.
    pub fn requests(&self) -> Vec<String> {
        // The line is written after the response; a request of its own, seen in the log, ends the wait for others.
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("/v2/mark-{}/tags/list", MARKS.fetch_add(1, Ordering::Relaxed));
        self.send(self.request(reqwest::Method::GET, &mark));
        let log = || std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        assert!(host::soon(10, || log().contains(&mark)), "docker-registry writes no access log");
        let is_asked = |line: &&str| {
            (line.contains("\"GET ") || line.contains("\"HEAD "))
                && (line.contains("/blobs/") || line.contains("/manifests/"))
        };
        log().lines().filter(is_asked).map(str::to_owned).collect()
    }

    /// What it wrote about its failures.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("errors.log")).unwrap_or_default()
    }

    /// Pushes every manifest of a layout directory, with all its blobs, and tags it; returns the reference by tag.
    pub fn push(&self, layout: &Path, repository: &str, tag: &str) -> String {
        let read = |path: PathBuf| std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
        let index: Value = serde_json::from_slice(&read(layout.join("index.json"))).expect("an index");
        for descriptor in index["manifests"].as_array().expect("manifests") {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let bytes = read(blob(digest));
            let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest");
            let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
            for part in layers.iter().chain([&manifest["config"]]) {
                let digest = part["digest"].as_str().expect("a digest");
                self.push_blob(repository, digest, read(blob(digest)));
            }
            let kind = descriptor["mediaType"].as_str().expect("a media type");
            self.push_manifest(repository, tag, kind, bytes);
        }
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Pushes everything in a layout under the names that it has there, as a client does that knows of
    /// signatures: what refers to another manifest is listed under the fallback tag too.
    pub fn push_all(&self, layout: &Path, repository: &str) {
        let read = |digest: &str| std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok();
        let index = std::fs::read(layout.join("index.json")).expect("a layout");
        let index: Value = serde_json::from_slice(&index).expect("an index");
        let mut referrers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut named = BTreeSet::new();
        let (mut first, mut then) = (Vec::new(), Vec::new());
        let mut open = index["manifests"].as_array().expect("manifests").clone();
        while let Some(descriptor) = open.pop() {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let name = descriptor["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or(digest);
            let bytes = read(digest).expect("the layout holds what it lists");
            let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest");
            let kind = manifest["mediaType"].as_str().or(descriptor["mediaType"].as_str()).expect("a media type");
            named.insert(name.to_owned());
            let push = (name.to_owned(), kind.to_owned(), bytes);
            if let Some(listed) = manifest["manifests"].as_array() {
                open.extend(listed.iter().cloned());
                then.push(push);
                continue;
            }
            let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
            let parts = layers.iter().chain([&manifest["config"]]).map(|part| part["digest"].as_str());
            for digest in parts.flatten() {
                self.push_blob(repository, digest, read(digest).expect("the layout holds what its manifests name"));
            }
            if let Some(subject) = manifest["subject"]["digest"].as_str() {
                let mut descriptor = descriptor.clone();
                descriptor.as_object_mut().expect("an object").remove("annotations");
                referrers.entry(subject.replace(':', "-")).or_default().push(descriptor);
            }
            first.push(push);
        }
        for (tag, listed) in referrers {
            if !named.contains(&tag) {
                let kind = "application/vnd.oci.image.index.v1+json";
                let list = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": listed});
                then.push((tag, kind.to_owned(), list.to_string().into_bytes()));
            }
        }
        for (name, kind, bytes) in first.into_iter().chain(then) {
            self.push_manifest(repository, &name, &kind, bytes);
        }
    }

    /// Pushes one blob.
    pub fn push_blob(&self, repository: &str, digest: &str, bytes: Vec<u8>) {
        let begun = self.send(self.request(reqwest::Method::POST, &format!("/v2/{repository}/blobs/uploads/")));
        let place = begun.headers().get("location").expect("a place to upload to").to_str().expect("ASCII");
        let path = place.find("/v2/").map(|at| &place[at..]).expect("a path of the registry's");
        let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
        let answer = self.send(self.request(reqwest::Method::PUT, &path).body(bytes));
        assert_eq!(answer.status(), 201, "pushing {digest}: {}", self.errors());
    }

    /// Pushes one manifest under a tag.
    pub fn push_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: Vec<u8>) {
        let request = self.request(reqwest::Method::PUT, &format!("/v2/{repository}/manifests/{tag}"));
        let answer = self.send(request.header("Content-Type", kind).body(bytes));
        assert_eq!(answer.status(), 201, "pushing a manifest: {}", self.errors());
    }

    /// What it answers to a request for a path.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let answer = self.send(self.request(reqwest::Method::GET, path).header("Accept", kinds));
        assert_eq!(answer.status(), 200, "{path}");
        self.runtime.block_on(answer.bytes()).expect("a whole answer").to_vec()
    }

    fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let scheme = if self.access == Access::Plain { "http" } else { "https" };
        let request = self.client.request(method, format!("{scheme}://{}{path}", self.host()));
        match self.access {
            Access::Password => request.basic_auth(USER, Some(PASSWORD)),
            Access::Plain | Access::Tls => request,
        }
    }

    fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let request = request.timeout(std::time::Duration::from_secs(60));
        self.runtime
            .block_on(async { request.send().await })
            .unwrap_or_else(|error| panic!("{error:?}: {}", self.errors()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Makes an authority and a certificate from it for the loopback address.
fn make_certificates(folder: &Path) {
    let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(folder.join("names"), names).expect("our own directory");
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let openssl = |first: &[&str], rest: &[&str]| {
        let ran = Command::new("openssl").args(first).args(rest).current_dir(folder).output().expect("openssl");
        assert!(ran.status.success(), "openssl: {}", String::from_utf8_lossy(&ran.stderr));
    };
    let authority = ["-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a test authority"];
    openssl(&[&["req", "-x509"], &key[..]].concat(), &authority);
    openssl(&[&["req"], &key[..]].concat(), &["-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=localhost"]);
    let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "leaf.pem", "-days", "2"];
    openssl(&["x509", "-req", "-in", "leaf.csr", "-extfile", "names"], &signed);
}
