//! The home that is adopted: found, read, locked, and marked in the end.
//!
//! Its configuration is its own: `config/` below it, and what `config/common.env` sets. A foreign disk names whom to connect to
//! and what to tell them, so it gets nothing of our environment, which may hold secrets, but the addresses in [`SHARED`].
//!
//! A link on it could lead to files of this host, which would then be read, written and given other modes. So none is followed:
//! configuration, settings and store are refused with anything in them that is neither a file nor a directory, before any of it
//! is opened. Event files are opened by [`EventDir`], which follows none either. Who puts a link there after that look is not
//! stopped: nobody else may write to the disk meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use super::super::broken::{Broken, failed};
use super::super::places::Places;
use crate::cli::Place;
use crate::config::{self, Config, Visibility};
use crate::control::{Failure, FailureKind};
use crate::lock::{HomeLock, Purpose};
use crate::msink::dir::{EventDir, blames_name};
use crate::msource::journal::{Contents, Frame};
use crate::regular;

/// Name of the marker below `store.path`: a JSON object on one line, see [`Marker`].
const MARKER: &str = "adopted.json";

/// What the files of the other home may have of our environment.
const SHARED: [&str; 1] = ["KAFKA_BROKERS"];

/// See the module.
pub(super) struct Other {
    /// Its real path.
    pub(super) dir: PathBuf,
    pub(super) config: Config,
}

/// Who adopted a home.
#[derive(Serialize, Deserialize)]
struct Marker {
    /// UUID of the home that took it over.
    by: String,
    /// Where that one lay.
    path: PathBuf,
    /// On which host.
    host: String,
    /// When, as RFC 3339.
    at: String,
}

fn usage(message: String) -> Failure {
    Failure::new(FailureKind::Usage, message)
}

impl Other {
    /// Reads the home in `dir`; refuses one that is not whole, ours, or another app's.
    pub(super) fn find(place: &Place, ours: &Config, dir: &Path) -> Result<Self, Failure> {
        let real = |path: &Path| {
            fs::canonicalize(path).map_err(|error| usage(format!("cannot find the home {}: {error}", path.display())))
        };
        let dir = real(dir)?;
        if dir == real(&place.home)? {
            return Err(usage(format!("{} is this home itself; name that of the other instance", dir.display())));
        }
        refuse_links(&dir.join("config"))?;
        if !dir.join("config").is_dir() {
            return Err(usage(format!(
                "{} is no home: it has no config; name the directory of the other instance that has config, data and tmp",
                dir.display()
            )));
        }
        let config = load(place, &dir)?;
        if let Some(name) = config::property_running_code(config.kafka.librdkafka.keys()) {
            let text = format!(
                "{}: kafka.librdkafka.{name} would run code that the other disk names, under this user: take it out of the \
                 configuration of that home, or adopt it on a host that trusts it",
                dir.display()
            );
            return Err(Failure::new(FailureKind::Config, text));
        }
        for (key, path) in [("store.path", &config.store.path), ("sink.dir", &config.sink.dir)] {
            refuse_elsewhere(key, path, &dir)?;
        }
        refuse_links(&config.store.path)?;
        // Settings elsewhere are what this host has there.
        if config.settings.starts_with(&dir) {
            refuse_links(&config.settings)?;
            refuse_elsewhere("settings", &config.settings, &dir)?;
        }
        let places = Places::of(&config);
        if !places.journal.is_dir() && !places.sled.is_dir() {
            return Err(usage(format!("{} holds no store: nothing ever ran on this home", places.root.display())));
        }
        if config.app_id != ours.app_id {
            return Err(usage(format!(
                "{} is of app {}, this home of app {}: adopt it from an instance of its own app",
                dir.display(),
                config.app_id,
                ours.app_id
            )));
        }
        Ok(Self { dir, config })
    }

    /// Says whose failure it is.
    pub(super) fn about(&self, failure: &Failure) -> Failure {
        let text = format!("cannot adopt {}: {}; it may be adopted again", self.dir.display(), failure.message);
        Failure::new(failure.kind, text)
    }

    /// Keeps everybody else from the home, as far as this host goes.
    pub(super) fn lock(&self) -> Result<HomeLock, Failure> {
        HomeLock::acquire(&self.config.store.path, Purpose::Command).map_err(|failure| {
            let text = match failure.kind {
                FailureKind::CannotCreate => "a home whose instance lives is not adopted",
                _ => "it may be adopted again",
            };
            Failure::new(failure.kind, format!("cannot adopt {}: {failure}: {text}", self.dir.display()))
        })
    }

    /// By whom and when it was adopted, if it was.
    pub(super) fn adopted(&self) -> Result<Option<String>, Failure> {
        Ok(marker(&Places::of(&self.config))?)
    }

    /// Says in the home, durably, that `by` has adopted it.
    pub(super) fn mark(&self, by: &str, path: &Path) -> Result<(), Failure> {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let at = chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, false);
        let marker = Marker { by: by.to_owned(), path: path.to_owned(), host, at };
        let root = Places::of(&self.config).root;
        let write = || -> io::Result<()> {
            let new = root.join(format!("{MARKER}.new"));
            let mut file =
                regular::open_with(File::options().write(true).create(true).truncate(true).mode(0o600), &new)?;
            serde_json::to_writer(&mut file, &marker)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, root.join(MARKER))?;
            File::open(&root)?.sync_all()
        };
        write().map_err(|error| failed(format!("cannot mark {} as adopted: {error}; adopt it again", root.display())))
    }
}

/// The configuration that the other instance ran with.
fn load(place: &Place, dir: &Path) -> Result<Config, Failure> {
    let mut env: BTreeMap<_, _> =
        place.env.clone().into_iter().filter(|(name, _)| SHARED.contains(&name.as_str())).collect();
    let mistake = |text: String| Failure::new(FailureKind::Config, format!("{}: {text}", dir.display()));
    match regular::read_to_string(&dir.join("config/common.env")) {
        Ok(text) => env.extend(assignments(&text).map_err(mistake)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(mistake(format!("cannot read config/common.env: {error}"))),
    }
    let sources = config::Sources {
        home: dir.to_owned(),
        dir: dir.join("config"),
        env,
        flags: Vec::new(),
        cpus: thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let loaded = config::load(&sources).map_err(|mistakes| {
        let mut lines: Vec<_> = mistakes.iter().map(|mistake| format!("{}: {mistake}", dir.display())).collect();
        if lines.iter().any(|line| line.contains("is not set")) {
            lines.push(format!(
                "{}: adopt gives another home nothing of this host's environment: write what it needs as NAME=value into its \
                 config/common.env",
                dir.display()
            ));
        }
        Failure::new(FailureKind::Config, lines.join("\n"))
    })?;
    Ok(loaded.config)
}

/// What a file of shell assignments sets. A shell would run what is in it, on the wrong host: only plain values are read.
/// The instance's name may be anything, it only matters to who runs.
fn assignments(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut set = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let unclear =
            || format!("config/common.env:{}: adopt reads only lines as NAME=value; write the value there", index + 1);
        let assignment = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (name, value) = assignment.split_once('=').ok_or_else(unclear)?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(unclear());
        }
        match plain(value) {
            Some(value) => drop(set.insert(name.to_owned(), value.to_owned())),
            None if name == "MTGA_KAFKA__INSTANCE_ID" => {}
            None => return Err(unclear()),
        }
    }
    Ok(set)
}

/// The value of an assignment in which a shell would find nothing to do but to take off the quotes.
fn plain(value: &str) -> Option<&str> {
    if let Some(quoted) = value.strip_prefix('\'') {
        return quoted.strip_suffix('\'').filter(|inner| !inner.contains('\''));
    }
    if let Some(quoted) = value.strip_prefix('"') {
        return quoted.strip_suffix('"').filter(|inner| !inner.contains(['"', '$', '`', '\\']));
    }
    let special = |c: char| c.is_whitespace() || "\"'$`\\;&|<>(){}*?[]~#!".contains(c);
    (!value.contains(special)).then_some(value)
}

/// Refuses a directory of the other home that is one of this host.
fn refuse_elsewhere(key: &str, path: &Path, dir: &Path) -> Result<(), Failure> {
    let advice = format!(
        "mount or copy it below {}, and write where it is there as {key} into config/mtga.local.yml of that home",
        dir.display()
    );
    let refused = |what: String| Failure::new(FailureKind::CannotCreate, format!("{key} {what}: {advice}"));
    if !path.starts_with(dir) {
        return Err(refused(format!(
            "of the other home is {}, which would be a directory of this host",
            path.display()
        )));
    }
    match fs::canonicalize(path) {
        Ok(real) if real.starts_with(dir) => Ok(()),
        Ok(real) => Err(refused(format!("of the other home leads to {}, a directory of this host", real.display()))),
        Err(error) => Err(refused(format!("of the other home is {}: {error}", path.display()))),
    }
}

/// Refuses a directory of the other home with anything in it that could be no file of that home.
fn refuse_links(dir: &Path) -> Result<(), Failure> {
    let refused = |text: String| Err(Failure::new(FailureKind::CannotCreate, text));
    match regular::find_other(dir) {
        Ok(None) => Ok(()),
        Ok(Some((path, what))) => refused(format!(
            "{} of the other home is a {what}: adopt opens none, since it may lead to files of this host; if it belongs \
             there, put a copy of what it stands for in its place, else remove it",
            path.display()
        )),
        Err(error) => refused(format!("cannot look through {} of the other home: {error}", dir.display())),
    }
}

/// By whom and when the home of this store was adopted, for people. That the mark cannot be read may pass.
fn marker(places: &Places) -> Result<Option<String>, Broken> {
    let path = places.root.join(MARKER);
    let text = match regular::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| Broken::disk(format_args!("cannot read {}", path.display()), &error))?,
    };
    // It gets its name when it is whole and on the disk: an empty one is another's, or what a disk lost.
    if text.trim_ascii().is_empty() {
        tracing::warn!(file = %path.display(), "ignored an empty mark of adoption");
        return Ok(None);
    }
    match serde_json::from_slice(&text) {
        Ok(Marker { by, path, host, at }) => {
            let place = path.display();
            Ok(Some(format!("this home was adopted at {at} by the home {place} on {host} (id {by}): it goes on there")))
        }
        Err(error) => Ok(Some(format!(
            "{} is not what `adopt` writes ({error}): if no other instance has taken this home over, remove it",
            path.display()
        ))),
    }
}

/// Refuses to run on a home that another one has taken over.
pub(in crate::app) fn refuse_adopted(places: &Places) -> Result<(), Broken> {
    match marker(places)? {
        None => Ok(()),
        Some(adopted) => {
            let text = format!("{adopted}; to begin from scratch, take a new store.path and sink.dir");
            Err(Broken::Lasting(Failure::new(FailureKind::Config, text)))
        }
    }
}

/// Takes the files of a copied home for what they are: they have other inodes than the journal says, which would otherwise mean
/// that another process replaced them. Where some have the same inode, be it by chance or because their directory is the same, a
/// hidden file is taken only with the lines that it should have, and of live ones the recovery looks at the lines.
pub(in crate::app) fn take_copies(contents: &mut Contents, dir: &EventDir) -> io::Result<()> {
    let mut names: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    if let Some(state) = &contents.state {
        names.extend(state.files.iter().map(|(id, file)| (*id, (file.path(), file.inode))));
    }
    for frame in &contents.tail {
        match frame {
            Frame::File(intent) => drop(names.insert(intent.id, (intent.path(), 0))),
            Frame::Made { id, inode } => {
                if let Some((_, known)) = names.get_mut(id) {
                    *known = *inode;
                }
            }
            _ => {}
        }
    }
    let (mut found, mut is_same) = (Vec::new(), false);
    for (id, (name, known)) in names.into_iter().filter(|(_, (_, known))| *known != 0) {
        match dir.open_existing(&name) {
            Ok((_, inode)) if inode == known => is_same = true,
            Ok((file, inode)) => {
                let state = contents.state.as_ref().and_then(|state| state.files.get(&id));
                let has_lines = state.is_some_and(|state| state.visibility == Visibility::Sealed) && {
                    let (length, crc) = state.map_or((0, 0), |state| (state.length, state.crc));
                    crc_of(&file, length)? == Some(crc)
                };
                found.push((id, inode, has_lines));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound || blames_name(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let taken = found.into_iter().filter(|(.., has_lines)| !is_same || *has_lines);
    let inodes: BTreeMap<_, _> = taken.map(|(id, inode, _)| (id, inode)).collect();
    if let Some(state) = &mut contents.state {
        for (id, file) in &mut state.files {
            file.inode = inodes.get(id).copied().unwrap_or(file.inode);
        }
    }
    for frame in &mut contents.tail {
        if let Frame::Made { id, inode } = frame {
            *inode = inodes.get(id).copied().unwrap_or(*inode);
        }
    }
    Ok(())
}

/// CRC-32C of the first bytes of a file; `None` when it is shorter.
fn crc_of(file: &File, length: u64) -> io::Result<Option<u32>> {
    let (mut crc, mut left) = (0, length);
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..part], length - left)?;
        if read == 0 {
            return Ok(None);
        }
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        left -= read as u64;
    }
    Ok(Some(crc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::journal::{FileState, State};

    #[test]
    fn one_file_with_its_inode_does_not_keep_the_others_from_being_copies() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        let mut state = State::default();
        // By chance the first one has its inode; the second one has its lines; the third one has others.
        for (id, inode, content) in [(0, None, "a\n"), (1, Some(1), "a\n"), (2, Some(2), "b\n")] {
            let name = format!("f{id}");
            let (mut file, found) = dir.create(&format!(".{name}"), 0o640).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let file = FileState {
                name,
                inode: inode.unwrap_or(found),
                visibility: Visibility::Sealed,
                length: 2,
                crc: crc32c::crc32c(b"a\n"),
                ..FileState::default()
            };
            state.files.insert(id, file);
        }
        let known = state.clone();
        let mut contents = Contents { state: Some(state), ..Contents::default() };
        take_copies(&mut contents, &dir).unwrap();
        let state = contents.state.unwrap();
        let changed: Vec<_> = (0..3).filter(|id| state.files[id].inode != known.files[id].inode).collect();
        assert_eq!(changed, [1]);
    }

    #[test]
    fn plain_assignments_are_read_and_what_a_shell_would_do_is_refused() {
        let text = "# a comment\n\nexport A=1\nB='two words'\n  C=\"x y\"\nexport MTGA_KAFKA__INSTANCE_ID=\"$(hostname)\"\nD=\n";
        let set = assignments(text).unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "x y"), ("D", "")];
        assert_eq!(set, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for line in [
            "A=$(id)",
            "A=\"$B\"",
            "A=1; B=2",
            ". other.env",
            "if true; then",
            "A=`id`",
            "A=a b",
            "A='a'b",
            "A=\"a\\\"b\"",
        ] {
            let mistake = assignments(&format!("X=1\n{line}\n")).unwrap_err();
            assert!(mistake.starts_with("config/common.env:2: "), "{line}: {mistake}");
        }
    }

    #[test]
    fn only_a_mark_that_was_written_as_a_whole_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path().to_owned());
        let path = places.root.join(MARKER);
        let refuse_adopted = |places: &Places| {
            refuse_adopted(places).map_err(|broken| match broken {
                Broken::Lasting(failure) => failure,
                Broken::Passing(failure) => panic!("{failure}"),
            })
        };
        assert_eq!(refuse_adopted(&places), Ok(()));
        fs::write(&path, "\n").unwrap();
        assert_eq!(refuse_adopted(&places), Ok(()), "an empty file says nothing");
        for other in [b"{\"position\": 1}\n".as_slice(), b"\xff"] {
            fs::write(&path, other).unwrap();
            let refused = refuse_adopted(&places).unwrap_err();
            assert!(refused.kind == FailureKind::Config && refused.message.contains("remove it"), "{refused}");
        }
        let marker = Marker { by: "b".into(), path: "/p".into(), host: "h".into(), at: "t".into() };
        fs::write(&path, serde_json::to_string(&marker).unwrap()).unwrap();
        let refused = refuse_adopted(&places).unwrap_err();
        assert!(refused.message.contains("was adopted at t by the home /p on h"), "{refused}");
    }
}
