//! The end of a client: it leaves its group, in a bounded time, whatever state a rebalance is in.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;

use super::{Client, KafkaError, consume};

/// How long a client that is dropped may take to leave its group. librdkafka has no bound of its own for that.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

impl Client {
    /// Gives the assignment up and leaves the group; returns whether that was done in time.
    ///
    /// # Safety
    /// Nothing else is done with the client meanwhile, and no fatal error was raised.
    unsafe fn close(&self) -> bool {
        let deadline = Instant::now() + CLOSE_DEADLINE;
        let mut rest = Vec::new();
        // SAFETY: the client is live. Everything comes by the queue made here until it is closed, a rebalance too, which the
        // callback answers. When there is no time left, librdkafka goes on using the queue, so it stays.
        unsafe {
            let queue = rd::rd_kafka_queue_new(self.rk);
            let begun = KafkaError::check_object(rd::rd_kafka_consumer_close_queue(self.rk, queue));
            if begun.is_ok() && self.shared.unanswered.load(Ordering::Acquire) {
                rd::rd_kafka_assign(self.rk, ptr::null());
            }
            while begun.is_ok() && rd::rd_kafka_consumer_closed(self.rk) == 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                consume(queue, &mut rest, 1, Duration::from_millis(50));
                rest.clear();
            }
            rd::rd_kafka_queue_destroy(queue);
        }
        true
    }
}

impl Drop for Client {
    /// Leaves the group and frees the client. Every [`Message`](super::Message) must be gone by then, or this waits for it. A client that
    /// cannot leave in time stays until the end of the process.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // SAFETY: the last use of both, unless librdkafka is not done with them: then they and what they refer to stay.
        unsafe {
            // After a fatal error there is nothing to leave.
            if self.fatal_error().is_none() && !self.close() {
                tracing::warn!(
                    "the Kafka client could not leave its group in time; the group waits for its session to end"
                );
                std::mem::forget(Arc::clone(&self.shared));
                return;
            }
            rd::rd_kafka_queue_destroy(self.answers);
            rd::rd_kafka_queue_destroy(self.queue);
            // Not closed once more: that would wait for ever where a rebalance is not answered.
            rd::rd_kafka_destroy_flags(self.rk, rd::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        }
    }
}

#[cfg(test)]
mod tests {
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
            let begun = Instant::now();
            drop(client);
            assert!(
                begun.elapsed() < CLOSE_DEADLINE,
                "{strategy}: it left its group, which took {:?}",
                begun.elapsed()
            );
        }
    }
}
