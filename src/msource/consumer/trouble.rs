//! Why there are no records: of several reasons the one that helps.
//!
//! When a broker refuses a TLS handshake, librdkafka tells of the handshake, then that all brokers are down, and then every
//! request times out. The first of these is what an operator can mend; the others follow from it and must not hide it.

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

/// How long a cause stands against what only follows from it. librdkafka tells the same again after some seconds.
const STANDS: Duration = Duration::from_secs(30);

/// How much a reason says; a later one says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// That something did not work: brokers are down, a request timed out.
    Consequence,
    /// What happened to one connection, with its address.
    Connection,
    /// What is wrong: a handshake, a password, a right, an address, a property.
    Cause,
}

impl Weight {
    /// How much an error says. A broker that ends a TLS handshake gives an error of the handshake, or of the connection in
    /// that state, as its answer and its end happen to arrive.
    pub fn of(code: Code, text: &str) -> Self {
        match code {
            Code::BrokerTransportFailure if text.contains("SSL_HANDSHAKE") => Self::Cause,
            Code::AllBrokersDown | Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerDestroy => {
                Self::Consequence
            }
            Code::BrokerTransportFailure | Code::MessageTimedOut | Code::TimedOutQueue => Self::Connection,
            _ => Self::Cause,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Trouble(Option<Told>);

#[derive(Debug)]
struct Told {
    text: String,
    weight: Weight,
    at: Instant,
    /// Shown until records come: the brokers answer, and yet something cannot be read.
    until_records: bool,
}

impl Trouble {
    /// Takes a reason unless a better one is known; whether it is new.
    pub(super) fn tell(&mut self, text: String, weight: Weight, until_records: bool, now: Instant) -> bool {
        if let Some(told) = &mut self.0 {
            if told.text == text {
                told.at = now;
                return false;
            }
            if weight < told.weight && now.duration_since(told.at) < STANDS {
                return false;
            }
        }
        self.0 = Some(Told { text, weight, at: now, until_records });
        true
    }

    /// The reason to show.
    pub(super) fn reason(&self) -> Option<&str> {
        self.0.as_ref().map(|told| told.text.as_str())
    }

    /// Records come, or what was waited for is there.
    pub(super) fn over(&mut self) {
        self.0 = None;
    }

    /// The brokers answer again.
    pub(super) fn answered(&mut self, now: Instant) {
        self.0.take_if(|told| !told.until_records || now.duration_since(told.at) >= STANDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_hidden_by_what_follows_from_it() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let mut tell = |text: &str, code, at| trouble.tell(text.to_owned(), Weight::of(code, text), false, start + at);
        assert!(tell("down", Code::AllBrokersDown, Duration::ZERO));
        assert!(tell("127.0.0.1:9: refused", Code::BrokerTransportFailure, Duration::ZERO));
        assert!(tell("handshake failed", Code::SSL, Duration::ZERO));
        assert!(!tell("127.0.0.1:9: closed", Code::BrokerTransportFailure, STANDS / 2));
        assert!(!tell("handshake failed", Code::SSL, STANDS / 2));
        assert!(!tell("down", Code::AllBrokersDown, STANDS), "it was told again meanwhile");
        assert!(tell("closed in state SSL_HANDSHAKE", Code::BrokerTransportFailure, STANDS / 2));
        assert!(tell("wrong password", Code::Authentication, STANDS));
        assert!(tell("down", Code::AllBrokersDown, STANDS * 3), "what was mended is forgotten");
        assert_eq!(trouble.reason(), Some("down"));
    }

    #[test]
    fn what_brokers_that_answer_do_not_mend_is_shown_until_records_come() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        trouble.tell("down".to_owned(), Weight::Consequence, false, start);
        trouble.answered(start);
        assert_eq!(trouble.reason(), None);
        trouble.tell("increase receive.message.max.bytes".to_owned(), Weight::Cause, true, start);
        trouble.answered(start + STANDS / 2);
        assert!(trouble.reason().is_some());
        trouble.over();
        assert_eq!(trouble.reason(), None);
    }
}
