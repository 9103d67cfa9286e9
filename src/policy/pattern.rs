//! Patterns over names of repositories: which rule is for which kit.
//!
//! `*` stands for any text without a `/`, `**` for any text at all, everything else for itself. A pattern
//! is about the name without tag and digest: `registry/repository`, `oci:PATH`, `kit:NAME`.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

/// A pattern over names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// `*`
    InSegment,
    /// `**`
    Anything,
}

/// How narrow a pattern is; the greater one wins. The longer literal text before the first star counts
/// first, then literal text in all, then fewer `**`, then fewer `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    prefix: usize,
    literal: usize,
    anything: Reverse<usize>,
    in_segment: Reverse<usize>,
}

impl Token {
    fn is_star(self) -> bool {
        !matches!(self, Self::Literal(_))
    }

    /// Whether the token can take this character of a name.
    fn takes(self, character: char) -> bool {
        match self {
            Self::Literal(own) => own == character,
            Self::InSegment => character != '/',
            Self::Anything => true,
        }
    }

    /// Whether some character suits both.
    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Literal(own), other) | (other, Self::Literal(own)) => other.takes(own),
            _ => true,
        }
    }
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |why| InvalidPattern { text: text.into(), why };
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if text.chars().any(char::is_whitespace) {
            return Err(invalid("it has white space in it"));
        }
        if text.contains("***") {
            return Err(invalid("there is * and **, and nothing longer"));
        }
        if !text.starts_with("oci:") {
            let name = text.strip_prefix("kit:").unwrap_or(text);
            let last = name.rsplit_once('/').map_or("", |(_, last)| last);
            if name.contains('@') || last.contains(':') {
                return Err(invalid("a pattern names repositories, without tag and digest"));
            }
        }
        // Hosts are the same in capital and small letters; names have them in small ones.
        let has_host = !text.starts_with("oci:") && !text.starts_with("kit:");
        let (host, path) = text.split_at(text.find('/').filter(|_| has_host).unwrap_or(0));
        let text = &*format!("{}{path}", host.to_ascii_lowercase());
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let (token, len) = match rest {
                _ if rest.starts_with("**") => (Token::Anything, 2),
                _ if character == '*' => (Token::InSegment, 1),
                _ => (Token::Literal(character), character.len_utf8()),
            };
            tokens.push(token);
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(Self { text: text.into(), tokens })
    }

    /// The pattern that every name fits.
    pub fn everything() -> Self {
        Self { text: "**".into(), tokens: vec![Token::Anything] }
    }

    /// Whether a name fits.
    pub fn matches(&self, name: &str) -> bool {
        let mut places = self.from(BTreeSet::from([0]));
        for character in name.chars() {
            let next = places.into_iter().filter_map(|place| {
                let token = *self.tokens.get(place)?;
                token.takes(character).then_some(if token.is_star() { place } else { place + 1 })
            });
            places = self.from(next.collect());
        }
        places.contains(&self.tokens.len())
    }

    /// The places that these lead to without taking a character: a star may take none.
    fn from(&self, mut places: BTreeSet<usize>) -> BTreeSet<usize> {
        let mut open: Vec<_> = places.iter().copied().collect();
        while let Some(place) = open.pop() {
            if self.tokens.get(place).is_some_and(|token| token.is_star()) && places.insert(place + 1) {
                open.push(place + 1);
            }
        }
        places
    }

    /// Whether there is a name that fits both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mut seen = BTreeSet::from([(0, 0)]);
        let mut open = vec![(0, 0)];
        while let Some((own, others)) = open.pop() {
            let (token, other_token) = (self.tokens.get(own).copied(), other.tokens.get(others).copied());
            if token.is_none() && other_token.is_none() {
                return true;
            }
            let mut next = Vec::new();
            if token.is_some_and(Token::is_star) {
                next.push((own + 1, others));
            }
            if other_token.is_some_and(Token::is_star) {
                next.push((own, others + 1));
            }
            if let (Some(token), Some(other_token)) = (token, other_token)
                && token.meets(other_token)
            {
                let step = |token: Token, place: usize| if token.is_star() { place } else { place + 1 };
                next.push((step(token, own), step(other_token, others)));
            }
            open.extend(next.into_iter().filter(|&place| seen.insert(place)));
        }
        false
    }

    /// How narrow it is.
    pub fn specificity(&self) -> Specificity {
        let count = |kind: fn(&Token) -> bool| self.tokens.iter().filter(|token| kind(token)).count();
        Specificity {
            prefix: self.tokens.iter().take_while(|token| !token.is_star()).count(),
            literal: count(|token| !token.is_star()),
            anything: Reverse(count(|token| *token == Token::Anything)),
            in_segment: Reverse(count(|token| *token == Token::InSegment)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a pattern: {why}")]
pub struct InvalidPattern {
    text: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn stars_stay_in_a_segment_and_double_stars_do_not() {
        for (text, name, fits) in [
            ("ghcr.io/acme/llm", "ghcr.io/acme/llm", true),
            ("ghcr.io/acme/llm", "ghcr.io/acme/llm2", false),
            ("ghcr.io/acme/*", "ghcr.io/acme/llm", true),
            ("ghcr.io/acme/*", "ghcr.io/acme/team/llm", false),
            ("ghcr.io/acme/**", "ghcr.io/acme/team/llm", true),
            ("ghcr.io/acme/**", "ghcr.io/acme-evil/llm", false),
            ("ghcr.io/acme/**", "ghcr.io/acme", false),
            ("*/acme/*", "ghcr.io/acme/llm", true),
            ("ghcr.io/**/llm", "ghcr.io/a/b/llm", true),
            ("ghcr.io/llm-*-chat", "ghcr.io/llm-7b-chat", true),
            ("localhost:5000/**", "localhost:5000/a", true),
            ("oci:/srv/**", "oci:/srv/kits/a", true),
            ("oci:**", "oci:layouts/a:b", true),
            ("kit:*", "kit:llm", true),
            ("**", "anything/at:all", true),
            ("ghcr.io/acme/llm", "GHCR.io/acme/llm", false),
            ("GHCR.io/acme/*", "ghcr.io/acme/llm", true),
            ("oci:/Srv/*", "oci:/Srv/a", true),
            ("oci:/Srv/*", "oci:/srv/a", false),
            ("kit:A/*", "kit:A/b", true),
        ] {
            assert_eq!(pattern(text).matches(name), fits, "{text} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_told_why() {
        for (text, why) in [
            ("", "empty"),
            ("ghcr.io/acme/llm:v1", "without tag"),
            ("ghcr.io/acme/llm@sha256:00", "without tag"),
            ("kit:base/llm:v1", "without tag"),
            ("ghcr.io/***", "longer"),
            ("ghcr.io/a b", "white space"),
        ] {
            assert!(Pattern::parse(text).unwrap_err().to_string().contains(why), "{text}");
        }
    }

    #[test]
    fn the_narrower_pattern_is_more_specific() {
        let wide_to_narrow = [
            "**",
            "*/acme/llm",
            "ghcr.io/**",
            "ghcr.io/*/llm",
            "ghcr.io/acme/**",
            "ghcr.io/acme/*",
            "ghcr.io/acme/llm",
        ];
        for pair in wide_to_narrow.windows(2) {
            assert!(pattern(pair[0]).specificity() < pattern(pair[1]).specificity(), "{pair:?}");
        }
    }

    #[test]
    fn patterns_overlap_where_one_name_fits_both() {
        for (one, other, overlap) in [
            ("a/*", "*/b", true),
            ("a/*", "b/*", false),
            ("a/**", "a/b/*", true),
            ("a/*", "a/b/c", false),
            ("**", "x", true),
            ("*a", "*b", false),
            ("ghcr.io/a*/x", "ghcr.io/*b/x", true),
        ] {
            assert_eq!(pattern(one).overlaps(&pattern(other)), overlap, "{one} {other}");
            assert_eq!(pattern(other).overlaps(&pattern(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let text = "*a".repeat(200);
        assert!(!pattern(&text).matches(&"a".repeat(199)));
        assert!(pattern(&text).overlaps(&pattern(&"a*".repeat(200))));
    }
}
