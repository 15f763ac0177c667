//! The file that `clear_failure_queue --export` writes: each removed record as a JSON line.
//!
//! It is made exclusively and synced before anything that is in it leaves the queue. Bytes that are not UTF-8 are
//! hexadecimal under another name.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::control::{Failure, FailureKind};
use crate::msource::journal::QueueEntry;

/// See the module.
pub(super) struct Export {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Export {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path).map_err(|error| {
            let why =
                if error.kind() == io::ErrorKind::AlreadyExists { "it exists".to_owned() } else { error.to_string() };
            Failure::new(FailureKind::CannotCreate, format!("cannot create the export file {}: {why}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Adds an entry; it may be removed after a [`Self::save`].
    pub(super) fn write(&mut self, position: u64, entry: &QueueEntry) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, &exported(position, entry))?;
        self.file.write_all(b"\n")
    }

    /// Makes everything written so far durable, the file's name included.
    pub(super) fn save(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }

    /// What is told when it cannot be written, after so many entries were removed.
    pub(super) fn failed(&self, error: &io::Error, removed: u64) -> Failure {
        let so_far = match removed {
            0 => "nothing was removed".to_owned(),
            removed => format!("the {removed} entries that were removed are in it, the others stay"),
        };
        let text = format!("cannot write the export file {}: {error}; {so_far}", self.path.display());
        Failure::new(FailureKind::CannotCreate, text)
    }
}

fn exported(position: u64, entry: &QueueEntry) -> serde_json::Value {
    let mut value = json!({
        "position": position,
        "topic": &*entry.partition.topic,
        "partition": entry.partition.partition,
        "offset": entry.offset,
        "timestamp": entry.timestamp,
        "reason": entry.reject.reason.name(),
        "detail": entry.reject.detail,
        "attempts": entry.attempts,
        "first_failure": entry.first_failure,
        "last_failure": entry.last_failure,
    });
    let mut put = |name: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => value[name] = text.into(),
        Err(_) => value[format!("{name}_hex")] = hex(bytes).into(),
    };
    if let Some(key) = &entry.key {
        put("key", key);
    }
    put("value", &entry.value);
    let headers: Vec<_> = entry
        .headers
        .iter()
        .map(|(name, value)| match value.as_deref().map(std::str::from_utf8) {
            None => json!({"name": name, "value": null}),
            Some(Ok(text)) => json!({"name": name, "value": text}),
            Some(Err(_)) => json!({"name": name, "value_hex": hex(value.as_deref().unwrap_or_default())}),
        })
        .collect();
    if !headers.is_empty() {
        value["headers"] = headers.into();
    }
    value
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::TopicPartition;
    use crate::record::{Reason, Reject};

    #[test]
    fn a_header_without_a_value_is_exported_as_one_and_not_as_an_empty_text() {
        let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
        let entry = QueueEntry {
            partition: TopicPartition { topic: "t".into(), partition: 0 },
            topic_id: String::new(),
            offset: 1,
            timestamp: None,
            key: None,
            headers: vec![header("null", None), header("empty", Some(b"")), header("bytes", Some(b"\xff"))],
            value: Vec::new(),
            reject: Reject::new(Reason::BadJson, "no object"),
            attempts: 1,
            first_failure: 0,
            last_failure: 0,
            recipe: "r".into(),
        };
        let expected = json!([
            {"name": "null", "value": null},
            {"name": "empty", "value": ""},
            {"name": "bytes", "value_hex": "ff"},
        ]);
        assert_eq!(exported(7, &entry)["headers"], expected);
    }
}
