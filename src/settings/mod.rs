//! The business rules: which logs are dropped, and how the fields of a log become the `#` keys of an event.
//!
//! Two files of commented JSON, `mthinkingdata:filter.<app_id>.json` and `mthinkingdata:metadata.<app_id>.json`,
//! are read into plain data ([`Settings`]); the transform compiles what it needs from it. Reading them reports every
//! mistake with file, line and column. This module reads no clock and no environment.

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
