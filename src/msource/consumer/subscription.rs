//! How the group is told which topics are meant.
//!
//! librdkafka matches patterns itself in the classic protocols. In that of KIP-848 the brokers would do it, with another
//! dialect, against whole names, and with their own topics: there we subscribe to the names that the patterns mean, and
//! again when those change, which moves no partition of the others.

use crate::config::{Assignment, Kafka};
use crate::msource::properties;

/// What was subscribed to.
#[derive(Debug)]
pub(super) struct Subscription {
    by_name: bool,
    names: Vec<String>,
}

impl Subscription {
    pub(super) fn of(kafka: &Kafka) -> Self {
        let has_pattern = kafka.topics.iter().any(|topic| topic.starts_with('^'));
        let by_name = kafka.assignment == Assignment::Group && has_pattern && properties::brokers_assign(kafka);
        Self { by_name, names: Vec::new() }
    }

    /// Whether patterns are resolved here.
    pub(super) fn is_by_name(&self) -> bool {
        self.by_name
    }

    /// A new client has no subscription.
    pub(super) fn forget(&mut self) {
        self.names.clear();
    }

    /// The names to subscribe to, unless they are those of before.
    pub(super) fn changed(&mut self, names: Vec<String>) -> Option<&[String]> {
        if names == self.names {
            return None;
        }
        self.names = names;
        Some(&self.names)
    }
}
