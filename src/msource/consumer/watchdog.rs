//! The watchdog: notices a client that stands still, and makes another one.
//!
//! librdkafka has had ways to stop fetching a partition for good. A partition that has lag and whose offset has not moved for
//! a minute, although we took what there was, is one of them: the client is replaced, and reads on from what is durable.
//! Lag is what a consumer of the configured isolation level can reach, so an open transaction is waited for, not blamed.
//! A log that ends before the place of the partition, of which the client says nothing, is another one: where topics have no ids,
//! librdkafka takes the leaders of a topic that was made again for old ones, since their epochs are lower, and fetches no more.
//! A client that is cut off may have nothing that can be seen to stand still: no partition, or none with lag. When it reaches no
//! broker, although another client does and did half a minute before, it is replaced as well. Else it would never be given a
//! partition again, or commit.
//!
//! **What it does not do.** It does not blame the client while brokers do not answer: what cannot be asked is no lag.
//!
//! **How it fails.** A client that stands still may hang in its own end too, and keeps its threads, its connections and what it
//! had fetched then. How many do is shown; when there are [`MOST_LEFT`], the process ends instead of making another one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{Fetch, Slot};
use super::{Consumer, Error, next_question};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::native::{Client, KafkaError, OffsetSpec, Remains};
use crate::msource::properties;

/// How long a partition with lag may stand still.
const PATIENCE: Duration = Duration::from_mins(1);

/// Bound on the question for lag.
const ASK: Duration = Duration::from_secs(3);

/// Clients that hang in their own end. Each may hold a quarter of `memory`.
pub(super) const MOST_LEFT: usize = 4;

/// What was seen of each partition.
pub(super) struct Watchdog {
    pub(super) patience: Duration,
    pub(super) look_at: Instant,
    /// Where it stood, and since when.
    seen: HashMap<TopicPartition, (i64, Instant)>,
    /// Since when there is no partition that could be seen to stand still, or when the client last reached a broker after that.
    alone: Option<Instant>,
    /// Since when the client has reached no broker, although another one has.
    cut_off: Option<Instant>,
}

/// Which client reached a broker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    This,
    /// Another one, and not this one.
    Another,
    None,
}

/// What becomes of a client that is replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    /// It leaves the group before the new one joins.
    Closed,
    /// It may hang in its own end too, so nobody waits for that.
    Abandoned,
}

/// A partition that stands still.
struct Still {
    partition: TopicPartition,
    next: i64,
    /// Whether its topic has an id, so that another topic of its name would have shown.
    has_id: bool,
}

impl Still {
    /// Whether another client may read on, with a log that ends here.
    fn is_by_client(&self, end: i64) -> bool {
        end > self.next || !self.has_id && end < self.next
    }
}

impl Watchdog {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            patience: fault::duration("FAULT_WATCHDOG_MS", PATIENCE),
            look_at: now,
            seen: HashMap::new(),
            alone: None,
            cut_off: None,
        }
    }

    /// A partition was given to us.
    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.seen.remove(partition);
    }

    /// Nothing is taken on purpose: time begins again.
    pub(super) fn excuse(&mut self) {
        self.seen.clear();
        (self.alone, self.cut_off) = (None, None);
    }
}

impl Consumer {
    /// Looks, now and then, for partitions that stand still, and for a client that is cut off.
    pub(super) fn watch(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if now < self.watchdog.look_at {
            return Ok(());
        }
        self.count_left();
        let patience = self.watchdog.patience;
        self.watchdog.look_at = now + patience / 12;
        // It is replaced anyway.
        if self.failed.is_some() || self.client.fatal_error().is_some() {
            return Ok(());
        }
        // Whatever it waits for. But a topic that was made again has other offsets, and brings another client anyway. Neither does
        // another client unpack what this one cannot.
        let is_watched = |slot: &&Slot| slot.fetch != Fetch::Stale && !self.blocked.has(&slot.partition);
        let any = self.slots.iter().any(|slot| is_watched(&slot));
        let seen = &mut self.watchdog.seen;
        let mut still = Vec::new();
        for slot in &self.slots {
            match seen.get(&slot.partition) {
                Some((next, since)) if *next == slot.next && is_watched(&slot) => {
                    if now >= *since + patience {
                        let has_id = !slot.topic_id.is_empty();
                        still.push(Still { partition: slot.partition.clone(), next: slot.next, has_id });
                    }
                }
                _ => drop(seen.insert(slot.partition.clone(), (slot.next, now))),
            }
        }
        if !any {
            return self.watch_alone(now);
        }
        self.watchdog.alone = None;
        if still.is_empty() {
            self.watchdog.cut_off = None;
            return Ok(());
        }
        let (ends, reached) = self.ends(&still);
        self.watchdog.look_at = next_question(now, patience / 12);
        // Of a partition whose end is not known, nothing is said: it is asked for again.
        let known = still.into_iter().zip(ends).filter_map(|(place, end)| Some((place, end.ok()?)));
        let known: Vec<(Still, i64)> = known.collect();
        let Some((Still { partition, next, .. }, end)) = known.iter().find(|(still, end)| still.is_by_client(*end))
        else {
            if reached == Reached::This {
                for (Still { partition, next, .. }, _) in known {
                    self.watchdog.seen.insert(partition, (next, now));
                }
            }
            return self.replace_when_cut_off(reached, now);
        };
        let seconds = patience.as_secs();
        if end > next {
            tracing::error!(%partition, offset = next, lag = end - next, "no record came for {seconds} s although there are some: replacing the Kafka client");
        } else {
            tracing::error!(%partition, offset = next, end, "the log has ended before the offset for {seconds} s, and the Kafka client does not say so: replacing it");
        }
        self.replace_still("the Kafka client stood still and was replaced")
    }

    /// Looks whether a client without a partition that could be seen to stand still reaches the brokers.
    fn watch_alone(&mut self, now: Instant) -> Result<(), Error> {
        let patience = self.watchdog.patience;
        let since = *self.watchdog.alone.get_or_insert(now);
        if self.watchdog.cut_off.is_none() && now < since + patience {
            return Ok(());
        }
        // Metadata of all topics: asked for those that are not there yet, brokers may make them.
        let reaches = |client: &Client| client.topic_names(ASK).is_ok();
        let reached = match reaches(&self.client) {
            true => Reached::This,
            false if self.ask_another(reaches) == Some(true) => Reached::Another,
            false => Reached::None,
        };
        self.watchdog.look_at = next_question(now, patience / 12);
        if reached == Reached::This {
            self.watchdog.alone = Some(Instant::now());
        }
        self.replace_when_cut_off(reached, now)
    }

    /// Replaces a client that reaches no broker although another one does, when that lasts.
    fn replace_when_cut_off(&mut self, reached: Reached, now: Instant) -> Result<(), Error> {
        if reached != Reached::Another {
            self.watchdog.cut_off = None;
            return Ok(());
        }
        let since = *self.watchdog.cut_off.get_or_insert(now);
        if now < since + self.watchdog.patience / 2 {
            return Ok(());
        }
        let seconds = now.duration_since(since).as_secs();
        tracing::error!(
            "the Kafka client has reached no broker for {seconds} s although another one has: replacing it"
        );
        self.replace_still("the Kafka client reached no broker and was replaced")
    }

    fn replace_still(&mut self, reason: &str) -> Result<(), Error> {
        self.parts.desk.client_restarts.fetch_add(1, Ordering::Relaxed);
        self.renew_client(reason, Old::Abandoned)
    }

    /// Asks a client that was made for this question; `None` if there is none.
    fn ask_another<T>(&self, ask: impl FnOnce(&Client) -> T) -> Option<T> {
        let another = Client::new(&properties::asking(&self.parts.config)).ok()?;
        let answer = ask(&another);
        another.abandon();
        Some(answer)
    }

    /// Shows how many clients that were replaced are still there.
    pub(super) fn count_left(&mut self) {
        self.left.retain(Remains::are_left);
        self.parts.desk.clients_left.store(self.left.len(), Ordering::Relaxed);
    }

    /// Whether there may be one more client.
    pub(super) fn check_left(&mut self) -> Result<(), Error> {
        self.count_left();
        if self.left.len() < MOST_LEFT { Ok(()) } else { Err(Error::Left(self.left.len())) }
    }

    /// Where each partition ends; asked of another client when ours gives no answer at all.
    fn ends(&self, still: &[Still]) -> (Vec<Result<i64, KafkaError>>, Reached) {
        let queries: Vec<_> = still.iter().map(|still| (still.partition.clone(), OffsetSpec::Latest)).collect();
        let ask = |client: &Client| client.list_offsets(&queries, ASK);
        let is_known = |ends: &Vec<Result<i64, KafkaError>>| ends.iter().any(Result::is_ok);
        let ends = ask(&self.client);
        if is_known(&ends) {
            return (ends, Reached::This);
        }
        match self.ask_another(ask).filter(is_known) {
            Some(ends) => (ends, Reached::Another),
            None => (ends, Reached::None),
        }
    }
}
