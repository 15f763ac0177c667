//! What must be on the disk at a step: the power is cut right behind it, and all that was not synced is gone.

use mtga::delivery::witness;
use mtga::msink::dir::EventDir;
use mtga::msource::journal::{self, Frame};

use crate::harness::disk::{Layer, Model};
use crate::harness::{Codec, Home, Mix, SOON, Topic, events, holds, wait_until};

/// Runs the service until it dies at this fault point, and cuts the power.
fn die(home: &Home, layer: &Layer, point: &str) {
    home.foreground_with(|command| layer.command(command.env("FAULT_POINT", point))).wait_killed(point);
    layer.power_cut(Model::Strict);
}

#[test]
fn every_event_file_is_in_the_journal_before_it_is_there() {
    for visibility in ["live", "sealed"] {
        let topic = Topic::create("intent", 1);
        let mut home = Home::new(&topic);
        home.set("sink.visibility", visibility);
        let layer = Layer::below(&home);
        topic.fill(Codec::None, Mix::Clean, 0, 50);
        die(&home, &layer, "file.created");
        let contents = journal::read(&home.path("tmp/store/journal")).expect("the journal can be read");
        let mut state = contents.state.expect("a state");
        let intents = contents.tail.iter().filter(|frame| matches!(frame, Frame::File(_)));
        intents.for_each(|frame| state.apply(frame));
        let known: Vec<_> = state.files.values().map(|file| home.path("data").join(file.path())).collect();
        let data = home.path("data");
        let there: Vec<_> = events::paths(&data).into_iter().chain(events::hidden(&data)).collect();
        assert_eq!(there.len(), 1, "its name is durable");
        assert_eq!(there, known, "{visibility}");
    }
}

#[test]
fn what_the_event_directory_knows_of_a_start_is_durable_when_the_start_is() {
    let topic = Topic::create("noted", 1);
    let home = Home::new(&topic);
    let layer = Layer::below(&home);
    for _ in 0..2 {
        die(&home, &layer, "start.noted");
        let contents = journal::read(&home.path("tmp/store/journal")).expect("the journal can be read");
        let dir = EventDir::open_present(&home.path("data")).expect("an event directory");
        let noted = witness::read(&dir).expect("a note");
        let state = contents.state.expect("a state");
        assert_eq!((noted.mark.home, noted.segment), (state.home, contents.last_segment));
    }
}

#[test]
fn entries_that_were_cleared_do_not_come_back_with_a_power_cut() {
    let topic = Topic::create("cleared", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "1h");
    let layer = Layer::below(&home);
    let produced = topic.fill(Codec::None, Mix::Dirty, 0, 200);
    let service = home.foreground_with(|command| layer.command(command));
    wait_until("all records are taken", SOON, || {
        let counts = home.try_status()?.counts;
        holds(counts.consumed == produced.len() as u64 && counts.in_flight == 0, counts)
    });
    let cleared = home.integer("clear_failure_queue");
    assert!(cleared > 0);
    service.kill();
    layer.power_cut(Model::Strict);
    let status = home.status();
    assert_eq!((status.failure_queue_records, status.removed.cleared), (0, cleared as u64));
}
