//! Conditions on what an attestation says: the `where` of a policy.
//!
//! A pointer (RFC 6901) into the statement names a value, and one operator says what it must be. The
//! segment `*` stands for every element of an array and every member of an object; then each value that
//! the rest of the pointer finds must hold. What is not there does not hold, and a value of another type
//! than the operator is about does not either.

use std::fmt;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::policy::text::Whole;
use crate::policy::text::duration;
use crate::policy::text::whole;

/// One condition, as it stands in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pointer: String,
    equals: Option<toml::Value>,
    not_equals: Option<toml::Value>,
    one_of: Option<Vec<toml::Value>>,
    none_of: Option<Vec<toml::Value>>,
    contains: Option<toml::Value>,
    matches: Option<String>,
    at_most: Option<f64>,
    at_least: Option<f64>,
    severity_at_most: Option<String>,
    newer_than: Option<String>,
    exists: Option<bool>,
}

/// One condition.
#[derive(Clone, Debug)]
pub struct Claim {
    pointer: String,
    path: Vec<Segment>,
    operator: Operator,
}

#[derive(Clone, Debug)]
enum Segment {
    Member(String),
    Every,
}

#[derive(Clone, Debug)]
enum Operator {
    Equals(Value),
    NotEquals(Value),
    OneOf(Vec<Value>),
    NoneOf(Vec<Value>),
    Contains(Value),
    Matches(Whole),
    AtMost(f64),
    AtLeast(f64),
    SeverityAtMost(Severity),
    NewerThan(SignedDuration),
    Exists,
    Absent,
}

/// How bad a finding is, in the words that scanners use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    None,
    Negligible,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "none" | "info" | "informational" => Self::None,
            "negligible" | "minimal" => Self::Negligible,
            "low" | "note" => Self::Low,
            "medium" | "moderate" | "warning" => Self::Medium,
            "high" | "important" | "error" => Self::High,
            "critical" => Self::Critical,
            _ => return None,
        })
    }
}

impl Claim {
    /// Reads a condition. The error is a sentence without the file.
    pub fn parse(table: Table) -> Result<Self, String> {
        let pointer = table.pointer.clone();
        let path = segments(&pointer)?;
        let operator = Operator::of(table).map_err(|why| format!("where {pointer}: {why}"))?;
        Ok(Self { pointer, path, operator })
    }

    /// Whether the statement holds to it; if not, why.
    pub fn check(&self, statement: &Value, now: Timestamp) -> Result<(), String> {
        let mut found = Vec::new();
        select(statement, &self.path, &mut found)
            .map_err(|missing| match self.operator {
                Operator::Absent => String::new(),
                _ => format!("{} is not there{missing}", self.pointer),
            })
            .or_else(|missing| if missing.is_empty() { Ok(()) } else { Err(missing) })?;
        found.into_iter().try_for_each(|value| {
            self.operator.holds(value, now).map_err(|why| format!("{} is {}{why}", self.pointer, shown(value)))
        })
    }
}

impl Operator {
    fn of(table: Table) -> Result<Self, String> {
        let Table { equals, not_equals, one_of, none_of, contains, matches, .. } = table;
        let mut operators = Vec::new();
        operators.extend(equals.map(|value| json(&value).map(Self::Equals)));
        operators.extend(not_equals.map(|value| json(&value).map(Self::NotEquals)));
        let all = |values: Vec<toml::Value>| values.iter().map(json).collect::<Result<Vec<_>, _>>();
        operators.extend(one_of.map(|values| all(values).map(Self::OneOf)));
        operators.extend(none_of.map(|values| all(values).map(Self::NoneOf)));
        operators.extend(contains.map(|value| json(&value).map(Self::Contains)));
        operators.extend(matches.map(|text| whole(&text).map(Self::Matches)));
        operators.extend(table.at_most.map(|limit| Ok(Self::AtMost(limit))));
        operators.extend(table.at_least.map(|limit| Ok(Self::AtLeast(limit))));
        operators.extend(table.severity_at_most.map(|word| {
            let words = "none, negligible, low, medium, high, critical";
            let severity = Severity::parse(&word).ok_or_else(|| format!("severity_at_most is none of {words}"))?;
            Ok(Self::SeverityAtMost(severity))
        }));
        operators.extend(table.newer_than.map(|age| duration(&age).map(Self::NewerThan)));
        operators.extend(table.exists.map(|exists| Ok(if exists { Self::Exists } else { Self::Absent })));
        match operators.len() {
            1 => operators.remove(0),
            0 => Err("an operator is missing, such as equals".into()),
            _ => Err("there is more than one operator: write one condition for each".into()),
        }
    }

    fn holds(&self, value: &Value, now: Timestamp) -> Result<(), String> {
        let require = |holds: bool, why: &dyn Fn() -> String| if holds { Ok(()) } else { Err(why()) };
        match self {
            Self::Equals(wanted) => require(same(value, wanted), &|| format!(", not {}", shown(wanted))),
            Self::NotEquals(unwanted) => require(!same(value, unwanted), &|| ", which it must not be".into()),
            Self::OneOf(wanted) => require(wanted.iter().any(|one| same(value, one)), &|| ", not one of those".into()),
            Self::NoneOf(unwanted) => {
                require(!unwanted.iter().any(|one| same(value, one)), &|| ", which it must not be".into())
            }
            Self::Contains(wanted) => {
                let contains = match (value, wanted) {
                    (Value::Array(items), wanted) => items.iter().any(|item| same(item, wanted)),
                    (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
                    _ => false,
                };
                require(contains, &|| format!(", which does not contain {}", shown(wanted)))
            }
            Self::Matches(regex) => {
                let matches = value.as_str().is_some_and(|text| regex.is_match(text));
                require(matches, &|| format!(", which does not match {regex}"))
            }
            Self::AtMost(limit) => {
                require(number(value).is_some_and(|value| value <= *limit), &|| format!(", not at most {limit}"))
            }
            Self::AtLeast(limit) => {
                require(number(value).is_some_and(|value| value >= *limit), &|| format!(", not at least {limit}"))
            }
            Self::SeverityAtMost(limit) => {
                let severity = value.as_str().and_then(Severity::parse);
                require(severity.is_some_and(|severity| severity <= *limit), &|| match severity {
                    Some(_) => ", which is worse than allowed".into(),
                    None => ", which is no severity that kitfs knows".into(),
                })
            }
            Self::NewerThan(age) => {
                let time = value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
                time.ok_or_else(|| ", which is no time".to_owned())
                    .and_then(|time| is_newer(time, *age, now).map_err(|why| format!(", {why}")))
            }
            Self::Exists => Ok(()),
            Self::Absent => Err(", and must not be there".into()),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.pointer)?;
        match &self.operator {
            Operator::Equals(value) => write!(f, "equals {}", shown(value)),
            Operator::NotEquals(value) => write!(f, "is not {}", shown(value)),
            Operator::OneOf(values) => write!(f, "is one of {}", shown(&Value::Array(values.clone()))),
            Operator::NoneOf(values) => write!(f, "is none of {}", shown(&Value::Array(values.clone()))),
            Operator::Contains(value) => write!(f, "contains {}", shown(value)),
            Operator::Matches(regex) => write!(f, "matches {regex}"),
            Operator::AtMost(limit) => write!(f, "is at most {limit}"),
            Operator::AtLeast(limit) => write!(f, "is at least {limit}"),
            Operator::SeverityAtMost(limit) => {
                write!(f, "is at most {}", format!("{limit:?}").to_ascii_lowercase())
            }
            Operator::NewerThan(age) => write!(f, "is newer than {age:#}"),
            Operator::Exists => write!(f, "exists"),
            Operator::Absent => write!(f, "does not exist"),
        }
    }
}

/// How far a time may be ahead of this host's clock.
const AHEAD: SignedDuration = SignedDuration::from_mins(10);

/// Whether a time is within `age` before now. One that is yet to come would never grow old.
pub fn is_newer(time: Timestamp, age: SignedDuration, now: Timestamp) -> Result<(), String> {
    let since = now.duration_since(time);
    if since < -AHEAD {
        return Err(format!("{time} is in the future"));
    }
    if since > age { Err(format!("{time} is longer ago than {age:#}")) } else { Ok(()) }
}

fn segments(pointer: &str) -> Result<Vec<Segment>, String> {
    let mut parts = pointer.split('/');
    if parts.next() != Some("") {
        return Err(format!("{pointer:?} is not a JSON pointer: it starts with a /"));
    }
    let segment = |part: &str| match part {
        "*" => Segment::Every,
        part => Segment::Member(part.replace("~1", "/").replace("~0", "~")),
    };
    Ok(parts.map(segment).collect())
}

/// Collects what a path finds. The error says what is missing: the value itself where no `*` stands
/// before it, or the array or object that the first `*` is about.
fn select<'v>(value: &'v Value, path: &[Segment], found: &mut Vec<&'v Value>) -> Result<(), String> {
    let Some((segment, rest)) = path.split_first() else {
        found.push(value);
        return Ok(());
    };
    match segment {
        Segment::Member(name) => {
            let member = match value {
                Value::Object(members) => members.get(name),
                Value::Array(items) => name.parse::<usize>().ok().and_then(|number| items.get(number)),
                _ => None,
            };
            select(member.ok_or_else(|| format!(" ({name} is missing)"))?, rest, found)
        }
        Segment::Every => {
            let elements: Vec<_> = match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(members) => members.values().collect(),
                _ => return Err(" (* stands for elements, and there are none)".into()),
            };
            for element in elements {
                // Scanners leave out empty lists: what one element does not have is not looked at.
                let _not_there = select(element, rest, found);
            }
            Ok(())
        }
    }
}

/// What a policy says as what a statement says.
fn json(value: &toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text.clone()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(truth) => Value::Bool(*truth),
        toml::Value::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(members) => {
            let member = |(name, value): (&String, &toml::Value)| Ok((name.clone(), json(value)?));
            Value::Object(members.iter().map(member).collect::<Result<_, String>>()?)
        }
        toml::Value::Datetime(_) => return Err("a time is written as a string".into()),
    })
}

/// JSON equality in which 1, 1.0 and 1e0 are one number.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other
                || match (one.as_i64(), other.as_i64()) {
                    (Some(one), Some(other)) => one == other,
                    _ => one.as_f64().is_some_and(|one| other.as_f64() == Some(one)),
                }
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| same(value, other)))
        }
        (one, other) => one == other,
    }
}

/// The number that a value is. A score is a string in some formats.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number: &f64| number.is_finite())
}

/// A value in a message: statements are long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(text: &str) -> Result<Claim, String> {
        Claim::parse(toml::from_str(text).map_err(|error| error.message().to_owned())?)
    }

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn operators_hold_or_do_not() {
        let statement = json!({"predicate": {
            "critical": 0, "ratio": 0.5, "score": "6.9", "builder": "https://github.com/actions/runner",
            "tags": ["a", "b"], "a/b": {"m~n": true}, "empty": [],
            "finished": "2026-11-20T12:00:00Z", "tomorrow": "2026-11-23T12:00:00Z",
            "results": [{"vulnerabilities": [{"severity": "LOW"}, {"severity": "Medium"}]}, {}],
        }});
        for (text, holds) in [
            ("pointer = '/predicate/critical'\nequals = 0", true),
            ("pointer = '/predicate/critical'\nequals = 0.0", true),
            ("pointer = '/predicate/critical'\nequals = '0'", false),
            ("pointer = '/predicate/critical'\nequals = 1", false),
            ("pointer = '/predicate/absent'\nequals = 0", false),
            ("pointer = '/predicate/critical'\nnot_equals = 1", true),
            ("pointer = '/predicate/absent'\nnot_equals = 1", false),
            ("pointer = '/predicate/tags/1'\none_of = ['b', 'c']", true),
            ("pointer = '/predicate/tags/0'\none_of = ['b', 'c']", false),
            ("pointer = '/predicate/tags/*'\nnone_of = ['c']", true),
            ("pointer = '/predicate/tags/*'\nnone_of = ['b']", false),
            ("pointer = '/predicate/tags'\ncontains = 'b'", true),
            ("pointer = '/predicate/builder'\ncontains = 'actions'", true),
            ("pointer = '/predicate/tags'\nequals = ['a', 'b']", true),
            ("pointer = '/predicate/builder'\nmatches = 'https://github\\.com/.*'", true),
            ("pointer = '/predicate/builder'\nmatches = 'github'", false),
            ("pointer = '/predicate/ratio'\nat_most = 0.5", true),
            ("pointer = '/predicate/ratio'\nat_least = 0.6", false),
            ("pointer = '/predicate/score'\nat_most = 6.9", true),
            ("pointer = '/predicate/builder'\nat_most = 1.0", false),
            ("pointer = '/predicate/a~1b/m~0n'\nequals = true", true),
            ("pointer = '/predicate/results/*/vulnerabilities/*/severity'\nseverity_at_most = 'medium'", true),
            ("pointer = '/predicate/results/*/vulnerabilities/*/severity'\nseverity_at_most = 'low'", false),
            ("pointer = '/predicate/absent/*/severity'\nseverity_at_most = 'low'", false),
            ("pointer = '/predicate/empty/*/severity'\nseverity_at_most = 'low'", true),
            ("pointer = '/predicate/builder'\nseverity_at_most = 'critical'", false),
            ("pointer = '/predicate/finished'\nnewer_than = '3d'", true),
            ("pointer = '/predicate/finished'\nnewer_than = '1d'", false),
            ("pointer = '/predicate/tomorrow'\nnewer_than = '30d'", false),
            ("pointer = '/predicate/finished'\nexists = true", true),
            ("pointer = '/predicate/absent'\nexists = true", false),
            ("pointer = '/predicate/absent'\nexists = false", true),
            ("pointer = '/predicate/finished'\nexists = false", false),
        ] {
            let checked = claim(text).unwrap().check(&statement, now());
            assert_eq!(checked.is_ok(), holds, "{text}: {checked:?}");
        }
    }

    #[test]
    fn a_condition_that_says_nothing_clear_is_refused() {
        for (text, why) in [
            ("pointer = '/a'", "operator is missing"),
            ("pointer = '/a'\nequals = 1\nat_most = 2.0", "more than one"),
            ("pointer = 'a'\nequals = 1", "starts with a /"),
            ("pointer = '/a'\nmatches = '('", "regular expression"),
            ("pointer = '/a'\nseverity_at_most = 'awful'", "none of"),
            ("pointer = '/a'\nnewer_than = 'soon'", "duration"),
            ("pointer = '/a'\nequls = 1", "unknown field"),
        ] {
            let error = claim(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
