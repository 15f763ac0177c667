//! What the blocks behind the last checkpoint say together of the event files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::msource::journal::{Block, Contents, Frame, Piece};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The pieces of each file, in order.
    pieces: BTreeMap<u64, Vec<Piece>>,
    /// Pieces whose file went before they were written, by block and file: a later block has what was left of them.
    moved: BTreeSet<(u64, u64)>,
    /// The block that was being written, if it is none that has only what was left of that one.
    last: u64,
}

impl Tail {
    /// Reads the frames behind the last checkpoint.
    pub(super) fn of(contents: &Contents) -> Self {
        let mut tail = Self::default();
        let state = contents.state.iter().flat_map(|state| &state.files);
        let mut keys: BTreeMap<u64, _> = state.map(|(id, file)| (*id, &file.key)).collect();
        // The pieces of the last block, and of those that have what was left of it.
        let mut open: Vec<(u64, u64)> = Vec::new();
        for frame in &contents.tail {
            match frame {
                Frame::File(intent) => drop(keys.insert(intent.id, &intent.key)),
                Frame::Block(block) => {
                    if block.is_rest() {
                        let files: Vec<_> = block.pieces.iter().map(|piece| keys.get(&piece.file)).collect();
                        let has_rest = |(_, file): &&(u64, u64)| files.contains(&keys.get(file));
                        tail.moved.extend(open.iter().filter(has_rest));
                    } else {
                        open.clear();
                        tail.last = block.number;
                    }
                    open.extend(block.pieces.iter().map(|piece| (block.number, piece.file)));
                    for piece in &block.pieces {
                        tail.pieces.entry(piece.file).or_default().push(piece.clone());
                    }
                }
                _ => {}
            }
        }
        tail
    }

    /// Whether nothing follows a piece in its file.
    pub(super) fn ends_with(&self, piece: &Piece) -> bool {
        self.pieces.get(&piece.file).and_then(|pieces| pieces.last()) == Some(piece)
    }

    /// Whether what was left of a piece is in another file.
    pub(super) fn has_moved(&self, block: u64, file: u64) -> bool {
        self.moved.contains(&(block, file))
    }

    /// Whether a kill may have come before the block was written: all before it are.
    pub(super) fn may_be_unwritten(&self, block: &Block) -> bool {
        block.number >= self.last
    }

    /// Whether a file of this id's name has what the file should have from its last checkpoint on, up to where a kill may have cut
    /// it, and nothing else: then it is a copy.
    pub(super) fn fits(&self, id: u64, checkpointed: u64, file: &File) -> io::Result<bool> {
        let length = file.metadata()?.len();
        let mut end = checkpointed;
        for piece in self.pieces.get(&id).into_iter().flatten() {
            end = piece.position + piece.length;
            if length < end {
                break;
            }
            let mut bytes = vec![0; usize::try_from(piece.length).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, piece.position)?;
            if crc32c::crc32c(&bytes) != piece.crc {
                return Ok(false);
            }
        }
        Ok((checkpointed..=end).contains(&length))
    }
}
