//! Homes as earlier versions of the program left them: a start reads them, finishes what they had begun, and goes on in
//! its own format.
//!
//! `tests/fixtures/home-v<N>-<what>.tar.zst` holds the store and the event files of a home that a program of format `N` left
//! after a kill. Before the format is raised, the ignored test here keeps homes of the format in use:
//! `cargo test --features faults --test it keep_homes_of_this_format -- --ignored`. A home of an older format is made by the
//! commit before that one.
//!
//! A kept home names its topic and the topic's id, which are others each time. Both are replaced when it is unpacked, by others
//! of the same length, in the frames of the journal and in the values of the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mtga::control::Counts;
use mtga::msource::journal;
use mtga::msource::native::Client;
use serde_json::json;

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// What a home was doing when it was killed.
#[derive(Clone, Copy, Debug)]
enum Kept {
    /// It was writing a block: its last file ends within a line. Its failure queue has entries, and a copy beside the journal.
    Live,
    /// It had prepared hidden files to be published.
    Sealed,
}

/// Records of which a kept home had done the first ones, and was killed over the others.
const RECORDS: (u64, u64) = (120, 40);

impl Kept {
    fn path(self, version: u32) -> PathBuf {
        let name = format!("home-v{version}-{self:?}.tar.zst").to_lowercase();
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    /// The topic of a kept home, or one that takes its place: as long a name.
    fn topic(self, unique: &str) -> Topic {
        Topic::named(&format!("{:_<32}", format!("kept_{self:?}_{unique}")), 1)
    }

    fn home(self, topic: &Topic) -> Home {
        let mut home = Home::new(topic);
        home.set("store.history_bytes", "0B");
        match self {
            Self::Live => home.set("sink.file", "events.{seq}.log"),
            Self::Sealed => home
                .set("sink.visibility", "sealed")
                .set("sink.file", "{partition}.{seq}.log")
                .set("sink.rotate", json!({"idle": "500ms"})),
        };
        home
    }
}

/// The id of a topic, as the program knows it.
fn id(topic: &Topic) -> String {
    let properties = [("bootstrap.servers", topic.brokers.as_str()), ("group.id", "asks")];
    let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let client = Client::new(&properties.into()).expect("a client");
    let mut found = String::new();
    wait_until("the topic's id", SOON, || {
        let mut infos =
            client.describe_topics(std::slice::from_ref(&topic.name), SOON).map_err(|error| error.to_string())?;
        let info = infos.pop().expect("an answer for the topic").map_err(|error| error.to_string())?;
        found = info.id;
        Ok(())
    });
    found
}

/// Steps of a start at which it is killed, in their order.
const STEPS: [&str; 6] =
    ["recovery.unsynced", "start.recovered", "journal.begun", "journal.named", "start.begun", "start.applied"];

/// What of a kept home is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    All,
    /// The journal alone tells of the failure queue: by its copy, and by the frames above that.
    WithoutStore,
}

#[test]
fn a_home_of_an_earlier_format_is_finished_and_goes_on_through_kills_at_every_step_of_its_start() {
    let homes = (3..journal::VERSION).flat_map(|version| [(version, Kept::Live), (version, Kept::Sealed)]);
    let mut homes: Vec<_> = homes.map(|(version, kept)| (version, kept, Left::All)).collect();
    homes.push((3, Kept::Live, Left::WithoutStore));
    for (version, kept, left) in homes {
        let topic = kept.topic(&format!("{}_{version}_{left:?}", std::process::id()));
        let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, RECORDS.0 + RECORDS.1);
        let home = kept.home(&topic);
        unpack(kept, version, &home, &topic);
        match left {
            Left::All => STEPS.into_iter().for_each(|step| home.killed_at(step)),
            Left::WithoutStore => fs::remove_dir_all(home.path("tmp/store/sled")).expect("a store"),
        }
        home.start();
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, RECORDS.0 + RECORDS.1, 30));
        home.wait_done(&produced);
        home.stop();
        let expected = oracle::expect(&produced);
        events::assert_exactly(&expected.lines, &home.events());
        let status = home.status();
        // Rejects are tried again, once, by a program that makes other lines than the one before.
        let again = status.counts.retried;
        let rejected: u64 = expected.counts.rejected.iter().sum();
        assert_eq!(status.counts.rejected.iter().sum::<u64>(), rejected + again);
        let once = Counts { rejected: expected.counts.rejected, retried: 0, ..status.counts };
        assert_eq!((once, status.gap_records), (expected.counts, 0));
        let bad = produced.iter().zip(0..).filter(|(record, _)| is_rejected(record));
        let queued = home.failures().into_iter().map(|entry| entry.offset);
        assert_eq!(queued.collect::<Vec<_>>(), bad.map(|(_, offset)| offset).collect::<Vec<i64>>());
    }
}

#[test]
fn a_header_without_a_value_stays_one_in_the_queue_through_a_kill_and_a_retry_to_the_export() {
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    let topic = Topic::create("headers", 1);
    let headers = OwnedHeaders::new().insert(Header { key: "null", value: None::<&[u8]> });
    let headers = headers.insert(Header { key: "empty", value: Some("") });
    let mut config = rdkafka::ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", &topic.brokers).create().expect("a producer");
    let bad = BaseRecord::<[u8], str>::to(&topic.name).partition(0).payload("no JSON").headers(headers);
    producer.send(bad).expect("room");
    producer.flush(SOON).expect("the broker takes the record");
    let home = Home::new(&topic);
    home.start();
    wait_until("the entry is there", SOON, || holds(home.try_status()?.failure_queue_records == 1, "it is not"));
    home.kill9();
    home.start();
    home.mtga(["retry_failure_queue"]).success();
    let export = home.path("export.jsonl");
    home.mtga(["clear_failure_queue", "--export"].map(Path::new).into_iter().chain([export.as_path()])).success();
    let exported: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&export).expect("the export")).expect("one line of JSON");
    assert_eq!(exported["headers"], json!([{"name": "null", "value": null}, {"name": "empty", "value": ""}]));
    assert_eq!(exported["attempts"], 2);
    home.stop();
}

fn is_rejected(record: &Record) -> bool {
    oracle::expect(std::slice::from_ref(record)).counts.rejected.iter().sum::<u64>() > 0
}

#[test]
#[ignore = "writes into the source tree: run before the format is raised"]
fn keep_homes_of_this_format() {
    for kept in [Kept::Live, Kept::Sealed] {
        let topic = kept.topic(&std::process::id().to_string());
        let home = kept.home(&topic);
        let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, RECORDS.0);
        // The second start finds segments to remove, which it does once the queue is copied.
        for _ in 0..2 {
            home.start();
            home.wait_done(&produced);
            home.stop();
        }
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, RECORDS.0, RECORDS.1));
        match kept {
            Kept::Live => {
                home.killed_at("checkpoint.begun");
                let last = events::paths(&home.path("data")).pop().expect("an event file");
                let file = fs::File::options().write(true).open(last).expect("a file");
                file.set_len(file.metadata().expect("a file").len() - 700).expect("it is cut");
            }
            Kept::Sealed => home.killed_at("seal.prepared"),
        }
        let to = kept.path(journal::VERSION);
        fs::write(to.with_extension("id"), format!("{} {}\n", topic.name, id(&topic))).expect("a file");
        pack(&home, &to);
    }
}

fn pack(home: &Home, to: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sparse", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    let packed = tar.arg("--directory").arg(home.path("")).args(["tmp/store", "data"]).output().expect("tar runs");
    assert!(packed.status.success(), "{packed:?}");
    fs::write(to, zstd::encode_all(packed.stdout.as_slice(), 19).expect("it is compressed")).expect("a file");
}

/// Unpacks a kept home into one of this test, as if its topic had always been this one.
fn unpack(kept: Kept, version: u32, home: &Home, topic: &Topic) {
    let from = kept.path(version);
    let packed = zstd::decode_all(fs::File::open(&from).expect("a kept home")).expect("it is whole");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--directory"]).arg(home.path("")).stdin(Stdio::piped());
    let mut tar = tar.spawn().expect("tar runs");
    std::io::Write::write_all(&mut tar.stdin.take().expect("a pipe"), &packed).expect("tar reads");
    assert!(tar.wait().expect("tar ends").success(), "{}", from.display());
    let names = fs::read_to_string(from.with_extension("id")).expect("a file");
    let (name, known) = names.trim().split_once(' ').expect("a name and an id");
    let replace = |bytes: &mut [u8]| {
        for (old, new) in [(name, topic.name.as_str()), (known, id(topic).as_str())] {
            assert_eq!(old.len(), new.len(), "{old} and {new}");
            while let Some(at) = memchr::memmem::find(bytes, old.as_bytes()) {
                bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
            }
        }
    };
    for entry in fs::read_dir(home.path("tmp/store/journal")).expect("a journal") {
        let path = entry.expect("an entry").path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).expect("a number");
        let mut bytes = fs::read(&path).expect("a segment");
        replace_in_frames(&mut bytes, number, replace);
        fs::write(&path, bytes).expect("a segment");
    }
    let store = sled::open(home.path("tmp/store/sled")).expect("a store");
    for value in store.iter() {
        let (key, value) = value.expect("a value");
        let mut value = value.to_vec();
        replace(&mut value);
        store.insert(key, value).expect("a value");
    }
    store.flush().expect("the store is written");
}

/// Changes the bodies of frames; see `src/msource/journal`.
fn replace_in_frames(bytes: &mut [u8], number: u64, replace: impl Fn(&mut [u8])) {
    let mut rest = bytes;
    while let Some((prefix, behind)) = rest.split_first_chunk_mut::<8>() {
        let length: [u8; 4] = prefix[..4].try_into().expect("four bytes");
        let size = u32::from_le_bytes(length) as usize;
        if size == 0 {
            break;
        }
        let (body, behind) = behind.split_at_mut(size);
        replace(body);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &length), body);
        prefix[4..].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}
