//! The home that the demo runs in: a directory as a deployment has it, small, and with everything at its default.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::kafka::TOPIC;
use super::records::{APP_ID, DROPPED};

/// A directory that is removed when this is dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Home {
    root: PathBuf,
    temporary: Option<TempDir>,
}

impl Home {
    /// A new directory at `keep`, which may exist when it is empty; or a temporary one.
    pub(crate) fn create(keep: Option<&Path>) -> io::Result<Self> {
        let Some(root) = keep else {
            let temporary = tempfile::Builder::new().prefix("mtga-demo-").tempdir()?;
            return Ok(Self { root: temporary.path().to_owned(), temporary: Some(temporary) });
        };
        fs::create_dir_all(root)?;
        if fs::read_dir(root)?.next().is_some() {
            return Err(io::Error::other("it is not empty, name a new directory"));
        }
        Ok(Self { root: root.canonicalize()?, temporary: None })
    }

    /// Writes config and settings for a topic on these brokers.
    pub(crate) fn furnish(&self, brokers: &str) -> io::Result<()> {
        for directory in ["config", "settings"] {
            fs::create_dir(self.root.join(directory))?;
        }
        fs::write(self.root.join("config/msource.yml"), msource(brokers))?;
        fs::write(self.root.join("config/mtga.yml"), mtga())?;
        fs::write(self.root.join(format!("settings/mthinkingdata:filter.{APP_ID}.json")), filter())?;
        fs::write(self.root.join(format!("settings/mthinkingdata:metadata.{APP_ID}.json")), METADATA)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it stays.
    pub(crate) const fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Lets a temporary directory stay after all.
    pub(crate) fn keep(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            self.root = temporary.keep();
        }
    }
}

fn msource(brokers: &str) -> String {
    format!(
        "# Written by `mtga demo`. Every key that is not here has its default.
kafka:
  # They were part of the demo's process and ended with it.
  brokers: {brokers}
  topics: [{TOPIC}]
  group_id: mtga_demo
  librdkafka:
    # An embedded broker answers a fetch that found nothing only after this time, whatever comes meanwhile.
    fetch.wait.max.ms: 20
store:
  # An embedded broker keeps little, so its producer waits for what is stored: often, then.
  checkpoint: 200ms
"
    )
}

fn mtga() -> String {
    format!(
        "# Written by `mtga demo`. Every key that is not here has its default.
app_id: {APP_ID}
time_zone: \"+08:00\"
sink:
  dir: data
"
    )
}

fn filter() -> String {
    format!(
        "// Which logs are dropped: a trailing * matches every log name that starts so.
[\"{DROPPED}\"]
"
    )
}

const METADATA: &str = r##"// How logs become events. This is what applies without an entry, too.
[
  {
    "log_name": "*",
    "event_name": "t_{log_name}",
    "event_type": "track",
    "metadata": {
      "#account_id": {"field": "role_id", "default": ""},
      "#distinct_id": {"field": "distinct_id", "default": ""},
      "#ip": {"field": "ip", "default": ""},
      "#time": {"field": "mtime", "default": ""},
    },
  },
]
"##;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_home_goes_with_its_demo_unless_it_is_kept_after_all() {
        let home = Home::create(None).unwrap();
        let root = home.root().to_owned();
        assert!(root.is_dir() && !home.is_kept());
        drop(home);
        assert!(!root.try_exists().unwrap());

        let mut home = Home::create(None).unwrap();
        home.keep();
        let root = home.root().to_owned();
        drop(home);
        assert!(root.is_dir());
        fs::remove_dir(root).unwrap();
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("new/home");
        let home = Home::create(Some(&root)).unwrap();
        home.furnish("127.0.0.1:9092").unwrap();
        drop(home);
        assert!(root.join("config/mtga.yml").is_file());
        let refused = Home::create(Some(&root)).unwrap_err();
        assert_eq!(refused.to_string(), "it is not empty, name a new directory");
    }
}
