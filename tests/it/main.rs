//! The integration tests: the real binary, in a deploy layout of its own, against a real Kafka broker.
//!
//! One binary, so that the broker is started once and everything is linked once. Each test has a topic and a home of its
//! own and they run side by side. What lies on disk is compared with [`harness::oracle`], an implementation of the
//! record-to-event rules that shares no code with the program.

#[cfg(test)]
mod harness;

/// `adopt`: the home of an instance that is gone.
#[cfg(test)]
mod adopt;
/// Adoptions of homes that were adopted before in part or as another copy, of topics that are away, and what a foreign home may
/// see of ours.
#[cfg(test)]
mod adopt_again;
/// Answers of brokers that are lost, failed or partial: to every kind of request, at every kind of start.
#[cfg(test)]
mod answers;
/// Why Kafka gives no records, as an operator is told.
#[cfg(test)]
mod causes;
/// `set_offset` and `adopt`, killed at each of their steps, and repeated after the service has run.
#[cfg(test)]
mod commands;
/// Mistakes in configuration and settings, absent brokers, second daemons, what a dead daemon leaves behind.
#[cfg(test)]
mod config;
/// A copy of `_build` somewhere else: `mctl` and the life of the daemon.
#[cfg(test)]
mod deploy;
/// Disks that fail: full, read-only, gone, I/O errors, syncs that fail.
#[cfg(test)]
mod disk;
/// Event files and stores that are away for a while, or on another disk than before.
#[cfg(test)]
mod disk_change;
/// What the documents say of tests.
#[cfg(test)]
mod docs;
/// What is on the disk at a step, when the power is cut right behind it.
#[cfg(test)]
mod durable;
/// The first answers to each kind of request, lost at each kind of start.
#[cfg(test)]
mod every_answer;
/// Event files: names, rotation, open files, a full disk.
#[cfg(test)]
mod files;
/// Homes that earlier versions of the program left.
#[cfg(test)]
mod formats;
/// A service that is stopped with SIGSTOP: every command comes back in time.
#[cfg(test)]
mod frozen;
/// Starts, stops and restarts on a full disk.
#[cfg(test)]
mod full_disk;
/// Several instances of one group: rebalances, instances that are killed, frozen, or have each other's name.
#[cfg(test)]
mod group;
/// The processes that may change a home: commands, starts, and what another process does to its files.
#[cfg(test)]
mod homes;
/// Commands and starts beside each other on one home, killed at each step.
#[cfg(test)]
mod homes_beside;
/// Whose records stand at a stored offset: leader epochs, topics created again, logs cut off, and answers that pass.
#[cfg(test)]
mod identity;
/// Faults of Kafka: brokers, connections, logs, and the watchdog.
#[cfg(test)]
mod kafka;
/// Commits that reach the group after whoever sent them has died, beside commands that decide by what the group has.
#[cfg(test)]
mod late_commits;
/// Groups whose members are killed, frozen and cut off at random, on slow disks.
#[cfg(test)]
mod loops;
/// Memberships that end between any two steps, of instances that get their own partitions back.
#[cfg(test)]
mod membership;
/// The memory bound, whatever producers send.
#[cfg(test)]
mod memory;
/// Homes that lie elsewhere than they did: moved, copied, or with a backup of their store.
#[cfg(test)]
mod moves;
/// `set_offset`.
#[cfg(test)]
mod offsets;
/// Limits, signals, terminals: what a host and its operators do to a service.
#[cfg(test)]
mod operate;
/// Threads that panic.
#[cfg(test)]
mod panics;
/// Topics that are named by patterns.
#[cfg(test)]
mod patterns;
/// Records from the topic to the files, through restarts and kills.
#[cfg(test)]
mod pipeline;
/// Power cuts, on a disk that forgets what was not synced.
#[cfg(test)]
mod power;
/// What root does on a home of another user.
#[cfg(test)]
mod privileges;
/// The failure queue and its commands.
#[cfg(test)]
mod queue;
/// Offsets of one topic that the group refuses, while others are read.
#[cfg(test)]
mod refused;
/// What a kill cut short, made again from a topic that changed meanwhile.
#[cfg(test)]
mod reread;
/// Hidden files: published when complete and committed, through kills at every step.
#[cfg(test)]
mod sealed;
/// Hidden files through changes of the configuration, and the failure queue beside them.
#[cfg(test)]
mod sealed_config;
/// Hidden files on disks that fail, and under the hands of others.
#[cfg(test)]
mod sealed_disk;
/// Hidden files that are not whole, names that come again or that records choose, topics that are configured no more.
#[cfg(test)]
mod sealed_files;
/// Hidden files of several instances: rebalances, lost sessions, lost answers, kills and freezes at every step.
#[cfg(test)]
mod sealed_group;
/// Configurations that change after a crash, and commands that are interrupted and repeated.
#[cfg(test)]
mod sequences;
/// The control socket: both protocols, limits, and clients that mean no good.
#[cfg(test)]
mod socket;
/// The store: damaged, gone, copied, newer.
#[cfg(test)]
mod store;
/// `verify` on sealed files.
#[cfg(test)]
mod verify;
/// What instances leave beside the group's offset, wiped by a tool.
#[cfg(test)]
mod wiped;
