//! Recovery: completes what a crash cut short.
//!
//! It walks over what the journal has after the last checkpoint. Each block says which bytes it put where; they are
//! checked against length and CRC:
//!
//! - All there: the block is done, nothing is read again. Its bytes are written once more in their place, which no reader
//!   can see: what is in the page cache may be lost to the disk, when a sync that failed came before this, and the next
//!   sync would succeed without it.
//! - Cut short or damaged: the block is made again from its source under its recipe, and what is missing is appended, so
//!   that a torn line is completed and never cut: collectors that tail a file start over when it shrinks. Damage, which
//!   only a power cut leaves, is written over in place.
//! - Bytes that no block covers: only a power cut leaves them, or another process. They are cut off, and that is logged.
//!   Not so when the store may be older than the file ([`Trust`]): no line that a reader could have seen goes for that.
//! - Not all to be had again (retention or compaction took records, or a line is written otherwise now): complete lines stay,
//!   each record that is left and has no line gets one, and only what is gone is a gap; reported. See `refit`. The pieces
//!   behind stay where they are: what is new gets exactly the place that there was, and what does not fit goes to the end of
//!   the file, noted before it is written (`spill`).
//! - Blocks of hidden files are not here at all: nobody has seen their lines, so such files are cut to their last checkpoint
//!   and the records are read again. What was prepared to be published is decided later, by the group's word.
//! - A file that another process removed, or shortened below what a checkpoint covers, is left alone and reported. A hidden one
//!   that was shortened is removed: what its partition has grown by is not whole, and is taken back. Lines of the block that was
//!   being written may never have been in such a file, and hidden lines of retries are nowhere else: they count as a gap
//!   (`lost`).
//! - A live file that is another one by its inode is a copy when it has the same lines: it is completed and gone on with. Any other
//!   file is left alone.
//! - What the file of a piece had no line of when it went is in another file, with a block of its own (`tail`): nothing of it is
//!   written to the first one.
//!
//! It ends with a sync of every file it looked at, since "all there" may be true in memory only. Killed at any moment, it
//! begins again and comes to the same end: nothing is forgotten before everything is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::Cure;
use super::refit::{Behind, Place, refit};
use super::spill::{Laid, Spill};
use crate::config::Visibility;
use crate::fault::point;
use crate::msink::FileKey;
use crate::msink::dir::{EventDir, blames_name};
use crate::msource::journal::{Block, Contents, Frame, Piece, State};
use crate::msource::store::StoreError;
use lost::{last_lines, tell_lost};
use tail::Tail;

mod leftovers;
mod lost;
mod tail;

/// Files that are open at once: a service may have far more unfinished ones than a process may open.
const OPEN_MAX: usize = 100;

/// How far the state and the journal can be believed about the event files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// They are as this home left them.
    Own,
    /// They are a copy: what is missing in the files is completed, but a file may have got lines since that are in no block here.
    Copied,
    /// They are older than the files. Live files are left alone, and get no further lines.
    Outdated,
}

/// Makes the lines of a block again.
pub trait Regenerate {
    /// The lines of the block's records that are still to be had. Waits while the source cannot be reached.
    fn lines(&mut self, block: &Block) -> Result<Regenerated, RecoveryError>;
}

/// What [`Regenerate`] brings.
#[derive(Debug, Default)]
pub struct Regenerated {
    /// The lines of each file, by what goes into it.
    pub lines: Vec<(FileKey, Vec<u8>)>,
    /// Why records are missing, where that is known.
    pub gone: Option<String>,
}

impl Regenerated {
    /// Nothing at all, for this reason.
    pub fn gone(reason: impl Into<String>) -> Self {
        Self { lines: Vec::new(), gone: Some(reason.into()) }
    }

    fn take(&mut self, key: &FileKey) -> Vec<u8> {
        let found = self.lines.iter().position(|(of, _)| of == key);
        found.map(|index| self.lines.swap_remove(index).1).unwrap_or_default()
    }
}

/// Why recovery did not end.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// An event file cannot be read or written.
    #[error("cannot complete {0}")]
    File(String, #[source] io::Error),
    /// The service was told to stop while recovery waited.
    #[error("told to stop before the recovery was over; the next start goes on with it")]
    Stopped,
    /// The source cannot work at all.
    #[error("cannot read again what a crash cut short: {0}")]
    Source(String),
    /// The store, where entries of the failure queue are read again, failed.
    #[error("cannot read again what a crash cut short")]
    Store(#[from] StoreError),
}

impl RecoveryError {
    /// What may help.
    pub fn cure(&self) -> Cure {
        match self {
            Self::File(..) => Cure::Again,
            Self::Store(error) => error.into(),
            Self::Stopped | Self::Source(_) => Cure::None,
        }
    }
}

/// Where recovery ended.
#[derive(Debug)]
pub struct Recovered {
    /// Everything in it is durable in the files.
    pub state: State,
    /// Blocks that were looked at.
    pub blocks: u64,
    /// Blocks that had to be made again.
    pub repaired: u64,
}

/// Completes what the journal says was begun.
pub fn recover(
    contents: &Contents,
    dir: &EventDir,
    source: &mut dyn Regenerate,
    trust: Trust,
) -> Result<Option<Recovered>, RecoveryError> {
    let Some(state) = contents.state.clone() else { return Ok(None) };
    let durable = state.files.iter().map(|(id, file)| (*id, file.length)).collect();
    let mut work = Work {
        dir,
        source,
        trust,
        durable,
        tail: Tail::of(contents),
        copies: BTreeSet::new(),
        opened: BTreeMap::new(),
        open: 0,
        names: BTreeMap::new(),
        ends: BTreeMap::new(),
        spill: Spill::read(dir, contents).map_err(|error| RecoveryError::File("what was made again".into(), error))?,
        leftovers: Vec::new(),
        state,
        repaired: 0,
    };
    let mut blocks = 0;
    for frame in &contents.tail {
        match frame {
            Frame::Block(block) => {
                blocks += 1;
                work.block(block)?;
            }
            frame => {
                work.note_leftovers(frame);
                work.state.apply(frame);
            }
        }
    }
    work.append_spill()?;
    work.cut_ends()?;
    point("recovery.unsynced");
    work.sync()?;
    work.remove_leftovers()?;
    Ok(Some(Recovered { blocks, repaired: work.repaired, state: work.state }))
}

/// What an event file turned out to be.
enum Found {
    /// As it was left.
    File(File),
    /// The same, closed after a sync to make room for others. Its inode.
    Closed(u64),
    /// Removed, replaced or shortened by someone.
    Foreign,
}

/// How a block came out that was not there as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mended {
    /// To the byte.
    AsItWas,
    /// With other bytes.
    Otherwise,
}

struct Work<'a> {
    dir: &'a EventDir,
    source: &'a mut dyn Regenerate,
    trust: Trust,
    /// The length of each file at the last checkpoint.
    durable: BTreeMap<u64, u64>,
    /// What the blocks say together.
    tail: Tail,
    /// Files that are not those that were made, and have their lines.
    copies: BTreeSet<u64>,
    opened: BTreeMap<u64, Found>,
    /// How many of them are open now.
    open: usize,
    /// Names of the files that were looked for: one that has ended is not in the state any more.
    names: BTreeMap<u64, String>,
    /// Where each file ends by the blocks that were gone through.
    ends: BTreeMap<u64, u64>,
    /// Lines that go behind that, since they are longer than those in whose place they should be.
    spill: Spill,
    /// Hidden files that were given up, and temporary names of manifests: they may be there still.
    leftovers: Vec<String>,
    state: State,
    repaired: u64,
}

impl Work<'_> {
    /// Opens a file, and judges it once.
    fn file(&mut self, id: u64) -> Result<Option<&File>, RecoveryError> {
        let closed = match self.opened.get(&id) {
            Some(Found::File(_) | Found::Foreign) => None,
            Some(Found::Closed(inode)) => Some(Some(*inode)),
            None => Some(None),
        };
        if let Some(known) = closed {
            self.make_room()?;
            if let Some(state) = self.state.files.get(&id) {
                let path = state.path();
                self.names.insert(id, path);
            }
            let found = match known {
                None => self.find(id)?,
                Some(inode) => self.find_again(id, inode)?,
            };
            self.open += usize::from(matches!(found, Found::File(_)));
            self.opened.insert(id, found);
        }
        Ok(match self.opened.get(&id) {
            Some(Found::File(file)) => Some(file),
            _ => None,
        })
    }

    /// Closes what is open while that is too much. It is synced first: nobody would do it later.
    fn make_room(&mut self) -> Result<(), RecoveryError> {
        if self.open < OPEN_MAX {
            return Ok(());
        }
        self.sync()?;
        for (id, found) in &mut self.opened {
            if let Found::File(file) = found {
                let metadata = file.metadata().map_err(|error| RecoveryError::File(format!("file {id}"), error))?;
                *found = Found::Closed(metadata.ino());
            }
        }
        self.open = 0;
        Ok(())
    }

    fn find_again(&self, id: u64, known: u64) -> Result<Found, RecoveryError> {
        let name = self.name(id);
        match self.dir.open_existing(&name) {
            Ok((file, inode)) if inode == known => Ok(Found::File(file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound && !blames_name(&error) => {
                Err(RecoveryError::File(name, error))
            }
            _ => {
                tracing::error!(
                    file = name,
                    "another process removed or replaced this file; its last lines are gone with it"
                );
                Ok(Found::Foreign)
            }
        }
    }

    fn find(&mut self, id: u64) -> Result<Found, RecoveryError> {
        let Some(state) = self.state.files.get_mut(&id) else { return Ok(Found::Foreign) };
        let path = state.path();
        if self.trust == Trust::Outdated && state.visibility == Visibility::Live {
            return Ok(Found::Foreign);
        }
        let failed = |error| RecoveryError::File(path.clone(), error);
        match self.dir.open_existing(&path) {
            // No line is written before the note of the creation is durable: without it the file is empty, or another process's.
            Ok(_) if state.inode == 0 => Ok(Found::Foreign),
            Ok((file, inode)) if inode == state.inode => {
                let length = file.metadata().map_err(failed)?.len();
                let durable = self.durable.get(&id).copied().unwrap_or(0);
                if length >= durable {
                    return Ok(Found::File(file));
                }
                if state.visibility == Visibility::Sealed {
                    tracing::error!(
                        file = path,
                        length,
                        checkpointed = durable,
                        "another process shortened this hidden file; it goes, and the records of its partition are read again"
                    );
                    self.dir.remove(&path).map_err(failed)?;
                    return Ok(Found::Foreign);
                }
                tracing::error!(
                    file = path,
                    length,
                    checkpointed = durable,
                    "another process shortened this file; it is left as it is"
                );
                Ok(Found::Foreign)
            }
            Ok((file, inode)) => {
                let durable = self.durable.get(&id).copied().unwrap_or(0);
                if state.visibility == Visibility::Live && self.tail.fits(id, durable, &file).map_err(failed)? {
                    tracing::warn!(file = path, "this file is a copy with the same lines: going on with it");
                    state.inode = inode;
                    self.copies.insert(id);
                    return Ok(Found::File(file));
                }
                tracing::error!(file = path, "another process replaced this file; it is left as it is");
                Ok(Found::Foreign)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound || blames_name(&error) => {
                if state.inode != 0 {
                    tracing::error!(file = path, "another process removed this file; its last lines are gone with it");
                }
                Ok(Found::Foreign)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn block(&mut self, block: &Block) -> Result<(), RecoveryError> {
        let mut block = block.clone();
        if !self.complete(&block)? {
            self.repaired += 1;
            self.repair(&mut block)?;
        }
        self.give_up_unwritten(&mut block)?;
        let here = block.pieces.iter().filter(|piece| !self.tail.has_moved(block.number, piece.file));
        self.ends.extend(here.map(|piece| (piece.file, piece.position + piece.length)));
        self.state.apply(&Frame::Block(Box::new(block)));
        Ok(())
    }

    /// Whether every piece of the block is there. What is there is written once more, so that the next sync covers it.
    fn complete(&mut self, block: &Block) -> Result<bool, RecoveryError> {
        for piece in &block.pieces {
            if self.tail.has_moved(block.number, piece.file) {
                continue;
            }
            let Some(file) = self.file(piece.file)? else { continue };
            let again = read(file, piece).and_then(|bytes| {
                let complete = bytes.len() as u64 == piece.length && crc32c::crc32c(&bytes) == piece.crc;
                if complete {
                    file.write_all_at(&bytes, piece.position)?;
                }
                Ok(complete)
            });
            if !again.map_err(|error| RecoveryError::File(self.name(piece.file), error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn name(&self, id: u64) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("file {id}"))
    }

    /// Brings what is there of a block up to what can be had of it; the rest is a gap.
    fn repair(&mut self, block: &mut Block) -> Result<(), RecoveryError> {
        let mut made = self.source.lines(block)?;
        let lines_of = |pieces: &[Piece]| pieces.iter().map(|piece| piece.lines).sum::<u64>();
        let wanted = lines_of(&block.pieces);
        let mut mended = Mended::AsItWas;
        let is_rest = block.is_rest();
        for piece in &mut block.pieces {
            let made = self.state.files.get(&piece.file).map(|file| made.take(&file.key)).unwrap_or_default();
            if self.tail.has_moved(block.number, piece.file) {
                continue;
            }
            let lines = if is_rest { last_lines(&made, piece.lines) } else { &made };
            mended = mended.max(self.repair_piece(piece, lines)?);
        }
        let found = lines_of(&block.pieces);
        let lost = wanted.saturating_sub(found);
        self.lose(block, lost, is_rest);
        if lost > 0 {
            let elsewhere = made.lines.iter().any(|(_, lines)| !lines.is_empty()).then_some("it makes other files now");
            let reason = made.gone.as_deref().or(elsewhere).unwrap_or("the source does not have them any more");
            tell_lost(&block.source, lost, reason);
        } else if mended == Mended::AsItWas {
            tracing::info!(block = block.number, "completed a block that a crash cut short");
        } else {
            tracing::error!(
                block = block.number,
                "lines that a crash cut short are different now: whole ones were kept, the rest was written again"
            );
        }
        Ok(())
    }

    /// Writes what is missing of a piece.
    fn repair_piece(&mut self, piece: &mut Piece, lines: &[u8]) -> Result<Mended, RecoveryError> {
        let name = self.name(piece.file);
        let failed = |error| RecoveryError::File(name.clone(), error);
        let is_copy = self.copies.contains(&piece.file);
        let Some(file) = self.file(piece.file)? else { return Ok(Mended::AsItWas) };
        if lines.len() as u64 == piece.length && crc32c::crc32c(lines) == piece.crc {
            if is_copy && !lines.starts_with(&read(file, piece).map_err(failed)?) {
                tracing::error!(file = name, "this file is no copy of the one that was there; it is left as it is");
                self.opened.insert(piece.file, Found::Foreign);
                return Ok(Mended::AsItWas);
            }
            file.write_all_at(lines, piece.position).map_err(failed)?;
            point("recovery.mended");
            return Ok(Mended::AsItWas);
        }
        let there = read(file, piece).map_err(failed)?;
        let last = self.tail.ends_with(piece);
        let behind = if last && !self.spill.has(piece.file) { Behind::Nothing } else { Behind::Pieces };
        let length = usize::try_from(piece.length).map_err(|error| failed(io::Error::other(error)))?;
        let place = Place { length, crc: piece.crc, lines: piece.lines, behind };
        let fit = refit(&there, lines, &place);
        let mended = if fit.is_exact(&place) { Mended::AsItWas } else { Mended::Otherwise };
        if let Some(file) = self.file(piece.file)? {
            file.write_all_at(&fit.bytes, piece.position).map_err(failed)?;
        }
        point("recovery.mended");
        if fit.ended > 0 {
            let position = piece.position;
            tracing::error!(file = name, position, "ended a torn line whose record is gone: it is no event");
        }
        if !fit.overflow.is_empty() {
            self.spill.add(piece.file, &fit.overflow);
        }
        piece.length = fit.bytes.len() as u64;
        piece.crc = crc32c::crc32c(&fit.bytes);
        piece.lines = fit.lines;
        Ok(mended)
    }

    /// Writes the lines that were longer than their place.
    fn append_spill(&mut self) -> Result<(), RecoveryError> {
        for id in self.spill.files() {
            if self.file(id)?.is_none() {
                continue;
            }
            let name = self.name(id);
            let failed = |error| RecoveryError::File(name.clone(), error);
            let end = self.ends.get(&id).copied().unwrap_or(0);
            let Laid { bytes, kept } = self.spill.lay_down(self.dir, id, end).map_err(failed)?;
            point("recovery.noted");
            if let Some(file) = self.file(id)? {
                file.write_all_at(&bytes, end).map_err(failed)?;
            }
            // Their records were taken for lost just now.
            let totals = &mut self.state.totals;
            totals.gaps = totals.gaps.saturating_sub(kept);
            (totals.written, totals.consumed) = (totals.written + kept, totals.consumed + kept);
            let end = end + bytes.len() as u64;
            self.ends.insert(id, end);
            if let Some(file) = self.state.files.get_mut(&id) {
                file.length = end;
            }
        }
        Ok(())
    }

    /// Looks at the end of every file that may get further lines, or that got some.
    fn cut_ends(&mut self) -> Result<(), RecoveryError> {
        let going_on: BTreeMap<u64, u64> = self.state.files.iter().map(|(id, file)| (*id, file.length)).collect();
        for (&id, &length) in &going_on {
            self.ends.insert(id, length);
        }
        for (id, length) in self.ends.clone() {
            if length == 0 && self.is_hidden(id) {
                self.remove_empty(id)?;
                continue;
            }
            if self.file(id)?.is_none() {
                self.lose_retries(id);
                self.state.apply(&Frame::End { id });
                continue;
            }
            let name = self.name(id);
            let stays = self.trust != Trust::Own && !self.is_hidden(id);
            let failed = |error| RecoveryError::File(name.clone(), error);
            let Some(file) = self.file(id)? else { continue };
            let found = file.metadata().map_err(failed)?.len();
            if found <= length {
                continue;
            }
            if stays {
                tracing::warn!(
                    file = name,
                    more = found - length,
                    "this file has lines that the copied store has no block of; they stay, and a new file goes on"
                );
                self.state.apply(&Frame::End { id });
                continue;
            }
            file.set_len(length).map_err(failed)?;
            if self.is_hidden(id) {
                tracing::info!(file = name, cut = found - length, "cut a hidden file to its last checkpoint");
            } else {
                tracing::error!(
                    file = name,
                    stray = found - length,
                    "cut off bytes that no block covers: a power cut left them, or another process"
                );
            }
        }
        Ok(())
    }

    fn is_hidden(&self, id: u64) -> bool {
        self.state.files.get(&id).is_some_and(|file| file.visibility == Visibility::Sealed)
    }

    fn sync(&self) -> Result<(), RecoveryError> {
        for (id, found) in &self.opened {
            if let Found::File(file) = found {
                file.sync_all().map_err(|error| RecoveryError::File(self.name(*id), error))?;
            }
        }
        Ok(())
    }
}

/// What is there of a piece: all of it, or less at the end of the file.
fn read(file: &File, piece: &Piece) -> io::Result<Vec<u8>> {
    let there = file.metadata()?.len().saturating_sub(piece.position).min(piece.length);
    let mut bytes = vec![0; usize::try_from(there).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, piece.position)?;
    Ok(bytes)
}
