//! Regular expressions and durations as policies write them.

use std::fmt;

use jiff::SignedDuration;
use regex::Regex;

/// A regular expression that has to match the whole text.
#[derive(Clone, Debug)]
pub struct Whole {
    text: String,
    regex: Regex,
}

impl Whole {
    /// Whether the whole text matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// Reads a regular expression that has to match the whole text. The error is a sentence.
pub fn whole(expression: &str) -> Result<Whole, String> {
    let wrong = |error: regex::Error| {
        let line = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        format!("{expression:?} is not a regular expression: {line}")
    };
    // By itself first: one that closes a group which it did not open must not get out of ours.
    Regex::new(expression).map_err(wrong)?;
    let regex = Regex::new(&format!(r"\A(?:{expression})\z")).map_err(wrong)?;
    Ok(Whole { text: expression.into(), regex })
}

/// A time span such as `30d`, `12h` or `1y`.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is not a duration: write 30d, 12h or 90m");
    let duration = humantime::parse_duration(text).map_err(|_| wrong())?;
    let duration = SignedDuration::try_from(duration).map_err(|_| wrong())?;
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_the_whole_or_not_at_all() {
        for (expression, text, matches) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a|ab", "ab", true),
            ("a|b.*", "xa", false),
            ("^https://x/.*$", "https://x/y", true),
            ("a.*", "a\nb", false),
            ("(?m)^a$", "a\nb", false),
        ] {
            assert_eq!(whole(expression).unwrap().is_match(text), matches, "{expression} {text:?}");
        }
    }

    #[test]
    fn an_expression_cannot_leave_its_anchors() {
        for expression in ["a)|(b", "(", "(?x)a #"] {
            assert!(whole(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30d").unwrap(), SignedDuration::from_hours(720));
        for text in ["", "0s", "30", "-1d", "99999999999999999999y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
