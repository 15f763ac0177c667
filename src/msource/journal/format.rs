//! The formats of what is on the disk: which are read, and how.
//!
//! Journal, copy of the queue and store are written in [`Format::CURRENT`] alone, and read in every format since the first
//! that was in use. Nothing is rewritten for its format: a segment, a copy and a value of the store say which one they are
//! of, each start begins a new segment anyhow, and a value is written again when it changes.
//!
//! The types of the current format are those of `frame` and `state`. What was different in an earlier one is in a file of its
//! own, `v3`, `v4` or `v5`, and never changes: it is only read, and becomes what it is now.

use serde::de::DeserializeOwned;

use super::{Frame, QueueEntry, State, v3, v4, v5};

/// A format. Its number is in the header of a segment and of a copy, and before each value of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// No header of a record without a value, nothing known of queues that were taken over.
    V3,
    /// Frames of several parts; nothing known of how many partitions a topic had when it was begun.
    V4,
    /// That is known; nothing of where a partition was begun.
    V5,
    /// That is known.
    V6,
}

/// Of a format that this program does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is of format {0}, and this program reads {first} to {last}: use the program that wrote it", first = Format::V3.version(), last = Format::CURRENT.version())]
pub struct UnknownFormat(pub u32);

/// The variant of [`Frame::Header`], and the version in it. Every format of a header begins so.
const HEADER: u32 = 0;

impl Format {
    /// The one that is written.
    pub const CURRENT: Self = Self::V6;

    /// Its number.
    pub const fn version(self) -> u32 {
        match self {
            Self::V3 => 3,
            Self::V4 => 4,
            Self::V5 => 5,
            Self::V6 => 6,
        }
    }

    /// The format of a number.
    pub fn of(version: u32) -> Result<Self, UnknownFormat> {
        [Self::V3, Self::V4, Self::V5, Self::V6]
            .into_iter()
            .find(|format| format.version() == version)
            .ok_or(UnknownFormat(version))
    }

    /// The format that the first frame of a segment names; `None` when it is no header.
    pub(super) fn of_header(body: &[u8]) -> Option<Result<Self, UnknownFormat>> {
        let ((variant, version), _) = postcard::take_from_bytes::<(u32, u32)>(body).ok()?;
        (variant == HEADER).then(|| Self::of(version))
    }

    /// A frame of the journal.
    pub(super) fn frame(self, body: &[u8]) -> postcard::Result<Frame> {
        Ok(self.take::<Frame, v3::Frame, v4::Frame, v5::Frame>(body)?.0)
    }

    /// A frame of a copy of the queue.
    pub(super) fn entries(self, body: &[u8]) -> postcard::Result<Vec<(u64, QueueEntry)>> {
        match self {
            Self::V3 => Ok(v3::entries(postcard::from_bytes(body)?)),
            Self::V4 | Self::V5 | Self::V6 => postcard::from_bytes(body),
        }
    }

    /// The first entry of a row of the store, and what is behind it.
    pub fn entry(self, bytes: &[u8]) -> postcard::Result<((u64, QueueEntry), &[u8])> {
        let (key, bytes) = postcard::take_from_bytes(bytes)?;
        let (entry, behind) = self.take::<QueueEntry, v3::QueueEntry, QueueEntry, QueueEntry>(bytes)?;
        Ok(((key, entry), behind))
    }

    /// The state in the store.
    pub fn state(self, bytes: &[u8]) -> postcard::Result<State> {
        Ok(self.take::<State, v3::State, v4::State, v5::State>(bytes)?.0)
    }

    fn take<T, Third, Fourth, Fifth>(self, bytes: &[u8]) -> postcard::Result<(T, &[u8])>
    where
        T: DeserializeOwned + From<Third> + From<Fourth> + From<Fifth>,
        Third: DeserializeOwned,
        Fourth: DeserializeOwned,
        Fifth: DeserializeOwned,
    {
        match self {
            Self::V3 => postcard::take_from_bytes::<Third>(bytes).map(|(old, behind)| (old.into(), behind)),
            Self::V4 => postcard::take_from_bytes::<Fourth>(bytes).map(|(old, behind)| (old.into(), behind)),
            Self::V5 => postcard::take_from_bytes::<Fifth>(bytes).map(|(old, behind)| (old.into(), behind)),
            Self::V6 => postcard::take_from_bytes(bytes),
        }
    }
}
