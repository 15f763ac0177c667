//! What nobody may read: passwords, private keys, tokens. They are masked wherever a configuration is shown.

use std::fmt;

use super::{Http, Kafka, Reporter};

/// What stands in the place of a secret.
pub(super) const MASK: &str = "***";

/// The value of a librdkafka property as it may be shown.
pub(super) fn shown_property<'a>(name: &str, value: &'a str) -> &'a str {
    let secret = ["password", "secret", "passphrase", "key.pem", "kinit.cmd"].iter().any(|part| name.contains(part))
        || name.starts_with("sasl.oauthbearer.") && name != "sasl.oauthbearer.method";
    if secret { MASK } else { value }
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
