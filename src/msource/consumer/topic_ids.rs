//! Whether brokers mean the topic that we know.
//!
//! **Promise.** One answer decides nothing: neither that a topic is no more, nor that another one has taken its name. What
//! brokers say of a topic otherwise than we know it is believed when they have said the same for a minute. An id that was
//! replaced is never taken for a new one.
//!
//! **What it does not do.** It asks nobody: answers are told to it. It forgets with the process.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::msource::TopicPartition;
use crate::msource::doubt::Doubt;
use crate::msource::native::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

/// What an answer says of the topic of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is there, with this id; empty where brokers have no ids.
    Id(String),
    /// There is none of this name.
    NoTopic,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The topic that we know, or one that we know nothing of.
    Known,
    /// It may pass: nothing is to be done yet.
    Doubtful(KafkaError),
    /// It has lasted.
    Lasting,
}

/// See the module.
#[derive(Debug)]
pub(super) struct TopicIds {
    patience: Duration,
    /// What was said last that we do not know.
    doubts: HashMap<TopicPartition, Doubt<Said>>,
    /// Ids in whose place there is another one.
    replaced: BTreeSet<String>,
    /// Ids of topics that are no more and of which something was hidden: nobody can decide about that.
    gone: BTreeSet<String>,
}

impl TopicIds {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, doubts: HashMap::new(), replaced: BTreeSet::new(), gone: BTreeSet::new() }
    }

    /// Takes an answer. `known` are the ids that positions and the group have of the topic, empty where that is not known.
    pub(super) fn hear(&mut self, partition: &TopicPartition, known: &[&str], said: Said, now: Instant) -> Meaning {
        let is_known = |id: &str| known.iter().all(|known| known.is_empty() || *known == id);
        match &said {
            Said::Id(id) if is_known(id) => {
                self.doubts.remove(partition);
                return Meaning::Known;
            }
            Said::Id(id) if self.replaced.contains(id) => {
                self.doubts.remove(partition);
                return Meaning::Doubtful(error(format!(
                    "a broker tells the id {id} of topic {}, which another one has replaced: asking again",
                    partition.topic
                )));
            }
            Said::Id(_) | Said::NoTopic => {}
        }
        let doubt = self.doubts.entry(partition.clone()).or_insert_with(|| Doubt::new(said.clone(), now));
        if doubt.lasts(said.clone(), now, self.patience) {
            return Meaning::Lasting;
        }
        let (topic, seconds) = (&partition.topic, self.patience.as_secs());
        Meaning::Doubtful(error(match said {
            Said::NoTopic => {
                format!("the brokers have no topic {topic} any more: waiting {seconds} s whether that lasts")
            }
            Said::Id(id) if id.is_empty() => {
                format!("the brokers tell no id of topic {topic} any more: waiting {seconds} s whether that lasts")
            }
            Said::Id(id) => {
                format!("the brokers tell another id of topic {topic}, {id}: waiting {seconds} s whether that lasts")
            }
        }))
    }

    /// Brokers are asked again at this time about what they answered since `asked`.
    pub(super) fn asks_next(&mut self, asked: Instant, at: Instant) {
        self.doubts.values_mut().for_each(|doubt| doubt.asks_next(asked, at));
    }

    /// Another topic has taken the place of one with this id.
    pub(super) fn replace(&mut self, id: &str) {
        if !id.is_empty() {
            self.replaced.insert(id.to_owned());
        }
    }

    /// The topic with this id is no more, and nobody can decide about what was hidden of it.
    pub(super) fn bury(&mut self, id: &str) {
        self.gone.insert(id.to_owned());
    }

    /// Whether that is so.
    pub(super) fn is_gone(&self, id: &str) -> bool {
        self.gone.contains(id)
    }
}

fn error(text: String) -> KafkaError {
    KafkaError { code: Code::Fail, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn id(id: &str) -> Said {
        Said::Id(id.to_owned())
    }

    /// What is said in turn, each so many seconds after the first, of a topic known as `old`; and what each means.
    fn assert_means(said: &[(u64, Said, bool)]) {
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut topics = TopicIds::new(PATIENCE);
        let begun = Instant::now();
        for (at, said, lasts) in said {
            let meaning = topics.hear(&partition, &["old", ""], said.clone(), begun + Duration::from_secs(*at));
            assert_eq!(meaning == Meaning::Lasting, *lasts, "{said:?} at {at}");
            assert_eq!(meaning == Meaning::Known, *said == id("old"), "{said:?} at {at}");
        }
    }

    #[test]
    fn an_answer_that_passes_means_nothing_and_one_that_lasts_does() {
        for other in [id("new"), id(""), Said::NoTopic] {
            let lasts = [(0, false), (30, false), (59, false), (60, true)];
            assert_means(&lasts.map(|(at, is_believed)| (at, other.clone(), is_believed)));
            // The brokers were away in between.
            assert_means(&[(0, other.clone(), false), (90, other.clone(), false), (119, other.clone(), false)]);
            assert_means(&[(0, other.clone(), false), (59, id("old"), false), (61, other.clone(), false)]);
        }
        assert_means(&[
            (0, id("new"), false),
            (59, Said::NoTopic, false),
            (61, id("new"), false),
            (91, id("new"), false),
            (121, id("new"), true),
        ]);
    }

    #[test]
    fn a_topic_that_was_made_again_begins_however_seldom_brokers_are_asked() {
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut topics = TopicIds::new(PATIENCE);
        let begun = Instant::now();
        let lasts = (0_u32..5).any(|pass| {
            let asked = begun + pass * Duration::from_secs(50);
            let meaning = topics.hear(&partition, &["old"], id("new"), asked);
            // Another partition's leader is waited for in the same pass.
            topics.asks_next(asked, asked + Duration::from_secs(50));
            meaning == Meaning::Lasting
        });
        assert!(lasts);
    }

    #[test]
    fn an_id_that_was_replaced_is_not_believed_however_long_it_is_told() {
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut topics = TopicIds::new(PATIENCE);
        topics.replace("old");
        topics.replace("");
        let begun = Instant::now();
        for seconds in [0, 60, 6000] {
            let meaning = topics.hear(&partition, &["new"], id("old"), begun + Duration::from_secs(seconds));
            assert!(matches!(meaning, Meaning::Doubtful(_)), "{meaning:?}");
        }
        assert_eq!(topics.hear(&partition, &["new"], id("new"), begun), Meaning::Known);
        assert_eq!(topics.hear(&partition, &[], id("first"), begun), Meaning::Known, "of which nothing is known");
    }
}
