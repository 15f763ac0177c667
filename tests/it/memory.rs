//! The memory bound, whatever producers send.

use mtga::control::State;
use rdkafka::message::{Header, OwnedHeaders};

use crate::harness::payload::Wrapping;
use crate::harness::records::padded;
use crate::harness::{Codec, Home, Record, SOON, Topic, holds, wait_until};

/// The value as two members or frames, of which the one that is looked at first says that there is next to nothing in it.
fn in_disguise(wrapping: Wrapping, value: &[u8]) -> Vec<u8> {
    match wrapping {
        // The last member has the length.
        Wrapping::Gzip => [wrapping.wrap(value), wrapping.wrap(b"")].concat(),
        _ => [wrapping.wrap(b""), wrapping.wrap(value)].concat(),
    }
}

#[test]
fn values_that_become_ten_thousand_times_as_large_stay_within_the_memory_bound() {
    let topic = Topic::create("bombs", 1);
    let wrappings = [Wrapping::Zstd, Wrapping::Gzip, Wrapping::Lz4];
    let wrap = |n: u64, record: Record| {
        let wrapping = wrappings[n as usize % wrappings.len()];
        Record { value: record.value.map(|value| in_disguise(wrapping, &value)), ..record }
    };
    // Behind a plain record, and with some that are too large: 8 MiB is the most.
    let sizes = [6 << 20, 6 << 20, 6 << 20, 6 << 20, 9 << 20];
    let records: Vec<_> = (1..=40).map(|n| wrap(n, padded(n, 1, sizes[n as usize % sizes.len()]))).collect();
    let records: Vec<_> = [padded(0, 1, 10)].into_iter().chain(records).collect();
    topic.produce(Codec::None, &records);
    let mut home = Home::new(&topic);
    home.set("memory", "32MiB").set("workers", 4);
    // The kill comes in the middle of what is one block to the source.
    let service = home.foreground();
    wait_until("some are written", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.written >= 5, status)
    });
    let before = service.memory("VmHWM:") >> 20;
    service.kill();
    let service = home.foreground();
    wait_until("all are written", 3 * SOON, || {
        let status = home.try_status()?;
        let counts = &status.counts;
        holds((counts.written, counts.rejected.iter().sum::<u64>()) == (33, 8), status)
    });
    let after = service.memory("VmHWM:") >> 20;
    service.terminate();
    eprintln!("{before} MiB before the kill, {after} MiB after it");
    assert!(before.max(after) < 176, "{before} MiB before the kill, {after} MiB after it, with a bound of 32 MiB");
    let serial = |line: &str| line.split_once(r#""sn":"0-"#)?.1.split('"').next()?.parse::<u64>().ok();
    let written: Vec<_> = home.events().iter().flat_map(|file| &file.lines).filter_map(|line| serial(line)).collect();
    let expected = (0..=40).filter(|n| *n == 0 || n % 5 != 4);
    assert_eq!(written, expected.collect::<Vec<_>>());
}

#[test]
fn headers_that_are_far_larger_than_their_values_stay_within_the_memory_bound() {
    let topic = Topic::create("headers", 1);
    let header = "h".repeat(8 << 10);
    let add = |headers: OwnedHeaders, _| headers.insert(Header { key: "header", value: Some(&header) });
    let headers = (0..100).fold(OwnedHeaders::new(), add);
    // Two records that are rejected fill the failure queue. So 240 MiB of headers wait behind them first, and are taken then.
    let bad = |n| Record { value: Some(b"no JSON".to_vec()), ..padded(n, 1, 10) };
    let records: Vec<_> = (0..2).map(bad).chain((2..300).map(|n| padded(n, 1, 10))).collect();
    topic.produce_with_headers(&headers, &records);
    let mut home = Home::new(&topic);
    home.set("memory", "32MiB").set("failure_queue.max_bytes", "1MiB");
    let service = home.foreground();
    wait_until("it has waited for longer than it takes until partitions are paused", SOON, || {
        let status = home.try_status()?;
        holds(status.state == State::Paused && status.reason_seconds > Some(6), status)
    });
    let waiting = service.memory("VmHWM:") >> 20;
    home.mtga(["clear_failure_queue"]).success();
    wait_until("all are written", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.written == 298, status)
    });
    let after = service.memory("VmHWM:") >> 20;
    service.terminate();
    eprintln!("{waiting} MiB while they wait, {after} MiB after it");
    assert!(waiting.max(after) < 176, "{waiting} MiB while they wait, {after} MiB after it, with a bound of 32 MiB");
}
