//! `adopt`: finishes and takes over the home of an instance whose host is gone, on a disk that was mounted or copied here.
//!
//! Its pipeline is started without a source: recovery completes torn lines, from Kafka where that is needed. What is hidden
//! is published, refused or set aside by the word of its commit point, the group or the journal. Its failure queue moves
//! into ours. Where it stood is made known to whoever goes on: the group, or our own home. A marker comes last, after which
//! nothing runs on that home any more.
//!
//! **Promise.** Every step may be repeated after any interruption, and comes to the same end. An entry of the failure queue
//! is durable here before it leaves there; one that is here already (topic id, partition, offset), or was taken over by an
//! attempt before, is not taken again. In both homes
//! `consumed + retried = written + filtered + rejected + in flight` holds: an entry that comes here counts as retried and as
//! rejected, one that leaves there stays counted as rejected.
//!
//! **Not promised.** That the other instance is gone: its locks tell it on this host only. What it has written of live files
//! and never committed is repeated by whoever took its partitions over; then nothing is done about its positions.
//!
//! The home itself is read in [`other`], positions are in [`positions`], the failure queue is in [`entries`], and
//! which entries were taken over before in [`taken`].
//!
//! **How it fails.** With the first step that cannot be done; what was done before it stays done.

mod entries;
pub(super) mod other;
mod positions;
mod taken;

use std::path::Path;

use self::other::Other;
use super::asker::Asker;
use super::broken::failed;
use super::home::View;
use super::offsets::{self, Whose};
use super::pipeline::Pipeline;
use super::queue::stopping;
use super::ready::Feed;
use crate::cli::{AdoptedFile, Adoption, FileOutcome, Place};
use crate::config::{Assignment, Config, Visibility};
use crate::control::{Failure, FailureKind};
use crate::delivery::Finish;
use crate::fault;
use crate::lock::HomeLock;
use crate::logging::{self, Console};
use crate::msink::name::{UNDECIDED, hidden};
use crate::msource::TopicPartition;
use crate::msource::journal::{FileState, State};

/// See the module. The lock is that of our own home.
pub(super) fn adopt(
    place: &Place,
    (config, lock): (&Config, &HomeLock),
    dir: &Path,
    progress: &dyn Fn(&str),
) -> Result<Adoption, Failure> {
    let other = Other::find(place, config, dir)?;
    let their_lock = other.lock()?;
    if let Some(before) = other.adopted()? {
        return Ok(Adoption { dir: other.config.sink.dir, before: Some(before), ..Adoption::default() });
    }
    // What recovery has to say is worth keeping; it belongs to the home that goes on.
    let _logging = logging::init(&config.log, config.time_zone, Console::Silent)?;
    tracing::info!(dir = %other.dir.display(), "adopting a home");
    let found = View::of_locked(&other.config, &their_lock).map_err(|failure| other.about(&failure))?.state;
    let ours = View::of_locked(config, lock)?.state.home;
    if found.home == ours {
        let what = "is a copy of this home, not another one";
        return Err(Failure::new(FailureKind::Usage, format!("{} {what}", other.dir.display())));
    }
    let taken = Pipeline::run((&other.config, &their_lock), Feed::Adopted, |theirs| {
        fault::point("adopt.recovered");
        Pipeline::run((config, lock), Feed::Nothing, |ours| take_over(&other, config, &found, (ours, theirs), progress))
    });
    let (adoption, ours) = taken.map_err(|failure| other.about(&failure))?;
    fault::point("adopt.done");
    other.mark(&ours, &place.home)?;
    tracing::info!(dir = %other.dir.display(), home = adoption.home, "adopted a home");
    Ok(adoption)
}

/// Everything between two pipelines; returns also who we are.
fn take_over(
    other: &Other,
    config: &Config,
    found: &State,
    (ours, theirs): (&Pipeline, &Pipeline),
    progress: &dyn Fn(&str),
) -> Result<(Adoption, String), Failure> {
    let asker = Asker::new(&other.config, other.config.rpc.timeout)?;
    let settled = settle(&other.config, theirs, &asker, progress)?;
    let files = files(&other.config.sink.dir, found)?;
    fault::point("adopt.settled");
    if config.kafka.assignment == Assignment::Group {
        // An entry of ours that may be taken back is not to be all that is left of a record that they have had since.
        let state = ours.gauges.durable().state.clone();
        settle_in_group((config, Whose::Ours), ours, &Asker::new(config, config.rpc.timeout)?, &state, progress)?;
    }
    let moved = entries::take(ours, theirs, progress)?;
    let positions = match other.config.kafka.assignment {
        Assignment::Group => positions::commit(&other.config, &asker, &settled, progress)?,
        Assignment::All => positions::take(config, ours, &settled, progress)?,
    };
    let adoption = Adoption {
        home: settled.home,
        dir: other.config.sink.dir.clone(),
        before: None,
        files,
        positions,
        entries: moved.entries,
        known_entries: moved.known,
        left_entries: moved.left,
    };
    Ok((adoption, ours.home.0.clone()))
}

/// Decides about everything that is hidden, and ends every file; returns the state after it.
fn settle(config: &Config, theirs: &Pipeline, asker: &Asker, progress: &dyn Fn(&str)) -> Result<State, Failure> {
    let state = theirs.gauges.durable().state.clone();
    match config.kafka.assignment {
        Assignment::Group => settle_in_group((config, Whose::Gone), theirs, asker, &state, progress)?,
        Assignment::All => settle_alone(config, theirs, &state, progress)?,
    }
    finish(theirs, Finish::Files, progress)?;
    // What has hidden files without lines was killed right after it had made them.
    let state = theirs.gauges.durable().state.clone();
    let left: Vec<_> = state.files.values().filter_map(FileState::partition).collect();
    for partition in left {
        offsets::refuse(theirs, &partition, &|answered| theirs.wait(answered, progress))?;
    }
    // What the journal publishes by itself may have begun while the first one was answered.
    finish(theirs, Finish::No, progress)?;
    let state = theirs.gauges.durable().state.clone();
    let grown = state.partitions.values().any(|partition| partition.growth.is_some());
    let hidden = state.files.values().any(|file| file.visibility == Visibility::Sealed && file.lines > 0);
    if grown || hidden || !state.seals.is_empty() {
        return Err(failed("not all hidden files could be published or removed; see the log, then adopt again"));
    }
    Ok(state)
}

/// Where the group is the commit point. Its assignment of these partitions is over: what was not prepared goes.
fn settle_in_group(
    (config, whose): (&Config, Whose),
    pipeline: &Pipeline,
    asker: &Asker,
    state: &State,
    progress: &dyn Fn(&str),
) -> Result<(), Failure> {
    let is_hidden = |partition: &&TopicPartition| {
        state.partitions[*partition].growth.is_some() || state.prepared(partition).next().is_some()
    };
    let partitions: Vec<_> = state.partitions.keys().filter(is_hidden).cloned().collect();
    let mut group = asker.group_offsets(&partitions)?;
    let is_open =
        |(partition, group): (&TopicPartition, &Option<_>)| offsets::is_open(state, partition, group.as_ref());
    if partitions.iter().zip(&group).any(is_open) {
        tracing::info!("waiting until no commit of an instance that died can reach the group any more");
        asker.outlast_members(config, progress)?;
        group = asker.group_offsets(&partitions)?;
    }
    for (partition, group) in partitions.iter().zip(&group) {
        let wait = |answered: &_| pipeline.wait(answered, progress);
        offsets::settle(pipeline, state, (partition, group.as_ref()), whose, &wait)?;
    }
    Ok(())
}

/// Where the journal is the commit point: what is whole is published, the rest is read again.
fn settle_alone(config: &Config, theirs: &Pipeline, state: &State, progress: &dyn Fn(&str)) -> Result<(), Failure> {
    let hides = config.sink.visibility == Visibility::Sealed;
    for (partition, here) in &state.partitions {
        match &here.growth {
            None => {}
            // Only what is someone's is published.
            Some(growth) if hides && state.is_whole(partition, growth) => {
                let _epoch = theirs.tracker.begin(partition.clone(), here.next);
            }
            Some(_) => offsets::refuse(theirs, partition, &|answered| theirs.wait(answered, progress))?,
        }
    }
    Ok(())
}

fn finish(theirs: &Pipeline, finish: Finish, progress: &dyn Fn(&str)) -> Result<(), Failure> {
    theirs.wait(&theirs.ask_checkpoint(finish).ok_or_else(stopping)?, progress)
}

/// What became of the files that were not finished when the home was found, as the disk has them now.
fn files(dir: &Path, found: &State) -> Result<Vec<AdoptedFile>, Failure> {
    let prepared = found.seals.values().flat_map(|seal| &seal.ranges).flat_map(|range| &range.files);
    let sealed = prepared.map(|file| (&file.name, Visibility::Sealed));
    let growing = found.files.values().filter(|file| file.inode != 0).map(|file| (&file.name, file.visibility));
    let mut files = Vec::new();
    for (name, visibility) in growing.chain(sealed) {
        let aside = format!("{}{UNDECIDED}", hidden(name));
        let there = |name: &str| dir.join(name).try_exists().map_err(failed);
        let (name, outcome) = match visibility {
            Visibility::Live if there(name)? => (name.clone(), FileOutcome::Completed),
            // Another process took it away, which the log says.
            Visibility::Live => continue,
            Visibility::Sealed if there(name)? => (name.clone(), FileOutcome::Published),
            Visibility::Sealed if there(&aside)? => (aside, FileOutcome::SetAside),
            Visibility::Sealed => (name.clone(), FileOutcome::Removed),
        };
        files.push(AdoptedFile { path: dir.join(name), outcome });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
