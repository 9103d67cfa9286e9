//! The two log daemons of a Linux host, each a datagram away.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tracing::Level;

/// A connection to a log daemon. A daemon that is started again is connected to again.
#[derive(Debug)]
pub(in crate::cli) struct Daemon {
    socket: UnixDatagram,
    path: &'static str,
    protocol: Protocol,
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
    pub(in crate::cli) fn syslog() -> io::Result<Self> {
        Self::connect("/dev/log", Protocol::Syslog)
    }

    /// systemd's journal.
    pub(in crate::cli) fn journal() -> io::Result<Self> {
        Self::connect("/run/systemd/journal/socket", Protocol::Journal)
    }

    fn connect(path: &'static str, protocol: Protocol) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A daemon that hangs must not take a mount with it.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        socket.connect(path).map_err(named)?;
        Ok(Self { socket, path, protocol })
    }

    /// Sends a message of one line. Where that fails it is lost.
    pub(in crate::cli) fn write(&self, level: Level, message: &str) {
        let datagram = self.protocol.datagram(level, message);
        if self.socket.send(&datagram).is_err() && self.socket.connect(self.path).is_ok() {
            let _lost = self.socket.send(&datagram);
        }
    }
}

impl Protocol {
    fn datagram(self, level: Level, message: &str) -> Vec<u8> {
        // The severities of RFC 5424, 6.2.1, which both protocols use.
        let severity = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let message = message.get(..message.floor_char_boundary(LONGEST)).unwrap_or(message);
        let pid = std::process::id();
        match self {
            // Facility 3, system daemons.
            Self::Syslog => format!("<{}>kitfs[{pid}]: {message}", 3 * 8 + severity),
            Self::Journal => {
                format!("MESSAGE={message}\nPRIORITY={severity}\nSYSLOG_IDENTIFIER=kitfs\nSYSLOG_PID={pid}\n")
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
        for (protocol, expected) in [
            (Protocol::Syslog, format!("<28>kitfs[{pid}]: no answer")),
            (Protocol::Journal, format!("MESSAGE=no answer\nPRIORITY=4\nSYSLOG_IDENTIFIER=kitfs\nSYSLOG_PID={pid}\n")),
        ] {
            assert_eq!(String::from_utf8(protocol.datagram(Level::WARN, "no answer")).unwrap(), expected);
        }
        assert!(Protocol::Syslog.datagram(Level::WARN, &"ä".repeat(LONGEST)).len() <= LONGEST + 40);
    }
}
