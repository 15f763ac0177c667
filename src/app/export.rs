//! The file that `clear_failure_queue --export` writes: each removed record as a JSON line.
//!
//! It is made exclusively and synced before anything that is in it leaves the queue. Bytes that are not UTF-8 are
//! hexadecimal under another name.
//!
//! The service writes it with its own rights, and the path comes from whoever asks. The service's own user and root may
//! name any place but those where a further file would mean something: `store.path`, `sink.dir`. Anybody else whom
//! `rpc.permissions` lets ask may name a file in one directory, [`Exports::DIR`] of the home, and nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::Config;
use crate::control::{Failure, FailureKind, Peer};
use crate::durable::create_dirs;
use crate::msource::journal::QueueEntry;

/// Where files may be exported to.
#[derive(Clone, Debug)]
pub(super) struct Exports {
    /// For members.
    dir: Option<PathBuf>,
    /// For nobody.
    closed: [PathBuf; 2],
}

impl Exports {
    /// Below the home.
    const DIR: &str = "tmp/exports";

    /// Those of a home, which is known where members can ask.
    pub(super) fn of(config: &Config, home: Option<&Path>) -> Self {
        let dir = home.map(|home| home.join(Self::DIR));
        Self { dir, closed: [config.store.path.clone(), config.sink.dir.clone()] }
    }

    /// Makes the file that `peer` names.
    pub(super) fn create(&self, path: &Path, peer: Peer) -> Result<Export, Failure> {
        let refused = |why: String| {
            let text = format!("cannot create the export file {}: {why}", path.display());
            Failure::new(FailureKind::CannotCreate, text)
        };
        match (peer, &self.dir) {
            (Peer::Owner, _) => self.refuse_closed(path).map_err(refused)?,
            (Peer::Member, Some(dir)) if path.parent() == Some(dir) && path.file_name().is_some() => {
                let made = create_dirs(dir).and_then(|_| fs::symlink_metadata(dir));
                match made {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(_) => return Err(refused(format!("{} is no directory", dir.display()))),
                    Err(error) => return Err(refused(error.to_string())),
                }
            }
            (Peer::Member, dir) => {
                let dir = dir.as_deref().unwrap_or(Path::new(Self::DIR)).display();
                return Err(refused(format!("members of the group export to files in {dir} only")));
            }
        }
        Export::create(path)
    }

    fn refuse_closed(&self, path: &Path) -> Result<(), String> {
        let parent = path.parent().unwrap_or(path);
        let real = parent.canonicalize().map_err(|error| error.to_string())?;
        for closed in &self.closed {
            if closed.canonicalize().is_ok_and(|closed| real.starts_with(closed)) {
                return Err(format!("it would be among the service's own files in {}", closed.display()));
            }
        }
        Ok(())
    }
}

/// See the module.
pub(super) struct Export {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Export {
    fn create(path: &Path) -> Result<Self, Failure> {
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

    #[test]
    fn a_path_from_the_socket_leads_into_one_directory_and_nobodys_into_the_services_own() {
        let home = tempfile::tempdir().unwrap();
        let place = |path: &str| home.path().join(path);
        for dir in ["tmp/store", "data", "elsewhere"] {
            fs::create_dir_all(place(dir)).unwrap();
        }
        std::os::unix::fs::symlink(place("tmp/store"), place("link")).unwrap();
        let exports = Exports { dir: Some(place(Exports::DIR)), closed: [place("tmp/store"), place("data")] };
        let allowed = |path: &str, peer| exports.create(&place(path), peer).is_ok();
        for path in ["tmp/store/adopted.json", "data/a.log", "link/a", "data/../tmp/store/a", "missing/a"] {
            for peer in [Peer::Owner, Peer::Member] {
                assert!(!allowed(path, peer), "{path} for {peer:?}");
            }
        }
        assert!(allowed("elsewhere/a", Peer::Owner) && !allowed("elsewhere/b", Peer::Member));
        for path in ["tmp/exports/../a", "tmp/exports/b/a", "tmp/exports/..", "tmp/a", "tmp/exports/./../store/x"] {
            assert!(!allowed(path, Peer::Member), "{path}");
        }
        assert!(allowed("tmp/exports/a", Peer::Member) && !allowed("tmp/exports/a", Peer::Member), "but once");
        let none = Exports { dir: None, ..exports.clone() };
        assert!(none.create(&place("tmp/exports/c"), Peer::Member).is_err());
        assert_eq!(fs::read_dir(place("tmp/store")).unwrap().count(), 0);
    }
}
