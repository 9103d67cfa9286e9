//! JSON as KitOps reads it, which is as Go's `encoding/json` does.
//!
//! Member names match in any case, unknown members are skipped, null is the empty value, of members
//! with one name the last counts, and text that is not Unicode is mended with U+FFFD.

use std::marker::PhantomData;
use std::ops::Deref;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error;
use serde::de::SeqAccess;
use serde::de::Visitor;

/// A string, mended where it is not Unicode: one U+FFFD for each byte or lone surrogate that is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text(Box<str>);

impl Text {
    fn mend(bytes: &[u8]) -> Self {
        let mut mended = String::with_capacity(bytes.len());
        let mut rest = bytes;
        loop {
            let (good, bad) = match std::str::from_utf8(rest) {
                Ok(good) => (good, &[][..]),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    (std::str::from_utf8(good).unwrap_or_default(), bad)
                }
            };
            mended.push_str(good);
            rest = match bad {
                [] => return Self(mended.into()),
                // An escape of a lone surrogate arrives in the three bytes that UTF-8 forbids for it.
                [0xED, 0xA0..=0xBF, _, rest @ ..] | [_, rest @ ..] => rest,
            };
            mended.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text::mend(bytes))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Items in the longest list. A manifest of the largest size that is read has fewer layers than that,
/// so more entries could not all have one.
const LIST_LIMIT: usize = 100_000;

/// A list in which null stands for an empty item, with at most 100,000 items.
#[derive(Clone, Debug)]
pub struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Items<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<Option<T>>()? {
                    if items.len() == LIST_LIMIT {
                        return Err(A::Error::custom("a list has more than 100000 items"));
                    }
                    items.push(item.unwrap_or_default());
                }
                Ok(List(items))
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Declares a struct that is read from a JSON object by the rules of this module. The literal behind
/// each field is the member's name.
macro_rules! object {
    ($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[$about_field:meta])* $field:ident: $type:ty = $member:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default)]
        $vis struct $name {
            $($(#[$about_field])* pub $field: $type,)*
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members;
                impl<'de> serde::de::Visitor<'de> for Members {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut members: A) -> Result<$name, A::Error> {
                        let mut object = $name::default();
                        while let Some(member) = members.next_key::<$crate::kit::json::Text>()? {
                            $(if member.eq_ignore_ascii_case($member) {
                                object.$field = members.next_value::<Option<$type>>()?.unwrap_or_default();
                                continue;
                            })*
                            members.next_value::<serde::de::IgnoredAny>()?;
                        }
                        Ok(object)
                    }
                }
                deserializer.deserialize_map(Members)
            }
        }
    };
}

pub(in crate::kit) use object;

#[cfg(test)]
mod tests {
    use super::*;

    object! {
        /// Something to read.
        struct Sample {
            /// A string.
            name: Text = "name",
            /// More of the same.
            inner: List<Sample> = "inner",
        }
    }

    fn read(json: &[u8]) -> Result<Sample, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    #[test]
    fn members_are_read_as_go_reads_them() {
        for (json, name, inner) in [
            (r#"{}"#, "", 0),
            (r#"{"NAME":"a"}"#, "a", 0),
            (r#"{"name":"a","name":"b"}"#, "b", 0),
            (r#"{"name":null,"inner":null,"other":[{"x":1e999}]}"#, "", 0),
            (r#"{"inner":[null,{"name":"x"}]}"#, "", 2),
            (r#"{"name":"\ud83d\ude00 \ud83d \u0000"}"#, "😀 \u{fffd} \0", 0),
        ] {
            let sample = read(json.as_bytes()).unwrap();
            assert_eq!((&*sample.name, sample.inner.len()), (name, inner), "{json}");
        }
        assert_eq!(&*read(b"{\"name\":\"a\xff\xc3b\",\"\xff\":1}").unwrap().name, "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn other_types_are_refused() {
        for json in [r#"null"#, r#"[]"#, r#"{"name":1}"#, r#"{"name":["a"]}"#, r#"{"inner":{}}"#, r#"{"inner":[1]}"#] {
            assert!(read(json.as_bytes()).is_err(), "{json}");
        }
        let long = format!(r#"{{"inner":[{}null]}}"#, "null,".repeat(LIST_LIMIT));
        assert!(read(long.as_bytes()).unwrap_err().contains("more than 100000"));
    }
}
