//! The business rules: which logs are dropped, and how the fields of a log become the `#` keys of an event.
//!
//! Two files of commented JSON (see [`crate::commentjson`]) in one directory:
//!
//! - `mthinkingdata:filter.<app_id>.json`: a list of log names to drop, or `{"drop": […], "keep": […], "omit": {…}}`;
//!   a trailing `*` matches a prefix.
//! - `mthinkingdata:metadata.<app_id>.json`: one entry a log name, `*` for all others. `event_name`, `event_type` and
//!   `metadata` of an entry may be absent: then they are those of [`Mapping::built_in`].
//!
//! Both files must be there: a wrong `app_id` or directory would otherwise drop every rule in silence. They are read
//! into plain data ([`Settings`]); the transform compiles what it needs from it. Every mistake of both files is
//! reported at once, each with file, line and column ([`Mistake`]), and a file with a mistake gives no settings. Unknown
//! and duplicate keys are mistakes. `event_type` is taken as it stands: validation judges it for each record.
//!
//! [`Loaded`] keeps the texts and their fingerprint, since a block that a crash cut short is completed under the
//! settings it was begun with. This module reads no clock and no environment.

mod load;
mod read;

pub use load::{Loaded, Mistake, Sources};

/// The two settings files, read and checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which logs pass and which properties are left out.
    pub filter: Filter,
    /// How logs become events; at most one entry a log name, plus at most one for `*`.
    pub metadata: Vec<Mapping>,
}

/// The filter file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Log names that are dropped; wins over `keep`.
    pub drop: Vec<Pattern>,
    /// When present, only these log names pass.
    pub keep: Option<Vec<Pattern>>,
    /// Properties left out, by log name (`*` for every log name).
    pub omit: Vec<(Pattern, Vec<String>)>,
}

/// A log name, or a prefix of one when it was written with a trailing `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this name.
    Exact(String),
    /// Every name that starts with this (everything when empty).
    Prefix(String),
}

impl Pattern {
    /// Reads a pattern: a trailing `*` makes it a prefix.
    pub fn new(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(text.to_owned()),
        }
    }

    /// Whether the log name matches.
    pub fn matches(&self, log_name: &str) -> bool {
        match self {
            Self::Exact(name) => name == log_name,
            Self::Prefix(prefix) => log_name.starts_with(prefix.as_str()),
        }
    }
}

/// One entry of the metadata file: how the logs of one name become events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The log name, or `*` for all that have no entry of their own.
    pub log_name: String,
    /// Gives `#event_name`.
    pub event_name: Template,
    /// Gives `#type`, as it stands in the file; validation judges it for each record.
    pub event_type: String,
    /// The `#` keys, in the order of the file; no key twice.
    pub keys: Vec<Key>,
}

impl Mapping {
    /// What applies to a log name without an entry.
    pub fn built_in() -> Self {
        let key = |name: &str, field: &str| Key {
            name: name.to_owned(),
            field: Some(field.to_owned()),
            default: Template::default(),
        };
        Self {
            log_name: "*".to_owned(),
            event_name: Template(vec![Part::Text("t_".to_owned()), Part::Member("log_name".to_owned())]),
            event_type: "track".to_owned(),
            keys: vec![
                key("#account_id", "role_id"),
                key("#distinct_id", "distinct_id"),
                key("#ip", "ip"),
                key("#time", "mtime"),
            ],
        }
    }
}

/// Where the value of one `#` key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key with its `#`.
    pub name: String,
    /// The member of `logs`, if any.
    pub field: Option<String>,
    /// Used when the member is absent, null or empty.
    pub default: Template,
}

/// Text with `{name}` references, cut into its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(pub Vec<Part>);

/// A part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text as it is.
    Text(String),
    /// `{name}`: the member of `logs` of that name; when `logs` has none, `log_name` and `app_id` name the header's values;
    /// anything else is empty.
    Member(String),
}

impl Template {
    /// Reads a template. There is no escape: `{` always opens a reference, a `}` without one is text.
    ///
    /// Fails with a message for the operator: a reference that is not closed, empty, or has a `{` in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, behind) =
                behind.split_once('}').ok_or_else(|| format!("`{{` in `{text}` is not closed, end it with `}}`"))?;
            if name.is_empty() || name.contains('{') {
                return Err(format!("`{{{name}}}` in `{text}` names no member, write {{name}}"));
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Member(name.to_owned()));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}
