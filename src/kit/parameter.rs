//! The free-form `parameters` of a model or a data set: any JSON, with every number a float, as Go
//! decodes into `any`.

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error;
use serde_json::value::RawValue;

use crate::kit::json::Text;

/// Levels of nesting that are read, the same as of all other JSON.
const DEPTH_LIMIT: usize = 127;

/// Values in the largest parameters. Each takes much more memory than its two bytes of JSON.
const COUNT_LIMIT: usize = 1_000_000;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A number, always finite.
    Number(f64),
    /// A string.
    Text(Text),
    /// A list.
    List(Vec<Parameter>),
    /// An object: no name occurs twice, and names are in the order of their bytes.
    Object(Vec<(Text, Parameter)>),
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not through `deserialize_any`: with arbitrary precision a number would arrive there as an
        // object, and an object that looks like it would pass for a number.
        let json = <&RawValue>::deserialize(deserializer)?;
        Reader { rest: json.get(), values: 0 }.value(DEPTH_LIMIT).map_err(D::Error::custom)
    }
}

/// Walks through JSON that is known to be well formed.
struct Reader<'a> {
    rest: &'a str,
    /// How many values there were so far.
    values: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Parameter, String> {
        let depth = depth.checked_sub(1).ok_or("parameters are nested too deep")?;
        self.values += 1;
        if self.values > COUNT_LIMIT {
            return Err(format!("parameters have more than {COUNT_LIMIT} values"));
        }
        match self.peek() {
            Some(b'{') => {
                let mut members = Vec::new();
                self.skip();
                while self.more(b'}') {
                    let name = self.text()?;
                    self.peek();
                    self.skip();
                    members.push((name, self.value(depth)?));
                }
                // Of members with one name the last counts.
                members.reverse();
                members.sort_by(|one, two| one.0.as_bytes().cmp(two.0.as_bytes()));
                members.dedup_by(|later, earlier| later.0 == earlier.0);
                Ok(Parameter::Object(members))
            }
            Some(b'[') => {
                let mut items = Vec::new();
                self.skip();
                while self.more(b']') {
                    items.push(self.value(depth)?);
                }
                Ok(Parameter::List(items))
            }
            Some(b'"') => Ok(Parameter::Text(self.text()?)),
            _ => self.word(),
        }
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.bytes().next()
    }

    /// Goes past one byte of punctuation.
    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    /// Goes to the next member or item, or past the end and says no.
    fn more(&mut self, end: u8) -> bool {
        if self.peek() == Some(b',') {
            self.skip();
        }
        let more = self.peek() != Some(end);
        if !more {
            self.skip();
        }
        more
    }

    fn text(&mut self) -> Result<Text, String> {
        let mut escaped = true;
        let end = self.rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let (text, rest) = self.rest.split_at_checked(end.map_or(0, |end| end + 1)).unwrap_or_default();
        self.rest = rest;
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn word(&mut self) -> Result<Parameter, String> {
        let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        match word {
            "null" => Ok(Parameter::Null),
            "true" => Ok(Parameter::Bool(true)),
            "false" => Ok(Parameter::Bool(false)),
            number => match number.parse() {
                Ok(number) if f64::is_finite(number) => Ok(Parameter::Number(number)),
                _ => Err(format!(
                    "{:?} is not a number that a float can hold",
                    number.chars().take(50).collect::<String>()
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Parameter, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn any_json_is_read() {
        let text = |text: &str| Parameter::Text(text.into());
        let number = Parameter::Number;
        let object = |members: Vec<(&str, Parameter)>| {
            Parameter::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
        };
        for (json, expected) in [
            ("null", Parameter::Null),
            (" true ", Parameter::Bool(true)),
            ("12345678901234567890", number(12345678901234567000.0)),
            ("-0.0", number(-0.0)),
            ("1E-7", number(1e-7)),
            (r#""a\\\"b\u0041""#, text("a\\\"bA")),
            (r#""\\""#, text("\\")),
            ("[ ]", Parameter::List(vec![])),
            ("{ }", object(vec![])),
            (
                "[[1],[ 2 , []]]",
                Parameter::List(vec![
                    Parameter::List(vec![number(1.0)]),
                    Parameter::List(vec![number(2.0), Parameter::List(vec![])]),
                ]),
            ),
            (
                r#"{"b":{"x":[null]},"a" : "}","b":false}"#,
                object(vec![("a", text("}")), ("b", Parameter::Bool(false))]),
            ),
            (
                r#"{"$serde_json::private::Number":"1","$serde_json::private::RawValue":"2"}"#,
                object(vec![
                    ("$serde_json::private::Number", text("1")),
                    ("$serde_json::private::RawValue", text("2")),
                ]),
            ),
        ] {
            assert_eq!(read(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_go_cannot_hold_is_refused() {
        let long = format!("[{}0]", "0,".repeat(COUNT_LIMIT));
        assert!(read(&long).unwrap_err().contains("more than 1000000 values"));
        assert!(read("[1e400]").unwrap_err().contains("float"));
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&deep(DEPTH_LIMIT)).is_ok());
        assert!(read(&deep(100_000)).unwrap_err().contains("too deep"));
    }
}
