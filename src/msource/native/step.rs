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

#[cfg(test)]
mod tests {
    use super::*;

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
