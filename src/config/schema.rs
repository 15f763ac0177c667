//! Every key: in which file it stands, what shape its value has, and its built-in default as it would be written.

use super::layer::Layer;

/// A key that has a value.
#[derive(Debug)]
pub(super) struct Key {
    /// Its names from the top, joined by `.`.
    pub(super) path: &'static str,
    /// The file it belongs into.
    pub(super) file: Layer,
    pub(super) shape: Shape,
    /// What it is without any setting, as YAML.
    pub(super) default: &'static str,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Scalar,
    /// A list of scalars.
    List,
    /// A map of free names, dots included, to scalars.
    Properties,
}

/// The path of the one key with [`Shape::Properties`].
pub(super) const PROPERTIES: &str = "kafka.librdkafka";

const fn source(path: &'static str, default: &'static str) -> Key {
    Key { path, file: Layer::Msource, shape: Shape::Scalar, default }
}

const fn mtga(path: &'static str, default: &'static str) -> Key {
    Key { path, file: Layer::Mtga, shape: Shape::Scalar, default }
}

/// Every key in the order in which the files and `mtga config` show them.
pub(super) static KEYS: [Key; 58] = [
    source("kafka.brokers", "${KAFKA_BROKERS:-127.0.0.1:9092}"),
    Key { shape: Shape::List, ..source("kafka.topics", "[mulog_clean_24]") },
    source("kafka.group_id", "mtga_24"),
    source("kafka.assignment", "group"),
    source("kafka.start", "earliest"),
    source("kafka.out_of_range", "earliest"),
    source("kafka.instance_id", "''"),
    source("kafka.payload", "auto"),
    Key { shape: Shape::Properties, ..source(PROPERTIES, "{}") },
    source("store.path", "tmp/store"),
    source("store.history", "24h"),
    source("store.history_bytes", "2GiB"),
    source("store.checkpoint", "1s"),
    source("failure_queue.max_attempts", "5"),
    source("failure_queue.backoff.from", "1s"),
    source("failure_queue.backoff.to", "5m"),
    source("failure_queue.max_bytes", "1GiB"),
    source("failure_queue.when_full", "pause"),
    source("rpc.socket", "tmp/mtga.sock"),
    source("rpc.permissions", "0600"),
    source("rpc.group", "''"),
    source("rpc.timeout", "10s"),
    source("memory", "128MiB"),
    mtga("app_id", "24"),
    mtga("workers", "auto"),
    mtga("time_zone", "+08:00"),
    mtga("settings", "settings"),
    mtga("validation", "standard"),
    mtga("uuid", "false"),
    mtga("sink.mode", "batch"),
    mtga("sink.dir", "data"),
    mtga("sink.file", "ta.{app_id}.%Y-%m-%d-%H.{seq}.log"),
    mtga("sink.batch.lines", "1000"),
    mtga("sink.batch.bytes", "1MiB"),
    mtga("sink.batch.linger", "200ms"),
    mtga("sink.rotate.size", "256MiB"),
    mtga("sink.rotate.age", "auto"),
    mtga("sink.rotate.idle", "60s"),
    mtga("sink.fsync", "true"),
    mtga("sink.visibility", "live"),
    mtga("sink.compression", "none"),
    mtga("sink.keep.age", "''"),
    mtga("sink.keep.bytes", "''"),
    mtga("sink.max_open_files", "256"),
    mtga("sink.permissions", "0640"),
    // This version serves no HTTP, so its default is not the one it will have then.
    mtga("http.listen", "''"),
    Key { shape: Shape::List, ..mtga("http.hosts", "[]") },
    mtga("http.token", "''"),
    mtga("log.dir", "logs"),
    mtga("log.level", "info"),
    mtga("log.rotation", "daily"),
    mtga("log.max_size", "100MiB"),
    mtga("log.keep", "20"),
    mtga("log.stack_level", "error"),
    mtga("reporter.url", "''"),
    mtga("reporter.format", "json"),
    mtga("reporter.level", "error"),
    mtga("reporter.min_interval", "60s"),
];

/// What a path names.
#[derive(Debug)]
pub(super) enum Named {
    Key(&'static Key),
    /// The start of the paths of keys.
    Section,
    Unknown,
}

/// Looks a path up.
pub(super) fn find(path: &str) -> Named {
    if let Some(key) = KEYS.iter().find(|key| key.path == path) {
        return Named::Key(key);
    }
    if KEYS.iter().any(|key| parent(key.path).is_some_and(|section| starts_with_names(section, path))) {
        Named::Section
    } else {
        Named::Unknown
    }
}

fn starts_with_names(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('.').map(|(section, _)| section)
}

/// The name under which the environment sets a key.
pub(super) fn variable(path: &str) -> String {
    format!("MTGA_{}", path.replace('.', "__").to_uppercase())
}

/// The known name most like an unknown one: a sibling for a slip of the pen, or the path of a key of that name that
/// stands elsewhere.
pub(super) fn suggest(path: &str) -> Option<String> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let siblings = KEYS.iter().filter_map(|key| {
        let rest = if section.is_empty() { key.path } else { key.path.strip_prefix(section)?.strip_prefix('.')? };
        rest.split('.').next()
    });
    let near = closest(name, siblings);
    near.map(ToOwned::to_owned).or_else(|| {
        let mut elsewhere = KEYS.iter().filter(|key| key.path.rsplit('.').next() == Some(name));
        elsewhere.next().map(|key| key.path.to_owned())
    })
}

/// The variable most like one that sets no key.
pub(super) fn suggest_variable(name: &str) -> Option<String> {
    let variables: Vec<_> = KEYS.iter().map(|key| variable(key.path)).collect();
    closest(name, variables.iter().map(String::as_str)).map(ToOwned::to_owned)
}

fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_key_is_there_twice_or_is_a_section_too() {
        let paths: BTreeSet<_> = KEYS.iter().map(|key| key.path).collect();
        assert_eq!(paths.len(), KEYS.len());
        for key in &KEYS {
            assert!(matches!(find(key.path), Named::Key(found) if found.path == key.path));
            assert!(
                !KEYS
                    .iter()
                    .any(|other| parent(other.path).is_some_and(|section| starts_with_names(section, key.path)))
            );
        }
    }

    #[test]
    fn sections_are_whole_names() {
        assert!(matches!(find("sink"), Named::Section));
        assert!(matches!(find("sink.batch"), Named::Section));
        for path in ["sin", "sink.bat", "kafka.librdkafka.debug", "", "sink.", "sink.mode.x"] {
            assert!(matches!(find(path), Named::Unknown), "{path}");
        }
    }

    #[test]
    fn an_unknown_key_is_told_its_likeliest_meaning() {
        let cases = [
            ("kafka.topicz", Some("topics")),
            ("kafka.groupid", Some("group_id")),
            ("sinc", Some("sink")),
            ("sink.bacth", Some("batch")),
            ("mode", Some("sink.mode")),
            ("sink.brokers", Some("kafka.brokers")),
            ("kafka.colour", None),
        ];
        for (path, expected) in cases {
            assert_eq!(suggest(path).as_deref(), expected, "{path}");
        }
        assert_eq!(suggest_variable("MTGA_SINK_MODE").as_deref(), Some("MTGA_SINK__MODE"));
        assert_eq!(suggest_variable("MTGA_LOG"), None);
    }
}
