//! How far the demo is, on standard error: a bar on a terminal, a line a second elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(1);

/// Leaves room for a rate in 80 columns; what is longer is cut.
const BAR: &str = "{bar:30} {human_pos} of {human_len}  {wide_msg}";

/// See the module.
#[derive(Debug)]
pub(crate) enum Progress {
    /// For tests.
    #[cfg(test)]
    Silent,
    /// A bar that is drawn again in its place.
    Bar(ProgressBar),
    /// Lines.
    Lines {
        /// Of so many records.
        records: u64,
        /// When the last one was written.
        last: Instant,
    },
}

impl Progress {
    /// Of so many records.
    pub(crate) fn new(records: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { records, last: Instant::now() };
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
            Self::Lines { records, last } => {
                if last.elapsed() >= LINES {
                    *last = Instant::now();
                    line(format_args!("{} of {} records, {note}", HumanCount(done), HumanCount(*records)));
                }
            }
        }
    }

    /// Takes a bar away.
    pub(crate) fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Writes a line to standard error, if someone reads it.
pub(crate) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "mtga: {text}");
}
