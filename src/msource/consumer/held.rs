//! What cannot be read yet, since brokers or group have not answered: partitions that are assigned, and topics.
//!
//! **Promise.** They hold back no other partition, and are neither silent nor taken for done: the reason is logged once and shown
//! beside the state, and the lag of such a partition counts as unknown.

use crate::msource::TopicPartition;
use crate::msource::native::KafkaError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    partitions: Option<String>,
    topics: Option<String>,
}

impl Held {
    /// Takes the answers about where partitions start.
    pub(super) fn note_partitions(&mut self, unknown: &[(TopicPartition, KafkaError)]) {
        let reason = unknown.first().map(|(partition, error)| match unknown.len() - 1 {
            0 => format!("cannot find out where {partition} starts: {error}"),
            others => format!("cannot find out where {partition} and {others} other partitions start: {error}"),
        });
        if reason != self.partitions
            && let Some((partition, error)) = unknown.first()
        {
            tracing::warn!(%partition, count = unknown.len(), %error, "partitions wait for an answer where they start; asking again");
        }
        self.partitions = reason;
    }

    /// Takes the answers about which partitions topics have.
    pub(super) fn note_topics(&mut self, unknown: &[(String, KafkaError)]) {
        let reason = unknown.first().map(|(topic, error)| format!("cannot read topic {topic}: {error}"));
        if reason != self.topics
            && let Some((topic, error)) = unknown.first()
        {
            tracing::warn!(topic, count = unknown.len(), %error, "the brokers do not tell which partitions a topic has; asking again");
        }
        self.topics = reason;
    }

    /// Nothing is assigned that could not begin.
    pub(super) fn clear_partitions(&mut self) {
        self.partitions = None;
    }

    /// Why something waits, if anything does.
    pub(super) fn reason(&self) -> Option<&str> {
        self.partitions.as_deref().or(self.topics.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaErrorCode as Code;

    use super::*;

    #[test]
    fn the_reason_names_a_partition_and_how_many_wait_with_it() {
        let of = |partition| {
            let error = KafkaError { code: Code::LeaderNotAvailable, text: "no leader".into() };
            (TopicPartition { topic: "t".into(), partition }, error)
        };
        let mut held = Held::default();
        held.note_partitions(&[of(3)]);
        assert_eq!(held.reason(), Some("cannot find out where t[3] starts: no leader"));
        held.note_partitions(&[of(3), of(4)]);
        assert_eq!(held.reason(), Some("cannot find out where t[3] and 1 other partitions start: no leader"));
        held.note_partitions(&[]);
        assert_eq!(held.reason(), None);
        held.note_topics(&[("u".to_owned(), of(0).1)]);
        assert_eq!(held.reason(), Some("cannot read topic u: no leader"));
        held.note_topics(&[]);
        assert_eq!(held.reason(), None);
    }
}
