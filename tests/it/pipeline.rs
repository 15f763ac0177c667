//! From the topic to the files: every record exactly once, each line as the oracle has it.

use mtga::control::State;

use crate::harness::payload::Wrapping;
use crate::harness::tail::Tail;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// Produces 12,000 dirty records to four partitions and demands exactly what must become of them.
fn assert_codec(codec: Codec) {
    let topic = Topic::create("codec", 4);
    let produced = topic.fill(codec, Mix::Dirty, 0, 12_000);
    let home = Home::new(&topic);
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
    home.assert_exactly(&produced);
}

#[test]
fn uncompressed_batches_become_exactly_their_lines() {
    assert_codec(Codec::None);
}

#[test]
fn gzip_batches_become_exactly_their_lines() {
    assert_codec(Codec::Gzip);
}

#[test]
fn snappy_batches_become_exactly_their_lines() {
    assert_codec(Codec::Snappy);
}

#[test]
fn lz4_batches_become_exactly_their_lines() {
    assert_codec(Codec::Lz4);
}

#[test]
fn zstd_batches_become_exactly_their_lines() {
    assert_codec(Codec::Zstd);
}

/// The same with each value compressed by itself.
fn assert_wrapping(wrapping: Wrapping, setting: &str, mix: Mix) {
    let topic = Topic::create("payload", 4);
    let produced: Vec<_> = (0..3000).map(|n| mix.record(n, 4)).collect();
    let wrapped: Vec<_> = produced
        .iter()
        .map(|record| Record { value: record.value.as_ref().map(|value| wrapping.wrap(value)), ..record.clone() })
        .collect();
    topic.produce(Codec::None, &wrapped);
    let mut home = Home::new(&topic);
    home.set("kafka.payload", setting);
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn values_in_raw_snappy_are_read() {
    assert_wrapping(Wrapping::SnappyRaw, "snappy", Mix::Dirty);
}

#[test]
fn values_in_raw_snappy_are_recognised() {
    assert_wrapping(Wrapping::SnappyRaw, "auto", Mix::Clean);
}

#[test]
fn values_in_framed_snappy_are_read_and_recognised() {
    assert_wrapping(Wrapping::SnappyFramed, "snappy", Mix::Dirty);
    assert_wrapping(Wrapping::SnappyFramed, "auto", Mix::Dirty);
}

#[test]
fn values_in_gzip_are_read_and_recognised() {
    assert_wrapping(Wrapping::Gzip, "gzip", Mix::Dirty);
    assert_wrapping(Wrapping::Gzip, "auto", Mix::Dirty);
}

#[test]
fn values_in_zstd_are_read_and_recognised() {
    assert_wrapping(Wrapping::Zstd, "zstd", Mix::Dirty);
    assert_wrapping(Wrapping::Zstd, "auto", Mix::Dirty);
}

#[test]
fn values_in_lz4_are_read_and_recognised() {
    assert_wrapping(Wrapping::Lz4, "lz4", Mix::Dirty);
    assert_wrapping(Wrapping::Lz4, "auto", Mix::Dirty);
}

/// What ends the service while records come in.
#[derive(Clone, Copy)]
enum End {
    Terminate,
    Kill,
}

/// Ends the service again and again under load, each time after it has written something more, while a collector tails
/// the files.
fn assert_exactly_once_through(end: End, times: u64, configure: impl Fn(&mut Home)) {
    let topic = Topic::create("ends", 4);
    let mut home = Home::new(&topic);
    configure(&mut home);
    let tail = Tail::follow(&home.path("data"));
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    for time in 1..=times {
        let service = home.foreground();
        // A different moment each time: the step is no multiple of the producer's or the service's own batches.
        home.wait_written(time * 2113);
        match end {
            End::Terminate => service.terminate(),
            End::Kill => service.kill(),
        }
    }
    let produced = load.stop();
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
    // And once more from what is on disk alone: nothing is read again.
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
    tail.assert_nothing_was_taken_back();
}

#[test]
fn sigterm_and_start_again_under_load_lose_and_repeat_nothing() {
    assert_exactly_once_through(End::Terminate, 5, |_| ());
}

#[test]
fn sigterm_and_start_again_in_a_group_lose_and_repeat_nothing() {
    assert_exactly_once_through(End::Terminate, 3, |home| {
        home.in_group();
    });
}

#[test]
fn kill_9_under_load_loses_and_repeats_nothing() {
    assert_exactly_once_through(End::Kill, 8, |_| ());
}

#[test]
fn kill_9_in_a_group_loses_and_repeats_nothing() {
    assert_exactly_once_through(End::Kill, 3, |home| {
        home.in_group();
    });
}

#[test]
fn kill_9_in_stream_mode_loses_and_repeats_nothing() {
    assert_exactly_once_through(End::Kill, 4, |home| {
        home.set("sink.mode", "stream");
    });
}

#[test]
fn kill_9_with_several_workers_and_small_blocks_loses_and_repeats_nothing() {
    assert_exactly_once_through(End::Kill, 4, |home| {
        home.set("workers", 3).set("sink.batch.lines", 7).set("sink.rotate.size", "64KiB");
    });
}

#[test]
fn a_partition_that_is_added_later_is_read_from_its_start() {
    let mut topic = Topic::create("grow", 2);
    let mut home = Home::new(&topic);
    // librdkafka looks for new partitions at this interval; five minutes is its default.
    home.set("kafka.librdkafka", serde_json::json!({"topic.metadata.refresh.interval.ms": "1000"}));
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 1000);
    let service = home.foreground();
    home.wait_done(&produced);
    topic.grow(4);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 1000, 1000));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn a_group_member_commits_what_is_done_to_the_group() {
    let topic = Topic::create("commit", 4);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 4000);
    let mut home = Home::new(&topic);
    home.in_group();
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    let committed = crate::harness::topic::committed(&format!("g_{}", topic.name), &topic);
    for partition in 0..topic.partitions {
        let count = produced.iter().filter(|record| record.partition == partition).count() as i64;
        assert_eq!(committed.get(&partition), Some(&count), "partition {partition}");
    }
}

#[test]
fn values_of_a_mebibyte_pass() {
    let topic = Topic::with_config("large", 1, &[("max.message.bytes", "4194304")]);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 10);
    let large = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_big"}},"logs":{{"sn":"0-10","role_id":1,"mtime":1608184243,"text":"{}"}}}}"#,
        "é".repeat(512 * 1024)
    );
    let large = Record { partition: 0, key: None, value: Some(large.into_bytes()), timestamp: 1_700_000_000_000 };
    topic.produce(Codec::Zstd, std::slice::from_ref(&large));
    produced.push(large);
    let home = Home::new(&topic);
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn the_transform_command_gives_the_oracles_lines_without_a_broker() {
    let topic = Topic::unmade("unused", 1);
    let home = Home::with_brokers(&topic, "127.0.0.1:1");
    let records: Vec<_> = (0..500).map(|n| Mix::Clean.record(n, 1)).collect();
    let mut input = Vec::new();
    for record in &records {
        input.extend(record.value.as_ref().expect("a clean record has a value"));
        input.push(b'\n');
    }
    std::fs::write(home.path("input"), input).expect("a file");
    let script = format!(
        "{} --home {} transform <{}",
        home.path("bin/mtga").display(),
        home.path("").display(),
        home.path("input").display()
    );
    let mut shell = std::process::Command::new("sh");
    let done = crate::harness::process::Finished::run(shell.args(["-c", &script]), crate::harness::SOON).code(0);
    let lines: Vec<_> = done.stdout.lines().collect();
    events::assert_same("standard output", &oracle::expect(&records).lines[&0], &lines);
}

#[test]
fn a_service_that_starts_before_its_topic_waits_for_it() {
    let later = Topic::unmade(&format!("later_{}", std::process::id()), 1);
    let home = Home::with_brokers(&later, crate::harness::broker::address());
    home.start();
    home.wait_for(State::Waiting);
    let reason = home.status().reason.unwrap_or_default();
    assert!(reason.contains(&later.name), "the reason names the topic that is waited for: {reason:?}");
    assert!(events::read(&home.path("data")).is_empty());
    home.stop();
}

#[test]
fn the_counts_add_up_at_every_moment_under_load() {
    let topic = Topic::create("sums", 4);
    let home = Home::new(&topic);
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    let service = home.foreground();
    let mut samples_in_flight = 0;
    wait_until("30,000 written and some samples with records in flight", SOON, || {
        let counts = home.try_status()?.counts;
        let settled = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
        assert_eq!(counts.consumed + counts.retried, settled + counts.in_flight, "{counts:?}");
        samples_in_flight += u32::from(counts.in_flight > 0);
        holds(counts.written >= 30_000 && samples_in_flight >= 5, counts)
    });
    let produced = load.stop();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn latest_is_resolved_once_whatever_happens_before_the_first_record() {
    let topic = Topic::create("latest", 3);
    topic.fill(Codec::Snappy, Mix::Clean, 0, 300);
    let mut home = Home::new(&topic);
    home.set("kafka.start", "latest");
    let service = home.foreground();
    wait_until("every partition has begun", SOON, || {
        let status = home.try_status()?;
        holds(status.partitions == 3, status)
    });
    service.kill();
    // What comes while nobody reads is after the start, however late it is read.
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 300, 300);
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}
