//! Partitions that are assigned and cannot begin yet, since brokers or group have not answered where.
//!
//! **Promise.** They hold back no other partition, and are neither silent nor taken for done: the reason is logged once, shown
//! beside the state, and their lag counts as unknown.

use crate::msource::TopicPartition;
use crate::msource::native::KafkaError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    reason: Option<String>,
}

impl Held {
    /// Takes the answers of the last round of questions.
    pub(super) fn note(&mut self, unknown: &[(TopicPartition, KafkaError)]) {
        let reason = unknown.first().map(|(partition, error)| match unknown.len() - 1 {
            0 => format!("cannot find out where {partition} starts: {error}"),
            others => format!("cannot find out where {partition} and {others} other partitions start: {error}"),
        });
        if reason != self.reason
            && let Some((partition, error)) = unknown.first()
        {
            tracing::warn!(%partition, count = unknown.len(), %error, "partitions wait for an answer where they start; asking again");
        }
        self.reason = reason;
    }

    /// Nothing is assigned that could not begin.
    pub(super) fn clear(&mut self) {
        self.reason = None;
    }

    /// Why partitions wait, if any does.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
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
        held.note(&[of(3)]);
        assert_eq!(held.reason(), Some("cannot find out where t[3] starts: no leader"));
        held.note(&[of(3), of(4)]);
        assert_eq!(held.reason(), Some("cannot find out where t[3] and 1 other partitions start: no leader"));
        held.note(&[]);
        assert_eq!(held.reason(), None);
    }
}
