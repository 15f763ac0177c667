//! The file sink.

pub mod dir;
pub mod file;
pub mod name;

use serde::{Deserialize, Serialize};

/// What decides which file a line goes to: the fields of the record that the file's name uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct FileKey {
    /// Of `{topic}`.
    pub topic: Option<String>,
    /// Of `{partition}`.
    pub partition: Option<i32>,
    /// Of `{log_name}`.
    pub log_name: Option<String>,
    /// Of `{event_name}`.
    pub event_name: Option<String>,
}
