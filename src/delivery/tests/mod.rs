//! Delivery as a whole: what it leaves behind, after any crash, against what it should.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::recovery::{Recovered, RecoveryError, Regenerate, Regenerated, Trust, recover};
use crate::config::Visibility;
use crate::msink::FileKey;
use crate::msink::dir::EventDir;
use crate::msource::TopicPartition;
use crate::msource::journal::{Block, BlockSource, Contents, FileIntent, Frame, Piece, Position, QueueEntry, State};

mod home;
mod model;
mod pipeline;
mod recovery;
mod sealed;

pub(super) fn partition(number: i32) -> TopicPartition {
    TopicPartition { topic: "t".into(), partition: number }
}

/// The files in a directory, in order.
pub(super) fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

pub(super) fn position(number: i32, next: i64) -> Position {
    Position { partition: partition(number), topic_id: "id".into(), next, leader_epoch: 3 }
}
