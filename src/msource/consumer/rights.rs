//! Rights that are missing: named and shown until they are granted.
//!
//! **Promise.** A broker that refuses something for the lack of a right is asked which rights are missing, and again until
//! none is. Records of other topics do not hide what is missing: librdkafka says it once, while a topic goes on not to be read.

use std::collections::BTreeSet;
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::{Consumer, RETRY, next_question};
use crate::msource::rights::{Missing, Resource, missing};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rights {
    /// When to ask which rights are missing; `None` while nothing says that one is.
    ask_at: Option<Instant>,
    missing: Vec<Missing>,
}

impl Rights {
    /// Why something is not read, if it is for the lack of a right.
    pub(super) fn reason(&self) -> Option<String> {
        let first = self.missing.first()?;
        Some(match self.missing.len() - 1 {
            0 => first.to_string(),
            1 => format!("{first}; and one more right is missing, see `mtga check`"),
            others => format!("{first}; and {others} more rights are missing, see `mtga check`"),
        })
    }

    /// Whether the topic may not be read.
    pub(super) fn denies(&self, topic: &str) -> bool {
        self.missing.iter().any(|right| matches!(&right.resource, Resource::Topic(name) if name == topic))
    }

    /// Takes an answer that was given after a question at `asked`; whether another one is missing than before.
    fn hear(&mut self, found: Vec<Missing>, asked: Instant) -> bool {
        let is_new = !found.is_empty() && found != self.missing;
        self.ask_at = (!found.is_empty()).then(|| next_question(asked, RETRY * 5));
        self.missing = found;
        is_new
    }
}

impl Consumer {
    /// Takes note of an answer that may be one for the lack of a right.
    pub(super) fn note_right(&mut self, code: Code) {
        if matches!(code, Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) {
            self.rights.ask_at.get_or_insert_with(Instant::now);
        }
    }

    /// Asks which rights are missing, when something says that one is.
    pub(super) fn look_at_rights(&mut self) {
        if self.rights.ask_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let asked = Instant::now();
        let kafka = &self.parts.config;
        let named = kafka.topics.iter().filter(|topic| !topic.starts_with('^')).cloned();
        let read = self.slots.iter().map(|slot| slot.partition.topic.to_string());
        let pending = self.pending.iter().map(|partition| partition.topic.to_string());
        let topics: BTreeSet<_> = named.chain(read).chain(pending).collect();
        let topics: Vec<_> = topics.into_iter().collect();
        let Ok(found) = missing(&self.client, kafka, &topics, RETRY * 5) else {
            self.rights.ask_at = Some(next_question(asked, RETRY));
            return;
        };
        let is_granted = found.is_empty() && !self.rights.missing.is_empty();
        if self.rights.hear(found, asked) {
            tracing::warn!(reason = self.rights.reason(), "a right is missing");
        } else if is_granted {
            tracing::info!("the rights that were missing are granted");
            self.trouble.answered(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_until_it_is_granted_and_counted() {
        let of = |names: &[&str]| {
            let resources = names.iter().map(|name| Resource::Topic((*name).to_owned()));
            resources.map(|resource| Missing { user: Some("alice".into()), resource }).collect::<Vec<_>>()
        };
        let (mut rights, now) = (Rights::default(), Instant::now());
        assert!(rights.hear(of(&["t"]), now));
        assert_eq!(rights.reason().as_deref(), Some("the user 'alice' may not read topic 't': grant READ on Topic t"));
        assert!(rights.denies("t") && !rights.denies("u"));
        assert!(!rights.hear(of(&["t"]), now), "it is logged once");
        assert!(rights.hear(of(&["t", "u", "v"]), now));
        assert!(
            rights.reason().is_some_and(|reason| reason.ends_with("; and 2 more rights are missing, see `mtga check`"))
        );
        assert!(rights.ask_at.is_some());
        assert!(!rights.hear(Vec::new(), now));
        assert_eq!((rights.reason(), rights.ask_at), (None, None));
    }
}
