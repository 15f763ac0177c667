//! What this client may do, as the brokers say it: it needs no right that a consumer does not need, and changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::asking::Beside;
use super::borrowed::text;
use super::{Client, KafkaError, code};

/// Whether something may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
    /// Brokers before 2.3 do not say, and there is nothing to be said of what is not there.
    Unknown,
}

impl Client {
    /// Whether records of these topics may be fetched and their offsets committed, in the order asked.
    pub fn reading_topics(&self, topics: &[String], timeout: Duration) -> Result<Vec<Reading>, KafkaError> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = BTreeMap::new();
        self.each_description(topics, Beside::Rights, timeout, |description| {
            // SAFETY: the description is live, and so is what it returns.
            unsafe {
                let name = text(rd::rd_kafka_TopicDescription_name(description));
                let error = rd::rd_kafka_TopicDescription_error(description);
                let code = if error.is_null() { 0 } else { code::rd_kafka_error_code(error) };
                let mut count = 0;
                let operations = rd::rd_kafka_TopicDescription_authorized_operations(description, &raw mut count);
                let reading = match KafkaError::check(code) {
                    Ok(()) => reads(operations, count),
                    Err(error) if error.code == Code::TopicAuthorizationFailed => Reading::Denied,
                    Err(_) => Reading::Unknown,
                };
                found.insert(name, reading);
            }
        })?;
        Ok(topics.iter().map(|topic| found.remove(topic).unwrap_or(Reading::Unknown)).collect())
    }
}

/// # Safety
/// `operations` is null, or points to so many numbers.
pub(super) unsafe fn reads(operations: *const rd::rd_kafka_AclOperation_t, count: usize) -> Reading {
    if operations.is_null() {
        return Reading::Unknown;
    }
    let read = rd::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ as u32;
    // SAFETY: by the contract above. They are read as the numbers that they are in C.
    let operations = unsafe { std::slice::from_raw_parts(operations.cast::<u32>(), count) };
    if operations.contains(&read) { Reading::Allowed } else { Reading::Denied }
}
