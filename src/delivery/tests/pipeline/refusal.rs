//! Hidden files whose partition goes: what is taken back is taken back before anyone goes on from it.

use super::*;

/// A store that makes no change before it is let.
struct Gated(Arc<MemStore>, Mutex<()>);

impl Store for Gated {
    fn state(&self) -> Result<Option<State>, StoreError> {
        self.0.state()
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        drop(self.1.lock());
        self.0.apply(change)
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        self.0.entry(key)
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        self.0.entries(from, each)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.0.sync()
    }
}

/// A home of hidden files whose group is never asked, and the store that it works with.
fn hidden() -> (Home, Arc<Gated>, Run) {
    let home = Home::new();
    let store = Arc::new(Gated(Arc::clone(&home.store), Mutex::default()));
    let group = CommitPoint::Group(unbounded().0);
    let run = home.start_as(Visibility::Sealed, group, &(Arc::clone(&store) as Arc<dyn Store>));
    (home, store, run)
}

impl Run {
    /// Sends a block of a partition whose files are its own.
    fn hidden_block(&mut self, number: i32, records: i64) {
        self.block(number, records);
        if let Some(Inbox::Block(block)) = self.done.last_mut() {
            for piece in &mut block.pieces {
                (piece.key.topic, piece.key.partition) = (Some("t".into()), Some(number));
            }
        }
        self.send(0);
    }

    fn ask(&self, finish: Finish) -> Receiver<()> {
        let (reply, answered) = bounded(1);
        self.inbox.send(Inbox::Checkpoint { before: self.ticket, finish, reply }).unwrap();
        answered
    }

    /// Gives a partition up, and waits as whoever takes it up again does.
    fn refuse(&self, number: i32) -> Receiver<()> {
        self.tracker.end(&partition(number));
        self.inbox.send(Inbox::Refuse { partition: partition(number), reply: None }).unwrap();
        self.ask(Finish::No)
    }

    fn stands(&self, number: i32) -> (i64, bool) {
        let durable = self.gauges.durable();
        let state = &durable.state.partitions[&partition(number)];
        (state.next, state.growth.is_some())
    }
}

#[test]
fn a_barrier_covers_the_refusals_before_it_whatever_is_being_saved() {
    let (home, store, mut run) = hidden();
    run.hidden_block(0, 20);
    let gate = store.1.lock().unwrap();
    let saving = run.ask(Finish::No);
    run.hidden_block(1, 20);
    wait_until("both blocks are written", || run.gauges.counts().in_flight == 0);
    let settled = run.refuse(0);
    drop(gate);
    Run::answered(&saving);
    Run::answered(&settled);
    assert_eq!(run.stands(0), (0, false), "an assignment that begins now reads from where the growth began");
    drop(store);
    home.kill(run);
}
