//! `set_offset`: only while stopped; locally and in the group.

use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};

/// A stopped home that has read 100 records of one partition, timestamps 7 ms apart.
fn read_and_stopped(purpose: &str, in_group: bool) -> (Topic, Home) {
    let topic = Topic::create(purpose, 1);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 100);
    let mut home = Home::new(&topic);
    if in_group {
        home.in_group();
    }
    home.start();
    home.wait_done(&produced);
    home.stop();
    (topic, home)
}

fn current(home: &Home) -> i64 {
    home.offsets()[0].current.expect("the position is known")
}

#[test]
fn an_offset_moves_to_each_kind_of_place() {
    let (topic, home) = read_and_stopped("move", false);
    let partition = format!("{}:0", topic.name);
    // Record 50 was produced with this timestamp.
    let time = chrono::DateTime::from_timestamp_millis(1_700_000_000_000 + 50 * 7).expect("a time").to_rfc3339();
    for (to, expected) in [("earliest", 0), ("latest", 100), ("42", 42), (time.as_str(), 50)] {
        let done = home.mtga(["set_offset", &partition, to]).code(0);
        assert!(done.stdout.contains(&topic.name), "the table is shown: {}", done.stdout);
        assert_eq!(current(&home), expected, "{to}");
    }
    home.mtga(["set_offset", &topic.name, "earliest"]).code(0);
    assert_eq!(current(&home), 0, "the whole topic");
}

#[test]
fn a_moved_service_reads_from_there() {
    let (topic, home) = read_and_stopped("from", true);
    home.mtga(["set_offset", &topic.name, "90"]).code(0);
    let group = committed(&format!("g_{}", topic.name), &topic);
    assert_eq!(group.get(&0), Some(&90), "the group is told as well");
    home.start();
    home.wait_written(110);
    wait_until("no lag", SOON, || holds(home.lag()? == 0, ()));
    let lines: usize = home.events().iter().map(|file| file.lines.len()).sum();
    assert_eq!(lines, 110, "the last ten were asked for again");
    home.stop();
}

#[test]
fn a_running_service_is_not_moved() {
    let topic = Topic::create("busy", 1);
    let home = Home::new(&topic);
    home.start();
    let done = home.mtga(["set_offset", &topic.name, "earliest"]);
    assert!(done.stderr.contains("stop"), "it says what to do: {}", done.stderr);
    done.code(1);
    home.stop();
}

#[test]
fn a_place_that_is_none_is_refused() {
    let (topic, home) = read_and_stopped("nowhere", false);
    home.mtga(["set_offset", &topic.name, "sometime"]).code(64);
    assert_eq!(current(&home), 100);
}

/// Nobody has read the topic yet. The other partition was there then, too.
#[test]
fn a_partition_that_is_set_before_the_first_start_leaves_the_others_where_the_configuration_says() {
    for in_group in [false, true] {
        let topic = Topic::create("setfirst", 2);
        topic.fill(Codec::None, Mix::Clean, 0, 100);
        let mut home = Home::new(&topic);
        home.set("kafka.start", "latest");
        if in_group {
            home.in_group();
        }
        home.mtga(["set_offset", &format!("{}:0", topic.name), "latest"]).code(0);
        home.start();
        wait_until("both have begun", SOON, || holds(home.try_status()?.partitions == 2, in_group));
        let produced = topic.fill(Codec::None, Mix::Clean, 100, 100);
        home.wait_done(&produced);
        home.assert_exactly(&produced);
        home.stop();
    }
}
