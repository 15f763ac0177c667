//! The transform: one record in, one line out.
//!
//! A record is one JSON object in UTF-8, `{"headers":{"app_id":24,"log_name":"log_item"},"logs":{…}}`; its line is one
//! `ThinkingData` event: every `#` key in byte order, then `properties`, then `\n`. What comes out depends on the record, the
//! [`Settings`] and the [`Options`] alone: no clock, no random, no input or output, and no trace of earlier records.
//!
//! **What it promises.** Each record gives exactly one line or exactly one [`Discard`], never a panic, whatever its bytes are.
//! The whole record is checked against the grammar of JSON, up to 128 levels deep, so a line is always valid JSON without
//! a line break. `properties` is `logs` member by member in its own order, numbers and strings byte for byte, duplicates
//! kept; only white space between tokens and omitted members go. Checks are made in one order and the first that fails is the reason.
//!
//! **How `#` values come about.** A number gives its text, a string its text with its exact escapes; an object, array,
//! bool or null counts as absent. Lengths, patterns, filters and file names see the decoded characters. A template's text
//! is put together decoded and escaped again. A `\u` escape that is half of a surrogate pair stays as it is where a string is
//! copied, and is U+FFFD where its characters are needed. `#account_id`, `#distinct_id`, `#ip` are in every line, mapped or not;
//! other mapped keys only when they are not empty. A mapped `#event_name` or `#type` wins over `event_name` and
//! `event_type` when it is not empty, a mapped `#uuid` over the one that is made.
//!
//! **What it does not do.** It does not decompress, does not read settings, does not judge types of properties.
//!
//! **How it is fast.** What depends only on the log name is worked out once a thread (`route`). What stands at each byte of
//! `logs` is predicted by the records before, so that most of it is compared instead of read (`layout`, `lanes`), and wanted
//! members are noted on the way; what is other than predicted is read and checked in one pass (`members`, `scan`). A line like
//! those before is put together without asking rules again (`plan`), and `properties` is copied as one slice. Nothing is
//! allocated for a record on this way. `tests::oracle` is the same transform written
//! plainly on `serde_json`; the two are held together by property tests.

mod check;
mod compress;
mod envelope;
mod lanes;
mod layout;
mod line;
mod members;
mod plan;
pub mod recipe;
mod route;
mod scan;
mod strict;
mod text;
mod time;
mod uuid;
pub mod worker;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config;
use crate::record::{Discard, Filter, Reason, Reject};
use crate::settings::Settings;

use envelope::{App, Envelope, Frame};
use line::{Draft, Workspace};
use members::Noted;
use plan::Plan;
use route::{Routes, Verdict};
use scan::{Cursor, Fault, Kind};

/// What the configuration says of the transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The app whose records are taken.
    pub app_id: u64,
    /// How much is checked of each event.
    pub validation: config::Validation,
    /// Whether events carry a deterministic `#uuid`.
    pub uuid: bool,
    /// The zone of `#time`.
    pub time_zone: config::TimeZone,
}

/// A record as it came from Kafka.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Kafka's id of the topic; empty when the broker has none.
    pub topic_id: &'a str,
    /// Partition number.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// Kafka's timestamp, milliseconds since 1970 UTC.
    pub timestamp: Option<i64>,
    /// The value, already decompressed; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// The rules by which records become lines; shared by all threads.
#[derive(Debug)]
pub struct Transform {
    settings: Settings,
    options: Options,
    /// How `headers.app_id` is written when it is ours.
    app_id_text: String,
    /// Whether a byte order mark before the JSON is taken for none of it.
    takes_mark: bool,
    /// Tells a [`Scratch`] whether what it keeps was worked out by these rules.
    identity: u64,
}

/// What a thread keeps between records: buffers and what it worked out. It may be used with any number of [`Transform`]s in turn.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The identity of the transform that the rest belongs to; 0 for none.
    identity: u64,
    routes: Routes,
    frame: Frame,
    noted: Noted,
    work: Workspace,
    last: Last,
}

/// Where the names of the last line are found.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// Its route; of none at first.
    route: Option<usize>,
    /// Its plan, unless it was written in the general way.
    plan: Option<usize>,
}

impl Scratch {
    /// The log name, decoded, of the last record that gave a line.
    pub fn log_name(&self) -> &str {
        self.last.route.and_then(|index| self.routes.at(index)).map_or("", |route| &route.log_name)
    }

    /// The event name, decoded, of the last record that gave a line; `user` for the `user_*` types, which have none and
    /// whose order counts: all of them are to go the same way.
    pub fn event_name(&self) -> &str {
        let route = self.last.route.and_then(|index| self.routes.at(index));
        let plan = route.zip(self.last.plan).and_then(|(route, plan)| route.plans.get(plan));
        plan.map_or(&self.work.event_name, |plan| &plan.event_name)
    }

    /// Gives back the buffers that a large record needed.
    pub(super) fn give_back(&mut self) {
        self.routes.forget_long();
        self.noted.omitted = Vec::new();
        self.work.give_back();
    }

    /// Forgets what another transform worked out.
    fn bind(&mut self, transform: &Transform) {
        if self.identity != transform.identity {
            self.identity = transform.identity;
            self.routes.clear();
            self.frame.clear();
            self.work.times = time::Cache::default();
        }
    }
}

impl Transform {
    /// The transform of these settings.
    pub fn new(settings: &Settings, options: Options) -> Self {
        static IDENTITIES: AtomicU64 = AtomicU64::new(1);
        let app_id_text = options.app_id.to_string();
        let identity = IDENTITIES.fetch_add(1, Ordering::Relaxed);
        Self { settings: settings.clone(), options, app_id_text, takes_mark: true, identity }
    }

    /// The same as version 1 of the transform had it, for blocks of its recipes: it took no byte order mark.
    #[must_use]
    pub(crate) fn of_version_1(mut self) -> Self {
        self.takes_mark = false;
        self
    }

    /// Appends exactly one line, `\n` included, to `out`; on a [`Discard`] `out` is as before.
    pub fn apply(&self, scratch: &mut Scratch, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), Discard> {
        scratch.bind(self);
        let begin = out.len();
        let result = self.write(scratch, record, out);
        if result.is_err() {
            out.truncate(begin);
        }
        result
    }

    fn write(&self, scratch: &mut Scratch, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), Discard> {
        let value = record.value.ok_or(Discard::Filtered(Filter::Tombstone))?;
        let mut json = simdutf8::basic::from_utf8(value).map_err(|_| not_utf8(value))?;
        let Scratch { routes, frame, noted, work, last, .. } = scratch;
        let mut envelope = Envelope::default();
        // It turns a second time only for a record with a mark, so that no other one pays for that. A second call of `read`
        // would keep it from being inlined.
        while let Err(fault) = envelope.read(json, self, frame, routes, noted) {
            json = self.behind_mark(json, record).ok_or_else(|| bad_json(fault))?;
            envelope = Envelope::default();
        }
        Self::check(&envelope)?;
        let index = match envelope.route {
            Some(index) => index,
            None => self.route(routes, envelope.log_name.of(json)),
        };
        let Some(route) = routes.at_mut(index).filter(|route| route.verdict == Verdict::Pass) else {
            return Err(Discard::Filtered(Filter::Drop));
        };
        if envelope.route.is_none() {
            let mut cursor = Cursor::new(json, envelope.logs.start);
            members::scan(&mut cursor, json, route, noted).map_err(bad_json)?;
        }
        let draft = Draft { json, logs: envelope.logs, white: envelope.white, route, noted };
        let pattern = plan::pattern(noted);
        let planned = route.plans.iter().position(|plan| Some(plan.pattern) == pattern);
        if let Some(plan) = planned
            && draft.write_planned(&route.plans[plan], &self.options, record, work, out)?
        {
            *last = Last { route: Some(index), plan: planned };
            return Ok(());
        }
        let time = draft.write(&self.options, record, work, out)?;
        *last = Last { route: Some(index), plan: None };
        if planned.is_none()
            && route.plans.len() < plan::MOST
            && let Some(pattern) = pattern
        {
            let plan = Plan::new(pattern, route, &work.found, time, &work.event_name);
            route.plans.extend(plan);
        }
        Ok(())
    }

    /// The JSON behind a byte order mark, unless it was read already.
    #[cold]
    fn behind_mark<'a>(&self, read: &'a str, record: &Record<'_>) -> Option<&'a str> {
        let was_whole = record.value.map(<[u8]>::len) == Some(read.len());
        read.strip_prefix(MARK).filter(|_| self.takes_mark && was_whole)
    }

    /// Checks what lies around `logs`.
    fn check(envelope: &Envelope) -> Result<(), Discard> {
        if envelope.headers != Kind::Object {
            return Err(reject(Reason::NoHeaders, "`headers` is absent or no object"));
        }
        if envelope.app == App::Other {
            return Err(Discard::Filtered(Filter::OtherApp));
        }
        if !envelope.has_log_name() {
            return Err(reject(Reason::NoLogName, "`headers.log_name` is absent, empty or no string"));
        }
        if envelope.logs.kind != Kind::Object {
            return Err(reject(Reason::NoLogs, "`logs` is absent or no object"));
        }
        Ok(())
    }

    /// Where the route of a log name is, which is given as it stands in the record.
    fn route(&self, routes: &mut Routes, raw: &str) -> usize {
        routes.find(&self.settings, &self.options, raw)
    }
}

/// The byte order mark that some programs put before their text. It is no part of it.
const MARK: char = '\u{feff}';

fn reject(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Discard {
    Discard::Rejected(Reject::new(reason, detail))
}

/// The fast check does not tell the place.
#[cold]
fn not_utf8(value: &[u8]) -> Discard {
    let place = std::str::from_utf8(value).map_or_else(|error| error.valid_up_to(), str::len);
    reject(Reason::BadJson, format!("not UTF-8 at byte {place}"))
}

fn bad_json(fault: Fault) -> Discard {
    reject(Reason::BadJson, format!("{} at byte {}", fault.what, fault.at))
}
