//! Where another home stood becomes known to whoever goes on: to the group that it was in, or to our own home.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::asker::{Asker, PACE};
use super::super::pipeline::Pipeline;
use super::super::queue::stopping;
use crate::cli::{AdoptedPosition, PositionOutcome};
use crate::config::{Assignment, Config, Visibility};
use crate::control::{Failure, FailureKind};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::assignment::{Carried, Decision, Known, Owner, begun_with, decide};
use crate::msource::doubt::{DOUBT, Doubt};
use crate::msource::journal::{Mark, MoveCause, PartitionState, Position, State};
use crate::msource::native::{Commit, GroupOffset};
use crate::msource::properties;

fn row(partition: &TopicPartition, here: &PartitionState, outcome: PositionOutcome) -> AdoptedPosition {
    let TopicPartition { topic, partition } = partition;
    AdoptedPosition { topic: topic.to_string(), partition: *partition, offset: here.next, outcome }
}

/// Commits the home's own positions where nobody has read on, as it would have done itself.
///
/// The group takes nothing from outside while it has members, and keeps the one that is gone until its session ends. By
/// then either nobody is left, or someone has its partitions and there is nothing left to be committed.
pub(super) fn commit(
    config: &Config,
    asker: &Asker,
    state: &State,
    progress: &dyn Fn(&str),
) -> Result<Vec<AdoptedPosition>, Failure> {
    let deadline = Instant::now() + properties::session(&config.kafka) + config.rpc.timeout;
    let partitions: Vec<_> = state.partitions.keys().cloned().collect();
    let topics: BTreeSet<_> = partitions.iter().map(|partition| partition.topic.to_string()).collect();
    let topics: Vec<_> = topics.into_iter().collect();
    let (mut committed, mut doubt) = (BTreeSet::new(), None);
    let patience = fault::duration("FAULT_DOUBT_MS", DOUBT);
    loop {
        let group = asker.group_offsets(&partitions)?;
        let ids = if topics.is_empty() { BTreeMap::default() } else { asker.topic_ids(&topics)? };
        let (mut rows, mut commits, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for ((partition, here), group) in state.partitions.iter().zip(&group) {
            let outcome = match ids.get(&*partition.topic) {
                Some(id) => judge(config, state, here, group.as_ref(), id),
                None => PositionOutcome::Gone,
            };
            match outcome {
                PositionOutcome::Committed => {
                    commits.push(commit_of(config, state, (partition, here), group.as_ref()));
                }
                PositionOutcome::Gone => gone.push(partition.clone()),
                _ => {}
            }
            let is_done = outcome == PositionOutcome::Current && committed.contains(partition);
            rows.push(row(partition, here, if is_done { PositionOutcome::Committed } else { outcome }));
        }
        // What the topics that are there have does not wait for those that may come back.
        if commits.is_empty() {
            let now = Instant::now();
            let doubt = doubt.get_or_insert_with(|| Doubt::new(gone.clone(), now));
            if gone.is_empty() || doubt.lasts(gone, now, patience) {
                return Ok(rows);
            }
            progress(&format!(
                "the brokers have no topic of some positions, or another one: waiting {} s whether that lasts",
                patience.as_secs()
            ));
            std::thread::park_timeout(PACE);
            continue;
        }
        fault::point("adopt.commit");
        match asker.commit(&commits) {
            Ok(()) => {
                fault::point("adopt.committed");
                committed.extend(commits.into_iter().map(|commit| commit.partition));
                if gone.is_empty() {
                    return Ok(rows);
                }
                continue;
            }
            Err(error) if Instant::now() >= deadline => {
                let group = &config.kafka.group_id;
                let text = format!(
                    "the group {group} did not take the positions: {error}; stop all of its members until \
                     this is done"
                );
                return Err(Failure::new(FailureKind::Unavailable, text));
            }
            Err(error) => progress(&format!("waiting until the group takes the positions: {error}")),
        }
        std::thread::park_timeout(PACE);
    }
}

/// What the home itself would do about a partition that it is given.
fn judge(
    config: &Config,
    state: &State,
    here: &PartitionState,
    group: Option<&GroupOffset>,
    topic_id: &str,
) -> PositionOutcome {
    let decision = decide(&Known {
        home: (&state.home, state.incarnation),
        former: &state.former(&[]),
        number: state.number,
        local: Some(here),
        group,
        topic_id,
        added: false,
        visibility: config.sink.visibility,
    });
    match decision {
        Decision::Continue if group.is_some_and(|group| group.offset == here.next) => PositionOutcome::Current,
        Decision::Continue => PositionOutcome::Committed,
        Decision::Recreated => PositionOutcome::Gone,
        _ => PositionOutcome::Elsewhere,
    }
}

fn commit_of(
    config: &Config,
    state: &State,
    (partition, here): (&TopicPartition, &PartitionState),
    group: Option<&GroupOffset>,
) -> Commit {
    // Where files are hidden, the number is that of a seal, and this is none.
    let number = if config.sink.visibility == Visibility::Sealed { 0 } else { state.number };
    let group = group.filter(|group| group.has_owner());
    let mut carried = Carried::of(group, &here.topic_id, (&state.home, state.incarnation));
    carried.begins_at(here.next);
    let owner = Owner {
        mark: Mark { home: state.home.clone(), incarnation: state.incarnation, number },
        topic_id: here.topic_id.clone(),
        partitions: begun_with(&here.topic_id, state.topics.get(&partition.topic), group.into_iter()),
        since: carried.since,
        previous: carried.previous,
    };
    Commit {
        partition: partition.clone(),
        offset: here.next,
        leader_epoch: here.leader_epoch,
        metadata: owner.to_string(),
    }
}

/// Takes over the positions that our own home does not have.
pub(super) fn take(
    config: &Config,
    ours: &Pipeline,
    theirs: &State,
    progress: &dyn Fn(&str),
) -> Result<Vec<AdoptedPosition>, Failure> {
    let known = ours.gauges.durable().state.partitions.clone();
    let mut rows = Vec::new();
    for (partition, here) in &theirs.partitions {
        let outcome = match known.get(partition) {
            Some(local) if local.next == here.next => PositionOutcome::Current,
            Some(_) => PositionOutcome::Elsewhere,
            None if config.kafka.assignment == Assignment::Group => PositionOutcome::NotOurs,
            None => {
                if let Some(begun) = theirs.topics.get(&partition.topic).cloned() {
                    ours.wait(&ours.ask_topic(&partition.topic, begun).ok_or_else(stopping)?, progress)?;
                }
                note(ours, partition, here, progress)?;
                fault::point("adopt.moved");
                PositionOutcome::TakenOver
            }
        };
        rows.push(row(partition, here, outcome));
    }
    ours.barrier(progress)?;
    Ok(rows)
}

fn note(
    ours: &Pipeline,
    partition: &TopicPartition,
    here: &PartitionState,
    progress: &dyn Fn(&str),
) -> Result<(), Failure> {
    let to = Position {
        partition: partition.clone(),
        topic_id: here.topic_id.clone(),
        next: here.next,
        leader_epoch: here.leader_epoch,
    };
    ours.wait(&ours.ask_move(to, MoveCause::Takeover).ok_or_else(stopping)?, progress)
}
