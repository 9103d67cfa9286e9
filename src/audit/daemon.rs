//! The two log daemons of a Linux host, each a datagram away.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

/// What kind of messages a connection carries, as the daemons tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What kitfs says while it runs.
    Messages,
    /// Lines of the audit log.
    Audit,
}

/// A connection to a log daemon. A daemon that is started again is connected to again.
#[derive(Debug)]
pub struct Daemon {
    socket: UnixDatagram,
    path: PathBuf,
    protocol: Protocol,
    stream: Stream,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    /// RFC 3164 as `syslog(3)` sends it; the daemon adds time and host.
    Syslog,
    /// systemd's "Native Journal Protocol".
    Journal,
}

/// Longer messages would not fit into one datagram of a daemon with small buffers.
const LONGEST: usize = 32 * 1024;

impl Daemon {
    /// The system's log daemon.
    pub fn syslog(stream: Stream) -> io::Result<Self> {
        Self::connect(Path::new("/dev/log"), Protocol::Syslog, stream)
    }

    /// systemd's journal.
    pub fn journal(stream: Stream) -> io::Result<Self> {
        Self::connect(Path::new("/run/systemd/journal/socket"), Protocol::Journal, stream)
    }

    fn connect(path: &Path, protocol: Protocol, stream: Stream) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A daemon that hangs must not take a mount with it.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        socket.connect(path).map_err(named)?;
        Ok(Self { socket, path: path.into(), protocol, stream })
    }

    /// Sends a message of one line.
    pub fn write(&self, level: Level, message: &str) -> io::Result<()> {
        let datagram = self.protocol.datagram(self.stream, level, message);
        if self.socket.send(&datagram).is_err() {
            self.socket.connect(&self.path)?;
            self.socket.send(&datagram)?;
        }
        Ok(())
    }
}

impl Stream {
    /// The facility of RFC 5424, 6.2.1, and the name.
    fn facility_and_name(self) -> (u8, &'static str) {
        match self {
            // System daemons.
            Self::Messages => (3, "kitfs"),
            // Security and authorisation, for few eyes.
            Self::Audit => (10, "kitfs-audit"),
        }
    }
}

impl Protocol {
    fn datagram(self, stream: Stream, level: Level, message: &str) -> Vec<u8> {
        // The severities of RFC 5424, 6.2.1, which both protocols use.
        let severity = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let message = message.get(..message.floor_char_boundary(LONGEST)).unwrap_or(message);
        let pid = std::process::id();
        let (facility, name) = stream.facility_and_name();
        match self {
            Self::Syslog => format!("<{}>{name}[{pid}]: {message}", facility * 8 + severity),
            Self::Journal => {
                format!(
                    "MESSAGE={message}\nPRIORITY={severity}\nSYSLOG_FACILITY={facility}\n\
                     SYSLOG_IDENTIFIER={name}\nSYSLOG_PID={pid}\n"
                )
            }
        }
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_what_the_daemons_read() {
        let pid = std::process::id();
        let journal =
            format!("MESSAGE=no answer\nPRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=kitfs\nSYSLOG_PID={pid}\n");
        for (protocol, stream, expected) in [
            (Protocol::Syslog, Stream::Messages, format!("<28>kitfs[{pid}]: no answer")),
            (Protocol::Syslog, Stream::Audit, format!("<84>kitfs-audit[{pid}]: no answer")),
            (Protocol::Journal, Stream::Messages, journal),
        ] {
            assert_eq!(String::from_utf8(protocol.datagram(stream, Level::WARN, "no answer")).unwrap(), expected);
        }
        assert!(Protocol::Syslog.datagram(Stream::Audit, Level::WARN, &"ä".repeat(LONGEST)).len() <= LONGEST + 40);
    }

    #[test]
    fn a_daemon_that_is_started_again_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let first = UnixDatagram::bind(&path).unwrap();
        let daemon = Daemon::connect(&path, Protocol::Syslog, Stream::Audit).unwrap();
        daemon.write(Level::INFO, "one").unwrap();
        let mut buffer = [0; 100];
        assert!(first.recv(&mut buffer).unwrap() > 3);
        drop(first);
        std::fs::remove_file(&path).unwrap();
        daemon.write(Level::INFO, "lost").unwrap_err();
        let second = UnixDatagram::bind(&path).unwrap();
        daemon.write(Level::INFO, "two").unwrap();
        let len = second.recv(&mut buffer).unwrap();
        assert!(buffer[..len].ends_with(b"two"));
    }
}
