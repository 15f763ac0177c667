//! The rules for what is told to librdkafka: brokers, topics, names, and the properties that are not the operator's.

use super::layer::Fault;
use super::pattern::check_pattern;
use super::read::parse_number;
use super::values::Values;

/// Longest name of a topic, as the broker checks it.
const LONGEST_NAME: usize = 249;

/// Checks a comma-separated list of `host[:port]`; a host may have a `protocol://` before it.
pub(super) fn parse_brokers(text: &str) -> Result<String, String> {
    for broker in text.split(',').map(str::trim) {
        check_address(broker.rsplit("://").next().unwrap_or(broker), Port::Optional)
            .map_err(|()| format!("`{broker}` is no broker, write host:port and separate several by commas"))?;
    }
    Ok(text.to_owned())
}

/// Whether an address may go without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Optional,
    Required,
}

/// Checks `host:port`; an IPv6 address stands in brackets.
pub(super) fn check_address(address: &str, port: Port) -> Result<(), ()> {
    let (host, number) = match address.rsplit_once(':').filter(|_| !address.ends_with(']')) {
        Some((host, number)) => (host, Some(number)),
        None => (address, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control() || ":/[]@".contains(c))
        }
    };
    let port_is_good = match number {
        Some(number) => parse_number(number, &(1..=65_535)).is_ok(),
        None => port == Port::Optional,
    };
    if host_is_good && port_is_good { Ok(()) } else { Err(()) }
}

/// Checks the list of topics: names, or regular expressions behind a `^`.
pub(super) fn check_topics(topics: &[String]) -> Result<(), String> {
    if topics.is_empty() {
        return Err("must name at least one topic".to_owned());
    }
    for (index, topic) in topics.iter().enumerate() {
        if topic.starts_with('^') {
            check_pattern(topic)?;
        } else {
            check_name(topic)?;
        }
        if topics[..index].contains(topic) {
            return Err(format!("names `{topic}` twice"));
        }
    }
    Ok(())
}

/// Checks a name after the rules for topics, which those for static members are too.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if legal && !matches!(name, "" | "." | "..") && name.len() <= LONGEST_NAME {
        return Ok(());
    }
    Err(format!("`{name}` is no legal name, write 1 to {LONGEST_NAME} letters, digits, `.`, `_` or `-`"))
}

/// Properties that mtga sets itself, with what an operator does instead. A `*` at the start matches any beginning.
const OWNED: [(&str, &str); 30] = [
    ("bootstrap.servers", "set `kafka.brokers`"),
    ("metadata.broker.list", "set `kafka.brokers`"),
    ("group.id", "set `kafka.group_id`"),
    ("group.instance.id", "set `kafka.instance_id`"),
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("offset.store.method", OFFSETS),
    ("offset.store.path", OFFSETS),
    ("offset.store.sync.interval.ms", OFFSETS),
    ("auto.offset.reset", "set `kafka.start` and `kafka.out_of_range`"),
    ("topic.blacklist", "name what is to be read in `kafka.topics`"),
    ("check.crcs", "checksums are always checked"),
    ("enable.partition.eof", "it tells where a partition ends"),
    ("statistics.interval.ms", "see `mtga status`"),
    ("queued.max.messages.kbytes", "set `memory`"),
    ("queued.min.messages", "set `memory`"),
    ("fetch.max.bytes", "set `memory`"),
    ("consume.callback.max.messages", CALLBACKS),
    ("enabled_events", CALLBACKS),
    ("log.queue", CALLBACKS),
    ("interceptors", CALLBACKS),
    ("opaque", CALLBACKS),
    ("default_topic_conf", CALLBACKS),
    ("ssl_engine_callback_data", CALLBACKS),
    ("*_cb", CALLBACKS),
    ("ssl_key", "set `ssl.key.pem` or `ssl.key.location`"),
    ("ssl_certificate", "set `ssl.certificate.pem` or `ssl.certificate.location`"),
    ("ssl_ca", "set `ssl.ca.pem` or `ssl.ca.location`"),
];
const OFFSETS: &str = "offsets are saved as `store.checkpoint` says";
const CALLBACKS: &str = "it cannot be set in a file, remove it";

/// What the names of properties begin with that have librdkafka load a library, or run a command: those of later versions too.
const RUNNING_CODE: [&str; 4] = ["plugin.", "ssl.engine.", "ssl.providers", "sasl.kerberos.kinit."];

/// The first of these properties that names code to be run.
pub fn property_running_code<'a>(mut names: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    names.find(|name| RUNNING_CODE.iter().any(|family| name.starts_with(family))).map(String::as_str)
}

/// Checks the properties of `kafka.librdkafka`. Whether librdkafka knows one, and takes its value, it tells itself.
pub(super) fn check_properties(values: &Values) -> impl Iterator<Item = Fault> {
    values.properties().filter_map(|(name, origin, _)| {
        let owned = OWNED.iter().find(|(owned, _)| match owned.strip_prefix('*') {
            Some(end) => name.ends_with(end),
            None => name == *owned,
        });
        let message = match owned {
            Some((_, instead)) => format!("mtga looks after {name} itself: {instead}"),
            None if name.is_empty() || !name.bytes().all(is_of_property) => {
                format!("`{name}` is no librdkafka property, write one such as security.protocol")
            }
            None => return None,
        };
        Some((origin.clone(), message))
    })
}

const fn is_of_property(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_hosts_with_ports() {
        for text in ["127.0.0.1:9092", "a", "a:1,b:2, c:3", "[::1]:9092", "[::1]", "SASL_SSL://kafka-1.example:9093"] {
            assert_eq!(parse_brokers(text).as_deref(), Ok(text));
        }
        for text in [
            "", ",", "a:1,", "a:0", "a:65536", "a:+1", "a:", ":9092", "::1:9092", "a b:1", "[::z]:1", "u@a:1",
            "http://",
        ] {
            assert!(parse_brokers(text).unwrap_err().contains("is no broker"), "{text}");
        }
        assert_eq!((check_address("a", Port::Required), check_address("a:1", Port::Required)), (Err(()), Ok(())));
    }

    #[test]
    fn topics_are_names_or_expressions_and_there_is_one() {
        let check = |topics: &[&str]| check_topics(&topics.iter().map(|topic| (*topic).to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&["mulog_clean_24", "a.b-c", "^mulog_(clean|raw)_[0-9]+$"]), Ok(()));
        let long = "a".repeat(250);
        for topics in
            [&[][..], &[""], &["."], &[".."], &["a b"], &["日本"], &["a/b"], &["^"], &["a", "b", "a"], &[&long]]
        {
            assert!(check(topics).is_err(), "{topics:?}");
        }
    }
}
