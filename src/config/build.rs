//! From the values on top of all layers to the [`Config`]: types, bounds, and what must fit together.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::kafka::{Port, check_address, check_name, check_properties, check_topics, parse_brokers};
use super::layer::Fault;
use super::read::{Reader, parse_number};
use super::units::{parse_duration, parse_permissions, parse_size, parse_start};
use super::values::Values;
use super::{
    Batch, Compression, Config, FailureQueue, Http, Kafka, Log, Reporter, Rotate, Rpc, Sink, Start, Store, TimeZone,
    Visibility,
};
use crate::zone::Tzdata;

/// Least `memory`: below it, one fetch with a record of the largest default size, its decompressed copy and the line
/// made of it would leave no room for the next one.
const LEAST_MEMORY: u64 = 16 << 20;

/// Most bytes in the path of a Unix socket, less the closing zero.
const LONGEST_SOCKET: usize = 107;

/// The shapes of a webhook's body.
const REPORTER_FORMATS: [&str; 5] = ["json", "dingtalk", "feishu", "wecom", "slack"];

const MILLISECOND: Duration = Duration::from_millis(1);
/// Least time between two events of a timer that may fire for ever: shorter ones are only work.
const LEAST_PERIOD: Duration = Duration::from_millis(10);

/// Builds the configuration; gives also every mistake (with one, the configuration is of no use) and every warning.
pub(super) fn config(values: &Values, home: &Path, cpus: usize, tzdata: &Tzdata) -> (Config, Vec<Fault>, Vec<Fault>) {
    let mut reader = Reader::new(values);
    let r = &mut reader;
    let config = Config {
        home: home.to_owned(),
        kafka: kafka(r, values),
        store: Store {
            path: r.path("store.path", home),
            history: r.duration("store.history", Duration::ZERO),
            history_bytes: r.size("store.history_bytes", 0),
            checkpoint: r.duration("store.checkpoint", LEAST_PERIOD),
        },
        failure_queue: failure_queue(r),
        rpc: rpc(r, home),
        memory: r.size("memory", LEAST_MEMORY),
        app_id: r.number("app_id", 1..=u64::MAX),
        workers: workers(r, cpus),
        time_zone: r.parsed("time_zone", |text| tzdata.find(text)).unwrap_or(TimeZone::UTC),
        settings: r.path("settings", home),
        validation: r.choice("validation"),
        uuid: r.choice("uuid"),
        sink: sink(r, home),
        http: http(r),
        log: Log {
            dir: r.path("log.dir", home),
            level: r.choice("log.level"),
            rotation: r.choice("log.rotation"),
            max_size: r.size("log.max_size", 1 << 10),
            keep: r.number("log.keep", 1..=1_000_000) as usize,
            stack_level: r.choice("log.stack_level"),
        },
        reporter: webhook(r),
    };
    check_together(r, &config);
    refuse_what_is_not_there_yet(r, &config);
    let mut warnings = Vec::new();
    for (key, set) in [("http.listen", &config.http.listen), ("reporter.url", &config.reporter.url)] {
        if !set.is_empty() {
            warnings.push((reader.origin(key), "is checked but not used: this version does not serve it".to_owned()));
        }
    }
    let strange = values.strange_characters();
    // What is wrong with such a value besides comes of that.
    reader.faults.retain(|(origin, _)| !strange.iter().any(|(other, _)| other == origin));
    reader.faults.extend(strange);
    reader.faults.extend(check_properties(values));
    (config, reader.faults, warnings)
}

fn kafka(r: &mut Reader<'_>, values: &Values) -> Kafka {
    let topics = r.items("kafka.topics").to_vec();
    if let Err(message) = check_topics(&topics) {
        r.fault("kafka.topics", message);
    }
    Kafka {
        brokers: r.parsed("kafka.brokers", parse_brokers).unwrap_or_default(),
        topics,
        group_id: r.name("kafka.group_id"),
        assignment: r.choice("kafka.assignment"),
        start: r.parsed("kafka.start", parse_start).unwrap_or(Start::Earliest),
        out_of_range: r.choice("kafka.out_of_range"),
        instance_id: r
            .optional("kafka.instance_id", |text| check_name(text).map(|()| text.to_owned()))
            .unwrap_or_default(),
        payload: r.choice("kafka.payload"),
        librdkafka: values.properties().map(|(name, _, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}

fn failure_queue(r: &mut Reader<'_>) -> FailureQueue {
    FailureQueue {
        max_attempts: r.number("failure_queue.max_attempts", 1..=u64::from(u32::MAX)) as u32,
        backoff_from: r.duration("failure_queue.backoff.from", LEAST_PERIOD),
        backoff_to: r.duration("failure_queue.backoff.to", LEAST_PERIOD),
        max_bytes: r.size("failure_queue.max_bytes", 1 << 20),
        when_full: r.choice("failure_queue.when_full"),
    }
}

fn rpc(r: &mut Reader<'_>, home: &Path) -> Rpc {
    let socket = r.path("rpc.socket", home);
    let length = socket.as_os_str().as_bytes().len();
    if length > LONGEST_SOCKET {
        r.fault(
            "rpc.socket",
            format!("the path is {length} bytes long, a socket's can have {LONGEST_SOCKET}: choose a shorter one"),
        );
    }
    Rpc {
        socket,
        permissions: r.parsed("rpc.permissions", parse_permissions).unwrap_or_default(),
        group: r.text("rpc.group").to_owned(),
        timeout: r.duration("rpc.timeout", Duration::from_millis(100)),
    }
}

fn workers(r: &mut Reader<'_>, cpus: usize) -> usize {
    let count = r.parsed("workers", |text| match text {
        "auto" => Ok(cpus.clamp(1, 1024)),
        _ => {
            parse_number(text, &(1..=1024)).map(|count| count as usize).map_err(|message| format!("{message}, or auto"))
        }
    });
    count.unwrap_or(1)
}

fn sink(r: &mut Reader<'_>, home: &Path) -> Sink {
    let visibility = r.choice("sink.visibility");
    Sink {
        mode: r.choice("sink.mode"),
        dir: r.path("sink.dir", home),
        file: r.parsed("sink.file", parse_file).unwrap_or_default(),
        batch: Batch {
            lines: r.number("sink.batch.lines", 1..=1_000_000_000) as usize,
            bytes: r.size("sink.batch.bytes", 1),
            linger: r.duration("sink.batch.linger", MILLISECOND),
        },
        rotate: Rotate {
            size: r.size("sink.rotate.size", 1),
            age: rotate_age(r, visibility),
            idle: r.duration("sink.rotate.idle", LEAST_PERIOD),
        },
        fsync: r.choice("sink.fsync"),
        visibility,
        compression: r.choice("sink.compression"),
        keep_age: r.optional("sink.keep.age", parse_duration),
        keep_bytes: r.optional("sink.keep.bytes", parse_size),
        max_open_files: r.number("sink.max_open_files", 1..=1_000_000) as usize,
        permissions: r.parsed("sink.permissions", parse_permissions).unwrap_or_default(),
    }
}

/// `auto` is short for sealed files, since their age is how long their events wait to be seen.
fn rotate_age(r: &mut Reader<'_>, visibility: Visibility) -> Duration {
    match (r.text("sink.rotate.age"), visibility) {
        ("auto", Visibility::Live) => Duration::from_hours(1),
        ("auto", Visibility::Sealed) => Duration::from_mins(5),
        _ => r.duration("sink.rotate.age", LEAST_PERIOD),
    }
}

/// Without `{seq}` a name would be used twice.
fn parse_file(text: &str) -> Result<String, String> {
    if text.matches("{seq}").count() == 1 {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` must have {{seq}} once: it counts up, so that no name is used twice"))
}

fn http(r: &mut Reader<'_>) -> Http {
    let listen = r.optional("http.listen", |text| {
        check_address(text, Port::Required)
            .map(|()| text.to_owned())
            .map_err(|()| format!("`{text}` is no address, write host:port, such as 127.0.0.1:7070"))
    });
    Http {
        listen: listen.unwrap_or_default(),
        hosts: r.items("http.hosts").to_vec(),
        token: r.text("http.token").to_owned(),
    }
}

fn webhook(r: &mut Reader<'_>) -> Reporter {
    let url = r.optional("reporter.url", |text| {
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(text.to_owned());
        }
        // The message must not show the address: whoever knows it can post there.
        Err("is no address of a webhook, it must start with https:// or http://".to_owned())
    });
    let format = r.parsed("reporter.format", |text| {
        if REPORTER_FORMATS.contains(&text) {
            return Ok(text.to_owned());
        }
        Err(format!("`{text}` is not one of {}", REPORTER_FORMATS.join(", ")))
    });
    Reporter {
        url: url.unwrap_or_default(),
        format: format.unwrap_or_default(),
        level: r.choice("reporter.level"),
        min_interval: r.duration("reporter.min_interval", Duration::ZERO),
    }
}

/// Values that are possible alone and impossible together. Each is told at a key that someone set.
fn check_together(r: &mut Reader<'_>, config: &Config) {
    let queue = &config.failure_queue;
    if queue.backoff_from > queue.backoff_to {
        r.conflict("failure_queue.backoff.from", "failure_queue.backoff.to", |other| {
            format!("does not fit `{other}`: `from` must be the shorter one")
        });
    }
    if config.sink.batch.bytes > config.memory / 2 {
        r.conflict("sink.batch.bytes", "memory", |other| {
            format!("does not fit `{other}`: a batch must fit twice into `memory`, or the pipeline waits for one that cannot fill")
        });
    }
    // `stream` and `sealed` go together: small blocks are of no use to files that nobody sees yet, and no harm.
    if config.sink.compression != Compression::None && config.sink.visibility == Visibility::Live {
        r.conflict("sink.compression", "sink.visibility", |other| {
            format!(
                "does not fit `{other}`: a file that is tailed while it is written cannot be compressed, set \
                 sink.visibility to sealed or sink.compression to none"
            )
        });
    }
    let dirs = [("log.dir", &config.log.dir), ("sink.dir", &config.sink.dir), ("store.path", &config.store.path)];
    for (index, (key, dir)) in dirs.iter().enumerate() {
        for (other, _) in dirs[..index].iter().filter(|(_, other)| other == dir) {
            r.conflict(key, other, |other| format!("is the same directory as `{other}`, give it one of its own"));
        }
    }
}

/// What the contract of later versions has and this one does not do: refused, since to ignore it would break a promise.
fn refuse_what_is_not_there_yet(r: &mut Reader<'_>, config: &Config) {
    const MESSAGE: &str = "not available in this version, remove it";
    let sink = &config.sink;
    let asked = [("sink.keep.age", sink.keep_age.is_some()), ("sink.keep.bytes", sink.keep_bytes.is_some())];
    for (key, _) in asked.iter().filter(|(_, asked)| *asked) {
        r.fault(key, MESSAGE);
    }
}
