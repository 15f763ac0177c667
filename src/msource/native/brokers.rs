//! Brokers that librdkafka has let go of.
//!
//! The last broker that is shut down in good order may answer that the cluster has no brokers, while it still tells of topics.
//! librdkafka then lets go of every broker that it knows, those that it was configured with too. It sets out to look for them
//! again, and calls that off when it is through with the same answer: the client is cut off from the cluster for good (its issue
//! 5301). So what it logs of each answer is read, and when it has let go of all brokers it is given the configured ones once more.
//!
//! **What it does not do.** librdkafka never sets out by itself again after that. Whatever else cuts a client off is found by the
//! consumer's watchdog. Names are not made canonical here, as `client.dns.lookup` can ask for.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;

use super::{Client, text};
use crate::fault;

/// The longest pause before the brokers are given again, while every answer names none: librdkafka keeps each list that it is given.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What the last answer said of brokers, and how often they were given since one was named.
#[derive(Debug, Default)]
pub(super) struct Brokers {
    named: Named,
    given: u32,
    /// Not before this.
    again: Option<Instant>,
}

/// Whether the last answer named brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Named {
    #[default]
    Some,
    None,
    /// None, and by now librdkafka has let go of those that it knew.
    Gone,
}

impl Brokers {
    /// Reads librdkafka's lines about an answer: how many brokers and topics it has, and, once the brokers were seen to, each topic.
    pub(super) fn read(&mut self, facility: &str, line: &str) {
        let count = if facility == "METADATA" { count_of_brokers(line) } else { None };
        match (count, self.named) {
            (Some(0), Named::Some) => self.named = Named::None,
            (Some(1..), _) => *self = Self::default(),
            (None, Named::None) if facility == "BLACKLIST" || line.contains(":   Topic ") => self.named = Named::Gone,
            _ => {}
        }
    }

    /// Whether they are to be given now, and how often they were before.
    fn is_due(&mut self, now: Instant) -> Option<u32> {
        if self.named != Named::Gone || self.again.is_some_and(|again| now < again) {
            return None;
        }
        let before = self.given;
        *self = Self {
            // librdkafka has them, until it lets go of them again.
            named: Named::Some,
            given: before + 1,
            again: Some(now + Duration::from_secs(1 << before.min(6)).min(LONGEST_PAUSE)),
        };
        Some(before)
    }
}

/// The number in librdkafka's line `BROKER: NUMBER brokers, NUMBER topics`, if it is one.
fn count_of_brokers(line: &str) -> Option<u32> {
    let (_, counts) = line.rsplit_once(": ")?;
    let (brokers, topics) = counts.split_once(" brokers, ")?;
    topics.strip_suffix(" topics")?;
    brokers.parse().ok()
}

impl Client {
    /// Gives librdkafka the configured brokers once more when it knows none. To be called now and then.
    pub(super) fn keep_brokers(&self) {
        let due = self.shared.brokers.lock().unwrap_or_else(PoisonError::into_inner).is_due(Instant::now());
        let Some(before) = due else { return };
        if fault::happens("kafka.cut_off") {
            tracing::info!("the fault kafka.cut_off happens");
            return;
        }
        // SAFETY: the client is live, and so is its name.
        let client = unsafe { text(rd::rd_kafka_name(self.rk)) };
        let what = "the cluster named no broker, as the last one that is shut down does: looking for brokers once more";
        if before == 0 {
            tracing::warn!(client, "{what}");
        } else {
            tracing::debug!(client, before, "{what}");
        }
        // SAFETY: the client is live; the list is a string that is copied.
        unsafe { rd::rd_kafka_brokers_add(self.rk, self.configured.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: (&str, &str) = ("METADATA", "0 brokers, 1 topics");
    const SOME: (&str, &str) = ("METADATA", "3 brokers, 1 topics");
    const TOPIC: (&str, &str) = ("METADATA", "  Topic brokers with 1 partitions");

    fn read(brokers: &mut Brokers, lines: &[(&str, &str)]) -> Named {
        for (facility, line) in lines {
            brokers.read(facility, &format!("[thrd:main]: 127.0.0.1:9092/1: {line}"));
        }
        brokers.named
    }

    #[test]
    fn brokers_are_gone_when_an_answer_with_topics_named_none() {
        let read = |lines: &[_]| read(&mut Brokers::default(), lines);
        let nothing = ("METADATA", "0 brokers, 0 topics");
        assert_eq!(read(&[TOPIC, SOME, TOPIC]), Named::Some);
        assert_eq!(read(&[NONE]), Named::None, "librdkafka is about to let go of them");
        assert_eq!(read(&[NONE, ("COORD", "marking the coordinator (1) dead")]), Named::None);
        assert_eq!(read(&[NONE, TOPIC]), Named::Gone);
        assert_eq!(read(&[NONE, ("BLACKLIST", "Ignoring blacklisted topic \"t\" in metadata")]), Named::Gone);
        assert_eq!(read(&[nothing, SOME, TOPIC]), Named::Some, "an answer with nothing is asked for again");
        assert_eq!(read(&[NONE, TOPIC, nothing]), Named::Gone, "it brings none of them back");
        assert_eq!(read(&[NONE, TOPIC, SOME]), Named::Some);
    }

    #[test]
    fn brokers_are_given_again_ever_more_rarely_while_none_is_named() {
        let (mut brokers, start) = (Brokers::default(), Instant::now());
        let given = |brokers: &mut Brokers, seconds: std::ops::Range<u64>| {
            let given = seconds.filter(|second| {
                read(brokers, &[NONE, TOPIC]);
                brokers.is_due(start + Duration::from_secs(*second)).is_some()
            });
            given.collect::<Vec<_>>()
        };
        assert_eq!(given(&mut brokers, 0..200), [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        read(&mut brokers, &[SOME]);
        assert_eq!(given(&mut brokers, 200..203), [200, 201], "one was named meanwhile");
    }
}
