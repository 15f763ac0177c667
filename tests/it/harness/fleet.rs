//! Several homes of one group on one topic, and what their files amount to together.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mtga::control::{Counts, Status};
use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use super::disk::Layer;
use super::process::Service;
use super::topic::{Group, Load};
use super::{Home, Record, SOON, Topic, events, holds, oracle, wait_until};

/// How long the group waits for a member that says nothing: of the classic protocol by our configuration, of the new one
/// by that of the broker (`scripts/kafka`).
pub(crate) const SESSION: Duration = Duration::from_secs(6);

/// How a group divides its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// cooperative-sticky, our default.
    Cooperative,
    /// Everybody gives everything up at each change.
    Eager,
    /// The broker assigns (KIP-848).
    Consumer,
}

/// Who a member is after it was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// A new one.
    Dynamic,
    /// The one that it was.
    Static,
}

/// Instances of one group. Those that run are killed when this is dropped.
pub(crate) struct Fleet {
    pub(crate) topic: Topic,
    group: Group,
    // Before the homes, which are looked after as long as a service runs in them.
    services: Vec<Option<Service>>,
    /// Below whom a layer lies.
    layers: Vec<Option<Layer>>,
    /// How long the members may take for what they are waited for.
    pub(crate) patience: Duration,
    properties: Map<String, Value>,
    pub(crate) homes: Vec<Home>,
}

impl Fleet {
    /// So many homes; none is started.
    pub(crate) fn new(topic: &Topic, count: usize, protocol: Protocol, membership: Membership) -> Self {
        let mut properties = Map::new();
        let mut set = |key: &str, value: String| properties.insert(key.to_owned(), Value::String(value));
        match protocol {
            Protocol::Consumer => drop(set("group.protocol", "consumer".into())),
            Protocol::Cooperative | Protocol::Eager => {
                set("session.timeout.ms", SESSION.as_millis().to_string());
                set("heartbeat.interval.ms", "300".into());
            }
        }
        if protocol == Protocol::Eager {
            set("partition.assignment.strategy", "range".into());
        }
        let homes = (0..count).map(|number| {
            let mut home = Home::new(topic);
            home.set("kafka.assignment", "group").set("kafka.librdkafka", properties.clone());
            if membership == Membership::Static {
                home.set("kafka.instance_id", format!("instance-{number}"));
            }
            home
        });
        Self {
            group: Group::new(&format!("g_{}", topic.name)),
            topic: topic.clone(),
            services: (0..count).map(|_| None).collect(),
            layers: (0..count).map(|_| None).collect(),
            patience: SOON,
            homes: homes.collect(),
            properties,
        }
    }

    /// Sets a property of librdkafka in every configuration.
    pub(crate) fn property(&mut self, key: &str, value: &str) {
        self.properties.insert(key.to_owned(), value.into());
        self.set("kafka.librdkafka", &self.properties.clone());
    }

    /// Sets a key of every configuration.
    pub(crate) fn set(&mut self, key: &str, value: &(impl Into<Value> + Clone)) {
        for home in &mut self.homes {
            home.set(key, value.clone());
        }
    }

    /// Puts an instance on a disk that fails, forgets and delays on command, from its next start on.
    pub(crate) fn put_on_layer(&mut self, number: usize) -> &Layer {
        let home = &self.homes[number];
        self.layers[number].get_or_insert_with(|| Layer::below(home))
    }

    /// Puts every instance on a disk whose syncs take a time of this range, from its next start on.
    pub(crate) fn put_on_slow_disks(&mut self, times: &Range<Duration>) {
        for number in 0..self.homes.len() {
            self.put_on_layer(number).slow_syncs("/", times.clone());
        }
    }

    /// Ends every fault and delay of the disks.
    pub(crate) fn heal_disks(&self) {
        self.layers.iter().flatten().for_each(Layer::heal);
    }

    /// Starts an instance, on its disk.
    fn spawn(&mut self, number: usize, point: Option<&str>) {
        assert!(self.services[number].is_none(), "instance {number} runs");
        let layer = self.layers[number].as_ref();
        let service = self.homes[number].foreground_with(|command| {
            command.envs(point.map(|point| ("FAULT_POINT", point)));
            match layer {
                Some(layer) => layer.command(command),
                None => command,
            }
        });
        self.services[number] = Some(service);
    }

    pub(crate) fn start(&mut self, number: usize) {
        self.spawn(number, None);
    }

    /// Starts an instance that is killed or frozen at this fault point; see `src/fault.rs`.
    pub(crate) fn start_to_fail(&mut self, number: usize, point: &str) {
        self.spawn(number, Some(point));
    }

    /// Waits until an instance is killed at its fault point.
    pub(crate) fn wait_killed(&mut self, number: usize) {
        self.take(number).wait_killed("its fault point");
    }

    /// Waits until an instance is frozen at its fault point.
    pub(crate) fn wait_frozen(&self, number: usize) {
        self.service(number).wait_frozen();
    }

    fn service(&self, number: usize) -> &Service {
        self.services[number].as_ref().expect("the instance runs")
    }

    fn take(&mut self, number: usize) -> Service {
        self.services[number].take().expect("the instance runs")
    }

    /// SIGTERM, and the drain to its end.
    pub(crate) fn stop(&mut self, number: usize) {
        self.take(number).terminate();
    }

    pub(crate) fn stop_all(&mut self) {
        for number in self.running() {
            self.stop(number);
        }
    }

    pub(crate) fn kill(&mut self, number: usize) {
        self.take(number).kill();
    }

    pub(crate) fn signal(&self, number: usize, signal: Signal) {
        self.service(number).signal(signal);
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.homes.len()).filter(|number| self.services[*number].is_some()).collect()
    }

    /// Waits until these instances have all partitions between them, each its fair share, and read them.
    pub(crate) fn wait_shared(&self, among: &[usize]) {
        let partitions = self.topic.partitions as u64;
        let least = partitions / among.len() as u64;
        wait_until(&format!("the partitions are divided among {among:?}"), self.patience, || {
            let statuses: Vec<Status> = among.iter().map(|number| self.ask(*number)).collect::<Result<_, _>>()?;
            let shares: Vec<_> = statuses.iter().map(|status| status.partitions).collect();
            let fair = shares.iter().sum::<u64>() == partitions && shares.iter().all(|share| *share >= least);
            holds(fair, statuses.iter().map(|s| (s.partitions, s.state, s.reason.clone())).collect::<Vec<_>>())
        });
    }

    /// Waits until this instance has written so many more records.
    pub(crate) fn wait_progress(&self, number: usize, records: u64) {
        let written = || self.ask(number).map(|status| status.counts.written);
        let goal = written().expect("the instance answers") + records;
        wait_until(&format!("instance {number} has written {goal}"), self.patience, || {
            let written = written()?;
            holds(written >= goal, written)
        });
    }

    /// Waits until this instance answers.
    pub(crate) fn wait_answers(&self, number: usize) {
        wait_until(&format!("instance {number} answers"), self.patience, || self.ask(number).map(drop));
    }

    /// The status of an instance that runs, over its socket: a command each time would take the machine from those who are
    /// waited for.
    pub(crate) fn ask(&self, number: usize) -> Result<Status, String> {
        let told = |error: std::io::Error| error.to_string();
        let mut stream = UnixStream::connect(self.homes[number].path("tmp/mtga.sock")).map_err(told)?;
        stream.set_read_timeout(Some(SOON)).map_err(told)?;
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"Status\",\"params\":{}}\n").map_err(told)?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).map_err(told)?;
        let mut reply: Value = serde_json::from_str(&reply).map_err(|error| format!("{error}: {reply}"))?;
        serde_json::from_value(reply["result"].take()).map_err(|error| format!("{error}: {reply}"))
    }

    /// Waits until the group has forgotten every member: a guest, who may have a property of its own, gets every partition, and
    /// leaves.
    pub(crate) fn wait_forgotten(&self, own: &[(&str, &str)]) {
        let ours = |key: &'static str| Some((key, self.properties.get(key)?.as_str()?));
        let mut properties = own.to_vec();
        match ours("group.protocol") {
            Some(protocol) => properties.push(protocol),
            None => properties.push(
                ours("partition.assignment.strategy")
                    .unwrap_or(("partition.assignment.strategy", "cooperative-sticky")),
            ),
        }
        Group::visit(&self.topic.brokers, &format!("g_{}", self.topic.name), &self.topic, &properties);
    }

    /// Waits until the status of an instance gives a reason that has all of this.
    pub(crate) fn wait_reason(&self, number: usize, parts: &[&str]) {
        wait_until(&format!("instance {number} says that it waits for {parts:?}"), SOON, || {
            let reason = self.ask(number)?.reason.unwrap_or_default();
            holds(parts.iter().all(|part| reason.contains(part)), reason)
        });
    }

    /// Has the second instance give the name back to the first one, which reads the rest.
    pub(crate) fn give_name_back(&mut self, load: Load) {
        self.stop(1);
        self.wait_shared(&[0]);
        let produced = load.stop();
        self.wait_done(&produced);
        self.stop_all();
        self.repeats(&produced);
    }

    /// Removes every member from the group, as an administrator does.
    pub(crate) fn remove_members(&self) {
        Group::remove_members(&self.topic.brokers, &format!("g_{}", self.topic.name));
    }

    /// Deletes the group with its offsets, once it has no member any more.
    pub(crate) fn delete_group(&self) {
        Group::delete(&self.topic.brokers, &format!("g_{}", self.topic.name));
    }

    /// What the group has, by partition.
    pub(crate) fn committed(&self) -> BTreeMap<i32, i64> {
        self.group.committed(&self.topic).into_iter().collect()
    }

    /// Waits until the group has acknowledged everything that was produced.
    pub(crate) fn wait_done(&self, produced: &[Record]) {
        let ends = ends(produced);
        wait_until(&format!("{} records done", produced.len()), 2 * self.patience, || {
            let committed = self.committed();
            holds(committed == ends, (&committed, &ends))
        });
    }

    /// Demands that every instance that runs answers the questions of a monitor in time, and that together they tell of
    /// every partition once.
    pub(crate) fn assert_answers(&self) {
        let mut partitions = Vec::new();
        for number in self.running() {
            let home = &self.homes[number];
            let rows = home.offsets();
            assert!(rows.iter().all(|row| row.low <= row.current && row.current <= row.high), "{rows:?}");
            partitions.extend(rows.iter().map(|row| row.partition));
            assert!(home.integer("kafka_lag") >= 0);
        }
        partitions.sort_unstable();
        assert_eq!(partitions, (0..self.topic.partitions).collect::<Vec<_>>(), "each partition is one instance's");
    }

    /// Demands that all files together are exactly what must become of these records: each line once, in order within its
    /// partition in each file; and that the instances' counts add up to it.
    pub(crate) fn assert_exactly(&self, produced: &[Record]) {
        let expected = oracle::expect(produced);
        let mut found: BTreeMap<i32, Vec<(u64, String)>> = BTreeMap::new();
        for home in &self.homes {
            for file in home.events() {
                let mut last = BTreeMap::new();
                for line in file.lines {
                    let (partition, number) = events::origin(&line);
                    let before = last.insert(partition, number);
                    assert!(before < Some(number), "{}: {number} after {before:?} of {partition}", file.name);
                    found.entry(partition).or_default().push((number, line));
                }
            }
        }
        for (partition, lines) in &mut found {
            lines.sort();
            let lines: Vec<_> = lines.iter().map(|(_, line)| line).collect();
            let wanted = expected.lines.get(partition).map_or(&[][..], Vec::as_slice);
            events::assert_same(&format!("partition {partition}"), wanted, &lines);
        }
        assert_eq!(found.len(), expected.lines.len(), "partitions with lines");
        let mut sum = Counts::default();
        for home in &self.homes {
            let counts = home.status().counts;
            sum.consumed += counts.consumed;
            sum.written += counts.written;
            sum.in_flight += counts.in_flight;
            for (sum, count) in sum.filtered.iter_mut().zip(counts.filtered) {
                *sum += count;
            }
            for (sum, count) in sum.rejected.iter_mut().zip(counts.rejected) {
                *sum += count;
            }
        }
        assert_eq!(sum, expected.counts, "the counts of all instances together");
    }

    /// Demands that no line is missing or foreign, and that none is there more than twice; returns the offsets of those that
    /// are there twice, by partition. Every record has to become a line.
    pub(crate) fn repeats(&self, produced: &[Record]) -> BTreeMap<i32, Vec<i64>> {
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for line in self.homes.iter().flat_map(Home::events).flat_map(|file| file.lines) {
            *found.entry(line).or_default() += 1;
        }
        let mut repeats: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for (partition, lines) in oracle::expect(produced).lines {
            for (line, offset) in lines.iter().zip(0..) {
                match found.remove(line) {
                    Some(1) => {}
                    Some(2) => repeats.entry(partition).or_default().push(offset),
                    other => panic!("partition {partition}, offset {offset}: {other:?} lines of {line}"),
                }
            }
        }
        assert!(found.is_empty(), "lines of no record: {:?}", found.keys().next());
        repeats
    }
}

/// The end of each partition. Nothing but these records is in the topic.
pub(crate) fn ends(produced: &[Record]) -> BTreeMap<i32, i64> {
    let mut ends = BTreeMap::new();
    for record in produced {
        *ends.entry(record.partition).or_default() += 1;
    }
    ends
}
