//! A service for tests: answers from fields, and can be made to hang.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};

use super::*;

/// Answers like a small running service.
#[derive(Default)]
pub(crate) struct Fake {
    /// Calls of `offsets` so far.
    pub(crate) offset_calls: AtomicU64,
    /// Polls of `stop` that still find something in flight.
    pub(crate) stop_polls: AtomicU64,
    /// Entries of the failure queue, and calls of `failure_list` that are under way now, and were at most.
    pub(crate) entries: AtomicU64,
    pub(crate) listing: AtomicU64,
    pub(crate) most_listing: AtomicU64,
    /// While true, `failure_list` waits.
    pub(crate) lists_hang: AtomicBool,
    /// While true, `status` and `clear_failures` wait.
    hung: Mutex<bool>,
    released: Condvar,
}

impl Fake {
    pub(crate) fn hang(&self) {
        *self.hung.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.hung.lock().unwrap() = false;
        self.released.notify_all();
    }

    fn pass(&self) {
        drop(self.released.wait_while(self.hung.lock().unwrap(), |hung| *hung).unwrap());
    }
}

/// The status of a service that consumes.
pub(crate) fn status() -> Status {
    Status {
        state: State::Consuming,
        reason: None,
        reason_seconds: None,
        pid: Some(4242),
        version: "0.1.0".to_owned(),
        uptime_seconds: Some(93_784),
        home_id: "5f0c7a".to_owned(),
        consumed_per_second: 1234.56,
        written_per_second: 1200.0,
        counts: Counts {
            consumed: 100,
            retried: 2,
            written: 90,
            filtered: [1, 0, 4],
            rejected: [0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            in_flight: 3,
        },
        lag: Some(261),
        failure_queue_records: 4,
        failure_queue_bytes: 5_000,
        partitions: 1,
        open_files: 2,
        last_checkpoint_seconds: Some(0.42),
        last_checkpoint_block: 77,
        gap_records: 0,
        removed: Removed { cleared: 3, dropped: 0, lost: 0 },
        client_restarts: 0,
        clients_left: 0,
        time_zone: ZoneInfo {
            name: "Asia/Shanghai".to_owned(),
            tzdata: Some("2026f".to_owned()),
            source: Some("/usr/share/zoneinfo".to_owned()),
        },
    }
}

/// One row, the one of the contract's example.
pub(crate) fn offsets() -> Vec<PartitionOffsets> {
    vec![PartitionOffsets {
        topic: "mulog_clean_24".to_owned(),
        partition: 0,
        low: Some(6_171_720_626),
        high: Some(6_197_511_755),
        current: Some(6_197_511_494),
        lag: Some(261),
    }]
}

/// One entry.
pub(crate) fn entry(position: u64) -> FailureEntry {
    FailureEntry {
        position,
        topic: "mulog_clean_24".to_owned(),
        partition: 0,
        offset: 6_171_720_700,
        reason: Reason::BadJson,
        detail: "expected `,` at byte 17".to_owned(),
        attempts: 1,
        parked: false,
        age_seconds: 7_260,
        size: 300,
        head: r#"{"headers":{"app_id":24,"log_name":"log_item"},"logs":"#.to_owned(),
    }
}

impl Service for Fake {
    fn status(&self) -> Result<Status, Failure> {
        self.pass();
        Ok(status())
    }

    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        self.offset_calls.fetch_add(1, SeqCst);
        Ok(offsets())
    }

    fn failure_count(&self) -> Result<u64, Failure> {
        Ok(4)
    }

    fn failure_list(&self, query: &ListQuery) -> Result<Vec<FailureEntry>, Failure> {
        let now = self.listing.fetch_add(1, SeqCst) + 1;
        self.most_listing.fetch_max(now, SeqCst);
        while self.lists_hang.load(SeqCst) {
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
        let entries = self.entries.load(SeqCst).max(4);
        let list = (1..=query.limit.unwrap_or(4).min(entries)).map(entry).collect();
        self.listing.fetch_sub(1, SeqCst);
        Ok(list)
    }

    fn retry_failures(&self, _: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        progress("3 to go");
        Ok(Retried { left: 3, stayed: 1 })
    }

    fn clear_failures(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        if let Some(path) = &query.export {
            return Err(Failure::new(FailureKind::CannotCreate, format!("{} is there already", path.display())));
        }
        progress("4 to go");
        self.pass();
        Ok(4)
    }

    fn reload(&self) -> Result<String, Failure> {
        Ok("settings reloaded".to_owned())
    }

    fn stop(&self) -> Result<Option<String>, Failure> {
        let left = self.stop_polls.load(SeqCst);
        self.stop_polls.store(left.saturating_sub(1), SeqCst);
        Ok((left > 0).then(|| format!("{left} records in flight")))
    }
}
