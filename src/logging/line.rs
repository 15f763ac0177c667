//! How an event becomes a line.

use std::backtrace::Backtrace;
use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Level, TimeZone};
use crate::terminal;

/// Target of the event that tells a panic; always with its backtrace.
pub(super) const PANIC: &str = "panic";

/// What symbol or file of the frames between whoever logged and this module have in them.
const MACHINERY: [&str; 4] = ["backtrace", "logging/line.rs", "tracing", "std/src/thread/local.rs"];

/// Writes `time level target: message field=value …`, and a backtrace from `stack_level` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineFormat {
    zone: TimeZone,
    stack_level: Level,
}

impl LineFormat {
    pub(super) fn new(zone: TimeZone, stack_level: Level) -> Self {
        Self { zone, stack_level }
    }
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let (level, colour) = level_of(*meta.level());
        let name = format!("{level:?}").to_uppercase();
        write!(writer, "{} ", timestamp(Utc::now(), self.zone))?;
        if writer.has_ansi_escapes() {
            write!(writer, "\u{1b}[{colour}m{name:<5}\u{1b}[0m ")?;
        } else {
            write!(writer, "{name:<5} ")?;
        }
        write!(writer, "{}: ", meta.target())?;
        let mut fields = String::new();
        ctx.field_format().format_fields(Writer::new(&mut fields), event)?;
        for c in fields.chars() {
            match c {
                '\t' => writer.write_char(c)?,
                c if terminal::is_hidden(c) => write!(writer, "{}", c.escape_default())?,
                c => writer.write_char(c)?,
            }
        }
        writeln!(writer)?;
        if level >= self.stack_level || meta.target() == PANIC {
            write_backtrace(&mut writer, &Backtrace::force_capture().to_string())?;
        }
        Ok(())
    }
}

fn level_of(level: tracing::Level) -> (Level, u8) {
    match level {
        tracing::Level::TRACE => (Level::Trace, 35),
        tracing::Level::DEBUG => (Level::Debug, 34),
        tracing::Level::INFO => (Level::Info, 32),
        tracing::Level::WARN => (Level::Warn, 33),
        tracing::Level::ERROR => (Level::Error, 31),
    }
}

/// The time with milliseconds and the zone's offset.
fn timestamp(now: DateTime<Utc>, zone: TimeZone) -> String {
    zone.local(now).to_rfc3339_opts(SecondsFormat::Millis, false)
}

/// A frame is a line ` 7: symbol`, perhaps followed by a line `at file:line:column`.
fn write_backtrace(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    let lines: Vec<&str> = text.lines().collect();
    let frames = lines.chunk_by(|_, next| next.trim_start().starts_with("at "));
    let is_machinery = |frame: &&[&str]| frame.iter().any(|line| MACHINERY.iter().any(|part| line.contains(part)));
    for line in frames.skip_while(is_machinery).flatten() {
        writeln!(writer, "    {line}")?;
    }
    Ok(())
}
