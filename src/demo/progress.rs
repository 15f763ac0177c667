//! How far the demo is, on standard error: a bar on a terminal, a line a second elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(1);

/// Fits into 80 columns with a million records and a rate behind it.
const BAR: &str = "{bar:30} {human_pos} of {human_len}  {msg}";

/// See the module.
#[derive(Debug)]
pub(crate) enum Progress {
    /// For tests.
    #[cfg(test)]
    Silent,
    /// A bar that is drawn anew in its place.
    Bar(ProgressBar),
    /// Lines, the last one at this time.
    Lines(Instant),
}

impl Progress {
    /// Of so many records.
    pub(crate) fn new(records: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines(Instant::now());
        }
        let bar = ProgressBar::new(records);
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style.progress_chars("##-"));
        }
        Self::Bar(bar)
    }

    /// Shows how many records are done, and what goes on.
    pub(crate) fn show(&mut self, done: u64, note: &str) {
        match self {
            #[cfg(test)]
            Self::Silent => {}
            Self::Bar(bar) => {
                bar.set_message(note.to_owned());
                bar.set_position(done);
            }
            Self::Lines(last) if last.elapsed() >= LINES => {
                *last = Instant::now();
                line(format_args!("{} records done, {note}", HumanCount(done)));
            }
            Self::Lines(_) => {}
        }
    }

    /// Takes a bar away.
    pub(crate) fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line to standard error, if somebody reads it.
pub(crate) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "mtga: {text}");
}
