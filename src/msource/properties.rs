//! librdkafka's properties: what the operator set, what we choose, and what we must own.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Config, Kafka};

/// Share of `memory` for librdkafka's queue; half of it is for blocks, the rest for what is fetched and not yet queued.
const QUEUE_SHARE: u64 = 4;

/// Most bytes of one fetch, over all partitions: each queue is overshot by a fetch.
const FETCH_BYTES: u64 = 8 << 20;

/// Bounds on a reply: librdkafka's own choice, and the most that it takes.
const LEAST_REPLY: u64 = 100_000_000;
const MOST_REPLY: u64 = i32::MAX as u64;

/// Bytes of librdkafka's bookkeeping for each queued message.
const MESSAGE_OVERHEAD: u64 = 512;

/// The properties of a client that only asks.
pub fn asking(kafka: &Kafka) -> BTreeMap<String, String> {
    let mut properties: BTreeMap<String, String> = [
        ("client.id", "mtga"),
        // Reports a broker that is down at most this often.
        ("reconnect.backoff.max.ms", "5000"),
        ("topic.metadata.refresh.interval.ms", "30000"),
        ("fetch.message.max.bytes", "1048576"),
        // A queue that was full is fetched for again after this long, however soon it is empty: by default a second.
        ("fetch.queue.backoff.ms", "20"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    // With the consumer protocol of KIP-848 the broker assigns, and librdkafka refuses a strategy of ours.
    if !kafka.librdkafka.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer")) {
        properties.insert("partition.assignment.strategy".into(), "cooperative-sticky".into());
    }
    properties.extend(kafka.librdkafka.clone());
    let owned = [
        ("bootstrap.servers", kafka.brokers.as_str()),
        ("group.id", &kafka.group_id),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        // An offset that the broker does not have is ours to judge.
        ("auto.offset.reset", "error"),
    ];
    properties.extend(owned.map(|(key, value)| (key.to_owned(), value.to_owned())));
    properties
}

/// The properties of the client that consumes.
pub fn consuming(config: &Config) -> BTreeMap<String, String> {
    let mut properties = asking(&config.kafka);
    let queue = config.memory / QUEUE_SHARE;
    let fetch = FETCH_BYTES.min(queue);
    let owned = [
        // A batch that was damaged on its way or on the broker's disk must not become events.
        ("check.crcs", "true".to_owned()),
        // Tells the position behind control records, so that lag reaches 0.
        ("enable.partition.eof", "true".to_owned()),
        ("queued.max.messages.kbytes", (queue >> 10).max(1).to_string()),
        ("queued.min.messages", (queue / MESSAGE_OVERHEAD).clamp(1_000, 1_000_000).to_string()),
        ("fetch.max.bytes", fetch.to_string()),
    ];
    properties.extend(owned.map(|(key, value)| (key.to_owned(), value)));
    if !config.kafka.instance_id.is_empty() {
        properties.insert("group.instance.id".into(), config.kafka.instance_id.clone());
    }
    // A fetch of one partition may not exceed the whole fetch, nor the reply's bound fall short of it.
    let partition: u64 =
        properties.get("fetch.message.max.bytes").and_then(|text| text.parse().ok()).unwrap_or(1 << 20);
    let fetch = fetch.max(partition);
    properties.insert("fetch.max.bytes".into(), fetch.to_string());
    // Bounds what a batch becomes when it is unpacked, too: librdkafka triples its buffer until the batch fits. So one as large as
    // the share of blocks does, whatever its producer made of it.
    let unpacked = (config.memory / 2 * 3).clamp(LEAST_REPLY, MOST_REPLY);
    let reply: u64 = properties.get("receive.message.max.bytes").and_then(|text| text.parse().ok()).unwrap_or(unpacked);
    properties.insert("receive.message.max.bytes".into(), reply.max(fetch + (1 << 20)).min(MOST_REPLY).to_string());
    properties
}

/// How often topics are looked at for new partitions.
pub fn discovery(kafka: &Kafka) -> Duration {
    let millis = asking(kafka).get("topic.metadata.refresh.interval.ms").and_then(|text| text.parse().ok());
    // librdkafka takes -1 for never, which is seldom enough once a day.
    Duration::from_millis(millis.unwrap_or(86_400_000)).max(Duration::from_millis(100))
}

/// How long the group waits for a member that says nothing: to poll, and to give partitions up.
pub fn max_poll_interval(kafka: &Kafka) -> Duration {
    let millis = kafka.librdkafka.get("max.poll.interval.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(millis.unwrap_or(300_000))
}

/// Whether only committed transactions are read.
pub fn committed_only(kafka: &Kafka) -> bool {
    // librdkafka takes it in letters of either case.
    kafka.librdkafka.get("isolation.level").is_none_or(|level| level.eq_ignore_ascii_case("read_committed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Assignment, OutOfRange, Payload, Start};

    /// `kafka` with one property of librdkafka.
    fn kafka(property: &str, value: &str) -> Kafka {
        Kafka {
            brokers: "127.0.0.1:1".into(),
            topics: vec!["t".into()],
            group_id: "g".into(),
            assignment: Assignment::Group,
            start: Start::Earliest,
            out_of_range: OutOfRange::Earliest,
            instance_id: String::new(),
            payload: Payload::Auto,
            librdkafka: [(property.to_owned(), value.to_owned())].into(),
        }
    }

    #[test]
    fn the_strategy_is_ours_unless_the_operator_or_the_broker_has_it() {
        let strategy = |kafka: &Kafka| asking(kafka).remove("partition.assignment.strategy");
        assert_eq!(strategy(&kafka("group.protocol", "classic")).as_deref(), Some("cooperative-sticky"));
        assert_eq!(strategy(&kafka("partition.assignment.strategy", "range")).as_deref(), Some("range"));
        assert_eq!(strategy(&kafka("group.protocol", "consumer")), None);
    }

    #[test]
    fn a_full_queue_is_soon_fetched_for_again_unless_the_operator_says_otherwise() {
        let backoff = |kafka: &Kafka| asking(kafka).remove("fetch.queue.backoff.ms");
        assert_eq!(backoff(&kafka("group.protocol", "classic")).as_deref(), Some("20"));
        assert_eq!(backoff(&kafka("fetch.queue.backoff.ms", "500")).as_deref(), Some("500"));
    }

    #[test]
    fn only_what_is_not_committed_is_asked_for_where_librdkafka_reads_it_too() {
        use crate::msource::native::Client;
        for (level, expected) in [
            ("read_committed", true),
            ("READ_COMMITTED", true),
            ("Read_Committed", true),
            ("read_uncommitted", false),
            ("READ_UNCOMMITTED", false),
        ] {
            let kafka = kafka("isolation.level", level);
            assert_eq!(committed_only(&kafka), expected, "{level}");
            let made = Client::new(&asking(&kafka));
            assert!(made.is_ok(), "{level}: {made:?}");
        }
    }

    #[test]
    fn librdkafka_takes_the_properties_of_each_protocol() {
        use crate::msource::native::Client;
        for (property, value) in
            [("group.protocol", "consumer"), ("group.protocol", "classic"), ("partition.assignment.strategy", "range")]
        {
            let made = Client::new(&asking(&kafka(property, value)));
            assert!(made.is_ok(), "{property}={value}: {made:?}");
        }
    }

    #[test]
    fn what_librdkafka_refuses_is_told_without_its_value() {
        use crate::msource::native::Client;
        for property in
            ["sasl.passwordd", "security.protocol", "topic.blacklist", "sasl.mechanisms", "fetch.wait.max.ms"]
        {
            for value in ["hunter2(secret", "no \\( secret"] {
                let Err(error) = Client::new(&asking(&kafka(property, value))) else { continue };
                let text = format!("{error} {error:?}");
                assert!(!text.contains("secret") && error.text.contains(property), "{text}");
            }
        }
        let error = Client::new(&asking(&kafka("sasl.passwordd", "hunter2"))).unwrap_err();
        assert_eq!(error.text, "sasl.passwordd: No such configuration property: \"sasl.passwordd\"");
    }
}
