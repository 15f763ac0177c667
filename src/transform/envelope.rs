//! The record around `logs`: `{"headers":{"app_id":24,"log_name":"log_item"},"logs":{…}}`.
//!
//! Members come in any order, with others between them; of those that come twice the last one counts. Nearly always the
//! text before and behind the log name is that of the record before, so it is remembered ([`Frame`]) and compared first.

use super::members::{self, Noted};
use super::route::{Routes, Verdict};
use super::scan::{Cursor, Fault, Kind, Value};
use super::{Transform, text};

/// What `headers.app_id` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum App {
    /// Our app, or nothing (`null` is nothing).
    #[default]
    Ours,
    Other,
}

/// What a record holds, once all of it was found to be valid JSON.
#[derive(Debug, Default)]
pub(super) struct Envelope {
    /// [`Kind::Object`] as it should be, or what is there instead.
    pub(super) headers: Kind,
    pub(super) app: App,
    pub(super) log_name: Value,
    pub(super) logs: Value,
    /// Whether there may be white space between the tokens of `logs`.
    pub(super) white: bool,
    /// The route of the log name, when `logs` was already noted for it.
    pub(super) route: Option<usize>,
}

/// The text of the last envelope before and behind the log name, its quotes on the side of `head`; empty for none.
#[derive(Debug, Default)]
pub(super) struct Frame {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Frame {
    /// Longer ones are not worth keeping.
    const LONGEST: usize = 512;

    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.tail.clear();
    }

    /// Remembers what stands before the log name and between it and `logs`, which starts at `logs`.
    fn learn(&mut self, json: &str, envelope: &Envelope, logs: usize) {
        let Value { start, end, .. } = envelope.log_name;
        if !envelope.is_ours() || logs - (end - start) > Self::LONGEST {
            return;
        }
        self.clear();
        self.head.extend_from_slice(&json.as_bytes()[..start]);
        self.tail.extend_from_slice(&json.as_bytes()[end + 1..logs]);
    }

    /// Steps over an envelope that is like the last one, up to the value of `logs`, and returns its log name.
    fn follow(&self, cursor: &mut Cursor<'_>) -> Result<Option<Value>, Fault> {
        if self.head.is_empty() || !cursor.bytes.starts_with(&self.head) {
            return Ok(None);
        }
        let mut ahead = Cursor { at: self.head.len() - 1, ..*cursor };
        let log_name = ahead.value(2)?;
        if !ahead.bytes[ahead.at..].starts_with(&self.tail) {
            return Ok(None);
        }
        cursor.at = ahead.at + self.tail.len();
        Ok(Some(log_name))
    }
}

impl Envelope {
    /// Reads a record, and notes the members of its `logs` when it is plain by then which log it is.
    pub(super) fn read(
        &mut self,
        json: &str,
        transform: &Transform,
        frame: &mut Frame,
        routes: &mut Routes,
        noted: &mut Noted,
    ) -> Result<(), Fault> {
        let mut cursor = Cursor::new(json, 0);
        let mut separator = b'{';
        if let Some(log_name) = frame.follow(&mut cursor)? {
            self.headers = Kind::Object;
            self.log_name = log_name;
            self.read_logs(&mut cursor, json, transform, routes, noted)?;
            // Nothing more, as most often.
            if cursor.bytes.get(cursor.at..) == Some(b"}") {
                return Ok(());
            }
            separator = b',';
        }
        while let Some(key) = cursor.key(separator)? {
            separator = b',';
            match &*text::decoded(json, key) {
                "headers" => self.read_headers(&mut cursor, json, transform)?,
                "logs" => {
                    frame.learn(json, self, cursor.at);
                    self.read_logs(&mut cursor, json, transform, routes, noted)?;
                }
                _ => {
                    cursor.value(1)?;
                }
            }
        }
        cursor.end()
    }

    /// Whether everything before `logs` is in order.
    fn is_ours(&self) -> bool {
        self.headers == Kind::Object && self.app == App::Ours && self.has_log_name()
    }

    pub(super) fn has_log_name(&self) -> bool {
        self.log_name.is_string() && self.log_name.start < self.log_name.end
    }

    fn read_headers(&mut self, cursor: &mut Cursor<'_>, json: &str, transform: &Transform) -> Result<(), Fault> {
        *self = Self { logs: self.logs, white: self.white, ..Self::default() };
        if cursor.bytes.get(cursor.at) != Some(&b'{') {
            self.headers = cursor.value(1)?.kind;
            return Ok(());
        }
        self.headers = Kind::Object;
        let mut separator = b'{';
        while let Some(key) = cursor.key(separator)? {
            separator = b',';
            let value = cursor.value(2)?;
            match &*text::decoded(json, key) {
                "log_name" => self.log_name = value,
                "app_id" => {
                    let ours = value.kind == Kind::Null
                        || (value.is_text() && text::decoded(json, value) == transform.app_id_text);
                    self.app = if ours { App::Ours } else { App::Other };
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_logs(
        &mut self,
        cursor: &mut Cursor<'_>,
        json: &str,
        transform: &Transform,
        routes: &mut Routes,
        noted: &mut Noted,
    ) -> Result<(), Fault> {
        cursor.white = false;
        self.route = None;
        if cursor.bytes.get(cursor.at) == Some(&b'{') && self.is_ours() {
            let index = transform.route(routes, self.log_name.of(json));
            if let Some(route) = routes.at_mut(index)
                && route.verdict == Verdict::Pass
            {
                let start = cursor.at;
                members::scan(cursor, json, route, noted)?;
                self.logs = Value { start, end: cursor.at, kind: Kind::Object };
                self.route = Some(index);
            }
        }
        if self.route.is_none() {
            self.logs = cursor.value(1)?;
        }
        self.white = cursor.white;
        Ok(())
    }
}
