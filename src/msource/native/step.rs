//! How far a client is on its way into the group, as librdkafka logs it.

/// What a client of a group waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupStep {
    /// The brokers have not said which of them coordinates the group.
    FindCoordinator,
    /// No connection to the coordinator yet.
    ReachCoordinator,
    /// About to join, or (KIP-848) waiting for the answer to the first heartbeat.
    Join,
    /// The answer to `JoinGroup`: every member has to be heard, those that are gone until their session ends.
    JoinAnswer,
    /// As the group's leader: the partitions of the topics.
    Topics,
    /// The answer to `SyncGroup`: the leader assigns the partitions.
    SyncAnswer,
    /// Nothing: it is in, or it waits for us.
    Done,
}

impl GroupStep {
    /// Reads librdkafka's lines about the state of its group; `None` for any other.
    pub(super) fn read(facility: &str, line: &str) -> Option<Self> {
        let (_, states) = line.rsplit_once(" -> ")?;
        let (to, rest) = states.split_once(" (")?;
        let (state, join) = match facility {
            "CGRPSTATE" => (to, rest.strip_prefix("join-state ")?.strip_suffix(')')?),
            "CGRPJOINSTATE" => (rest.strip_prefix("state ")?.strip_suffix(')')?, to),
            _ => return None,
        };
        Some(match (state, join) {
            ("init" | "query-coord" | "wait-coord", _) => Self::FindCoordinator,
            ("wait-broker" | "wait-broker-transport", _) => Self::ReachCoordinator,
            ("up", "init") => Self::Join,
            ("up", "wait-join") => Self::JoinAnswer,
            ("up", "wait-metadata") => Self::Topics,
            ("up", "wait-sync") => Self::SyncAnswer,
            _ => Self::Done,
        })
    }

    /// What it waits for, for people.
    pub fn waiting_for(self, group: &str) -> String {
        match self {
            Self::FindCoordinator => format!("waiting for the coordinator of group {group} to be found"),
            Self::ReachCoordinator => format!("waiting for a connection to the coordinator of group {group}"),
            Self::Join => format!("waiting to join group {group}"),
            Self::JoinAnswer => {
                format!(
                    "waiting for the answer of group {group} to JoinGroup, which comes when every member has joined"
                )
            }
            Self::Topics => format!("waiting for the topics that group {group} reads"),
            Self::SyncAnswer => {
                format!("waiting for the answer of group {group} to SyncGroup, its leader assigns partitions")
            }
            Self::Done => format!("waiting for partitions from group {group}"),
        }
    }
}

/// Whether the group agrees with what a member of the new protocol (KIP-848) was given.
///
/// A member has what it was given only when the group has heard that it took it. A heartbeat that gets no answer meanwhile is
/// sent again with what the member had before; the group gives the rest to others then, and tells the member so, but librdkafka
/// goes on with what it was given first.
#[derive(Debug, Default)]
pub(super) struct Target {
    /// What the group gave last, as it is logged, and how often that changed.
    last: String,
    received: u64,
    /// Which of them is being taken, if one is, and which the group knows to be taken.
    taken: Option<u64>,
    acknowledged: u64,
}

impl Target {
    /// Reads librdkafka's lines about heartbeats.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((_, target)) = line.split_once("received target assignment ") {
            // A list that was cut short may be another one than the last.
            if target != self.last || target.contains("...") {
                self.received += 1;
                target.clone_into(&mut self.last);
            }
        } else if line.contains("Reconciliation starts with new target assignment ") {
            self.taken = Some(self.received);
        } else if line.contains("Target assignment acked") {
            self.acknowledged = self.taken.take().unwrap_or(self.acknowledged);
        }
    }

    /// Whether the group knows the last of them to be taken.
    pub(super) fn is_agreed(&self) -> bool {
        self.taken.is_none() && self.acknowledged == self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_agreed_when_the_last_of_it_is_acknowledged() {
        let mut target = Target::default();
        assert!(target.is_agreed(), "nothing was given");
        let mut read = |lines: &[&str]| {
            for line in lines {
                target.read(line);
            }
            target.is_agreed()
        };
        let begins = "Reconciliation starts with new target assignment \"t[0], t[1]\". Next assignment cleared";
        let acked = "Target assignment acked, new current assignment  \"t[0], t[1]\"";
        let given = |list: &str| format!("[thrd:main]: ConsumerGroupHeartbeat received target assignment \"{list}\"");
        assert!(!read(&[&given("0, 1"), begins]));
        assert!(read(&[acked]));
        assert!(read(&[&given("0, 1")]), "the same again");
        assert!(!read(&[&given("0, 1, 2"), begins, &given("0"), acked]), "it was given less before it was heard");
        assert!(!read(&[begins]) && read(&[acked]));
        assert!(!read(&[begins]) && read(&[acked]), "a part of it that was not known before");
        assert!(!read(&[&given("0, 1, ..."), begins, &given("0, 1, ..."), acked]), "nobody can tell");
    }

    #[test]
    fn the_step_is_read_from_librdkafkas_lines() {
        let join = |line| GroupStep::read("CGRPJOINSTATE", line);
        let line = "[thrd:main]: Group \"a -> b\" changed join state init -> wait-join (state up)";
        assert_eq!(join(line), Some(GroupStep::JoinAnswer));
        assert_eq!(
            join("[thrd:main]: Group \"g\" changed join state wait-sync -> steady (state up)"),
            Some(GroupStep::Done)
        );
        let line = "[thrd:main]: Group \"g\" changed state query-coord -> wait-broker (join-state init)";
        assert_eq!(GroupStep::read("CGRPSTATE", line), Some(GroupStep::ReachCoordinator));
        assert_eq!(GroupStep::read("CGRP", line), None);
        assert_eq!(join("no state at all"), None);
    }
}
