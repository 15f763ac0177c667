//! What the user of the configuration may not do at the brokers, although the service will have to.
//!
//! **Promise.** What is missing is named with the right that mends it. Nothing is changed by asking: no group is joined, and
//! no offset is committed.
//!
//! READ is all that is needed: on each topic, and on the group unless `kafka.assignment` is `all`. It implies DESCRIBE.

use std::fmt;
use std::time::{Duration, Instant};

use super::native::{Client, Coordinator, KafkaError, Reading};
use super::properties;
use crate::config::{Assignment, Kafka};

/// What may not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A topic of this name.
    Topic(String),
    /// The group.
    Group(String),
}

/// A right that is missing; it is displayed with whose it is, and what to grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Whose it is, where the configuration names a user.
    pub user: Option<String>,
    /// On what it is missing.
    pub resource: Resource,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "the user '{user}' may not read ")?,
            None => write!(f, "the brokers do not let this client read ")?,
        }
        match &self.resource {
            Resource::Topic(name) => write!(f, "topic '{name}': grant READ on Topic {name}"),
            Resource::Group(name) => write!(f, "group '{name}': grant READ on Group {name}"),
        }
    }
}

/// Asks which of these topics, and of the group if there is one, may not be read. Both questions end within this time.
pub fn missing(
    client: &Client,
    kafka: &Kafka,
    topics: &[String],
    timeout: Duration,
) -> Result<Vec<Missing>, KafkaError> {
    let asked = Instant::now();
    let reading = client.reading_topics(topics, timeout)?;
    let denied = topics.iter().zip(reading).filter(|(_, reading)| *reading == Reading::Denied);
    let mut resources: Vec<_> = denied.map(|(topic, _)| Resource::Topic(topic.clone())).collect();
    if kafka.assignment == Assignment::Group {
        let left = timeout.saturating_sub(asked.elapsed()).max(Duration::from_millis(1));
        if Coordinator::new(properties::asking(kafka)).reading(left)? == Reading::Denied {
            resources.push(Resource::Group(kafka.group_id.clone()));
        }
    }
    let user = kafka.librdkafka.get("sasl.username");
    Ok(resources.into_iter().map(|resource| Missing { user: user.cloned(), resource }).collect())
}
