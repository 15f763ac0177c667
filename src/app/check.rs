//! Looks at everything that the configuration names, before anything is started: all mistakes at once.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::adopt::other::refuse_adopted;
use super::asker::Asker;
use super::pipeline::instance;
use super::places::Places;
use crate::cli::Scope;
use crate::config::Config;
use crate::control::{Failure, FailureKind};
use crate::limits::Shares;
use crate::msink::name::NameTemplate;
use crate::msource::native::Client;
use crate::msource::properties;
use crate::msource::rights::Resource;
use crate::settings::Settings;

/// Everything that is wrong.
pub(super) fn check(config: &Config, scope: Scope) -> Vec<Failure> {
    let adopted = refuse_adopted(&Places::of(config)).err();
    let mut failures: Vec<_> = adopted.into_iter().map(Failure::from).collect();
    let mut wrong = |message: String| failures.push(Failure::new(FailureKind::Config, message));
    if let Err(mistakes) = Settings::load(&config.settings, config.app_id) {
        for mistake in mistakes {
            wrong(mistake.to_string());
        }
    }
    if let Err(message) = NameTemplate::parse(&config.sink.file, config.app_id, &instance(config), config.time_zone) {
        wrong(format!("mtga.yml: sink.file: {message}"));
    }
    for (key, directory) in
        [("sink.dir", &config.sink.dir), ("store.path", &config.store.path), ("log.dir", &config.log.dir)]
    {
        if let Err(message) = usable(directory) {
            wrong(format!("{key}: {message}"));
        }
    }
    let Shares { limit, files, .. } = Shares::current();
    if config.sink.max_open_files > files {
        wrong(format!(
            "sink.max_open_files: {} does not fit: this process may have {limit} descriptors, which leaves {files} for event \
             files; write at most that, or raise the limit (`ulimit -Hn`, LimitNOFILE in a systemd unit)",
            config.sink.max_open_files
        ));
    }
    if scope == Scope::Online {
        // librdkafka's own judgement of its properties; it starts threads, which a process that forks must not have.
        if let Err(error) = Client::new(&properties::consuming(config)) {
            wrong(format!("msource.yml: kafka.librdkafka: {error}"));
        } else {
            failures.extend(online(config));
        }
    }
    failures
}

/// What brokers have to say: which rights are missing, then whether the topics are there.
fn online(config: &Config) -> Vec<Failure> {
    let mut failures = Vec::new();
    let asked = Asker::new(config, config.rpc.timeout).and_then(|asker| {
        let missing = asker.missing_rights(config)?;
        failures.extend(missing.iter().map(|right| Failure::new(FailureKind::Config, right.to_string())));
        // Topics that may not be described are not found either.
        if missing.iter().any(|right| matches!(right.resource, Resource::Topic(_))) {
            return Ok(());
        }
        asker.topics(&config.kafka.topics).map(drop)
    });
    failures.extend(asked.err());
    failures
}

/// Whether a directory can be used, or made.
fn usable(directory: &Path) -> Result<(), String> {
    let mut existing = directory;
    loop {
        match existing.metadata() {
            Ok(metadata) if !metadata.is_dir() => return Err(format!("{} is no directory", existing.display())),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match existing.parent() {
                Some(parent) => existing = parent,
                None => return Err(format!("{} does not exist", directory.display())),
            },
            Err(error) => return Err(format!("cannot look at {}: {error}", existing.display())),
        }
    }
    access(existing, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|error| format!("{} is not writable for this user: {}", existing.display(), error.desc()))
}
