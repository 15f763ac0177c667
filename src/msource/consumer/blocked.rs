//! Partitions that stand still before a batch that cannot be unpacked here, although it is as it was sent.
//!
//! **Promise.** Nothing of such a batch is given up: the partition is read on when it can be unpacked, or an operator moves past
//! it. Until then the reason is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::msource::TopicPartition;
use crate::msource::native::KafkaError;

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why librdkafka hands out no records of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::msource) enum Unreadable {
    /// Its bytes are not those that were sent.
    Damaged,
    /// Its checksum is right. It may be larger than we let it become, or be made by a faulty producer.
    Packed,
}

impl Unreadable {
    /// What an error says of the batch at which it came; `None` for an error of something else.
    ///
    /// `check.crcs` is ours, and a checksum is looked at before anything is unpacked, so that what fails later is no damage. A
    /// checksum does not cover the format's number, and brokers send no format that was not asked for.
    pub(in crate::msource) fn of(error: &KafkaError) -> Option<Self> {
        let says = |text| error.text.contains(text);
        match error.code {
            Code::InvalidMessage => Some(Self::Damaged),
            Code::BadMessage if says("failed CRC32") => Some(Self::Damaged),
            Code::NotImplemented if says("MagicByte") => Some(Self::Damaged),
            Code::BadMessage | Code::BadCompression | Code::NotImplemented => Some(Self::Packed),
            Code::CriticalSystemResource if says("Decompression") => Some(Self::Packed),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Blocked(BTreeMap<TopicPartition, (i64, String)>);

impl Blocked {
    /// A partition stands still at this offset; returns whether that is news.
    pub(super) fn block(&mut self, partition: TopicPartition, offset: i64, reason: String) -> bool {
        let known = self.0.insert(partition, (offset, reason));
        known.is_none_or(|(before, _)| before != offset)
    }

    /// Forgets those that do not stand there any more.
    pub(super) fn retain(&mut self, stands: impl Fn(&TopicPartition, i64) -> bool) {
        self.0.retain(|partition, (offset, _)| stands(partition, *offset));
    }

    /// Whether this partition stands still.
    pub(super) fn has(&self, partition: &TopicPartition) -> bool {
        self.0.contains_key(partition)
    }

    /// Why the first of them does.
    pub(super) fn reason(&self) -> Option<&str> {
        self.0.values().next().map(|(_, reason)| reason.as_str())
    }
}

/// The pause after so many attempts.
pub(super) fn pause(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(tries - 1)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wrong_checksum_or_header_is_damage() {
        let table = [
            (
                Code::BadMessage,
                "MessageSet at offset 5 (80 bytes) failed CRC32C check (original 0x1 != calculated 0x2)",
                Some(Unreadable::Damaged),
            ),
            (
                Code::BadMessage,
                "Message at offset 5 (80 bytes) failed CRC32 check (original 0x1 != calculated 0x2)",
                Some(Unreadable::Damaged),
            ),
            (Code::InvalidMessage, "Fetch from broker 1 failed: Broker: Invalid message", Some(Unreadable::Damaged)),
            (Code::NotImplemented, "Unsupported Message(Set) MagicByte 6 at offset 5", Some(Unreadable::Damaged)),
            (
                Code::NotImplemented,
                "Decompression (codec 0x5) of message at 5 of 80 bytes failed: Local: Not implemented",
                Some(Unreadable::Packed),
            ),
            (
                Code::BadCompression,
                "Decompression (codec 0x4) of message at 5 of 80 bytes failed: Local: Invalid compressed data",
                Some(Unreadable::Packed),
            ),
            (
                Code::BadMessage,
                "Decompression (codec 0x3) of message at 5 of 80 bytes failed: Local: Bad message format",
                Some(Unreadable::Packed),
            ),
            (
                Code::CriticalSystemResource,
                "Decompression (codec 0x2) of message at 5 of 80 bytes failed: Local: Critical system resource failure",
                Some(Unreadable::Packed),
            ),
            (Code::CriticalSystemResource, "Local: Critical system resource failure", None),
            (Code::PartitionEOF, "Broker: No more messages", None),
        ];
        for (code, text, expected) in table {
            assert_eq!(Unreadable::of(&KafkaError { code, text: text.to_owned() }), expected, "{text}");
        }
    }

    #[test]
    fn a_partition_is_news_once_at_each_offset_and_is_forgotten_when_it_has_moved() {
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut blocked = Blocked::default();
        assert!(blocked.block(partition.clone(), 5, "why".into()));
        assert!(!blocked.block(partition.clone(), 5, "why".into()));
        blocked.retain(|_, offset| offset == 5);
        assert_eq!((blocked.has(&partition), blocked.reason()), (true, Some("why")));
        assert!(blocked.block(partition.clone(), 6, "why".into()));
        blocked.retain(|_, offset| offset == 5);
        assert_eq!((blocked.has(&partition), blocked.reason()), (false, None));
    }
}
