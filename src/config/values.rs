//! The values of all keys: each layer is laid over the ones before it, and the text that is left on top counts.

use std::collections::{BTreeMap, BTreeSet};

use super::layer::{Fault, Layer, Origin};
use super::schema::{self, KEYS, Key, Named, PROPERTIES, Shape};
use super::secret::{MASK, shown_property};
use super::yaml::{self, Member, Node, Value};
use crate::terminal;

/// What is wrong with a variable whose bytes are another encoding's.
const NOT_UTF8: &str = "is not UTF-8, write it in that encoding";

/// The value of a key as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Scalar(String),
    List(Vec<String>),
}

/// The values on top of all layers, by path. Each librdkafka property has a path of its own, so that a layer can
/// replace one and leave the others.
#[derive(Debug)]
pub(super) struct Values {
    entries: BTreeMap<String, (Origin, Text)>,
    pub(super) faults: Vec<Fault>,
}

impl Values {
    /// The built-in defaults.
    pub(super) fn built_in() -> Self {
        let mut values = Self { entries: BTreeMap::new(), faults: Vec::new() };
        for key in &KEYS {
            values.set_text(key, Origin { layer: Layer::BuiltIn, line: None, key: key.path.to_owned() }, key.default);
        }
        values
    }

    /// Lays a file over the values.
    pub(super) fn lay_file(&mut self, layer: Layer, text: &str) {
        match yaml::parse(text) {
            Ok(None | Some(Node { value: Value::Null, .. })) => {}
            Ok(Some(Node { value: Value::Map(members), .. })) => self.lay_members(layer, "", &members),
            Ok(Some(node)) => self.fault(layer, node.line, "", "expected keys with values, such as `memory: 128MiB`"),
            Err((line, message)) => self.fault(layer, line, "", message),
        }
    }

    fn lay_members(&mut self, layer: Layer, section: &str, members: &[Member]) {
        self.report_duplicates(layer, section, members);
        for member in members {
            let path = joined(section, &member.key);
            match (schema::find(&path), &member.node.value) {
                (Named::Key(_) | Named::Section, _) if member.key.contains('.') => {
                    let message = "keys are not joined by dots here, write each name on its own line, indented";
                    self.fault(layer, member.line, &path, message);
                }
                (Named::Key(key), _) if layer != Layer::Local && layer != key.file => {
                    let file = if key.file == Layer::Msource { "msource.yml" } else { "mtga.yml" };
                    self.fault(layer, member.line, &path, format!("this key belongs into {file}, move it there"));
                }
                (Named::Key(key), _) => {
                    let origin = Origin { layer, line: Some(member.line), key: path };
                    self.set(key, origin, &member.node);
                }
                (Named::Section, Value::Map(inner)) => self.lay_members(layer, &path, inner),
                (Named::Section, Value::Null) => {}
                (Named::Section, _) => {
                    self.fault(layer, member.line, &path, "expected keys below this one, found a value");
                }
                (Named::Unknown, _) => self.fault(layer, member.line, &path, unknown(schema::suggest(&path))),
            }
        }
    }

    fn report_duplicates(&mut self, layer: Layer, section: &str, members: &[Member]) {
        let mut first = BTreeMap::new();
        for member in members {
            if let Some(line) = first.insert(&member.key, member.line) {
                let message = format!("duplicate key, it already stands in line {line}, remove one");
                self.fault(layer, member.line, &joined(section, &member.key), message);
            }
        }
    }

    /// Lays the `MTGA_` variables over the values; those that set no key are returned, each with a hint.
    pub(super) fn lay_environment(&mut self, env: &BTreeMap<String, String>) -> Vec<String> {
        let mut unknown = Vec::new();
        for (name, value) in env.iter().filter(|(name, _)| name.starts_with("MTGA_") && *name != "MTGA_HOME") {
            let origin = Origin { layer: Layer::Environment, line: None, key: name.clone() };
            if value.contains(char::REPLACEMENT_CHARACTER) {
                self.faults.push((origin, NOT_UTF8.to_owned()));
                continue;
            }
            if let Some(key) = KEYS.iter().find(|key| schema::variable(key.path) == *name) {
                self.set_text(key, origin, value);
            } else if let Some(property) = name.strip_prefix("MTGA_KAFKA__LIBRDKAFKA__").filter(|name| !name.is_empty())
            {
                // Names of properties have dots where those of variables cannot.
                let path = joined(PROPERTIES, &property.to_lowercase().replace('_', "."));
                self.put(&path, origin, Text::Scalar(value.clone()));
            } else {
                let hint =
                    schema::suggest_variable(name).map_or_else(String::new, |known| format!(", did you mean {known}?"));
                let name = terminal::shown_exactly(name);
                unknown.push(format!("environment: {name} sets no key and is ignored{hint}"));
            }
        }
        unknown
    }

    /// Lays flags over the values: paths of keys, and values written as in the environment.
    pub(super) fn lay_flags(&mut self, flags: &[(String, String)]) {
        for (path, value) in flags {
            let origin = Origin { layer: Layer::CommandLine, line: None, key: path.clone() };
            match (schema::find(path), path.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.'))) {
                (Named::Key(key), _) => self.set_text(key, origin, value),
                (_, Some(_)) => self.put(path, origin, Text::Scalar(value.clone())),
                _ => self.faults.push((origin, unknown(schema::suggest(path)))),
            }
        }
    }

    /// Sets a key from text alone: lists and properties are YAML, and words with commas between them are a list too.
    fn set_text(&mut self, key: &Key, origin: Origin, text: &str) {
        if key.shape == Shape::Scalar && origin.layer != Layer::BuiltIn {
            self.put(key.path, origin, Text::Scalar(text.to_owned()));
            return;
        }
        match yaml::parse(text) {
            Ok(Some(Node { value: Value::Scalar(items), .. })) if key.shape == Shape::List => {
                self.put(key.path, origin, Text::List(split(&items)));
            }
            Ok(node) => {
                let node = node.unwrap_or(Node { line: 1, value: Value::Null });
                self.set(key, origin, &node);
            }
            Err((_, message)) => self.faults.push((origin, message)),
        }
    }

    fn set(&mut self, key: &Key, origin: Origin, node: &Node) {
        match (key.shape, &node.value) {
            (_, Value::Null) => {
                let message = "this key has no value, give it one (\"\" for an empty one) or remove it";
                self.faults.push((origin, message.to_owned()));
            }
            (Shape::Scalar, Value::Scalar(text)) => self.put(key.path, origin, Text::Scalar(text.clone())),
            (Shape::List, Value::List(nodes)) => match nodes.iter().map(scalar).collect() {
                Some(items) => self.put(key.path, origin, Text::List(items)),
                None => self.faults.push((origin, "expected plain text for each item of the list".to_owned())),
            },
            (Shape::Properties, Value::Map(members)) => self.set_properties(&origin, members),
            (shape, _) => {
                let expected = match shape {
                    Shape::Scalar => "a single value",
                    Shape::List => "a list, such as [a, b]",
                    Shape::Properties => "properties with values, such as {client.id: mtga}",
                };
                self.faults.push((origin, format!("expected {expected}")));
            }
        }
    }

    fn put(&mut self, path: &str, origin: Origin, text: Text) {
        self.entries.insert(path.to_owned(), (origin, text));
    }

    fn set_properties(&mut self, origin: &Origin, members: &[Member]) {
        self.report_duplicates(origin.layer, PROPERTIES, members);
        for member in members {
            let path = joined(PROPERTIES, &member.key);
            // Text from the environment has no lines of its own, and the variable's name says more than the path.
            let origin = match origin.line {
                Some(_) => Origin { line: Some(member.line), key: path.clone(), ..*origin },
                None => origin.clone(),
            };
            match scalar(&member.node) {
                Some(text) => self.put(&path, origin, Text::Scalar(text)),
                None => self.faults.push((origin, format!("expected a single value for {}", member.key))),
            }
        }
    }

    /// Replaces `${NAME}` in what is on top. It happens after parsing, so that no value can bring structure in. Returns
    /// the places of those values that could not be had.
    pub(super) fn expand(&mut self, env: &BTreeMap<String, String>) -> BTreeSet<Origin> {
        let mut faults = BTreeSet::new();
        for (origin, text) in self.entries.values_mut().filter(|(origin, _)| origin.layer.refers_to_environment()) {
            let texts = match text {
                Text::Scalar(text) => std::slice::from_mut(text),
                Text::List(items) => items.as_mut_slice(),
            };
            for text in texts {
                match expanded(text, env) {
                    Ok(expanded) => *text = expanded,
                    Err(message) => {
                        faults.insert((origin.clone(), message));
                    }
                }
            }
        }
        let unread = faults.iter().map(|(origin, _)| origin.clone()).collect();
        self.faults.extend(faults);
        unread
    }

    /// The value of a key, and where it stands.
    pub(super) fn get(&self, path: &str) -> Option<(&Origin, &Text)> {
        self.entries.get(path).map(|(origin, text)| (origin, text))
    }

    /// Values with a character that nobody means to write there: one that cannot be seen, or looks like a blank. Properties
    /// may have line ends inside, for certificates. Messages do not show the value, which may be a secret.
    pub(super) fn strange_characters(&self) -> Vec<Fault> {
        let strange = |path: &str, text: &str| {
            let is_property = path.starts_with(PROPERTIES);
            let within = if is_property { text.strip_suffix('\r').map_or(text, |_| "\0") } else { text };
            within.chars().find(|c| match c {
                '\n' | '\r' | '\t' if is_property => false,
                _ => terminal::is_hidden(*c) || (!is_property && terminal::looks_blank(*c)),
            })
        };
        let mut found = Vec::new();
        for (path, (origin, text)) in &self.entries {
            let texts = match text {
                Text::Scalar(text) => std::slice::from_ref(text),
                Text::List(items) => items.as_slice(),
            };
            for text in texts {
                if let Some(c) = strange(path, text) {
                    let what = if c == '\0' || c == '\r' {
                        "a carriage return (`\\r`): save the file with line ends of Unix".to_owned()
                    } else {
                        format!("the character `{}`, which cannot be seen: write it again", c.escape_default())
                    };
                    found.push((origin.clone(), format!("has {what}")));
                }
            }
        }
        found
    }

    /// The librdkafka properties by name.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&str, &Origin, &str)> {
        self.entries.iter().filter_map(|(path, (origin, text))| match text {
            Text::Scalar(text) => Some((path.strip_prefix(PROPERTIES)?.strip_prefix('.')?, origin, text.as_str())),
            Text::List(_) => None,
        })
    }

    /// Where secrets stand as such: not by the name of a variable alone.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Origin> {
        self.entries.iter().filter_map(|(path, (origin, text))| {
            let Text::Scalar(text) = text else { return None };
            let property = path.strip_prefix(PROPERTIES).and_then(|name| name.strip_prefix('.'));
            let is_secret = match property {
                Some(name) => shown_property(name, "") == MASK,
                None => path == "http.token",
            };
            let is_reference = text.starts_with("${") && text.find('}') == Some(text.len() - 1) && !text.contains(":-");
            (is_secret && !text.is_empty() && !is_reference).then_some(origin)
        })
    }

    fn fault(&mut self, layer: Layer, line: usize, key: &str, message: impl Into<String>) {
        self.faults.push((Origin { layer, line: Some(line), key: key.to_owned() }, message.into()));
    }
}

fn joined(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

fn unknown(suggestion: Option<String>) -> String {
    suggestion.map_or_else(|| "unknown key".to_owned(), |known| format!("unknown key, did you mean `{known}`?"))
}

/// Items with commas between them. Those within braces are of a pattern: `^a{1,2}`.
fn split(items: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let parts = items.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(|item| item.trim().to_owned()).collect()
}

fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Scalar(text) => Some(text.clone()),
        _ => None,
    }
}

/// Replaces `${NAME}` and `${NAME:-default}`; as in a shell, the default also stands for an empty variable. `$${` is
/// how `${` itself is written. The message never shows a value: it may be a secret.
fn expanded(text: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = behind;
            continue;
        }
        out.push_str(before);
        let (reference, behind) =
            behind.split_once('}').ok_or("a `${` is not closed, end it with `}` or write `$${` for the text itself")?;
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let is_name = !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || reference.contains("${") {
            return Err("a `${` must be followed by a variable's name, as in ${NAME} or ${NAME:-default}".to_owned());
        }
        if env.get(name).is_some_and(|value| value.contains(char::REPLACEMENT_CHARACTER)) {
            return Err(format!("the variable {name} {NOT_UTF8}"));
        }
        match (env.get(name).map(String::as_str), default) {
            (None | Some(""), Some(default)) => out.push_str(default),
            (Some(value), _) => out.push_str(value),
            (None, None) => {
                return Err(format!("the variable {name} is not set, set it or write ${{{name}:-default}}"));
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// Writes text so that reading it replaces nothing in it.
pub(super) fn escaped(text: &str) -> String {
    text.replace("${", "$${")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_list_without_brackets_is_split_at_its_commas() {
        for (text, items) in [("a", vec!["a"]), ("a,b, c", vec!["a", "b", "c"]), ("^a{1,2},b", vec!["^a{1,2}", "b"])] {
            assert_eq!(split(text), items, "{text}");
        }
    }

    #[test]
    fn references_to_the_environment_are_replaced_once() {
        let env = env(&[("A", "x"), ("EMPTY", ""), ("DOLLAR", "${A}")]);
        let cases = [
            ("plain $A {b} $", "plain $A {b} $"),
            ("${A}", "x"),
            ("<${A}${A}>", "<xx>"),
            ("${EMPTY}", ""),
            ("${EMPTY:-y}", "y"),
            ("${NONE:-127.0.0.1:9092}", "127.0.0.1:9092"),
            ("${NONE:-}", ""),
            ("${DOLLAR}", "${A}"),
            ("$${A} ${A}", "${A} x"),
            ("$$${A}", "$${A}"),
        ];
        for (text, expected) in cases {
            assert_eq!(expanded(text, &env).as_deref(), Ok(expected), "{text}");
        }
        for text in ["${NONE}", "${A", "${}", "${1A}", "${A-B}", "${A:-${A}}", "${A B}"] {
            assert!(expanded(text, &env).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn escaped_text_is_read_back(text in "[${}A:-]{0,12}") {
            prop_assert_eq!(expanded(&escaped(&text), &env(&[("A", "x")])), Ok(text));
        }
    }
}
