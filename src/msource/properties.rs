//! librdkafka's properties: what the operator set, what we choose, and what we must own.

use std::collections::{BTreeMap, BTreeSet};
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

/// How the names of topics begin that are the brokers' own, or a tool's. Patterns do not take them.
pub const INTERNAL: &str = "__";

/// The expression that matches every internal topic but those that are named outright, for librdkafka: it has no
/// exceptions from what it leaves out.
fn internal_but(named: &[String]) -> String {
    let kept: Vec<&str> = named.iter().filter_map(|name| name.strip_prefix(INTERNAL)).collect();
    format!("^{INTERNAL}{}", others(&kept))
}

/// Matches every text that is none of these, to its end.
fn others(kept: &[&str]) -> String {
    if kept.is_empty() {
        return String::new();
    }
    let firsts: BTreeSet<char> = kept.iter().filter_map(|text| text.chars().next()).collect();
    // A `-` is a range unless it is the last one, and `_` before `.` is none.
    let mut class: String = firsts.iter().filter(|first| **first != '-').collect();
    class.extend(firsts.contains(&'-').then_some('-'));
    let mut choices = Vec::new();
    if !kept.contains(&"") {
        choices.push("$".to_owned());
    }
    choices.push(if class.is_empty() { ".".to_owned() } else { format!("[^{class}]") });
    for first in firsts {
        let rest: Vec<&str> = kept.iter().filter_map(|text| text.strip_prefix(first)).collect();
        let first = if first == '.' { "\\.".to_owned() } else { first.to_string() };
        choices.push(format!("{first}{}", others(&rest)));
    }
    format!("({})", choices.join("|"))
}

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
    if !brokers_assign(kafka) {
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
    fit(&mut properties, 1 << 20, reply(kafka, LEAST_REPLY));
    properties
}

/// The bound on a reply as the operator has it, else the usual one.
fn reply(kafka: &Kafka, usual: u64) -> u64 {
    kafka.librdkafka.get("receive.message.max.bytes").and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Sets the bound on a fetch, and that on a reply so that it takes one: librdkafka makes no client of a smaller one.
fn fit(properties: &mut BTreeMap<String, String>, fetch: u64, reply: u64) {
    // A fetch of one partition may not exceed the whole fetch, nor the reply's bound fall short of it.
    let bytes = |key: &str| properties.get(key).and_then(|text| text.parse::<u64>().ok());
    let fetch = fetch.max(bytes("fetch.message.max.bytes").unwrap_or(1 << 20));
    let reply = reply.max(fetch + (1 << 20)).min(MOST_REPLY);
    properties.insert("fetch.max.bytes".into(), fetch.to_string());
    properties.insert("receive.message.max.bytes".into(), reply.to_string());
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
    ];
    properties.extend(owned.map(|(key, value)| (key.to_owned(), value)));
    if !brokers_assign(&config.kafka) && config.kafka.topics.iter().any(|topic| topic.starts_with('^')) {
        properties.insert("topic.blacklist".into(), internal_but(&config.kafka.topics));
    }
    if !config.kafka.instance_id.is_empty() {
        properties.insert("group.instance.id".into(), config.kafka.instance_id.clone());
    }
    // Bounds what a batch becomes when it is unpacked, too: librdkafka triples its buffer until the batch fits. So one as large as
    // the share of blocks does, whatever its producer made of it.
    fit(&mut properties, fetch, reply(&config.kafka, (config.memory / 2 * 3).clamp(LEAST_REPLY, MOST_REPLY)));
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

/// Whether the group uses the protocol of KIP-848, in which the brokers assign partitions.
pub fn brokers_assign(kafka: &Kafka) -> bool {
    kafka.librdkafka.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
}

/// librdkafka's own `session.timeout.ms`.
const CLASSIC_SESSION: Duration = Duration::from_secs(45);

/// The longest session of KIP-848, where brokers know it alone: `group.consumer.max.session.timeout.ms` unless someone sets it.
const LONGEST_SESSION: Duration = Duration::from_mins(1);

/// How long the group keeps a member that says nothing, at most.
pub fn session(kafka: &Kafka) -> Duration {
    if brokers_assign(kafka) {
        return LONGEST_SESSION;
    }
    let set = kafka.librdkafka.get("session.timeout.ms").and_then(|text| text.parse().ok());
    set.map_or(CLASSIC_SESSION, Duration::from_millis)
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
    fn internal_topics_are_left_out_but_those_that_are_named() {
        let names = ["__own", "__o", "__own.2", "__own-3", "t"].map(str::to_owned);
        let left_out = regex_lite::Regex::new(&internal_but(&names)).unwrap();
        for name in &names {
            assert!(!left_out.is_match(name), "{name}");
        }
        for name in ["__consumer_offsets", "__", "__ow", "__own2", "__own.", "__own.22", "__own-", "__ownx3", "__p"] {
            assert!(left_out.is_match(name), "{name}");
        }
        assert_eq!(internal_but(&["t".to_owned()]), "^__");
    }

    #[test]
    fn librdkafka_takes_the_properties_of_each_protocol() {
        use crate::msource::native::Client;
        for (property, value) in [
            ("group.protocol", "consumer"),
            ("group.protocol", "classic"),
            ("partition.assignment.strategy", "range"),
            ("receive.message.max.bytes", "1000"),
        ] {
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
