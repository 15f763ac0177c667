//! The end of a client: it leaves its group, whatever state a rebalance is in, and is freed.
//!
//! librdkafka bounds neither: it may wait for a broker that does not answer, for a message that someone still reads, or for
//! ever. So a thread of its own does it, and whoever drops a client waits for that no longer than `PATIENCE`. What it
//! leaves behind then is told by its [`Remains`].

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use rdkafka::bindings as rd;

use super::{Client, KafkaError, Shared, consume};

/// How long whoever drops a client waits until it has left its group and is gone.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Tells whether a client is still there after it was dropped.
#[derive(Debug)]
pub struct Remains(Weak<Shared>);

impl Remains {
    /// Whether any of it is: threads, connections, what it had fetched.
    pub fn are_left(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// A client that nobody uses any more.
struct Ending {
    rk: *mut rd::rd_kafka_t,
    queue: *mut rd::rd_kafka_queue_t,
    answers: *mut rd::rd_kafka_queue_t,
    /// Callbacks use it until the client is destroyed; should that never happen, it stays.
    shared: ManuallyDrop<Arc<Shared>>,
}

// SAFETY: librdkafka's handles are thread-safe by its documentation; `Shared` is behind locks.
unsafe impl Send for Ending {}

impl Ending {
    /// Leaves the group and frees the client.
    fn run(self) {
        // SAFETY: the last use of all of them. Nothing else is done with the client, which is live until it is destroyed.
        unsafe {
            if !self.close() {
                // It has failed, so there is nothing to leave. But librdkafka waits for the answer to a rebalance all the
                // same, told or not, and keeps a processor busy meanwhile. None comes after this one.
                rd::rd_kafka_assign(self.rk, ptr::null());
            }
            rd::rd_kafka_queue_destroy(self.answers);
            rd::rd_kafka_queue_destroy(self.queue);
            // Not closed once more: that would wait for ever where a rebalance is not answered.
            rd::rd_kafka_destroy_flags(self.rk, rd::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        }
        drop(ManuallyDrop::into_inner(self.shared));
    }

    /// Gives the assignment up and leaves the group; not if the client has failed.
    ///
    /// # Safety
    /// The client is live, and nothing else is done with it meanwhile.
    unsafe fn close(&self) -> bool {
        let mut rest = Vec::new();
        // SAFETY: the client is live. Everything comes by the queue made here until it is closed, a rebalance too, which the
        // callback answers.
        unsafe {
            let queue = rd::rd_kafka_queue_new(self.rk);
            let begun = KafkaError::check_object(rd::rd_kafka_consumer_close_queue(self.rk, queue)).is_ok();
            if begun && self.shared.unanswered.load(Ordering::Acquire) {
                // Never comes back if the group is through with it in this very moment; whoever drops the client does not
                // wait for that.
                rd::rd_kafka_assign(self.rk, ptr::null());
            }
            while begun && rd::rd_kafka_consumer_closed(self.rk) == 0 {
                consume(queue, &mut rest, 1, Duration::from_millis(50));
                rest.clear();
            }
            rd::rd_kafka_queue_destroy(queue);
            begun
        }
    }
}

impl Client {
    /// To look at once the client was dropped.
    pub fn remains(&self) -> Remains {
        Remains(Arc::downgrade(&self.shared))
    }

    /// Drops it without waiting for its end.
    pub fn abandon(mut self) {
        self.patience = Duration::ZERO;
    }
}

impl Drop for Client {
    /// Leaves the group and frees the client, which waits until every [`Message`](super::Message) of it is gone. After some
    /// seconds, that goes on without whoever dropped it.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        let shared = ManuallyDrop::new(Arc::clone(&self.shared));
        let ending = Ending { rk: self.rk, queue: self.queue, answers: self.answers, shared };
        let (done, ended) = bounded::<()>(0);
        let run = move || {
            ending.run();
            drop(done);
        };
        if let Err(error) = thread::Builder::new().name("kafka-close".into()).spawn(run) {
            tracing::error!(%error, "cannot end a Kafka client: no thread");
        } else if ended.recv_timeout(self.patience) == Err(RecvTimeoutError::Timeout) && !self.patience.is_zero() {
            tracing::warn!(
                "the Kafka client could not leave its group in time; the group may wait for its session to end"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::msource::native::Event;
    use crate::msource::native::asking::Beside;

    /// Waits for an event.
    fn event(client: &Client, wanted: impl Fn(&Event) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut rest = Vec::new();
        while !client.next_event().is_some_and(|event| wanted(&event)) {
            assert!(Instant::now() < deadline, "the event does not come");
            client.consume(&mut rest, 10, Duration::from_millis(50));
        }
    }

    fn wait_until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !holds() {
            assert!(Instant::now() < deadline, "waited for: {what}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn wait_until_gone(remains: &Remains) {
        wait_until("it ends", || !remains.are_left());
    }

    #[test]
    fn a_client_that_has_not_answered_a_rebalance_can_be_dropped() {
        let brokers = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 2, 1).expect("a topic");
        for strategy in ["cooperative-sticky", "range"] {
            let properties = [
                ("bootstrap.servers", brokers.bootstrap_servers()),
                ("group.id", format!("g_{strategy}")),
                ("partition.assignment.strategy", strategy.to_owned()),
            ];
            let properties = properties.map(|(key, value)| (key.to_owned(), value)).into();
            let client = Client::new(&properties).expect("a client");
            client.subscribe(&["t".to_owned()]).expect("a subscription");
            event(&client, |event| matches!(event, Event::Assign(_)));
            let remains = client.remains();
            client.abandon();
            wait_until_gone(&remains);
        }
    }

    #[test]
    fn a_client_that_has_failed_within_a_rebalance_can_be_dropped_whether_it_was_told_or_not() {
        let brokers = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 2, 1).expect("a topic");
        let servers = brokers.bootstrap_servers();
        let drop_failed = |strategy: &str, is_told| {
            let properties = [
                ("bootstrap.servers", servers.clone()),
                ("group.id", format!("g_{strategy}_{is_told}")),
                ("group.instance.id", "one".to_owned()),
                ("partition.assignment.strategy", strategy.to_owned()),
            ];
            let properties = properties.map(|(key, value)| (key.to_owned(), value)).into();
            let client = Client::new(&properties).expect("a client");
            client.subscribe(&["t".to_owned()]).expect("a subscription");
            if is_told {
                event(&client, |event| matches!(event, Event::Assign(_)));
            } else {
                // SAFETY: the queue is live.
                wait_until("it comes", || unsafe { rd::rd_kafka_queue_length(client.queue) > 0 });
            }
            let fenced = rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
            // SAFETY: the client is live, and the text is copied.
            unsafe { rd::rd_kafka_test_fatal_error(client.rk, fenced, c"".as_ptr()) };
            let remains = client.remains();
            client.abandon();
            wait_until_gone(&remains);
        };
        thread::scope(|scope| {
            for strategy in ["cooperative-sticky", "range"] {
                let drop_failed = &drop_failed;
                for is_told in [true, false] {
                    scope.spawn(move || drop_failed(strategy, is_told));
                }
            }
        });
    }

    #[test]
    fn what_remains_of_a_client_is_told_until_its_last_message_is_gone() {
        use rdkafka::ClientConfig;
        use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

        let brokers = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 1, 1).expect("a topic");
        let servers = brokers.bootstrap_servers();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a producer");
        producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).payload(b"{}")).expect("room");
        producer.flush(Duration::from_mins(1)).expect("the broker takes the record");
        let properties = [("bootstrap.servers", servers), ("group.id", "g".to_owned())];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        let partition = crate::msource::TopicPartition { topic: "t".into(), partition: 0 };
        client.assign(&[(partition, 0)]).expect("an assignment");
        let mut messages = Vec::new();
        let deadline = Instant::now() + Duration::from_mins(1);
        while messages.is_empty() {
            assert!(Instant::now() < deadline, "the record does not come");
            client.consume(&mut messages, 1, Duration::from_millis(50));
        }
        assert!(messages[0].is_record());
        let remains = client.remains();
        client.abandon();
        assert!(remains.are_left(), "a record of it is being read");
        assert_eq!(messages[0].value(), Some(&b"{}"[..]));
        messages.clear();
        wait_until_gone(&remains);
    }

    /// Also while it waits for the answer itself.
    #[test]
    fn a_question_about_a_group_that_nobody_waits_for_any_more_ends_no_process_and_keeps_no_client() {
        let brokers = MockCluster::new(1).expect("brokers");
        let properties = [("bootstrap.servers", brokers.bootstrap_servers()), ("group.id", "g".to_owned())];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        client.topic_names(Duration::from_secs(10)).expect("the broker is there");
        brokers.broker_round_trip_time(1, Duration::from_millis(1500)).expect("a slow broker");
        let described =
            |client: &Client, group: &str, timeout| client.describe_group(group, Beside::Nothing, timeout, |_| ());
        thread::scope(|scope| {
            for number in 0..50 {
                let group = format!("g{number}");
                let client = &client;
                scope.spawn(move || assert!(described(client, &group, Duration::from_millis(100)).is_err()));
            }
        });
        // Their coordinator is found meanwhile. These brokers do not know the question itself.
        drop(described(&client, "g", Duration::from_secs(3)));
        assert!(described(&client, "other", Duration::from_millis(1)).is_err());
        let remains = client.remains();
        drop(client);
        wait_until_gone(&remains);
    }
}
