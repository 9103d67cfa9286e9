//! Rego: what a policy file cannot say by itself. An interpreter with a time limit, without network.
//!
//! A module decides alone from its input and its data. What fails, takes too long or has no answer is a
//! refusal; nothing that goes wrong here opens anything.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use regorus::Engine;
use regorus::PolicyLengthConfig;
use regorus::Value;
use regorus::utils::limits::ExecutionTimerConfig;

/// The longest that one evaluation may take.
const LIMIT: Duration = Duration::from_secs(1);

/// How often the clock is looked at, in steps of the interpreter.
const STEPS: NonZeroU32 = NonZeroU32::MIN.saturating_add(255);

/// Modules and data, compiled.
#[derive(Clone)]
pub struct Rego {
    name: String,
    engine: Engine,
}

/// What the rules `allow` and `deny` of a package say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the package allows.
    pub allowed: bool,
    /// Why not, if it says so.
    pub messages: Vec<String>,
}

impl Rego {
    /// Compiles modules, each with the name for messages, and documents of data (JSON objects, merged).
    /// `package` must be among them. The error is a sentence.
    pub fn compile(
        name: &str,
        modules: &[(String, String)],
        data: &[String],
        package: &str,
    ) -> Result<Self, RegoError> {
        let invalid = |why: String| RegoError::Invalid { name: name.into(), why: one_line(&why) };
        let mut engine = Engine::new();
        engine.set_policy_length_config(PolicyLengthConfig::default());
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(ExecutionTimerConfig { limit: LIMIT, check_interval: STEPS });
        for (module, text) in modules {
            engine.add_policy(module.clone(), text.clone()).map_err(|error| invalid(format!("{error:#}")))?;
        }
        for document in data {
            engine.add_data_json(document).map_err(|error| invalid(format!("data: {error:#}")))?;
        }
        let packages = engine.get_packages().map_err(|error| invalid(format!("{error:#}")))?;
        if !packages.contains(&format!("data.{package}")) {
            return Err(invalid(format!("no module of it has the package {package}")));
        }
        if let Some(rule) = shadowed(&engine).map_err(invalid)? {
            return Err(invalid(format!("data has something in the place of {rule}, which is a rule")));
        }
        // Rules are checked and put in order before the first query, whatever it is.
        engine.eval_query("true".into(), false).map_err(|error| invalid(format!("{error:#}")))?;
        Ok(Self { name: name.into(), engine })
    }

    /// What a rule of the modules says about an input; `None` if it is undefined.
    fn ask(&self, rule: &str, input: &str) -> Result<Option<Value>, RegoError> {
        let failed = |why: String| RegoError::Failed { name: self.name.clone(), why: one_line(&why) };
        let mut engine = self.engine.clone();
        engine.set_input(Value::from_json_str(input).map_err(|error| failed(format!("input: {error:#}")))?);
        let mut results = engine.eval_query(rule.into(), false).map_err(|error| failed(format!("{error:#}")))?;
        let value = results.result.pop().and_then(|mut result| result.expressions.pop()).map(|found| found.value);
        Ok(value.filter(|value| *value != Value::Undefined))
    }

    /// Whether a rule is true for an input. Anything but `true` is not.
    pub fn is_true(&self, rule: &str, input: &str) -> Result<bool, RegoError> {
        Ok(self.ask(rule, input)? == Some(Value::Bool(true)))
    }

    /// What `data.kitfs.allow` and `data.kitfs.deny` say about an input: a message of `deny` refuses,
    /// whatever `allow` says; without messages `allow` must be true, or undefined where there is a `deny`.
    pub fn answer(&self, input: &str) -> Result<Answer, RegoError> {
        let allow = self.ask("data.kitfs.allow", input)?;
        let deny = self.ask("data.kitfs.deny", input)?;
        let messages = match &deny {
            None | Some(Value::Bool(false)) => Vec::new(),
            Some(Value::Set(messages)) => messages.iter().map(message).collect(),
            Some(Value::Array(messages)) => messages.iter().map(message).collect(),
            Some(Value::Bool(true)) => vec!["deny is true".into()],
            Some(other) => vec![message(other)],
        };
        let allowed = match allow {
            Some(Value::Bool(allow)) => allow,
            Some(_) => false,
            None => deny.is_some(),
        };
        Ok(Answer { allowed: allowed && messages.is_empty(), messages })
    }

    /// The file that it came from, as the policy names it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A rule in whose place there is data. The interpreter would take that for what the rule says, so that who keeps a list
/// could decide; to others it is an error (OPA, "Conflict resolution").
fn shadowed(engine: &Engine) -> Result<Option<String>, String> {
    let data = engine.get_data();
    for package in engine.get_policy_package_components().map_err(|error| format!("{error:#}"))? {
        let name = package.components.join(".");
        let mut place = Some(&data);
        for component in &package.components {
            place = match place {
                Some(Value::Object(members)) => members.get(&Value::from(component.as_str())),
                Some(_) => return Ok(Some(name)),
                None => None,
            };
        }
        let members = match place {
            Some(Value::Object(members)) => members,
            Some(_) => return Ok(Some(name)),
            None => continue,
        };
        for (member, _) in members.iter() {
            let Value::String(member) = member else { continue };
            // The name of a rule begins with a word, whatever follows it in brackets.
            if !member.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                continue;
            }
            let is_rule = engine.has_declared_rule_rooted_at(&package.source_file, member);
            if is_rule.map_err(|error| format!("{error:#}"))? {
                return Ok(Some(format!("{name}.{member}")));
            }
        }
    }
    Ok(None)
}

impl fmt::Debug for Rego {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rego").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A message of `deny`: a string, or an object with `msg`.
fn message(value: &Value) -> String {
    let text = match value {
        Value::Object(members) => members.get(&Value::from("msg")).unwrap_or(value),
        value => value,
    };
    match text {
        Value::String(text) => text.to_string(),
        other => one_line(&other.to_string()),
    }
}

/// The interpreter draws the source below its messages.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('|')).collect::<Vec<_>>().join(" ")
}

/// Why Rego gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegoError {
    /// It is no Rego.
    #[error("{name} is not Rego: {why}")]
    Invalid {
        /// The file.
        name: String,
        /// What the compiler says.
        why: String,
    },
    /// It gave up.
    #[error("{name} could not be evaluated: {why}")]
    Failed {
        /// The file.
        name: String,
        /// What the interpreter says.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn compile(package: &str, text: &str) -> Result<Rego, RegoError> {
        Rego::compile("r.rego", &[("r.rego".into(), text.into())], &[r#"{"limit": 3}"#.into()], package)
    }

    fn answer(text: &str, input: &str) -> (bool, Vec<String>) {
        let answer = compile("kitfs", text).unwrap().answer(input).unwrap();
        (answer.allowed, answer.messages)
    }

    #[test]
    fn allow_and_deny() {
        for (text, allowed, messages) in [
            ("package kitfs\nallow if input.n == 0", true, vec![]),
            ("package kitfs\nallow if input.n == 1", false, vec![]),
            ("package kitfs\ndefault allow := false", false, vec![]),
            ("package kitfs\nallow := \"yes\"", false, vec![]),
            ("package kitfs\nother := true", false, vec![]),
            ("package kitfs\ndeny contains msg if { input.n > 0; msg := \"bad\" }", true, vec![]),
            ("package kitfs\ndeny contains msg if { input.n < data.limit; msg := \"bad\" }", false, vec!["bad"]),
            ("package kitfs\nallow := true\ndeny contains {\"msg\": \"bad\"}", false, vec!["bad"]),
            ("package kitfs\nallow := true\ndeny := [\"a\", \"b\"]", false, vec!["a", "b"]),
            ("package kitfs\nallow := true\ndeny := true", false, vec!["deny is true"]),
        ] {
            let messages: Vec<_> = messages.into_iter().map(str::to_owned).collect();
            assert_eq!(answer(text, r#"{"n": 0}"#), (allowed, messages), "{text}");
        }
    }

    #[test]
    fn numbers_compare_as_numbers() {
        let text = "package kitfs\nallow if { input.n == 0; input.f == 1.5; input.big > 4000000000 }";
        assert!(answer(text, r#"{"n": 0, "f": 1.5, "big": 5000000000}"#).0);
    }

    #[test]
    fn what_is_no_rego_is_told_when_it_is_read() {
        for (text, why) in [
            ("package kitfs\nallow if {", "not Rego"),
            ("package other\nallow := true", "no module of it has the package kitfs"),
            ("package kitfs\nallow if x == 1", "not Rego"),
        ] {
            let error = compile("kitfs", text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_does_not_end_is_ended_and_refuses() {
        let text = "package kitfs\nallow if { some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == -1 }";
        let begun = Instant::now();
        let error = compile("kitfs", text).unwrap().answer("{}").unwrap_err();
        assert!(matches!(error, RegoError::Failed { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn data_says_nothing_in_the_place_of_a_rule() {
        let read = |text: &str, data: &str| Rego::compile("r", &[("r".into(), text.into())], &[data.into()], "kitfs");
        let module =
            "package kitfs\ndefault allow := false\ndeny contains \"no\" if not ok\nok if input.x == data.kitfs.x";
        for data in [
            r#"{"kitfs": {"allow": true}}"#,
            r#"{"kitfs": {"deny": []}}"#,
            r#"{"kitfs": {"ok": {"deeper": 1}}}"#,
            r#"{"kitfs": 3}"#,
        ] {
            let error = read(module, data).unwrap_err().to_string();
            assert!(error.contains("data has something in the place of"), "{data}: {error}");
        }
        for data in [r#"{"kitfs": {"x": 1, "Apache-2.0": 2}, "allow": true}"#, r#"{"other": {"allow": true}}"#] {
            assert!(read(module, data).is_ok(), "{data}");
        }
        let below = "package kitfs.lists\nx := 2";
        let modules = [("r".into(), module.into()), ("s".into(), below.into())];
        assert!(Rego::compile("r", &modules, &[r#"{"kitfs": {"lists": {"x": 1}}}"#.into()], "kitfs").is_err());
    }

    #[test]
    fn there_is_no_network() {
        let text = "package kitfs\nallow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1:1/\"})";
        assert!(compile("kitfs", text).and_then(|rego| rego.answer("{}")).is_err());
    }

    #[test]
    fn a_builtin_that_fails_refuses() {
        let error = compile("kitfs", "package kitfs\nallow if not json.unmarshal(input.text)")
            .unwrap()
            .answer(r#"{"text": "{"}"#);
        assert!(error.is_err_and(|error| error.to_string().contains("could not be evaluated")));
    }
}
