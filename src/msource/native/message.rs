//! A record as librdkafka hands it out, read in place.

use std::ffi::{CStr, c_int};
use std::ptr;

use rdkafka::bindings as rd;

use super::KafkaError;
use super::borrowed::{bytes, text};
use super::code::raw;

/// Where a broker's log was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// The first offset that does not hold what it held.
    At(i64),
    /// The broker cannot say.
    Somewhere,
}

/// A record or a partition's error, owned.
#[repr(transparent)]
#[derive(Debug)]
pub struct Message(*mut rd::rd_kafka_message_t);

// SAFETY: a message is read-only and reference-counted by librdkafka with atomics.
unsafe impl Send for Message {}

impl Message {
    fn raw(&self) -> &rd::rd_kafka_message_t {
        // SAFETY: live until `drop`.
        unsafe { &*self.0 }
    }

    fn code(&self) -> c_int {
        // SAFETY: the message is live.
        unsafe { raw(&raw const (*self.0).err) }
    }

    /// The error in place of a record, if this is one.
    pub fn error(&self) -> Option<KafkaError> {
        let error = KafkaError::check(self.code()).err()?;
        // SAFETY: the message is live; the string is static or its own.
        Some(KafkaError { text: unsafe { text(rd::rd_kafka_message_errstr(self.0)) }, ..error })
    }

    /// Where the broker's log was cut off, if this error tells that it was.
    pub fn truncated_at(&self) -> Option<CutOff> {
        self.error().and_then(|error| cut_off(&error.text))
    }

    /// Whether this is a record.
    pub fn is_record(&self) -> bool {
        self.code() == 0
    }

    /// Identifies the topic among the messages of one client: equal exactly for equal topics.
    pub fn topic_key(&self) -> usize {
        self.raw().rkt as usize
    }

    /// The topic's name; empty for an error that belongs to none.
    pub fn topic(&self) -> String {
        if self.raw().rkt.is_null() {
            return String::new();
        }
        // SAFETY: the topic lives as long as the message.
        unsafe { text(rd::rd_kafka_topic_name(self.raw().rkt)) }
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }

    /// The record's offset; for an end of partition the next offset to read.
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }

    /// The value, read in place; `None` when it is null.
    pub fn value(&self) -> Option<&[u8]> {
        let raw = self.raw();
        // SAFETY: librdkafka gives a pointer to so many bytes, or null.
        (!raw.payload.is_null()).then(|| unsafe { bytes(raw.payload, raw.len) })
    }

    /// The key, read in place; `None` when it is null.
    pub fn key(&self) -> Option<&[u8]> {
        let raw = self.raw();
        // SAFETY: as for the value.
        (!raw.key.is_null()).then(|| unsafe { bytes(raw.key, raw.key_len) })
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.raw().len + self.raw().key_len
    }

    /// The record's timestamp in milliseconds since 1970 UTC, if it has one.
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live.
        let time = unsafe { rd::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time >= 0).then_some(time)
    }

    /// Leader epoch of the record, -1 when unknown.
    pub fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is live.
        unsafe { rd::rd_kafka_message_leader_epoch(self.0) }
    }

    /// The record's headers, copied; `None` for a value that is null.
    pub fn headers(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let mut copied = Vec::new();
        self.each_header(|name, value| {
            copied.push((name.to_string_lossy().into_owned(), value.map(<[u8]>::to_vec)));
        });
        copied
    }

    /// Bytes of the record's headers. They lie in memory beside key and value for as long as the record does.
    pub fn headers_size(&self) -> usize {
        let mut size = 0;
        self.each_header(|name, value| size += name.count_bytes() + value.map_or(0, <[u8]>::len));
        size
    }

    /// Shows each header. librdkafka makes a copy of them for that, which would stay with the record, so it is taken from it and
    /// freed.
    #[inline]
    fn each_header(&self, mut show: impl FnMut(&CStr, Option<&[u8]>)) {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is live, and no other thread has it. The headers are ours then, and not used after they are freed.
        unsafe {
            if rd::rd_kafka_message_detach_headers(self.0, &raw mut headers) as c_int != 0 {
                return;
            }
            for index in 0..rd::rd_kafka_header_cnt(headers) {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                rd::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size);
                show(CStr::from_ptr(name), (!value.is_null()).then(|| bytes(value, size)));
            }
            rd::rd_kafka_headers_destroy(headers);
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours, and the last use.
        unsafe { rd::rd_kafka_message_destroy(self.0) }
    }
}

/// librdkafka tells the end in the text alone.
fn cut_off(text: &str) -> Option<CutOff> {
    if !text.contains("truncation detected") && !text.contains("No epoch found") {
        return None;
    }
    let (_, rest) = text.split_once("broker end offset is ")?;
    let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
    Some(number.parse().ok().filter(|end| *end >= 0).map_or(CutOff::Somewhere, CutOff::At))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rdkafka::ClientConfig;
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    use super::super::Client;
    use super::*;
    use crate::msource::TopicPartition;

    #[test]
    fn a_header_without_a_value_is_told_from_one_with_an_empty_value() {
        let cluster = MockCluster::new(1).expect("brokers");
        cluster.create_topic("t", 1, 1).expect("a topic");
        let servers = cluster.bootstrap_servers();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a producer");
        let headers = OwnedHeaders::new().insert(Header { key: "null", value: None::<&[u8]> });
        let headers = headers.insert(Header { key: "empty", value: Some("") });
        producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).payload(b"x").headers(headers)).expect("room");
        producer.flush(Duration::from_mins(1)).expect("the brokers take the record");
        let properties = [("bootstrap.servers", servers.as_str()), ("group.id", "g")];
        let properties = properties.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let client = Client::new(&properties.into()).expect("a client");
        client.assign(&[(TopicPartition { topic: "t".into(), partition: 0 }, 0)]).expect("an assignment");
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut messages = Vec::new();
        while !messages.iter().any(Message::is_record) {
            assert!(Instant::now() < deadline, "no record came");
            client.consume(&mut messages, 1, Duration::from_millis(50));
        }
        let record = messages.iter().find(|message| message.is_record()).expect("just found");
        for _ in 0..2 {
            assert_eq!(record.headers_size(), "null".len() + "empty".len());
            assert_eq!(record.headers(), [("null".to_owned(), None), ("empty".to_owned(), Some(Vec::new()))]);
        }
    }

    #[test]
    fn the_end_of_a_log_that_was_cut_off_is_read_from_the_text() {
        let text = "Partition log truncation detected at offset 12 (leader epoch 3): broker end offset is 7 (offset leader \
                    epoch 2). Reset to INVALID.: Local: Partition log truncation detected (broker 1)";
        assert_eq!(cut_off(text), Some(CutOff::At(7)));
        let text = "No epoch found less or equal to offset 12 (leader epoch 3): broker end offset is -1 (offset leader \
                    epoch -1). Reset using configured policy.";
        assert_eq!(cut_off(text), Some(CutOff::Somewhere));
        assert_eq!(cut_off("fetch failed due to requested offset not available on the broker"), None);
    }
}
