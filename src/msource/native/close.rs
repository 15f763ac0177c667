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

use super::{Client, KafkaError, Shared, code, consume};

/// How long whoever drops a client waits until it has left its group and is gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

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
            // After a fatal error there is nothing to leave.
            if KafkaError::check(code::rd_kafka_fatal_error(self.rk, ptr::null_mut(), 0)).is_ok() {
                self.close();
            }
            rd::rd_kafka_queue_destroy(self.answers);
            rd::rd_kafka_queue_destroy(self.queue);
            // Not closed once more: that would wait for ever where a rebalance is not answered.
            rd::rd_kafka_destroy_flags(self.rk, rd::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        }
        drop(ManuallyDrop::into_inner(self.shared));
    }

    /// Gives the assignment up and leaves the group.
    ///
    /// # Safety
    /// Nothing else is done with the client meanwhile, and no fatal error was raised.
    unsafe fn close(&self) {
        let mut rest = Vec::new();
        // SAFETY: the client is live. Everything comes by the queue made here until it is closed, a rebalance too, which the
        // callback answers.
        unsafe {
            let queue = rd::rd_kafka_queue_new(self.rk);
            let begun = KafkaError::check_object(rd::rd_kafka_consumer_close_queue(self.rk, queue));
            if begun.is_ok() && self.shared.unanswered.load(Ordering::Acquire) {
                rd::rd_kafka_assign(self.rk, ptr::null());
            }
            while begun.is_ok() && rd::rd_kafka_consumer_closed(self.rk) == 0 {
                consume(queue, &mut rest, 1, Duration::from_millis(50));
                rest.clear();
            }
            rd::rd_kafka_queue_destroy(queue);
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

    /// Waits for an event.
    fn event(client: &Client, wanted: impl Fn(&Event) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut rest = Vec::new();
        while !client.next_event().is_some_and(|event| wanted(&event)) {
            assert!(Instant::now() < deadline, "the event does not come");
            client.consume(&mut rest, 10, Duration::from_millis(50));
        }
    }

    fn wait_until_gone(remains: &Remains) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while remains.are_left() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::park_timeout(Duration::from_millis(10));
        }
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
        thread::scope(|scope| {
            for number in 0..50 {
                let group = format!("g{number}");
                let client = &client;
                scope.spawn(move || assert!(client.members(&group, Duration::from_millis(100)).is_err()));
            }
        });
        // Their coordinator is found meanwhile. These brokers do not know the question itself.
        drop(client.members("g", Duration::from_secs(3)));
        assert!(client.members("other", Duration::from_millis(1)).is_err());
        let remains = client.remains();
        drop(client);
        wait_until_gone(&remains);
    }
}
