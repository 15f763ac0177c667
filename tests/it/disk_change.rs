//! Event files and stores that are away for a while.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use mtga::control::State;
use nix::errno::Errno;

use crate::harness::disk::Layer;
use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};

#[test]
fn a_permission_on_the_store_that_is_lost_and_regained_pauses_the_service() {
    const NOBODY: u32 = 65534;
    let topic = Topic::create("storeright", 2);
    let home = Home::new(&topic);
    home.give_to(NOBODY);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let service = home.foreground_with(|command| command.uid(NOBODY).gid(NOBODY));
    home.wait_done(&produced);
    let store = home.path("tmp/store");
    fs::set_permissions(&store, Permissions::from_mode(0o000)).expect("ours");
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 500, 500));
    wait_until("it has begun again in vain", SOON, || {
        let log = home.log();
        holds(log.contains("adopted.json: Permission denied"), log)
    });
    home.wait_for(State::Paused);
    fs::set_permissions(&store, Permissions::from_mode(0o700)).expect("ours");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn an_event_directory_that_is_empty_when_the_pipeline_begins_again_is_waited_for() {
    let topic = Topic::create("bareagain", 1);
    let home = Home::new(&topic);
    let layer = Layer::below(&home);
    let service = home.foreground_with(|command| layer.command(command));
    let mut produced = topic.fill(Codec::None, Mix::Dirty, 0, 500);
    home.wait_done(&produced);
    layer.fail_writes("store/journal", Errno::EIO);
    produced.extend(topic.fill(Codec::None, Mix::Dirty, 500, 500));
    wait_until("the pipeline ends", SOON, || holds(home.log().contains("the disk fails"), home.log()));
    let (data, away) = (home.path("data"), home.path("away"));
    fs::rename(&data, &away).and_then(|()| fs::create_dir(&data)).expect("ours");
    layer.heal();
    wait_until("it says what to do", SOON, || {
        let status = home.try_status()?;
        holds(status.reason.as_ref().is_some_and(|reason| reason.contains("mount it")), status)
    });
    fs::remove_dir_all(&data).and_then(|()| fs::rename(&away, &data)).expect("ours");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}
