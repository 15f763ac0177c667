//! What cannot be read yet, since brokers or group have not answered: partitions that are assigned, and topics.
//!
//! **Promise.** They hold back no other partition, and are neither silent nor taken for done: the reason is logged once and shown
//! beside the state, and the lag of such a partition counts as unknown.

use std::fmt;

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::msource::TopicPartition;
use crate::msource::native::KafkaError;

/// What a partition waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Whether its topic is still there.
    Topic,
    /// The group, which has not taken what is hidden of it, or does not tell.
    Hidden,
    /// Where it starts.
    Start,
    /// The group, which does not take where it starts.
    Pin,
}

/// A partition that is given to us and cannot be read yet.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) partition: TopicPartition,
    pub(super) why: Why,
    pub(super) error: KafkaError,
}

impl Waiting {
    /// Whether there is no use in asking again soon.
    pub(super) fn lasts(&self) -> bool {
        self.why == Why::Start || lasts(&self.error)
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, why, error } = self;
        match why {
            Why::Topic => write!(f, "cannot find out whether the topic of {partition} is still there: {error}"),
            Why::Hidden => write!(f, "the group has not taken what is hidden of {partition}: {error}"),
            Why::Start => write!(f, "cannot find out where {partition} starts: {error}"),
            Why::Pin => write!(f, "the group does not take where {partition} starts: {error}"),
        }
    }
}

/// Whether an answer of the group lasts until someone changes the brokers: a right, or a bound on what a commit may hold.
pub(super) fn lasts(error: &KafkaError) -> bool {
    matches!(
        error.code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::OffsetMetadataTooLarge
            | Code::InvalidCommitOffsetSize
    )
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    partitions: Option<String>,
    topics: Option<String>,
}

impl Held {
    /// Takes the partitions that cannot be read yet.
    pub(super) fn note_partitions(&mut self, waiting: &[Waiting]) {
        let reason = waiting.first().map(|first| match waiting.len() - 1 {
            0 => first.to_string(),
            others => format!("{first}; {others} more partitions wait"),
        });
        if reason != self.partitions
            && let Some(reason) = &reason
        {
            tracing::warn!(reason, count = waiting.len(), "partitions cannot be read yet; asking again");
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
    use super::*;

    #[test]
    fn the_reason_names_a_partition_and_how_many_wait_with_it() {
        let error = || KafkaError { code: Code::LeaderNotAvailable, text: "no leader".into() };
        let of = |partition| {
            let partition = TopicPartition { topic: "t".into(), partition };
            Waiting { partition, why: Why::Start, error: error() }
        };
        let mut held = Held::default();
        held.note_partitions(&[of(3)]);
        assert_eq!(held.reason(), Some("cannot find out where t[3] starts: no leader"));
        held.note_partitions(&[Waiting { why: Why::Hidden, ..of(3) }, of(4)]);
        let text = "the group has not taken what is hidden of t[3]: no leader; 1 more partitions wait";
        assert_eq!(held.reason(), Some(text));
        held.note_partitions(&[]);
        assert_eq!(held.reason(), None);
        held.note_topics(&[("u".to_owned(), error())]);
        assert_eq!(held.reason(), Some("cannot read topic u: no leader"));
        held.note_topics(&[]);
        assert_eq!(held.reason(), None);
    }
}
