//! From files, environment and flags to a [`Config`], or to every mistake in them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::layer::{Fault, Layer, Origin};
use super::values::Values;
use super::{Config, build};
use crate::terminal;
use crate::zone::Tzdata;

/// Everything that a configuration is made of. Nothing else is looked at but the rules of the time zone.
#[derive(Clone)]
pub struct Sources {
    /// The directory that relative paths start from; absolute.
    pub home: PathBuf,
    /// The directory of `msource.yml`, `mtga.yml` and, if it is there, `mtga.local.yml`.
    pub dir: PathBuf,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Paths of keys (`sink.mode`) and values, written as in the environment.
    pub flags: Vec<(String, String)>,
    /// What `workers: auto` means.
    pub cpus: usize,
}

impl fmt::Debug for Sources {
    /// Leaves out what may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("home", &self.home).field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A configuration that passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What does no harm but is hardly meant, one line each: for the log and for `check`.
    pub warnings: Vec<String>,
    /// Secrets in files that every user of this host can read, one line each. A service starts all the same.
    pub exposed: Vec<String>,
}

/// Something that an operator must correct. Shown as `file:line: key: message`. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file, relative to the home if it is in there; or `environment`, `command line`, `built-in`.
    pub file: PathBuf,
    /// From 1; `None` outside of files, or when the file could not be read at all.
    pub line: Option<usize>,
    /// The path of the key (`kafka.topics`), or the name of the variable; empty when the whole file is meant.
    pub key: String,
    /// What is wrong and what is expected.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// Reads the configuration: built-in defaults < `msource.yml`, `mtga.yml` < `mtga.local.yml` < environment < flags.
///
/// Fails with every mistake at once: those of the files first, each file's in the order of its lines.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<Mistake>> {
    let mut values = Values::built_in();
    for layer in [Layer::Msource, Layer::Mtga, Layer::Local] {
        match fs::read(sources.dir.join(file_name(layer))) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => values.lay_file(layer, &text),
                Err(error) => {
                    let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                    let line = valid.split(|&byte| byte == b'\n').count();
                    values.faults.push(whole(layer, Some(line), "this is no UTF-8, save the file in that encoding"));
                }
            },
            Err(error) if layer == Layer::Local && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => values.faults.push(whole(
                layer,
                None,
                format!("cannot read this config file: {error}; --config and --home say where it must be"),
            )),
        }
    }
    let exposed: Vec<_> = exposed(sources, &values).map(|fault| mistake(sources, fault).to_string()).collect();
    let mut warnings = values.lay_environment(&sources.env);
    values.lay_flags(&sources.flags);
    let unread = values.expand(&sources.env);
    let (config, faults, notes) = build::config(&values, &sources.home, sources.cpus, &Tzdata::of(&sources.env));
    warnings.extend(notes.into_iter().map(|note| mistake(sources, note).to_string()));
    let mut all = values.faults;
    // A value that could not be had has no type to be wrong in.
    all.extend(faults.into_iter().filter(|(origin, _)| !unread.contains(origin)));
    if all.is_empty() {
        return Ok(Loaded { config, warnings, exposed });
    }
    all.sort_by_key(|(origin, _)| (origin.layer, origin.line));
    Err(all.into_iter().map(|fault| mistake(sources, fault)).collect())
}

fn whole(layer: Layer, line: Option<usize>, message: impl Into<String>) -> Fault {
    (Origin { layer, line, key: String::new() }, message.into())
}

/// Secrets that stand in files which every user of this host can read.
fn exposed<'a>(sources: &'a Sources, values: &'a Values) -> impl Iterator<Item = Fault> + 'a {
    let is_open = |layer: Layer| {
        let mode = fs::metadata(sources.dir.join(file_name(layer))).map_or(0, |metadata| metadata.permissions().mode());
        mode & 0o004 != 0
    };
    let open = [Layer::Msource, Layer::Mtga, Layer::Local].map(|layer| (layer, is_open(layer)));
    values.secrets().filter(move |origin| open.contains(&(origin.layer, true))).map(|origin| {
        let text =
            "every user of this host can read this secret: take the rights of others from the file (chmod o= FILE)";
        (origin.clone(), text.to_owned())
    })
}

const fn file_name(layer: Layer) -> &'static str {
    match layer {
        Layer::BuiltIn => "built-in",
        Layer::Msource => "msource.yml",
        Layer::Mtga => "mtga.yml",
        Layer::Local => "mtga.local.yml",
        Layer::Environment => "environment",
        Layer::CommandLine => "command line",
    }
}

fn mistake(sources: &Sources, (origin, message): Fault) -> Mistake {
    let name = Path::new(file_name(origin.layer));
    let file = match origin.layer {
        Layer::Msource | Layer::Mtga | Layer::Local => {
            sources.dir.strip_prefix(&sources.home).unwrap_or(&sources.dir).join(name)
        }
        Layer::BuiltIn | Layer::Environment | Layer::CommandLine => name.to_owned(),
    };
    // What cannot be seen, or looks like a blank, is what is often wrong.
    let shown = |text: &str| terminal::shown_exactly(text).into_owned();
    Mistake { file, line: origin.line, key: shown(&origin.key), message: shown(&message) }
}
