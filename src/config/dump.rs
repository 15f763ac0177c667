//! The effective configuration as YAML.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};

use super::read::Choice;
use super::secret::{shown_property, shown_token, shown_url};
use super::units::{format_duration, format_permissions, format_size};
use super::values::escaped;
use super::{Config, Sink, Start};

impl Config {
    /// Writes every key in the order of the files, secrets masked, paths absolute. The text can be read again as a
    /// `mtga.local.yml`, and then gives the same configuration but for the secrets.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        let mut open: Vec<&str> = Vec::new();
        for (path, value) in self.entries() {
            let names: Vec<_> = path.split('.').collect();
            let sections = &names[..names.len() - 1];
            let shared = open.iter().zip(sections).take_while(|(open, section)| open == section).count();
            for (depth, name) in names.iter().enumerate().skip(shared) {
                out.push_str(&"  ".repeat(depth));
                out.push_str(name);
                out.push(':');
                if depth == sections.len() {
                    out.push(' ');
                    out.push_str(&value);
                }
                out.push('\n');
            }
            open = sections.to_vec();
        }
        out
    }

    /// Every path with its value as YAML.
    pub(super) fn entries(&self) -> Vec<(&'static str, String)> {
        let mut entries = self.source_entries();
        entries.extend([
            ("app_id", self.app_id.to_string()),
            ("workers", self.workers.to_string()),
            ("time_zone", text(&self.time_zone.name())),
            ("settings", path(&self.settings)),
            ("validation", self.validation.word().to_owned()),
            ("uuid", self.uuid.word().to_owned()),
        ]);
        entries.extend(sink_entries(&self.sink));
        entries.extend([
            ("http.listen", text(&self.http.listen)),
            ("http.hosts", list(&self.http.hosts)),
            ("http.token", text(shown_token(&self.http.token))),
            ("log.dir", path(&self.log.dir)),
            ("log.level", self.log.level.word().to_owned()),
            ("log.rotation", self.log.rotation.word().to_owned()),
            ("log.max_size", format_size(self.log.max_size)),
            ("log.keep", self.log.keep.to_string()),
            ("log.stack_level", self.log.stack_level.word().to_owned()),
            ("reporter.url", text(&shown_url(&self.reporter.url))),
            ("reporter.format", text(&self.reporter.format)),
            ("reporter.level", self.reporter.level.word().to_owned()),
            ("reporter.min_interval", format_duration(self.reporter.min_interval)),
        ]);
        entries
    }

    /// What stands in `msource.yml`.
    fn source_entries(&self) -> Vec<(&'static str, String)> {
        let Self { kafka, store, failure_queue: queue, rpc, .. } = self;
        let properties: Vec<_> = kafka
            .librdkafka
            .iter()
            .map(|(name, value)| format!("{}: {}", text(name), text(shown_property(name, value))))
            .collect();
        vec![
            ("kafka.brokers", text(&kafka.brokers)),
            ("kafka.topics", list(&kafka.topics)),
            ("kafka.group_id", text(&kafka.group_id)),
            ("kafka.assignment", kafka.assignment.word().to_owned()),
            ("kafka.start", start(kafka.start)),
            ("kafka.out_of_range", kafka.out_of_range.word().to_owned()),
            ("kafka.instance_id", text(&kafka.instance_id)),
            ("kafka.payload", kafka.payload.word().to_owned()),
            ("kafka.librdkafka", format!("{{{}}}", properties.join(", "))),
            ("store.path", path(&store.path)),
            ("store.history", format_duration(store.history)),
            ("store.history_bytes", format_size(store.history_bytes)),
            ("store.checkpoint", format_duration(store.checkpoint)),
            ("failure_queue.max_attempts", queue.max_attempts.to_string()),
            ("failure_queue.backoff.from", format_duration(queue.backoff_from)),
            ("failure_queue.backoff.to", format_duration(queue.backoff_to)),
            ("failure_queue.max_bytes", format_size(queue.max_bytes)),
            ("failure_queue.when_full", queue.when_full.word().to_owned()),
            ("rpc.socket", path(&rpc.socket)),
            ("rpc.permissions", text(&format_permissions(rpc.permissions))),
            ("rpc.group", text(&rpc.group)),
            ("rpc.timeout", format_duration(rpc.timeout)),
            ("memory", format_size(self.memory)),
        ]
    }
}

fn sink_entries(sink: &Sink) -> [(&'static str, String); 16] {
    [
        ("sink.mode", sink.mode.word().to_owned()),
        ("sink.dir", path(&sink.dir)),
        ("sink.file", text(&sink.file)),
        ("sink.batch.lines", sink.batch.lines.to_string()),
        ("sink.batch.bytes", format_size(sink.batch.bytes)),
        ("sink.batch.linger", format_duration(sink.batch.linger)),
        ("sink.rotate.size", format_size(sink.rotate.size)),
        ("sink.rotate.age", format_duration(sink.rotate.age)),
        ("sink.rotate.idle", format_duration(sink.rotate.idle)),
        ("sink.fsync", sink.fsync.word().to_owned()),
        ("sink.visibility", sink.visibility.word().to_owned()),
        ("sink.compression", sink.compression.word().to_owned()),
        ("sink.keep.age", optional(sink.keep_age, |age: Duration| format_duration(age))),
        ("sink.keep.bytes", optional(sink.keep_bytes, format_size)),
        ("sink.max_open_files", sink.max_open_files.to_string()),
        ("sink.permissions", text(&format_permissions(sink.permissions))),
    ]
}

fn optional<T>(value: Option<T>, format: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| text(""), format)
}

/// Text in double quotes: JSON's escapes are YAML's too.
fn text(text: &str) -> String {
    serde_json::Value::from(escaped(text)).to_string()
}

fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

fn list(items: &[String]) -> String {
    let items: Vec<_> = items.iter().map(|item| text(item)).collect();
    format!("[{}]", items.join(", "))
}

fn start(start: Start) -> String {
    match start {
        Start::Earliest => "earliest".to_owned(),
        Start::Latest => "latest".to_owned(),
        Start::Time(millis) => match DateTime::from_timestamp_millis(millis) {
            Some(time) => text(&time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => text(&millis.to_string()),
        },
    }
}
