//! Text that came from outside, made safe for a terminal and for one line.
//!
//! Names in a kit are whatever its author wrote. A control character in one could move the cursor,
//! set the title or ring the bell of whoever lists it; a line break could fake a second message. Both
//! are shown as escapes. Bidirectional overrides, which reorder what is on the screen, likewise.

use std::borrow::Cow;
use std::fmt::Write;

/// A name as one unambiguous line: control characters, invalid UTF-8 and backslashes as escapes.
pub fn name(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                c => push(&mut shown, c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// A message as one line, without control characters.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut shown, c));
    Cow::Owned(shown)
}

/// An error and its causes, joined by `: `, as one line. What a cause says again is said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    line(&message).into_owned()
}

fn push(shown: &mut String, c: char) {
    match c {
        c if is_dangerous(c) => shown.extend(c.escape_default()),
        c => shown.push(c),
    }
}

fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
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
        let inner = Level("refused\n(os error 1)", None);
        let middle = Level("cannot open x", Some(Box::new(inner)));
        let repeating = Level("kit a: cannot open x", Some(Box::new(middle)));
        assert_eq!(chain(&repeating), "kit a: cannot open x: refused\\n(os error 1)");
    }
}
