//! A block while it is written: its frame, where its pieces go, and how far they are.
//!
//! **A file that goes meanwhile.** A full disk may hold a block up for hours, and what operators do about it is to remove files that
//! were read, or to mount another disk. The whole lines that the file had go with it. The others were never in it: they get
//! another file, and a frame of their own, see [`Block::is_rest`]. So no frame says of lines that they are where they never were.

use std::io;

use super::Error;
use super::writer::Delivery;
use crate::block::{DoneBlock, Lines, Source};
use crate::msink::dir::blames_name;
use crate::msink::file::{Now, Written, whole_lines};
use crate::msource::journal::{Block, BlockSource, Frame, Piece};
use crate::msource::tracker::Refusal;

/// A block at work; what is done already is not done again after a stall.
pub(super) struct Writing {
    pub(super) block: Box<DoneBlock>,
    /// Its frame, and those of what other files got.
    pub(super) frames: Vec<Block>,
    /// The piece being written.
    piece: usize,
    /// How much of it went with files that are gone, bytes.
    gone: usize,
    /// How much of the rest is written.
    done: usize,
    /// Where that goes, file and position; `None` where it must be found again.
    place: Option<(u64, u64)>,
}

impl Writing {
    pub(super) fn new(block: Box<DoneBlock>) -> Self {
        Self { block, frames: Vec::new(), piece: 0, gone: 0, done: 0, place: None }
    }

    /// Whether its frame is in the journal.
    pub(super) fn is_framed(&self) -> bool {
        !self.frames.is_empty()
    }

    /// The bytes of the piece being written that are not gone.
    fn rest(&self) -> Option<&[u8]> {
        self.block.pieces.get(self.piece).map(|lines| &lines.bytes[self.gone..])
    }

    /// Goes to a piece as the block's frame has it.
    fn go_to(&mut self, piece: usize) {
        let framed = self.frames.first().and_then(|frame| frame.pieces.get(piece));
        let place = framed.map(|piece| (piece.file, piece.position));
        (self.piece, self.gone, self.done, self.place) = (piece, 0, 0, place);
    }

    /// The frame of what is left of a piece.
    fn frame_of_rest(&self, (file, position): (u64, u64), rest: &[u8]) -> Option<Block> {
        let (first, last) = (self.frames.first()?, self.frames.last()?);
        let piece = Piece {
            file,
            position,
            length: rest.len() as u64,
            crc: crc32c::crc32c(rest),
            lines: memchr::memchr_iter(b'\n', rest).count() as u64,
        };
        Some(Block {
            number: last.number + 1,
            source: first.source.clone(),
            recipe: first.recipe.clone(),
            pieces: vec![piece],
            records: 0,
            filtered: [0; 3],
            rejects: Vec::new(),
        })
    }
}

impl Delivery {
    /// Writes a block, going on where a stall stopped it. The outer error ends the process, the inner one stalls.
    pub(super) fn write(&mut self, writing: &mut Writing) -> Result<io::Result<()>, Error> {
        while !writing.is_framed() {
            if self.is_stale(&writing.block) {
                return Ok(Ok(()));
            }
            match self.targets(&writing.block) {
                Err((piece, error)) => {
                    if let Err(error) = refuse(&mut writing.block, piece, error) {
                        return Ok(Err(error));
                    }
                }
                Ok(targets) => match self.admit(&mut writing.block, &targets)? {
                    None => return Ok(Ok(())),
                    Some(frame) => {
                        writing.frames.push(*frame);
                        writing.go_to(0);
                    }
                },
            }
        }
        let now = Now::current();
        while let Some(rest) = writing.rest() {
            let Some((file, position)) = writing.place else {
                if let Err(error) = self.place_rest(writing)? {
                    return Ok(Err(error));
                }
                continue;
            };
            let (mut done, length) = (writing.done, rest.len());
            let written = self.sink.write(file, position, rest, &mut done, now);
            writing.done = done;
            match written {
                Err(error) => return Ok(Err(error)),
                Ok(Written::All) => writing.go_to(writing.piece + 1),
                Ok(Written::Gone) => {
                    let whole = writing.rest().map_or(0, |rest| whole_lines(&rest[..done]));
                    tracing::error!(
                        file,
                        bytes = length - whole,
                        "this file went while it was written: what it had no line of yet goes to another"
                    );
                    (writing.gone, writing.done, writing.place) = (writing.gone + whole, 0, None);
                }
            }
        }
        if writing.frames.first().is_some_and(|frame| matches!(frame.source, BlockSource::Queue(_))) {
            crate::fault::point("queue_written");
        }
        Ok(Ok(()))
    }

    /// Finds another file for what is left of a piece, and puts that into the journal.
    fn place_rest(&mut self, writing: &mut Writing) -> Result<io::Result<()>, Error> {
        let Some(lines) = writing.block.pieces.get(writing.piece) else { return Ok(Ok(())) };
        let place = match self.with_sink(|sink, ledger, now| sink.target(&lines.key, now, ledger)) {
            Err(error) => return Ok(Err(error)),
            Ok(place) => place,
        };
        let Some(frame) = writing.rest().and_then(|rest| writing.frame_of_rest(place, rest)) else { return Ok(Ok(())) };
        let frame = Frame::Block(Box::new(frame));
        self.append(&frame)?;
        let Frame::Block(frame) = frame else { unreachable!("made above") };
        writing.frames.push(*frame);
        writing.place = Some(place);
        crate::fault::point("rest_framed");
        Ok(Ok(()))
    }

    /// Whether the block's assignment is over. No file is opened for it then: nobody might ever write into that file.
    fn is_stale(&self, block: &DoneBlock) -> bool {
        match &block.source {
            Source::Partition { epoch, to, .. } => !self.tracker.is_current(&to.partition, *epoch),
            Source::Queue(_) | Source::Adopted { .. } => false,
        }
    }

    /// Decides where each piece goes: file and position. An error comes with the piece that it is about.
    fn targets(&mut self, block: &DoneBlock) -> Result<Vec<(u64, u64)>, (usize, io::Error)> {
        let target = |(piece, lines): (usize, &Lines)| {
            let target = self.with_sink(|sink, ledger, now| sink.target(&lines.key, now, ledger));
            target.inspect(|_| lines.made.set()).map_err(|error| (piece, error))
        };
        block.pieces.iter().enumerate().map(target).collect()
    }

    /// Puts the block into the journal; `None` when its assignment is over.
    fn admit(&mut self, block: &mut DoneBlock, targets: &[(u64, u64)]) -> Result<Option<Box<Block>>, Error> {
        let piece = |(lines, (file, position)): (&Lines, &(u64, u64))| {
            let length = lines.bytes.len() as u64;
            Piece { file: *file, position: *position, length, crc: lines.crc, lines: lines.lines }
        };
        let pieces = block.pieces.iter().zip(targets).map(piece).collect();
        let mut next_key = self.state.next_key;
        let mut fresh = || {
            next_key += 1;
            next_key - 1
        };
        // Moved, since they may be most of the block.
        let rejects = std::mem::take(&mut block.rejects)
            .into_iter()
            .map(|rejected| (rejected.key.unwrap_or_else(&mut fresh), rejected.entry))
            .collect();
        let source = match &block.source {
            Source::Partition { from, to, .. } => BlockSource::Offsets { from: *from, to: to.clone() },
            Source::Queue(taken) => BlockSource::Queue(taken.clone()),
            Source::Adopted { home, upto } => BlockSource::Adopted { home: home.clone(), upto: *upto },
        };
        let frame = Frame::Block(Box::new(Block {
            number: self.state.number + 1,
            source,
            recipe: block.recipe.to_string(),
            pieces,
            records: block.records,
            filtered: block.filtered,
            rejects,
        }));
        let append = || self.journal().append(&frame);
        let appended = match &block.source {
            Source::Queue(_) | Source::Adopted { .. } => append(),
            Source::Partition { epoch, from, to } => {
                match self.tracker.admit(&to.partition, *epoch, *from, to.next, append) {
                    Ok(appended) => appended,
                    Err(Refusal::Stale) => return Ok(None),
                    Err(Refusal::Undecided) => {
                        return Err(Error::Undecided { partition: to.partition.clone(), from: *from });
                    }
                    Err(Refusal::NotNext { expected }) => {
                        return Err(Error::NotNext { partition: to.partition.clone(), from: *from, expected });
                    }
                }
            }
        };
        appended.map_err(|error| Error::Journal(self.checkpointer.journal_dir.clone(), error))?;
        let Frame::Block(block) = frame else { unreachable!("made above") };
        crate::fault::point("block.framed");
        if matches!(block.source, BlockSource::Queue(_)) {
            crate::fault::point("queue_framed");
        }
        Ok(Some(block))
    }
}

/// Rejects the records of a piece that can have no file by the fault of their own names; any other error is returned.
fn refuse(block: &mut DoneBlock, piece: usize, error: io::Error) -> io::Result<()> {
    let is_theirs = block.pieces.get(piece).is_some_and(|lines| !lines.rejects.is_empty());
    if !is_theirs || !blames_name(&error) {
        return Err(error);
    }
    let lines = block.pieces.remove(piece);
    tracing::warn!(key = ?lines.key, %error, records = lines.lines, "no file can have the name that these records ask for");
    for mut rejected in lines.rejects {
        rejected.entry.reject.detail = format!("its file cannot be made: {error}").into();
        block.rejects.push(rejected);
    }
    block.rejects.sort_by_key(|rejected| (rejected.key, rejected.entry.offset));
    Ok(())
}
