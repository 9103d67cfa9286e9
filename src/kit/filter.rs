//! Which parts of a kit to show: KitOps' `--filter TYPE[,TYPE…][:NAME_OR_PATH[,…]]`, meaning for meaning.
//!
//! Several filters add up, no filter at all means everything. A name or path has to be equal to what
//! the Kitfile says, character by character; there are no patterns.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::kit::media::Role;

/// One filter, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    types: Vec<Type>,
    /// Names or paths, one of which an entry must have; none means any.
    entries: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Type {
    Kitfile,
    Model,
    Datasets,
    Code,
    Prompts,
    Docs,
    McpServers,
}

const TYPES: [(&str, Type); 7] = [
    ("kitfile", Type::Kitfile),
    ("model", Type::Model),
    ("datasets", Type::Datasets),
    ("code", Type::Code),
    ("prompts", Type::Prompts),
    ("docs", Type::Docs),
    ("mcpservers", Type::McpServers),
];

impl Filter {
    /// What of a parent kit these filters let through: of its model and the model's parts whatever
    /// they name, and never anything else. `None` means nothing, so that the parent is not needed.
    pub fn for_parent(filters: &[Self]) -> Option<Vec<Self>> {
        if filters.is_empty() {
            return Some(vec![Self { types: vec![Type::Model], entries: Vec::new() }]);
        }
        let of_model = filters.iter().filter(|filter| filter.types.contains(&Type::Model));
        let kept: Vec<_> =
            of_model.map(|filter| Self { types: vec![Type::Model], entries: filter.entries.clone() }).collect();
        (!kept.is_empty()).then_some(kept)
    }

    /// Whether these filters let the Kitfile through. Names do not matter to it.
    pub fn let_kitfile_through(filters: &[Self]) -> bool {
        filters.is_empty() || filters.iter().any(|filter| filter.types.contains(&Type::Kitfile))
    }

    /// Whether these filters let through an entry of the Kitfile with any of these names: its name,
    /// where entries of its kind have one, and its path.
    pub fn let_through(filters: &[Self], role: Role, names: &[&str]) -> bool {
        let kind = match role {
            Role::Model | Role::ModelPart => Type::Model,
            Role::Code => Type::Code,
            Role::Dataset => Type::Datasets,
            Role::Docs => Type::Docs,
            Role::Prompt => Type::Prompts,
            Role::Mcp => Type::McpServers,
        };
        let named = |filter: &Self| filter.entries.is_empty() || filter.entries.iter().any(|e| names.contains(&&**e));
        filters.is_empty() || filters.iter().any(|filter| filter.types.contains(&kind) && named(filter))
    }
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let invalid = |why| InvalidFilter { text: text.to_owned(), why };
        let (types, entries) = match text.split_once(':') {
            Some((types, entries)) => (types, Some(entries)),
            None => (text, None),
        };
        if entries.is_some_and(|entries| entries.contains(':')) {
            return Err(invalid("only one ':' may stand in it".to_owned()));
        }
        let parse = |name: &str| {
            let known = TYPES.iter().find(|(known, _)| *known == name).map(|(_, found)| *found);
            known.ok_or_else(|| {
                let all: Vec<_> = TYPES.iter().map(|(known, _)| *known).collect();
                invalid(format!("{name:?} is not one of {}", all.join(", ")))
            })
        };
        let types = types.split(',').map(parse).collect::<Result<_, _>>()?;
        let entries = entries.map(|entries| entries.split(',').map(str::to_owned).collect()).unwrap_or_default();
        Ok(Self { types, entries })
    }
}

/// Text that is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a filter (TYPE[,TYPE…][:NAME_OR_PATH[,…]]): {why}")]
pub struct InvalidFilter {
    text: String,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn entries_are_matched_by_type_and_by_name_or_path() {
        let all: &[&str] = &[];
        for (texts, role, names, expected) in [
            (all, Role::Docs, ["n", "p"], true),
            (&["model"], Role::Model, ["n", "p"], true),
            (&["model"], Role::ModelPart, ["n", "p"], true),
            (&["model"], Role::Code, ["n", "p"], false),
            (&["model:n"], Role::ModelPart, ["n", "p"], true),
            (&["model:p"], Role::ModelPart, ["n", "p"], true),
            (&["model:x,p"], Role::Model, ["n", "p"], true),
            (&["model:./p"], Role::Model, ["n", "p"], false),
            (&["model,datasets:p"], Role::Dataset, ["n", "p"], true),
            (&["model:x", "code"], Role::Code, ["", "p"], true),
            (&["prompts"], Role::Code, ["n", "p"], false),
            (&["prompts"], Role::Prompt, ["n", "p"], true),
            (&["mcpservers:n"], Role::Mcp, ["n", "p"], true),
            // A colon with nothing behind it names the entries without a name.
            (&["model:"], Role::Model, ["", "p"], true),
            (&["model:"], Role::Model, ["n", "p"], false),
        ] {
            assert_eq!(Filter::let_through(&filters(texts), role, &names), expected, "{texts:?} {role} {names:?}");
        }
    }

    #[test]
    fn the_kitfile_goes_by_its_type_alone() {
        for (texts, expected) in
            [(&[][..], true), (&["kitfile"], true), (&["model,kitfile:x"], true), (&["model", "code"], false)]
        {
            assert_eq!(Filter::let_kitfile_through(&filters(texts)), expected, "{texts:?}");
        }
    }

    #[test]
    fn a_parent_gives_its_model_and_what_the_filters_leave_of_it() {
        assert_eq!(Filter::for_parent(&[]), Some(filters(&["model"])));
        assert_eq!(Filter::for_parent(&filters(&["code", "kitfile"])), None);
        let kept = Filter::for_parent(&filters(&["kitfile,model,code:a,b", "docs", "model"])).unwrap();
        assert_eq!(kept, filters(&["model:a,b", "model"]));
        assert!(!Filter::let_kitfile_through(&kept));
    }

    #[test]
    fn other_text_is_refused_with_a_reason() {
        for (text, why) in [
            ("", "\"\" is not one of kitfile, model, datasets, code, prompts, docs, mcpservers"),
            ("models", "is not one of"),
            ("Model", "is not one of"),
            ("model, code", "\" code\" is not one of"),
            ("model,", "\"\" is not one of"),
            ("dataset", "is not one of"),
            ("model:a:b", "only one ':'"),
        ] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
