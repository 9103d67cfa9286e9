//! A registry inside the test that answers whatever a test wants, wrong answers above all.
//!
//! Plain HTTP/1.1 on a free port of the loopback address, a thread for each connection. What was asked of it is
//! kept. It knows what a TLS handshake is not: like any server of HTTP it answers one with 400.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::kit::Packed;
use super::tree::sha256;

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The same request for everything.
    pub fn without_range(&self) -> Self {
        let mut asked = self.clone();
        asked.headers.remove("range");
        asked
    }

    /// First and last byte of the range that is asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What comes back.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    manner: Manner,
}

/// How a body is sent.
#[derive(Clone, Debug)]
enum Manner {
    Whole,
    Chunked,
    /// Some bytes, and then the connection is closed.
    Cut(usize),
    /// Some bytes, and then the connection is reset.
    Reset(usize),
    /// Some bytes, and then nothing.
    Stall(usize),
    /// A byte each time.
    Trickle(Duration),
    /// After a round trip, and no faster than so many bytes a second: what one connection of a long link gives.
    Link(Duration, f64),
    /// Not even a head.
    Silence,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), manner: Manner::Whole }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Changes one bit of the body.
    pub fn flip(mut self, at: usize) -> Self {
        if let Some(byte) = self.body.get_mut(at) {
            *byte ^= 4;
        }
        self
    }

    /// Sends the body in chunks, without its length in the head.
    pub fn chunked(mut self) -> Self {
        self.manner = Manner::Chunked;
        self
    }

    /// Hangs up after so many bytes of the body.
    pub fn cut(mut self, after: usize) -> Self {
        self.manner = Manner::Cut(after);
        self
    }

    /// Resets the connection after so many bytes of the body.
    pub fn reset(mut self, after: usize) -> Self {
        self.manner = Manner::Reset(after);
        self
    }

    /// Falls silent after so many bytes of the body.
    pub fn stall(mut self, after: usize) -> Self {
        self.manner = Manner::Stall(after);
        self
    }

    /// Sends one byte, waits, and so on.
    pub fn trickle(mut self, pause: Duration) -> Self {
        self.manner = Manner::Trickle(pause);
        self
    }

    /// Sends it as over a link with this round trip, which gives each connection so many bytes a second.
    pub fn link(mut self, round_trip: Duration, bytes_a_second: f64) -> Self {
        self.manner = Manner::Link(round_trip, bytes_a_second);
        self
    }

    /// Reads the request and says nothing.
    pub fn silence() -> Self {
        Self { manner: Manner::Silence, ..Self::new(200) }
    }
}

/// What an honest registry holds: one repository `kit`.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blobs: BTreeMap<String, Vec<u8>>,
    tags: BTreeMap<String, String>,
}

impl Content {
    /// Adds a blob or a manifest; returns its digest.
    pub fn add(&mut self, bytes: impl Into<Vec<u8>>) -> String {
        let bytes = bytes.into();
        let digest = format!("sha256:{}", sha256(&bytes));
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Adds all of a kit, as `v1`.
    pub fn add_kit(&mut self, kit: &Packed) {
        for blob in kit.layers.iter().chain([&kit.config]) {
            self.add(blob.bytes.clone());
        }
        let manifest = self.add(kit.manifest_bytes());
        self.tag("v1", &manifest);
    }

    /// What a registry holds that a kit was pushed to as `v1`.
    pub fn of(kit: &Packed) -> Self {
        let mut content = Self::default();
        content.add_kit(kit);
        content
    }

    pub fn tag(&mut self, tag: &str, digest: &str) {
        self.tags.insert(tag.into(), digest.into());
    }

    /// The answer of a registry without faults.
    pub fn answer(&self, asked: &Asked) -> Answer {
        if asked.path == "/v2/" {
            return Answer::new(200);
        }
        let path = asked.path.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let digest = self.tags.get(name).map_or(name, String::as_str);
        let Some(bytes) = self.blobs.get(digest) else { return Answer::new(404) };
        let answer = Answer::new(200).header("Docker-Content-Digest", digest);
        match asked.range() {
            None => answer.body(bytes.clone()),
            Some((first, _)) if first >= bytes.len() => {
                Answer::new(416).header("Content-Range", format!("bytes */{}", bytes.len()))
            }
            Some((first, last)) => {
                let last = last.min(bytes.len() - 1);
                let range = format!("bytes {first}-{last}/{}", bytes.len());
                Answer { status: 206, ..answer }.header("Content-Range", range).body(&bytes[first..=last])
            }
        }
    }
}

type Answers = dyn Fn(&Asked, usize) -> Answer + Send + Sync;

/// The server. It ends when it is dropped.
pub struct Faults {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Answers>,
    /// Whether what listens now is to end, and its thread.
    listening: Mutex<Option<(Arc<AtomicBool>, JoinHandle<()>)>>,
}

impl Faults {
    /// Answers each request with what `answer` says; its second argument counts the requests before it.
    pub fn start(answer: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let server = Self { address, asked: Arc::default(), answer: Arc::new(answer), listening: Mutex::new(None) };
        server.listen(listener);
        server
    }

    /// A registry without faults.
    pub fn honest(content: Content) -> Self {
        Self::start(move |asked, _| content.answer(asked))
    }

    /// Its address, as references name it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics there").clone()
    }

    /// Ends all connections and refuses new ones.
    pub fn close(&self) {
        let Some((is_over, thread)) = self.listening.lock().expect("no test panics there").take() else { return };
        is_over.store(true, Ordering::Relaxed);
        // The listener looks at the flag when somebody comes.
        TcpStream::connect(self.address).ok();
        thread.join().ok();
    }

    /// Takes connections again, at the same address.
    pub fn open(&self) {
        self.listen(TcpListener::bind(self.address).expect("our own port, which nobody was given"));
    }

    fn listen(&self, listener: TcpListener) {
        let is_over = Arc::new(AtomicBool::new(false));
        let (all, over, answer) = (Arc::clone(&self.asked), Arc::clone(&is_over), Arc::clone(&self.answer));
        let thread = std::thread::spawn(move || {
            for peer in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (all, over, answer) = (Arc::clone(&all), Arc::clone(&over), Arc::clone(&answer));
                // A client that hangs up is what many tests are about.
                std::thread::spawn(move || serve(peer, &all, &over, &*answer).ok());
            }
        });
        *self.listening.lock().expect("no test panics there") = Some((is_over, thread));
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.close();
    }
}

fn serve(peer: TcpStream, all: &Mutex<Vec<Asked>>, over: &AtomicBool, answer: &Answers) -> std::io::Result<()> {
    peer.set_nodelay(true)?;
    let mut writer = peer.try_clone()?;
    let mut reader = BufReader::new(peer);
    while let Some(asked) = read(&mut reader)? {
        if asked.method.is_empty() {
            return writer.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
        if over.load(Ordering::Relaxed) {
            return Ok(());
        }
        let before = {
            let mut all = all.lock().expect("no test panics there");
            all.push(asked.clone());
            all.len() - 1
        };
        write(&mut writer, &asked, &answer(&asked, before), over)?;
    }
    Ok(())
}

/// Reads one request; without a method if it is none, and `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut line = Vec::new();
    let mut next = |reader: &mut BufReader<TcpStream>| -> std::io::Result<String> {
        line.clear();
        reader.by_ref().take(64 * 1024).read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    };
    let first = next(reader)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !first.trim_end().ends_with("HTTP/1.1") {
        return Ok(Some(Asked { method: String::new(), path: String::new(), headers: BTreeMap::new() }));
    }
    let mut headers = BTreeMap::new();
    loop {
        let line = next(reader)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let body = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.by_ref().take(body), &mut std::io::sink())?;
    Ok(Some(Asked { method, path, headers }))
}

fn write(peer: &mut TcpStream, asked: &Asked, answer: &Answer, over: &AtomicBool) -> std::io::Result<()> {
    let hang = || {
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(std::io::ErrorKind::ConnectionAborted.into())
    };
    let mut head = format!("HTTP/1.1 {} Answer\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &match answer.manner {
        Manner::Silence => return hang(),
        Manner::Chunked => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        _ => format!("Content-Length: {}\r\n\r\n", answer.body.len()),
    };
    if let Manner::Link(round_trip, _) = answer.manner {
        std::thread::sleep(round_trip);
    }
    peer.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    match answer.manner {
        Manner::Whole | Manner::Silence => peer.write_all(&answer.body),
        Manner::Chunked => {
            for chunk in answer.body.chunks(10_000) {
                write!(peer, "{:x}\r\n", chunk.len())?;
                peer.write_all(chunk)?;
                peer.write_all(b"\r\n")?;
            }
            peer.write_all(b"0\r\n\r\n")
        }
        Manner::Cut(after) => {
            peer.write_all(&answer.body[..after.min(answer.body.len())])?;
            peer.shutdown(std::net::Shutdown::Both)?;
            Err(std::io::ErrorKind::ConnectionAborted.into())
        }
        Manner::Reset(after) => {
            peer.write_all(&answer.body[..after.min(answer.body.len())])?;
            // Without time to linger, closing a socket resets its connection.
            rustix::net::sockopt::set_socket_linger(&*peer, Some(Duration::ZERO))?;
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Manner::Stall(after) => {
            peer.write_all(&answer.body[..after.min(answer.body.len())])?;
            hang()
        }
        Manner::Link(_, bytes_a_second) => {
            let begun = std::time::Instant::now();
            let mut sent = 0;
            for piece in answer.body.chunks(64 * 1024) {
                sent += piece.len();
                let due = Duration::from_secs_f64(sent as f64 / bytes_a_second);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                peer.write_all(piece)?;
            }
            Ok(())
        }
        Manner::Trickle(pause) => {
            for byte in &answer.body {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                peer.write_all(&[*byte])?;
                std::thread::sleep(pause);
            }
            Ok(())
        }
    }
}
