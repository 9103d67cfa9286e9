//! HTTPS or plain HTTP: what the user said, and on loopback what the peer speaks.
//!
//! A peer on loopback is sent the start of a TLS handshake on a connection of its own. Only one that
//! answers with something else, or hangs up on it, is spoken to in plain HTTP. A bad certificate or
//! silence never leads there: this looks at no certificate, and silence is a failure.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::patience::Patience;
use crate::source::Options;
use crate::source::registry::failure::Failure;

/// How to speak to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

/// Whether a host of a reference is this machine by its name.
pub(super) fn is_loopback(host: &str) -> bool {
    let (name, _) = split(host);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || bare.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
}

/// The scheme, where it follows from the reference and the options alone.
pub(super) fn without_asking(host: &str, options: &Options) -> Option<Scheme> {
    match (is_loopback(host), options.plain_http) {
        (true, _) => None,
        (false, true) => Some(Scheme::Http),
        (false, false) => Some(Scheme::Https),
    }
}

/// Finds out what a peer on loopback speaks.
pub(super) async fn ask(host: &str, limit: Duration) -> Result<Scheme, Failure> {
    let (name, port) = split(host);
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let Some(port) = port else {
        // Each scheme has its own default port. Where nobody listens on that of HTTPS, the other is
        // the only one that can answer.
        return match Patience::new(limit).wait_for(TcpStream::connect((name.as_str(), 443))).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Scheme::Http),
            _ => hello(&name, 443, limit).await,
        };
    };
    hello(&name, port, limit).await
}

async fn hello(name: &str, port: u16, limit: Duration) -> Result<Scheme, Failure> {
    let greet = async {
        let mut peer = TcpStream::connect((name, port)).await.map_err(Failure::Connect)?;
        let mut answer = [0; 2];
        let answered = async {
            peer.write_all(&client_hello()).await?;
            peer.read_exact(&mut answer).await
        };
        match answered.await {
            Ok(_) => Ok(if is_tls_record(answer) { Scheme::Https } else { Scheme::Http }),
            // It hung up on the handshake.
            Err(_) => Ok(Scheme::Http),
        }
    };
    Patience::new(limit)
        .wait_for(greet)
        .await
        .map_err(|_| Failure::Late("it did not answer the start of a TLS handshake"))?
}

/// RFC 8446, 5.1: an alert or a handshake, of version 3.x.
fn is_tls_record(start: [u8; 2]) -> bool {
    matches!(start, [0x15 | 0x16, 3])
}

/// A ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) that any server answers with a record of TLS, if only
/// an alert. The bytes 10 in it end a line, for servers of HTTP that wait for one before they answer.
fn client_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x06, 0x00, 0x04, 0x00, 0x1d, 0x00, 0x17, // supported_groups: x25519, secp256r1
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // ec_point_formats: uncompressed
        0x00, 0x0d, 0x00, 0x08, 0x00, 0x06, 0x04, 0x03, 0x08, 0x04, 0x04, 0x01, // signature_algorithms
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([0x0a; 32]);
    body.push(0);
    body.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]);
    body.extend([0, extensions.len() as u8]);
    body.extend(extensions);
    let len = body.len() as u8;
    let mut record = vec![0x16, 0x03, 0x01, 0x00, len + 4, 0x01, 0x00, 0x00, len];
    record.extend(body);
    record
}

/// Name and port of a host that was checked when its reference was parsed.
fn split(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_its_names_and_addresses() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "127.0.0.1.example:5000", "[::2]:5000", "ghcr.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_tls_record_is_told_from_text() {
        assert!(is_tls_record([0x16, 3]) && is_tls_record([0x15, 3]));
        assert!(!is_tls_record(*b"HT") && !is_tls_record([0x16, 2]));
    }
}
