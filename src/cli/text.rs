//! Text that came from outside, made safe for a terminal and for one line.
//!
//! Names in a kit are whatever its author wrote. A control character in one could move the cursor,
//! set the title or ring the bell of whoever lists it; a line break could fake a second message.

use crate::kit::name::write_escaped;
use crate::ledger;

/// A name as one unambiguous piece of a line.
pub fn name(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    // Writing to a String cannot fail.
    let _ = write_escaped(bytes, &mut shown);
    shown
}

/// A message as one line. Its backslashes stay as they are: what it quotes is escaped already.
pub fn line(message: &str) -> String {
    let pieces: Vec<_> = message.split('\\').map(|piece| name(piece.as_bytes())).collect();
    pieces.join("\\")
}

/// An error and its causes as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    line(&ledger::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_line_whatever_they_hold() {
        for (bytes, shown) in [
            (&b"model/weights.bin"[..], "model/weights.bin"),
            ("größe 模型".as_bytes(), "größe 模型"),
            (b"a\nb\tc", "a\\nb\\tc"),
            (b"\x1b[31mred", "\\u{1b}[31mred"),
            (b"back\\slash", "back\\\\slash"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("\u{202e}gpj.exe".as_bytes(), "\\u{202e}gpj.exe"),
        ] {
            assert_eq!(name(bytes), shown);
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Level(&'static str, #[source] Option<Box<Level>>);

    #[test]
    fn a_chain_of_errors_is_one_line_without_repetition() {
        let inner = Level("refused\n(a\\\\b)", None);
        let middle = Level("cannot open x", Some(Box::new(inner)));
        let repeating = Level("kit a: cannot open x", Some(Box::new(middle)));
        assert_eq!(chain(&repeating), "kit a: cannot open x: refused\\n(a\\\\b)");
    }
}
