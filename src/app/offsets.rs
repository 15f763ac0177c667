//! `set_offset`: moves positions of a stopped service, in the group and in the journal.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::asker::{Asker, PACE, Standing, Which, unavailable_text};
use super::broken::failed;
use super::pipeline::Pipeline;
use super::queue::stopping;
use crate::cli::{Moved, OffsetTarget, Selection};
use crate::config::{Assignment, Config};
use crate::control::{Failure, FailureKind};
use crate::delivery::{Finish, Inbox, Verdict};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::assignment::{Carried, Held, Owner, is_copied, judge};
use crate::msource::consumer::is_answer;
use crate::msource::journal::{Begun, Mark, MoveCause, Position, SealedOffsets, State};
use crate::msource::native::{Commit, GroupOffset, KafkaError};
use crate::msource::properties;

/// Moves positions of a stopped service: in the group, and then in the journal.
pub(super) fn set(
    config: &Config,
    pipeline: &Pipeline,
    what: &Selection,
    to: OffsetTarget,
    progress: &dyn Fn(&str),
) -> Result<Moved, Failure> {
    let mut asker = Asker::new(config, config.rpc.timeout)?.within(config.rpc.timeout);
    let state = pipeline.gauges.durable().state.clone();
    let mut selected = selection(config, &asker, &state, what)?;
    if config.kafka.assignment == Assignment::Group
        && selected.iter().any(|Standing { partition, group, .. }| is_open(&state, partition, group.as_ref()))
    {
        asker.outlast_members(config, progress)?;
        asker = asker.within(config.rpc.timeout);
        selected = selection(config, &asker, &state, what)?;
    }
    if selected.is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "no partition of the configured topics is meant; see offset_checker",
        ));
    }
    let before: Vec<_> = selected.iter().map(Standing::row).collect();
    let mut moved = Vec::new();
    for mut standing in selected {
        let (Some(low), Some(high)) = (standing.low, standing.high) else { return Err(unmoved(&standing)) };
        let to = match to {
            OffsetTarget::Earliest => low,
            OffsetTarget::Latest => high,
            OffsetTarget::Time(time) => match asker.at_time(&standing.partition, time, high) {
                Ok(offset) => offset,
                Err(error) => return Err(unmoved(&Standing { unknown: Some(error), ..standing })),
            },
            OffsetTarget::Offset(offset) if (low..=high).contains(&offset) => offset,
            // Retention may be past it by now, and still it is the way out that `refuse_to_skip` names.
            OffsetTarget::Offset(offset) if Some(offset) == first_hidden(&state, &standing) => offset,
            OffsetTarget::Offset(offset) => {
                let partition = &standing.partition;
                let text = format!("{partition}: offset {offset} is not within {low}..{high}; nothing was moved");
                return Err(Failure::new(FailureKind::Usage, text));
            }
        };
        standing.current = Some(to);
        moved.push((standing, to));
    }
    let wait = |answered: &Receiver<()>| in_time(pipeline, answered, config.rpc.timeout);
    if config.kafka.assignment == Assignment::All {
        // What was prepared is published or refused by now.
        wait(&pipeline.ask_checkpoint(Finish::No).ok_or_else(stopping)?)?;
        let state = pipeline.gauges.durable().state.clone();
        moved.iter().try_for_each(|(standing, to)| refuse_to_skip_missing(pipeline, &state, standing, *to))?;
    }
    if config.kafka.assignment == Assignment::Group {
        moved.iter().try_for_each(|(standing, to)| refuse_to_skip(&state, standing, *to))?;
        for (Standing { partition, group, .. }, _) in &moved {
            // While the group still tells: after the move it can't be known any more.
            settle(pipeline, &state, (partition, group.as_ref()), Whose::Ours, &wait)?;
        }
    }
    fault::point("set.settled");
    let commits = commits(pipeline, &moved);
    let asker = asker.within(config.rpc.timeout);
    // In a group other instances go by the group's offsets, so the group comes first: what it refuses is not moved here.
    // Without a group they are there for monitors.
    if let Err(error) = commit(config, asker, &commits, progress) {
        if config.kafka.assignment == Assignment::Group {
            let group = &config.kafka.group_id;
            return Err(if is_answer(&error) {
                failed(format!(
                    "nothing was moved: the group {group} did not take the offsets: {error}; stop all its members first"
                ))
            } else {
                unavailable_text(format!(
                    "nothing was moved here, and it is not known whether the group {group} took the offsets: {error}; \
                     set the offset again"
                ))
            });
        }
        tracing::warn!(%error, "the group was not told");
    }
    fault::point("set.committed");
    note(pipeline, &moved, &wait)?;
    fault::point("set.saved");
    let after = moved.iter().map(|(standing, _)| standing.row()).collect();
    Ok(Moved { before, after })
}

/// The partitions that are meant, as they stand.
fn selection(config: &Config, asker: &Asker, state: &State, what: &Selection) -> Result<Vec<Standing>, Failure> {
    let mut standings = asker.standings(config, state, Which::All)?;
    standings.retain(|Standing { partition, .. }| {
        what.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
            && what.partition.is_none_or(|number| number == partition.partition)
    });
    Ok(standings)
}

/// Why nothing is moved while the log of a partition is not known.
fn unmoved(standing: &Standing) -> Failure {
    let why = standing.unknown.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    unavailable_text(format!("nothing was moved: the watermarks of {} are not known{why}", standing.partition))
}

/// How an answer of the delivery is waited for.
type Wait<'a> = &'a dyn Fn(&Receiver<()>) -> Result<(), Failure>;

/// Waits for an answer of the delivery, which a disk that fails can hold up.
fn in_time(pipeline: &Pipeline, answered: &Receiver<()>, patience: Duration) -> Result<(), Failure> {
    answered.recv_timeout(patience).map_err(|_| {
        let reason = pipeline.gauges.stalled().unwrap_or_else(|| "nothing was saved in time".into());
        Failure::new(FailureKind::TimedOut, format!("{reason}; set the offset again when that works"))
    })
}

/// Where the records of a partition begin that are hidden here and would be taken back by a move.
fn first_hidden(state: &State, standing: &Standing) -> Option<i64> {
    let Standing { partition, group, .. } = standing;
    let here = state.partitions.get(partition)?;
    let goes = |(mark, offsets): &(Mark, &SealedOffsets)| {
        judge(mark, offsets, here.mark.as_ref(), group.as_ref(), Held::ByUs) == Verdict::Refused
    };
    let prepared = state.prepared(partition).filter(goes).map(|(_, offsets)| offsets.growth.from);
    prepared.chain(here.growth.as_ref().map(|growth| growth.from)).min()
}

/// Refuses a place past records that are hidden here and would be taken back: nobody would read them again.
fn refuse_to_skip(state: &State, standing: &Standing, to: i64) -> Result<(), Failure> {
    let partition = &standing.partition;
    match first_hidden(state, standing) {
        Some(from) if from < to => Err(failed(format!(
            "{partition}: records from offset {from} on are in hidden files that are not committed, and would be lost; \
             nothing was moved: start and stop the service, which publishes them, or give them up by moving to {from} first"
        ))),
        _ => Ok(()),
    }
}

/// The same without a group, where only what is not whole any more is taken back. What was prepared has been by now.
fn refuse_to_skip_missing(pipeline: &Pipeline, state: &State, standing: &Standing, to: i64) -> Result<(), Failure> {
    let Standing { partition, .. } = standing;
    let Some(here) = state.partitions.get(partition) else { return Ok(()) };
    let growing = here.growth.iter().filter(|growth| !state.is_whole(partition, growth)).map(|growth| growth.from);
    let prepared = pipeline.prepared.iter().filter(|(of, from)| of == partition && here.next <= *from);
    match growing.chain(prepared.map(|(_, from)| *from)).min() {
        Some(from) if from < to => Err(failed(format!(
            "{partition}: hidden files with records from offset {from} on are gone, and those records would be skipped; \
             nothing was moved: start and stop the service, which reads them again, or give them up by moving to {from} first"
        ))),
        _ => Ok(()),
    }
}

/// Whose home it is whose hidden files are decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// Ours. If it is a copy, the one that it was copied from has the same files.
    Ours,
    /// That of an instance which is gone, on its disk or on a copy of it.
    Gone,
}

/// Whether it depends on a commit that may still be on its way what becomes of something that a partition has prepared.
pub(super) fn is_open(state: &State, partition: &TopicPartition, group: Option<&GroupOffset>) -> bool {
    let base = state.partitions.get(partition).and_then(|here| here.mark.as_ref());
    let is_open =
        |(mark, offsets): (Mark, &SealedOffsets)| judge(&mark, offsets, base, group, Held::NotByUs) == Verdict::Open;
    state.prepared(partition).any(is_open)
}

/// Decides about what a partition that can be nobody's has hidden, by what the group has of it: what was prepared is
/// published, refused or set aside, the rest is refused. No commit of its last owner can come any more: where [`is_open`],
/// [`Asker::outlast_members`] has seen to that before the group was asked.
pub(super) fn settle(
    pipeline: &Pipeline,
    state: &State,
    (partition, group): (&TopicPartition, Option<&GroupOffset>),
    whose: Whose,
    wait: Wait<'_>,
) -> Result<(), Failure> {
    let Some(here) = state.partitions.get(partition) else { return Ok(()) };
    for (mark, offsets) in state.prepared(partition) {
        let mut verdict = judge(&mark, offsets, here.mark.as_ref(), group, Held::ByUs);
        if whose == Whose::Ours && verdict == Verdict::Committed && is_copied(state, &mark) {
            verdict = Verdict::Undecided;
        }
        let number = mark.number;
        tracing::info!(%partition, number, ?verdict, "the group's offsets decide about a prepared range");
        let (reply, answered) = bounded(1);
        let decided = Inbox::Decided { number, partition: partition.clone(), verdict, reply: Some(reply) };
        pipeline.inbox.send(decided).map_err(failed)?;
        fault::point("settle.decided");
        wait(&answered)?;
    }
    // Also without growth: files that were made for it may be there.
    refuse(pipeline, partition, wait)
}

/// Takes back what a partition has hidden and not prepared.
pub(super) fn refuse(pipeline: &Pipeline, partition: &TopicPartition, wait: Wait<'_>) -> Result<(), Failure> {
    let (reply, answered) = bounded(1);
    pipeline.inbox.send(Inbox::Refuse { partition: partition.clone(), reply: Some(reply) }).map_err(failed)?;
    wait(&answered)
}

/// Commits. The group keeps a static member that has stopped until its session ends, and takes no offsets from outside
/// meanwhile: that is waited for. Whatever else is wrong is tried again for the time that a command has.
fn commit(config: &Config, mut asker: Asker, commits: &[Commit], progress: &dyn Fn(&str)) -> Result<(), KafkaError> {
    let begun = Instant::now();
    loop {
        let error = match asker.commit(commits) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let patience = match config.kafka.assignment {
            Assignment::Group if has_members(&error) => properties::session(&config.kafka) + config.rpc.timeout,
            Assignment::Group => config.rpc.timeout,
            Assignment::All => Duration::ZERO,
        };
        if begun.elapsed() >= patience {
            return Err(error);
        }
        progress(&format!("waiting until the group takes the offsets: {error}"));
        std::thread::park_timeout(PACE);
        asker = asker.within(config.rpc.timeout.min((begun + patience).saturating_duration_since(Instant::now())));
    }
}

/// Whether a group refused a commit because it has members.
fn has_members(error: &KafkaError) -> bool {
    matches!(
        error.code,
        Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress | Code::StaleMemberEpoch
    )
}

/// What the group is to be told.
fn commits(pipeline: &Pipeline, moved: &[(Standing, i64)]) -> Vec<Commit> {
    let (home, incarnation) = &pipeline.home;
    let commit = |(standing, to): &(Standing, i64)| {
        let group = standing.group.as_ref().filter(|group| group.has_owner());
        let mut carried = Carried::of(group, &standing.topic_id, (home, *incarnation));
        carried.begins_at(*to);
        let owner = Owner {
            mark: Mark { home: home.clone(), incarnation: *incarnation, number: 0 },
            topic_id: standing.topic_id.clone(),
            partitions: standing.begun,
            since: carried.since,
            previous: carried.previous,
        };
        Commit { partition: standing.partition.clone(), offset: *to, leader_epoch: -1, metadata: owner.to_string() }
    };
    moved.iter().map(commit).collect()
}

/// Makes the moves durable here.
fn note(pipeline: &Pipeline, moved: &[(Standing, i64)], wait: Wait<'_>) -> Result<(), Failure> {
    for (Standing { partition, topic_id, begun, .. }, to) in moved {
        if let Some(partitions) = *begun {
            let begun = Begun { topic_id: topic_id.clone(), partitions };
            wait(&pipeline.ask_topic(&partition.topic, begun).ok_or_else(stopping)?)?;
        }
        let position =
            Position { partition: partition.clone(), topic_id: topic_id.clone(), next: *to, leader_epoch: -1 };
        wait(&pipeline.ask_move(position, MoveCause::Operator).ok_or_else(stopping)?)?;
        fault::point("set.noted");
    }
    wait(&pipeline.ask_checkpoint(Finish::No).ok_or_else(stopping)?)
}
