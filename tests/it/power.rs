//! Power cuts: everything that a home keeps lies on a disk that forgets what was not synced (`harness::disk`).
//!
//! A file that is open at a cut may be shorter afterwards, but never below its length at the last checkpoint; no byte below that ever
//! changes. At the end every record is where the oracle wants it, once, and so is every entry of the failure queue.
//!
//! With `sink.visibility: sealed` a file that has its name after a cut stays as it is for ever, and in the end nothing is hidden.
//!
//! `scripts/kill-loop` runs [`the_long_loop`] with hundreds of cuts.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mtga::config::Visibility;
use mtga::control::FailureEntry;
use mtga::msource::journal;
use mtga::record::Reason;
use xxhash_rust::xxh3::xxh3_128;

use crate::harness::disk::{Layer, Model};
use crate::harness::events;
use crate::harness::oracle::{self, Outcome};
use crate::harness::process::{Finished, Service};
use crate::harness::records::Random;
use crate::harness::tail::Tail;
use crate::harness::tally::Tally;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};
use crate::sealed::{STEPS, steps_alone};

/// A home on a disk that loses power.
struct Rig {
    home: Home,
    layer: Layer,
    checkpointed: Checkpointed,
}

impl Rig {
    fn new(topic: &Topic, configure: impl FnOnce(&mut Home)) -> Self {
        let mut home = Home::new(topic);
        configure(&mut home);
        let layer = Layer::below(&home);
        Self { home, layer, checkpointed: Checkpointed::default() }
    }

    /// Starts the service; it dies at the fault point, if one is named.
    fn start(&self, point: Option<&str>) -> Service {
        self.home.foreground_with(|command| {
            if let Some(point) = point {
                command.env("FAULT_POINT", point);
            }
            self.layer.command(command)
        })
    }

    /// Runs the service until it dies at this fault point.
    fn die(&self, point: &str) {
        self.start(Some(point)).wait_killed(point);
    }

    /// Cuts the power below a service that is dead.
    fn cut(&mut self, model: Model) {
        self.layer.power_cut(model);
        self.checkpointed.look(&self.home);
    }

    /// Waits until everything produced can be seen.
    fn wait_seen(&self, produced: &[Record]) {
        self.home.wait_done(produced);
        wait_until("everything is published", SOON, || {
            let hidden = events::hidden(&self.home.path("data"));
            holds(hidden.is_empty(), hidden)
        });
    }

    /// Runs the service to the end of its work, twice: the second time with what is on the disk alone.
    fn assert_exactly(mut self, produced: &[Record]) {
        for time in 1..=2 {
            let service = self.start(None);
            self.wait_seen(produced);
            self.home.assert_exactly(produced);
            self.home.mtga(["verify"]).code(0);
            let end = if time == 1 { Service::kill } else { Service::terminate };
            end(service);
            // From what is on the disk, since a running service lists ten thousand at most.
            assert_eq!(queue(&self.home, &self.layer), expected_queue(produced), "the failure queue");
            if time == 1 {
                self.cut(Model::Strict);
            }
        }
        self.checkpointed.look(&self.home);
    }
}

/// The bytes of event files that a checkpoint covered at some cut, as length and hash: they must stay as they are.
#[derive(Default)]
struct Checkpointed {
    files: BTreeMap<String, (u64, u128)>,
    /// Files that went on at the last look.
    going_on: Vec<String>,
    /// Sealed files and manifests that had their names at some cut.
    published: BTreeMap<PathBuf, u128>,
}

impl Checkpointed {
    /// Compares the files with what was there, and remembers what is there by now.
    fn look(&mut self, home: &Home) {
        for (path, hash) in &self.published {
            let bytes = fs::read(path).unwrap_or_else(|error| panic!("{} was published: {error}", path.display()));
            assert_eq!(xxh3_128(&bytes), *hash, "{} was published and has changed", path.display());
        }
        let read =
            |name: &str| fs::read(home.path("data").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (name, (length, hash)) in &self.files {
            let bytes = read(name);
            let kept = bytes.get(..*length as usize).map(xxh3_128);
            assert_eq!(
                kept,
                Some(*hash),
                "{name}: the first {length} bytes were checkpointed, and {} are left",
                bytes.len()
            );
        }
        let contents = journal::read(&home.path("tmp/store/journal")).expect("the journal can be read");
        let Some(state) = contents.state else { return };
        if state.visibility == Visibility::Sealed {
            self.look_at_published(home);
        }
        let live = state.files.into_values().filter(|file| file.visibility == Visibility::Live);
        let lengths: BTreeMap<_, _> = live.map(|file| (file.name, file.length)).collect();
        // One that went on before and does not any more is finished: all of it is checkpointed.
        let finished = self.going_on.iter().filter(|name| !lengths.contains_key(*name));
        let lengths_of_finished = finished.map(|name| (name.clone(), u64::MAX)).collect::<Vec<_>>();
        for (name, length) in lengths.iter().map(|(name, length)| (name.clone(), *length)).chain(lengths_of_finished) {
            if length > 0 {
                let bytes = read(&name);
                let length = if length == u64::MAX { bytes.len() as u64 } else { length };
                let there = bytes.get(..length as usize);
                let there =
                    there.unwrap_or_else(|| panic!("{name}: {length} bytes checkpointed, {} left", bytes.len()));
                self.files.insert(name, (length, xxh3_128(there)));
            }
        }
        self.going_on = lengths.into_keys().collect();
    }

    /// A sealed file stays what it was when it was first there after a cut, and so does its manifest.
    fn look_at_published(&mut self, home: &Home) {
        let dir = home.path("data");
        for path in events::paths(&dir).into_iter().chain(events::manifests(&dir)) {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            self.published.insert(path, xxh3_128(&bytes));
        }
    }
}

/// Partition, offset, reason and size of each entry of the failure queue.
type Queue = Vec<(i32, i64, Reason, u64)>;

/// The failure queue of a home whose service is dead, read above the layer: the command repairs the home first.
fn queue(home: &Home, layer: &Layer) -> Queue {
    let mut command = home.command();
    let list = command.args(["--json", "failure_queue_list", "--limit", "1000000"]);
    let list = Finished::run(layer.command(list), SOON).success();
    let failures: Vec<FailureEntry> = serde_json::from_str(&list).expect("a failure queue");
    let mut queue: Queue = failures.iter().map(|e| (e.partition, e.offset, e.reason, e.size)).collect();
    queue.sort_by_key(|(partition, offset, ..)| (*partition, *offset));
    queue
}

fn expected_queue(produced: &[Record]) -> Queue {
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    let mut queue = Queue::new();
    for record in produced {
        let offset = next.entry(record.partition).or_default();
        if let Outcome::Rejected(reason) = oracle::outcome(record) {
            queue.push((
                record.partition,
                *offset,
                reason,
                record.value.as_ref().map_or(0, |value| value.len() as u64),
            ));
        }
        *offset += 1;
    }
    queue.sort_by_key(|(partition, offset, ..)| (*partition, *offset));
    queue
}

/// What one run of the loop does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    kills: u64,
    /// Whether the power goes with most of the kills.
    power: Power,
    /// How long each sync takes, on a slow disk.
    sync: Option<Duration>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Stays,
    Goes,
}

impl Plan {
    fn cuts(kills: u64, seed: u64) -> Self {
        Self { kills, power: Power::Goes, sync: None, seed }
    }

    fn on_a_slow_disk(self, sync: Duration) -> Self {
        Self { sync: Some(sync), ..self }
    }

    /// How long a start and what is written first may take: dozens of syncs.
    fn patience(&self) -> Duration {
        SOON + self.sync.unwrap_or_default() * 60
    }

    /// Whether the layer is needed; without it the service runs at its usual speed.
    fn needs_layer(&self) -> bool {
        self.power == Power::Goes || self.sync.is_some()
    }

    /// Kills the service again and again under load, at random moments: mostly while it writes, sometimes while it starts. A
    /// power cut follows three times in four.
    fn run(self, rig: &mut Rig) {
        let mut random = Random(self.seed);
        let mut written = 0;
        for kill in 1..=self.kills {
            let service = if self.needs_layer() { rig.start(None) } else { rig.home.foreground() };
            // No condition to wait for: the moment is to be any one.
            let moment = if random.below(4) == 0 {
                random.below(800)
            } else {
                wait_for_more(&rig.home, &mut written, self.patience());
                random.below(300)
            };
            std::thread::park_timeout(Duration::from_millis(moment));
            service.kill();
            match (self.power, random.below(4)) {
                (Power::Stays, _) | (_, 0) => {}
                (_, 1) => rig.cut(Model::Strict),
                _ => rig.cut(Model::Random(self.seed.wrapping_add(kill))),
            }
        }
    }
}

/// Waits until more is written than the last time.
fn wait_for_more(home: &Home, written: &mut u64, patience: Duration) {
    wait_until("something more is written", patience, || {
        let now = home.try_status()?.counts.written;
        let more = now > *written;
        *written = now;
        holds(more, now)
    });
}

/// Runs a plan with a load beside it, and the service to its end.
fn assert_exactly_once(plan: Plan, configure: impl FnOnce(&mut Home)) -> Tally {
    // For whoever looks at a failure.
    println!("{plan:?}");
    let topic = Topic::create("power", 4);
    let mut rig = Rig::new(&topic, configure);
    if let Some(sync) = plan.sync {
        rig.layer.slow_syncs("/", sync..sync);
    }
    let tail = (plan.power == Power::Stays).then(|| Tail::follow(&rig.home.path("data")));
    let load = topic.load_of(25, Codec::Snappy, Mix::Dirty);
    plan.run(&mut rig);
    let produced = load.stop();
    rig.layer.heal();
    let service = rig.start(None);
    rig.wait_seen(&produced);
    let tally = Tally::new([&rig.home], &produced);
    println!("{plan:?} {tally:?}");
    service.kill();
    if let Some(tail) = tail {
        tail.assert_nothing_was_taken_back();
    }
    rig.assert_exactly(&produced);
    tally
}

/// What `scripts/kill-loop` runs: `MTGA_KILL_LOOP` has its arguments.
#[test]
#[ignore = "takes as long as it is told to; run by scripts/kill-loop"]
fn the_long_loop() {
    #[expect(clippy::disallowed_methods, reason = "a test has no main through which the environment could enter")]
    let text = std::env::var("MTGA_KILL_LOOP").expect("scripts/kill-loop says what to do");
    let [kills, power, sync, mode, assignment, visibility, seed] = text.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    let power = if power == "goes" { Power::Goes } else { Power::Stays };
    let number = |text: &str| text.parse().expect("a number");
    let sync = Some(number(sync)).filter(|millis| *millis > 0).map(Duration::from_millis);
    let plan = Plan { kills: number(kills), power, sync, seed: number(seed) };
    let tally = assert_exactly_once(plan, |home| {
        home.set("sink.mode", mode);
        if assignment == "group" {
            home.in_group();
        }
        if visibility == "sealed" {
            sealed(home);
        }
    });
    println!(
        "kills={kills} power={power:?} sync={sync:?} visibility={visibility} mode={mode} assignment={assignment} {tally} seed={seed}"
    );
}

#[test]
fn power_cuts_under_load_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(6, 1), |_| ());
}

#[test]
fn power_cuts_in_stream_mode_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(4, 2), |home| {
        home.set("sink.mode", "stream");
    });
}

#[test]
fn kills_and_power_cuts_on_a_disk_whose_syncs_take_half_a_second_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(3, 7).on_a_slow_disk(Duration::from_millis(500)), |home| sealed(home.in_group()));
}

#[test]
fn power_cuts_in_a_group_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(3, 3), |home| {
        home.in_group();
    });
}

#[test]
fn power_cuts_while_files_turn_over_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(4, 4), |home| {
        home.set("sink.rotate.size", "64KiB").set("sink.batch.lines", 30).set("workers", 3);
    });
}

/// The steps of a first start, in order, and of a checkpoint; those of a recovery.
const STARTING: [&str; 7] = [
    "recipe.unnamed",
    "start.recovered",
    "journal.begun",
    "journal.unnamed",
    "journal.named",
    "start.begun",
    "start.applied",
];
const CHECKPOINT: [&str; 5] =
    ["checkpoint.begun", "checkpoint.synced", "checkpoint.noted", "checkpoint.durable", "checkpoint.saved"];

#[test]
fn a_power_cut_at_each_step_of_the_first_start_leaves_a_home_that_starts() {
    let topic = Topic::create("first", 2);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let mut rig = Rig::new(&topic, |_| ());
    for (round, point) in STARTING.into_iter().chain(CHECKPOINT).enumerate() {
        for model in [Model::Strict, Model::Random(round as u64)] {
            rig.die(point);
            rig.cut(model);
            // There is something to checkpoint, whatever was saved.
            produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 20));
        }
    }
    rig.assert_exactly(&produced);
}

#[test]
fn a_power_cut_at_each_step_of_a_checkpoint_or_a_start_under_load_loses_and_repeats_nothing() {
    let topic = Topic::create("steps", 4);
    let mut rig = Rig::new(&topic, |home| {
        home.set("store.checkpoint", "300ms");
    });
    let load = topic.load_of(25, Codec::Snappy, Mix::Dirty);
    for point in CHECKPOINT {
        // What one of the two has and the other has not.
        for model in [Model::Only("/data/"), Model::Only("/journal/")] {
            rig.die(&format!("{point}:2"));
            rig.cut(model);
        }
    }
    // A kill without a power cut leaves what the next start finds in memory only, and has to make durable itself.
    for point in &STARTING[1..] {
        rig.die("checkpoint.begun:2");
        rig.die(point);
        rig.cut(Model::Strict);
    }
    rig.assert_exactly(&load.stop());
}

#[test]
fn a_power_cut_during_the_recovery_from_a_power_cut_is_recovered_from() {
    let topic = Topic::create("again", 4);
    let mut rig = Rig::new(&topic, |home| {
        home.set("sink.batch.lines", 50).set("store.checkpoint", "1h");
    });
    let mut produced = Vec::new();
    for round in 0..2 {
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 600));
        let service = rig.start(None);
        rig.home.wait_written(oracle::expect(&produced).counts.written);
        service.kill();
        // Blocks without their lines.
        rig.cut(Model::Only("/journal/"));
        for (point, model) in [
            ("recovery.mended", Model::Random(round)),
            ("recovery.unsynced", Model::Only("/journal/")),
            ("recovery.unsynced", Model::Random(round + 100)),
            ("journal.unnamed", Model::Strict),
        ] {
            rig.die(point);
            rig.cut(model);
        }
    }
    rig.home.set("store.checkpoint", "1s");
    rig.assert_exactly(&produced);
}

/// A reject of 256 KiB: some dozens of them fill a segment of the journal.
fn large_reject(n: u64) -> Record {
    let value = format!("{{broken {n} {}", "x".repeat(256 << 10)).into_bytes();
    Record { partition: 0, key: None, value: Some(value), timestamp: 1_700_000_000_000 }
}

/// Cuts the power at each of these steps, with more rejects each time.
fn assert_turns_lose_no_reject(history: &str, steps: &[&str]) {
    let topic = Topic::create("turn", 1);
    let mut rig = Rig::new(&topic, |home| {
        home.set("store.history", history).set("store.checkpoint", "200ms");
    });
    let mut produced = Vec::new();
    for (round, step) in steps.iter().enumerate() {
        let more: Vec<_> = (0..80).map(|n| large_reject(produced.len() as u64 + n)).collect();
        topic.produce(Codec::Snappy, &more);
        produced.extend(more);
        rig.die(step);
        rig.cut(if round % 2 == 1 { Model::Strict } else { Model::Random(round as u64) });
    }
    rig.assert_exactly(&produced);
}

#[test]
fn power_cuts_while_segments_of_the_journal_turn_over_lose_no_reject() {
    // The first time that a segment begins is the start.
    assert_turns_lose_no_reject("1h", &["journal.begun:2", "journal.unnamed:2", "journal.named:2"]);
}

#[test]
fn power_cuts_lose_no_reject_that_is_in_no_segment_any_more() {
    // A start copies what segments before it have.
    let steps = ["journal.named:2", "copy.written", "copy.named", "journal.named:3", "journal.begun:2"];
    assert_turns_lose_no_reject("1ms", &steps);
}

/// Files are hidden until they are complete, which is soon.
fn sealed(home: &mut Home) {
    home.set("sink.visibility", "sealed");
    home.set("sink.rotate", serde_json::json!({"size": "300KiB", "age": "1s", "idle": "500ms"}));
}

#[test]
fn power_cuts_while_files_are_hidden_and_published_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(5, 5), sealed);
}

#[test]
fn power_cuts_while_files_are_hidden_and_published_in_a_group_lose_and_repeat_nothing() {
    assert_exactly_once(Plan::cuts(4, 6), |home| sealed(home.in_group()));
}

/// Cuts the power at each of these steps, the first time of one and the second time of the next.
fn assert_cut_at_each_step(steps: &[&str], configure: impl FnOnce(&mut Home)) {
    let topic = Topic::create("sealcut", 3);
    let mut rig = Rig::new(&topic, configure);
    let load = topic.load_of(25, Codec::Snappy, Mix::Dirty);
    for (index, step) in steps.iter().enumerate() {
        if *step == "refuse.noted" {
            // What was prepared is not whole any more.
            for path in events::hidden(&rig.home.path("data")) {
                fs::remove_file(path).expect("a hidden file");
            }
        }
        // The step before it may have left a range to be refused, or nothing: so that one is reached once at least.
        let nth = if *step == "refuse.noted" { 1 } else { 1 + index % 2 };
        rig.die(&format!("{step}:{nth}"));
        rig.cut(if index % 2 == 0 { Model::Strict } else { Model::Random(index as u64) });
    }
    let produced = load.stop();
    rig.assert_exactly(&produced);
}

#[test]
fn a_power_cut_at_each_step_of_publication_loses_and_repeats_nothing() {
    assert_cut_at_each_step(&steps_alone(), sealed);
}

#[test]
fn a_power_cut_at_each_step_of_the_commit_in_a_group_loses_and_repeats_nothing() {
    let refused = |step| matches!(step, "seal.prepared" | "seal.commit").then_some("refuse.noted");
    let steps: Vec<_> = STEPS.into_iter().flat_map(|step| std::iter::once(step).chain(refused(step))).collect();
    assert_cut_at_each_step(&steps, |home| sealed(home.in_group()));
}
