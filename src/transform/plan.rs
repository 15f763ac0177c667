//! The usual line of a log name, with every choice made.
//!
//! Which source gives the value of a `#` key depends on nothing but which of the noted members have text: the *pattern* of a
//! record. So the first record of a pattern is written in the general way (`line`), which knows all rules, and what
//! was decided for it is kept as a [`Plan`]: constant texts, joined, and the slots of the members that stand between
//! them. Further records of the pattern are put together from that, in moves of 32 bytes.
//!
//! A plan only has what is sure for the pattern. A template that names a member the record has, an event name or type
//! taken from the record, and a value with escapes never get into one. What can still go wrong in a record (an id that is
//! too long, a time that is none, no room) makes [`Plan::write`] give up, and the general way judges it.

use super::line::{self, Draft, Found, TimeFrom, Workspace};
use super::members::Noted;
use super::route::{Duty, Route};
use super::scan::{Kind, Value};
use super::time::Moment;
use super::{Options, Record, check, uuid};

/// Everything of a line before the properties.
pub(super) type Head = [u8; 1024];

/// Bytes are moved so many at a time.
const MOVE: usize = 32;

/// The patterns of a log name that are kept: more would be no usual ones.
pub(super) const MOST: usize = 8;

/// Which of the noted members have text, two bits each; `None` for one that no plan can have.
pub(super) fn pattern(noted: &Noted) -> Option<u64> {
    let members = noted.values.get(1..)?;
    if members.len() > 32 {
        return None;
    }
    members.iter().try_fold(0, |pattern, value| {
        let code = match value.kind {
            Kind::Escaped => return None,
            Kind::Plain | Kind::Number => 1 + u64::from(value.start < value.end),
            _ => 0,
        };
        Some((pattern << 2) | code)
    })
}

/// What stands behind a constant text.
#[derive(Clone, Copy, Debug)]
enum Then {
    Id(usize),
    Text(usize),
    Time(TimeFrom),
    Uuid,
    Properties,
}

/// A constant text, filled with NULs to whole moves, and what follows it.
#[derive(Debug)]
struct Part {
    text: Vec<[u8; MOVE]>,
    len: usize,
    then: Then,
}

/// How the line of a pattern is put together.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pattern: u64,
    parts: Vec<Part>,
    /// The event name, decoded.
    pub(super) event_name: String,
}

impl Plan {
    /// What was decided for a record of this pattern, whose line passed all checks.
    pub(super) fn new(pattern: u64, route: &Route, found: &[Found], time: TimeFrom, event_name: &str) -> Option<Self> {
        let mut plan = Self { pattern, parts: Vec::new(), event_name: event_name.to_owned() };
        let mut text = b"{".to_vec();
        // The first key has no value before it, whose quote and comma its prefix begins with.
        let mut skip = 2;
        for (key, &found) in route.keys.iter().zip(found) {
            if found == Found::LeftOut {
                continue;
            }
            text.extend_from_slice(key.prefix.get(skip..)?);
            skip = 0;
            let then = match (key.duty, found) {
                (Duty::Time, _) => Then::Time(time),
                (Duty::EventName | Duty::Type, Found::Member(_)) | (_, Found::Built(..) | Found::LeftOut) => {
                    return None;
                }
                (Duty::Account | Duty::Distinct, Found::Member(slot)) => Then::Id(slot),
                (_, Found::Member(slot)) => Then::Text(slot),
                (Duty::Uuid, Found::Empty) => Then::Uuid,
                (_, Found::Empty) => continue,
                (_, Found::Fixed(source)) => {
                    text.extend_from_slice(&line::fixed(key, source).json);
                    continue;
                }
            };
            plan.add(&mut text, then);
        }
        text.extend_from_slice(b"\",\"properties\":");
        plan.add(&mut text, Then::Properties);
        (time != TimeFrom::Other).then_some(plan)
    }

    fn add(&mut self, text: &mut Vec<u8>, then: Then) {
        let len = text.len();
        text.resize(len.next_multiple_of(MOVE), 0);
        self.parts.push(Part { text: text.as_chunks().0.to_vec(), len, then });
        text.clear();
    }

    /// Puts the line of a record of the pattern, up to its properties, into `head`; `None` when the record is no usual one after all.
    pub(super) fn write(
        &self,
        draft: &Draft<'_>,
        options: &Options,
        record: &Record<'_>,
        work: &mut Workspace,
    ) -> Option<usize> {
        let Workspace { head, times, uuid, .. } = work;
        let bytes = draft.json.as_bytes();
        let value = |slot: usize| draft.noted.values.get(slot).copied();
        let mut at = 0;
        for part in &self.parts {
            let mut to = at;
            for from in &part.text {
                *head.get_mut(to..)?.first_chunk_mut()? = *from;
                to += MOVE;
            }
            at += part.len;
            match part.then {
                Then::Id(slot) => {
                    let value = value(slot).filter(|value| value.end - value.start <= check::LONGEST_ID)?;
                    at = put(head, at, bytes, value)?;
                }
                Then::Text(slot) => at = put(head, at, bytes, value(slot)?)?,
                Then::Time(from) => {
                    let time = match from {
                        TimeFrom::Member(slot) => times.read(value(slot)?.of(draft.json), options.time_zone)?,
                        TimeFrom::Record => times.write(Moment::from_millis(record.timestamp?)?, options.time_zone)?,
                        TimeFrom::Other => return None,
                    };
                    head.get_mut(at..at + time.bytes.len())?.copy_from_slice(&time.bytes);
                    at += time.len;
                }
                Then::Uuid => {
                    let made = uuid::of(record, uuid);
                    head.get_mut(at..at + made.len())?.copy_from_slice(&made);
                    at += made.len();
                }
                Then::Properties => {}
            }
        }
        Some(at)
    }
}

/// Moves the text of a value to `at` and returns where it ends.
#[inline]
fn put(head: &mut Head, at: usize, bytes: &[u8], value: Value) -> Option<usize> {
    let len = value.end - value.start;
    match bytes.get(value.start..value.start + MOVE) {
        Some(from) if len <= MOVE => head.get_mut(at..at + MOVE)?.copy_from_slice(from),
        _ => head.get_mut(at..at + len)?.copy_from_slice(bytes.get(value.start..value.end)?),
    }
    Some(at + len)
}
