//! What can become of a record: the closed lists of reasons that the transform, the failure queue, the counters,
//! the journal and the commands share.
//!
//! Each record ends as exactly one of *written*, *filtered* for a [`Filter`], or *rejected* for a [`Reason`].

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a record was dropped on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The Kafka value is null.
    Tombstone,
    /// `headers.app_id` names another app.
    OtherApp,
    /// The filter settings drop this log name.
    Drop,
}

impl Filter {
    /// Every filter reason, in the order of their indices.
    pub const ALL: [Self; 3] = [Self::Tombstone, Self::OtherApp, Self::Drop];

    /// The name used in counters, tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::OtherApp => "other_app",
            Self::Drop => "drop",
        }
    }

    /// The position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a record went into the failure queue, in the order in which the checks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The payload could not be decompressed, or exceeds the bound on its decompressed size.
    BadPayload,
    /// The payload is not one JSON object in UTF-8.
    BadJson,
    /// `headers` is absent or not an object.
    NoHeaders,
    /// `headers.log_name` is absent, empty or not a string.
    NoLogName,
    /// `logs` is absent or not an object.
    NoLogs,
    /// Neither the mapped field nor its default nor the record's timestamp gives a time.
    NoTime,
    /// The event name is not one that the receiver takes.
    BadEventName,
    /// Both ids are empty.
    NoId,
    /// An id is longer than 128 characters.
    BadId,
    /// `#type` is unknown.
    BadType,
    /// Strict validation: a property that the receiver would silently drop.
    BadProperty,
    /// The record's own file name cannot be created (too long, a loop of links).
    Sink,
}

impl Reason {
    /// Every reject reason, in the order of their indices.
    pub const ALL: [Self; 12] = [
        Self::BadPayload,
        Self::BadJson,
        Self::NoHeaders,
        Self::NoLogName,
        Self::NoLogs,
        Self::NoTime,
        Self::BadEventName,
        Self::NoId,
        Self::BadId,
        Self::BadType,
        Self::BadProperty,
        Self::Sink,
    ];

    /// The name used in counters, tables, JSON and `--reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadPayload => "bad_payload",
            Self::BadJson => "bad_json",
            Self::NoHeaders => "no_headers",
            Self::NoLogName => "no_log_name",
            Self::NoLogs => "no_logs",
            Self::NoTime => "no_time",
            Self::BadEventName => "bad_event_name",
            Self::NoId => "no_id",
            Self::BadId => "bad_id",
            Self::BadType => "bad_type",
            Self::BadProperty => "bad_property",
            Self::Sink => "sink",
        }
    }

    /// The position in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|reason| reason.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|reason| reason.name()).collect();
            format!("unknown reason `{text}`, expected one of {}", names.join(", "))
        })
    }
}

/// A record that is bad: it is counted, put into the failure queue, and the next one is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// The class of the fault.
    pub reason: Reason,
    /// What exactly was found, for people: one line, no payload.
    pub detail: Cow<'static, str>,
}

impl Reject {
    /// A reject with its detail.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Why a record gave no line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Dropped on purpose.
    Filtered(Filter),
    /// Bad: goes into the failure queue.
    Rejected(Reject),
}

impl From<Reject> for Discard {
    fn from(reject: Reject) -> Self {
        Self::Rejected(reject)
    }
}
