//! The `mtga` command.

use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::process::ExitCode;

use mtga::app::App;
use mtga::cli::{self, Destination, Invocation, Streams};
use mtga::{limits, signals};
use nix::sys::stat::{Mode, umask};

fn main() -> ExitCode {
    signals::hold();
    limits::raise();
    // Without it a limit on the size of files ends the process at a write, as it would without us.
    let _ = signals::survive_file_limit();
    // Whatever the caller's umask, nothing of a home is for everybody; what is stricter stays.
    let inherited = umask(Mode::from_bits_truncate(0o027));
    umask(inherited | Mode::from_bits_truncate(0o027));
    let invocation = Invocation {
        args: std::env::args_os().collect(),
        // What is not UTF-8 has a replacement character in it then, and is refused where it is used.
        env: std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect(),
        binary: std::env::current_exe().ok(),
        directory: std::env::current_dir().unwrap_or_default(),
    };
    let (mut input, mut output) = (BufReader::new(io::stdin()), BufWriter::new(io::stdout()));
    let destination = if io::stdout().is_terminal() { Destination::Terminal } else { Destination::Elsewhere };
    let streams = Streams { input: &mut input, output: &mut output, destination, errors: &mut io::stderr() };
    cli::run(&invocation, streams, &App).into()
}
