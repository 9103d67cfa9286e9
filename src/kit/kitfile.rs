//! The file `Kitfile` in the root of a kit: what the config says, as KitOps writes it when it unpacks.
//!
//! Not the file that was packed, which no kit holds: comments and order are gone, and so are digests.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::kit::config::Dataset;
use crate::kit::config::Kitfile;
use crate::kit::config::Model;
use crate::kit::json::Text;
use crate::kit::parameter::Parameter;
use crate::kit::plain::format_float;
use crate::kit::yaml;
use crate::kit::yaml::Nested;
use crate::kit::yaml::Value;
use crate::verify::FromVerified;

/// Bytes in the largest Kitfile. Deeply nested parameters grow much larger as YAML than they are as JSON.
const LIMIT: usize = 32 * 1024 * 1024;

/// The content of the file `Kitfile`.
#[derive(Clone, Debug)]
pub struct Yaml(Bytes);

impl Yaml {
    /// The bytes of the file.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl FromVerified<Kitfile> for Yaml {
    type Error = KitfileTooLarge;

    fn from_verified(kitfile: &Kitfile) -> Result<Self, KitfileTooLarge> {
        yaml::write(&document(kitfile), LIMIT).map(|text| Self(text.into())).ok_or(KitfileTooLarge)
    }
}

/// The members of an object that are not empty.
#[derive(Default)]
struct Members<'a>(Vec<(&'a str, Value<'a>)>);

impl<'a> Members<'a> {
    fn text(mut self, name: &'a str, text: &'a Text) -> Self {
        if !text.is_empty() {
            self.0.push((name, Value::Text(text)));
        }
        self
    }

    fn parameters(mut self, parameters: Option<&'a Parameter>) -> Self {
        self.0.extend(parameters.map(|parameters| ("parameters", Value::Nested(parameters))));
        self
    }

    fn list<T>(mut self, name: &'a str, items: &'a [T], item: impl Fn(&'a T) -> Members<'a>) -> Self {
        if !items.is_empty() {
            self.0.push((name, Value::List(items.iter().map(|i| item(i).object()).collect())));
        }
        self
    }

    fn object(self) -> Value<'a> {
        Value::Object(self.0)
    }
}

fn document(kitfile: &Kitfile) -> Value<'_> {
    let mut members = Members(vec![("manifestVersion", Value::Text(&kitfile.manifest_version))]);
    let package = &kitfile.package;
    let mut about = Members::default()
        .text("name", &package.name)
        .text("version", &package.version)
        .text("description", &package.description)
        .text("license", &package.license);
    if !package.authors.is_empty() {
        about.0.push(("authors", Value::Line(package.authors.iter().map(|author| &**author).collect())));
    }
    if !about.0.is_empty() {
        members.0.push(("package", about.object()));
    }
    members.0.extend(kitfile.model.as_ref().map(|about| ("model", model(about).object())));
    members
        .list("code", &kitfile.code, |code| {
            Members::default()
                .text("path", &code.path)
                .text("description", &code.description)
                .text("license", &code.license)
        })
        .list("datasets", &kitfile.datasets, dataset)
        .list("docs", &kitfile.docs, |docs| {
            Members(vec![("path", Value::Text(&docs.path))]).text("description", &docs.description)
        })
        .list("prompts", &kitfile.prompts, |prompt| {
            Members::default()
                .text("name", &prompt.name)
                .text("path", &prompt.path)
                .text("description", &prompt.description)
        })
        .list("mcpServers", &kitfile.mcp_servers, |server| {
            Members::default()
                .text("name", &server.name)
                .text("path", &server.path)
                .text("description", &server.description)
        })
        .object()
}

fn model(model: &Model) -> Members<'_> {
    Members::default()
        .text("name", &model.name)
        .text("path", &model.path)
        .text("license", &model.license)
        .text("framework", &model.framework)
        .text("format", &model.format)
        .text("version", &model.version)
        .text("description", &model.description)
        .list("parts", &model.parts, |part| {
            Members::default()
                .text("name", &part.name)
                .text("path", &part.path)
                .text("license", &part.license)
                .text("type", &part.kind)
        })
        .parameters(model.parameters.as_ref())
}

fn dataset(set: &Dataset) -> Members<'_> {
    Members::default()
        .text("name", &set.name)
        .text("path", &set.path)
        .text("remotePath", &set.remote_path)
        .text("remoteHash", &set.remote_hash)
        .text("description", &set.description)
        .text("license", &set.license)
        .parameters(set.parameters.as_ref())
}

impl Nested for Parameter {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Word("null".into()),
            Self::Bool(value) => Value::Word(value.to_string()),
            Self::Number(number) => Value::Word(format_float(*number)),
            Self::Text(text) => Value::Text(text),
            Self::List(items) => Value::List(items.iter().map(|item| Value::Nested(item)).collect()),
            Self::Object(members) => {
                let members = members.iter().map(|(name, value)| (&**name, Value::Nested(value))).collect();
                Value::Object(merge_sort(members))
            }
        }
    }
}

/// Sorts by [`natural_order`]. That is not transitive for every text, which the sort of the standard
/// library may answer with a panic.
fn merge_sort<'a>(mut members: Vec<(&'a str, Value<'a>)>) -> Vec<(&'a str, Value<'a>)> {
    if members.len() < 2 {
        return members;
    }
    let upper = merge_sort(members.split_off(members.len() / 2));
    let mut lower = merge_sort(members).into_iter().peekable();
    let mut upper = upper.into_iter().peekable();
    let mut sorted = Vec::with_capacity(lower.len() + upper.len());
    while let (Some(one), Some(two)) = (lower.peek(), upper.peek()) {
        let first = if natural_order(two.0, one.0) == Ordering::Less { &mut upper } else { &mut lower };
        sorted.extend(first.next());
    }
    sorted.extend(lower);
    sorted.extend(upper);
    sorted
}

/// The order of keys in yaml.v3: numbers in them by their value, letters behind everything else unless
/// they follow a digit.
fn natural_order(one: &str, two: &str) -> Ordering {
    let (one, two): (Vec<char>, Vec<char>) = (one.chars().collect(), two.chars().collect());
    let Some(at) = one.iter().zip(&two).position(|(a, b)| a != b) else { return one.len().cmp(&two.len()) };
    let (same, ends) = one.split_at_checked(at).unwrap_or_default();
    let (_, other_ends) = two.split_at_checked(at).unwrap_or_default();
    let (Some(&a), Some(&b)) = (ends.first(), other_ends.first()) else { return one.len().cmp(&two.len()) };
    match (a.is_alphabetic(), b.is_alphabetic()) {
        (true, true) => return a.cmp(&b),
        (false, false) => {}
        (a_is_letter, _) => {
            let after_digit = same.last().is_some_and(|c| is_digit(*c));
            return if a_is_letter == after_digit { Ordering::Less } else { Ordering::Greater };
        }
    }
    // A zero counts only where the number has begun before it.
    let begun = (a == '0' || b == '0') && same.iter().rev().take_while(|c| is_digit(**c)).any(|c| *c != '0');
    let number = |ends: &[char]| {
        let digits = ends.iter().take_while(|c| is_digit(**c));
        digits.fold((i64::from(begun), 0), |(value, count): (i64, usize), digit| {
            let digit = i64::from(u32::from(*digit)) - i64::from(u32::from('0'));
            (value.wrapping_mul(10).wrapping_add(digit), count + 1)
        })
    };
    number(ends).cmp(&number(other_ends)).then(a.cmp(&b))
}

/// Decimal digits. Go knows those of other scripts as well, which no key of a real kit has.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// The Kitfile of a kit is larger than any that is worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Kitfile would have more than {LIMIT} bytes")]
pub struct KitfileTooLarge;

#[cfg(test)]
mod tests {
    use super::*;

    /// One JSON object a line: a config, and the Kitfile that KitOps' structs and the real yaml.v3 (3.0.1)
    /// made of it.
    const VECTORS: &str = include_str!("kitfile_vectors.jsonl");

    #[derive(serde::Deserialize)]
    struct Vector {
        config: String,
        kitfile: String,
    }

    fn render(config: &str) -> String {
        let kitfile = Kitfile::from_verified(&Bytes::from(config.to_owned())).unwrap();
        String::from_utf8(Yaml::from_verified(&kitfile).unwrap().0.to_vec()).unwrap()
    }

    #[test]
    fn every_byte_is_as_kitops_writes_it() {
        let mut count = 0;
        for vector in VECTORS.lines() {
            let vector: Vector = serde_json::from_str(vector).unwrap();
            assert_eq!(render(&vector.config), vector.kitfile, "{}", vector.config);
            count += 1;
        }
        assert!(count > 50);
    }

    #[test]
    fn parameters_that_grow_beyond_all_bounds_are_refused() {
        let depth = 120;
        let config = format!(
            r#"{{"model":{{"parameters":{}{}0{}}}}}"#,
            "[".repeat(depth),
            "0,".repeat(200_000),
            "]".repeat(depth)
        );
        let kitfile = Kitfile::from_verified(&Bytes::from(config)).unwrap();
        assert_eq!(Yaml::from_verified(&kitfile).err(), Some(KitfileTooLarge));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_written_without_a_panic(text in ".*", key in "\\PC*", number: f64) {
            let parameters = serde_json::json!({ key: [text, number], text.clone(): {} });
            let config = serde_json::json!({ "package": { "authors": [text] }, "model": { "parameters": parameters } });
            render(&config.to_string());
        }
    }
}
