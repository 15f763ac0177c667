//! The line of one record: values of the `#` keys chosen, checked and written.
//!
//! [`Draft::write`] is the general way, which knows all rules; what it decides for usual records is kept in a `plan`.

use std::borrow::Cow;

use super::check::{Subject, is_user_type};
use super::members::{self, Noted};
use super::plan::{Head, Plan};
use super::route::{Compiled, Duty, OutKey, Piece, Route, Source};
use super::scan::{self, Value};
use super::time::{self, Moment};
use super::{Options, Record, strict, text, uuid};
use crate::config::Validation;
use crate::record::{Reason, Reject};

/// Where the value of a `#` key was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Empty,
    /// Nowhere, and so the line goes without the key.
    LeftOut,
    /// In the record: the slot of the member.
    Member(usize),
    /// It is the constant text of this source.
    Fixed(usize),
    /// In [`Workspace::built`], decoded.
    Built(usize, usize),
}

/// Where the value of `#time` was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeFrom {
    /// In the first member that has text: its slot.
    Member(usize),
    /// In the record's timestamp, and no member that could have been one has text.
    Record,
    /// Found by trial.
    Other,
}

/// Buffers that outlive a record.
#[derive(Debug)]
pub(super) struct Workspace {
    built: String,
    pub(super) uuid: Vec<u8>,
    pub(super) times: time::Cache,
    pub(super) head: Box<Head>,
    /// What was decided for the keys of the last record that was written in the general way.
    pub(super) found: Vec<Found>,
    /// The event name of the last line, decoded; [`USER`] for `user_*` types.
    pub(super) event_name: String,
}

impl Default for Workspace {
    fn default() -> Self {
        Self {
            built: String::new(),
            uuid: Vec::new(),
            times: time::Cache::default(),
            head: Box::new([0; size_of::<Head>()]),
            found: Vec::new(),
            event_name: String::new(),
        }
    }
}

impl Workspace {
    /// Gives back the buffers that a large record needed.
    pub(super) fn give_back(&mut self) {
        (self.built, self.event_name) = (String::new(), String::new());
    }
}

/// What stands for the event name where an event has none: all user events go the same way, in their order.
pub(super) const USER: &str = "user";

/// A record whose JSON is valid and whose mapping is known.
pub(super) struct Draft<'a> {
    pub(super) json: &'a str,
    pub(super) logs: Value,
    /// Whether there may be white space between the tokens of `logs`.
    pub(super) white: bool,
    pub(super) route: &'a Route,
    pub(super) noted: &'a Noted,
}

impl Draft<'_> {
    /// Appends the line of a record of the plan's pattern; `Ok(false)` when the general way must judge it, with nothing appended.
    pub(super) fn write_planned(
        &self,
        plan: &Plan,
        options: &Options,
        record: &Record<'_>,
        work: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<bool, Reject> {
        let Some(len) = plan.write(self, options, record, work) else { return Ok(false) };
        out.reserve(len + self.json.len() + 8);
        out.extend_from_slice(&work.head[..len]);
        self.write_properties(options, out)?;
        out.extend_from_slice(b"}\n");
        Ok(true)
    }

    /// Appends the line and returns where its time is from; on a reject `out` may hold a part of it.
    pub(super) fn write(
        &self,
        options: &Options,
        record: &Record<'_>,
        work: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<TimeFrom, Reject> {
        work.built.clear();
        work.found.clear();
        let (time, time_from) = self.time(options, record, work)?;
        let type_key = &self.route.keys[self.route.event_type];
        let event_type = self.find(type_key, work);
        let user = is_user_type(&self.text(type_key, event_type, &work.built));
        let mut subject = Subject::default();
        let mut event_name = None;
        out.reserve(self.json.len() + 512);
        let begin = out.len();
        for key in &self.route.keys {
            let found = match key.duty {
                Duty::Time => Found::Empty,
                Duty::Type => event_type,
                _ => self.find(key, work),
            };
            let found = match (key.duty, found) {
                (Duty::EventName, _) if user => Found::LeftOut,
                (Duty::Extra, Found::Empty) => Found::LeftOut,
                (Duty::Uuid, Found::Empty) if !options.uuid => Found::LeftOut,
                _ => found,
            };
            work.found.push(found);
            if found == Found::LeftOut {
                continue;
            }
            if key.duty == Duty::EventName {
                event_name = Some((key, found));
            }
            self.judge(key, found, work, &mut subject);
            if out.len() == begin {
                out.push(b'{');
                // Without the quote and comma that end the value before.
                out.extend_from_slice(&key.prefix[2..]);
            } else {
                out.extend_from_slice(&key.prefix);
            }
            match (key.duty, found) {
                (Duty::Time, _) => out.extend_from_slice(time.as_bytes()),
                (Duty::Uuid, Found::Empty) => out.extend_from_slice(&uuid::of(record, &mut work.uuid)),
                (_, Found::Empty | Found::LeftOut) => {}
                (_, Found::Member(slot)) => out.extend_from_slice(self.noted.values[slot].of(self.json).as_bytes()),
                (_, Found::Fixed(source)) => out.extend_from_slice(&fixed(key, source).json),
                (_, Found::Built(from, to)) => text::escape(&work.built[from..to], out),
            }
        }
        if options.validation != Validation::Off {
            subject.check()?;
        }
        out.extend_from_slice(b"\",\"properties\":");
        self.write_properties(options, out)?;
        out.extend_from_slice(b"}\n");
        work.event_name.clear();
        match event_name {
            Some((key, found)) => work.event_name.push_str(&self.text(key, found, &work.built)),
            None => work.event_name.push_str(USER),
        }
        Ok(time_from)
    }

    /// Notes what the standard checks will say of a value.
    fn judge(&self, key: &OutKey, found: Found, work: &Workspace, subject: &mut Subject) {
        let verdict = || match found {
            Found::Fixed(source) => fixed(key, source).verdict,
            found => key.duty.judge(&self.text(key, found, &work.built)),
        };
        let id = || (!matches!(found, Found::Empty)).then(verdict);
        match key.duty {
            Duty::Account => subject.ids[0] = id(),
            Duty::Distinct => subject.ids[1] = id(),
            Duty::EventName => subject.event_name = verdict(),
            Duty::Type => subject.event_type = verdict(),
            Duty::Ip | Duty::Time | Duty::Uuid | Duty::Extra => {}
        }
    }

    /// The first source that gives text.
    fn find(&self, key: &OutKey, work: &mut Workspace) -> Found {
        for source in 0..key.sources.len() {
            let found = self.look(key, source, work);
            if !matches!(found, Found::Empty) {
                return found;
            }
        }
        Found::Empty
    }

    fn look(&self, key: &OutKey, source: usize, work: &mut Workspace) -> Found {
        match &key.sources[source] {
            Source::Member(slot) => {
                let value = self.noted.values[*slot];
                if value.is_text() && value.start < value.end { Found::Member(*slot) } else { Found::Empty }
            }
            Source::Template(template) if self.is_fixed(template) => {
                if template.fixed.text.is_empty() {
                    Found::Empty
                } else {
                    Found::Fixed(source)
                }
            }
            Source::Template(template) => self.build(template, work),
        }
    }

    /// Whether `logs` has none of the members that the template names.
    fn is_fixed(&self, template: &Compiled) -> bool {
        template.pieces.iter().all(|piece| match piece {
            Piece::Text(_) => true,
            Piece::Member(slot, _) => !self.noted.values[*slot].is_text(),
        })
    }

    fn build(&self, template: &Compiled, work: &mut Workspace) -> Found {
        let begin = work.built.len();
        for piece in &template.pieces {
            match piece {
                Piece::Text(text) => work.built.push_str(text),
                Piece::Member(slot, _) if self.noted.values[*slot].is_text() => {
                    work.built.push_str(&text::decoded(self.json, self.noted.values[*slot]));
                }
                Piece::Member(_, otherwise) => work.built.push_str(otherwise),
            }
        }
        if begin == work.built.len() { Found::Empty } else { Found::Built(begin, work.built.len()) }
    }

    /// The first source that can be read as a time, else Kafka's timestamp.
    fn time(
        &self,
        options: &Options,
        record: &Record<'_>,
        work: &mut Workspace,
    ) -> Result<(time::Text, TimeFrom), Reject> {
        let write = |moment, work: &mut Workspace| work.times.write(moment, options.time_zone);
        let key = &self.route.keys[self.route.time];
        let mut tried = false;
        for source in 0..key.sources.len() {
            let found = self.look(key, source, work);
            let moment = Moment::read(&self.text(key, found, &work.built));
            if let Some(text) = moment.and_then(|moment| write(moment, work)) {
                return Ok(match found {
                    Found::Member(slot) if !tried => (text, TimeFrom::Member(slot)),
                    _ => (text, TimeFrom::Other),
                });
            }
            tried |= found != Found::Empty;
        }
        let timestamp = record.timestamp.and_then(Moment::from_millis);
        let text = timestamp.and_then(|moment| write(moment, work)).ok_or_else(|| {
            Reject::new(
                Reason::NoTime,
                "neither the mapped field, nor its default, nor the record's timestamp is a time",
            )
        })?;
        Ok((text, if tried { TimeFrom::Other } else { TimeFrom::Record }))
    }

    /// The characters of a value.
    fn text<'t>(&'t self, key: &'t OutKey, found: Found, built: &'t str) -> Cow<'t, str> {
        match found {
            Found::Empty | Found::LeftOut => Cow::Borrowed(""),
            Found::Member(slot) => text::decoded(self.json, self.noted.values[slot]),
            Found::Fixed(source) => Cow::Borrowed(&fixed(key, source).text),
            Found::Built(from, to) => Cow::Borrowed(&built[from..to]),
        }
    }

    fn write_properties(&self, options: &Options, out: &mut Vec<u8>) -> Result<(), Reject> {
        let begin = out.len();
        let logs = self.logs.of(self.json);
        if !self.noted.omitted.is_empty() && !self.white {
            members::write_between(self.json, self.logs, self.noted, out);
        } else if !self.noted.omitted.is_empty() {
            // The text was validated: a fault cannot come, and would be one of the JSON.
            members::write_kept(logs, self.route, out).map_err(|fault| Reject::new(Reason::BadJson, fault.what))?;
        } else if self.white {
            scan::compact(logs, out);
        } else {
            out.extend_from_slice(logs.as_bytes());
        }
        if options.validation == Validation::Strict {
            let properties = std::str::from_utf8(&out[begin..]);
            strict::check(properties.map_err(|_| Reject::new(Reason::BadJson, "the properties are not UTF-8"))?)?;
        }
        Ok(())
    }
}

/// The constant text of a source for which [`Found::Fixed`] was given.
pub(super) fn fixed(key: &OutKey, source: usize) -> &super::route::Fixed {
    match &key.sources[source] {
        Source::Template(template) => &template.fixed,
        Source::Member(_) => unreachable!("members have no constant text"),
    }
}
