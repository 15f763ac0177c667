//! How many partitions each topic had when it was begun: those from there on were added later, and have no `kafka.start`.
//!
//! **Promise.** The count is durable before the first partition of its topic begins, and each commit carries it on. One that is
//! known is not forgotten while the topic is the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Consumer;
use crate::msource::TopicPartition;
use crate::msource::assignment::begun_with;
use crate::msource::journal::{Begun, Frame, State};
use crate::msource::native::{GroupOffset, TopicInfo};

impl Consumer {
    /// Takes over what the owners before us left beside the group's offsets: every commit of ours carries it on.
    pub(super) fn carry_on_all(
        &mut self,
        topics: &HashMap<String, TopicInfo>,
        pending: &[TopicPartition],
        group: &HashMap<TopicPartition, Option<GroupOffset>>,
    ) {
        for (partition, offset) in group {
            let topic_id = topics.get(&*partition.topic).map_or("", |info| info.id.as_str());
            self.carry_on(partition, topic_id, offset.as_ref());
        }
        for info in topics.values() {
            let count = count(&self.parts.gauges.durable().state, info, pending, group);
            match count {
                Some(count) => drop(self.begun_with.insert(info.name.as_str().into(), count)),
                // It may be an answer without an id, which says nothing of another topic.
                None if info.id.is_empty() => {}
                None => drop(self.begun_with.remove(&*info.name)),
            }
        }
    }

    /// What is to be noted before these frames, which begin partitions: the counts of their topics that are not noted yet.
    pub(super) fn begun_topics<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> Vec<Frame> {
        let durable = self.parts.gauges.durable();
        let mut begun = BTreeMap::new();
        for frame in frames {
            let Frame::Start(at) = frame else { continue };
            let topic = &at.partition.topic;
            let is_noted = durable.state.topics.get(topic).is_some_and(|begun| begun.topic_id == at.topic_id);
            if let Some(&partitions) = self.begun_with.get(topic).filter(|_| !is_noted) {
                begun.insert(Arc::clone(topic), Begun { topic_id: at.topic_id.clone(), partitions });
            }
        }
        begun.into_iter().map(|(name, begun)| Frame::Topic { name, begun }).collect()
    }
}

/// How many partitions a topic had when it was begun: as it is known, or as many as it has while nobody has begun it.
fn count(
    state: &State,
    info: &TopicInfo,
    pending: &[TopicPartition],
    group: &HashMap<TopicPartition, Option<GroupOffset>>,
) -> Option<i32> {
    let is_of_topic = |partition: &TopicPartition| *partition.topic == *info.name;
    let offsets = || group.iter().filter(|(partition, _)| is_of_topic(partition)).filter_map(|(_, at)| at.as_ref());
    let is_new = !state.partitions.keys().any(is_of_topic) && offsets().next().is_none();
    let given = pending.iter().filter(|partition| is_of_topic(partition)).map(|given| given.partition + 1).max();
    let present = info.partitions.max(given.unwrap_or(0));
    begun_with(&info.id, state.topics.get(&*info.name), offsets()).or_else(|| is_new.then_some(present))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::journal::PartitionState;

    #[test]
    fn what_was_noted_of_a_topic_counts_for_partitions_that_nobody_got_to_begin() {
        let of = |partition| TopicPartition { topic: "t".into(), partition };
        let info = |id: &str| TopicInfo { name: "t".into(), id: id.into(), partitions: 3 };
        let mut state = State::default();
        assert_eq!(count(&state, &info("id"), &[of(3)], &HashMap::new()), Some(4), "nobody has begun it");
        state.apply(&Frame::Topic { name: "t".into(), begun: Begun { topic_id: "id".into(), partitions: 2 } });
        assert_eq!(count(&state, &info("id"), &[], &HashMap::new()), Some(2), "killed before the first start");
        state.partitions.insert(of(0), PartitionState::default());
        for id in ["id", ""] {
            assert_eq!(count(&state, &info(id), &[], &HashMap::new()), Some(2), "killed between two starts");
        }
        assert_eq!(count(&state, &info("other"), &[], &HashMap::new()), None, "a topic made again");
    }
}
