//! The Kafka source.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub mod assignment;
pub mod consumer;
pub mod doubt;
pub mod journal;
pub mod native;
pub mod outlast;
pub mod payload;
pub mod properties;
pub mod reread;
pub mod rights;
pub mod store;
pub mod tracker;

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}
