//! What nobody may read: passwords, private keys, tokens. They are masked wherever a configuration is shown.
//!
//! A misspelt `sasl.password` is a secret as well. So of librdkafka's properties those are shown that are known to hold none,
//! and no others.

use std::fmt;

use super::{Http, Kafka, Reporter};

/// What stands in the place of a secret.
pub(super) const MASK: &str = "***";

/// librdkafka's properties that hold no secret, in order of their names. Not those of OAuth: a URL of theirs may hold one.
const SHOWN: [&str; 114] = [
    "acks",
    "allow.auto.create.topics",
    "api.version.fallback.ms",
    "api.version.request",
    "api.version.request.timeout.ms",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "builtin.features",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "coordinator.query.interval.ms",
    "debug",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.metrics.push",
    "enable.random.seed",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "enable.ssl.certificate.verification",
    "fetch.error.backoff.ms",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "https.ca.location",
    "https.ca.pem",
    "internal.termination.signal",
    "isolation.level",
    "linger.ms",
    "log.connection.close",
    "log.thread.name",
    "log_level",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.copy.max.bytes",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.max.age.ms",
    "metadata.recovery.rebootstrap.trigger.ms",
    "metadata.recovery.strategy",
    "partition.assignment.strategy",
    "partitioner",
    "produce.offset.report",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queuing.strategy",
    "receive.message.max.bytes",
    "reconnect.backoff.jitter.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.method",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.blocking.max.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.certificate.stores",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.engine.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.providers",
    "ssl.sigalgs.list",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.cnt",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.interval.ms",
    "topic.metadata.refresh.sparse",
    "transaction.timeout.ms",
    "transactional.id",
];

/// The value of a librdkafka property as it may be shown.
pub(super) fn shown_property<'a>(name: &str, value: &'a str) -> &'a str {
    if SHOWN.binary_search(&name).is_ok() { value } else { MASK }
}

/// A token as it may be shown: whether there is one.
pub(super) fn shown_token(token: &str) -> &str {
    if token.is_empty() { "" } else { MASK }
}

/// The address of a webhook as it may be shown: scheme and host. The rest is what lets anybody post there.
pub(super) fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return shown_token(url).to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(_, host)| ("***@", host));
    let behind = if authority.len() < rest.len() { "/***" } else { "" };
    format!("{scheme}://{user}{host}{behind}")
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { brokers, topics, group_id, assignment, start, out_of_range, instance_id, payload, librdkafka } =
            self;
        let shown: Vec<_> = librdkafka.iter().map(|(name, value)| (name, shown_property(name, value))).collect();
        f.debug_struct("Kafka")
            .field("brokers", brokers)
            .field("topics", topics)
            .field("group_id", group_id)
            .field("assignment", assignment)
            .field("start", start)
            .field("out_of_range", out_of_range)
            .field("instance_id", instance_id)
            .field("payload", payload)
            .field("librdkafka", &shown)
            .finish()
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listen, hosts, token } = self;
        f.debug_struct("Http")
            .field("listen", listen)
            .field("hosts", hosts)
            .field("token", &shown_token(token))
            .finish()
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, format, level, min_interval } = self;
        f.debug_struct("Reporter")
            .field("url", &shown_url(url))
            .field("format", format)
            .field("level", level)
            .field("min_interval", min_interval)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::error::KafkaError;
    use rdkafka::types::RDKafkaConfRes;

    use super::*;

    #[test]
    fn secret_properties_are_masked_and_others_are_not() {
        let secret = [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.pasword",
            "sasl.passwd",
            "SASL.PASSWORD",
            "",
        ];
        assert!(secret.iter().all(|name| shown_property(name, "x") == MASK));
        let open = [
            "sasl.username",
            "ssl.key.location",
            "ssl.ca.pem",
            "security.protocol",
            "sasl.oauthbearer.method",
            "client.id",
        ];
        assert!(open.iter().all(|name| shown_property(name, "x") == "x"));
    }

    #[test]
    fn properties_that_are_shown_are_librdkafkas() {
        assert!(SHOWN.is_sorted());
        for name in SHOWN {
            let taken = ClientConfig::new().set(name, "x").create_native_config();
            let is_unknown = matches!(taken, Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)));
            assert!(!is_unknown, "{name}");
        }
    }

    #[test]
    fn of_a_webhook_only_scheme_and_host_are_shown() {
        let cases = [
            ("", ""),
            ("https://h", "https://h"),
            ("https://h:1/robot/send?access_token=s", "https://h:1/***"),
            ("https://user:s@h/x", "https://***@h/***"),
            ("https://h?s", "https://h/***"),
            ("s", "***"),
        ];
        for (url, shown) in cases {
            assert_eq!(shown_url(url), shown, "{url}");
        }
    }
}
