//! Error codes as librdkafka hands them out: plain numbers.
//!
//! librdkafka passes on what a broker answers, and a broker newer than it has codes that its enum does not name. In Rust such a
//! value must never become one of the enum, so nothing that may hold a broker's code is read as one: fields are read as numbers,
//! and the functions that return them are declared once more here.

use std::ffi::{c_char, c_int, c_void};

use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::KafkaError;
use super::borrowed::text;

/// What is told of a commit.
pub(super) type OnCommit =
    unsafe extern "C" fn(*mut rd::rd_kafka_t, c_int, *mut rd::rd_kafka_topic_partition_list_t, *mut c_void);

unsafe extern "C" {
    fn rd_kafka_err2str(code: c_int) -> *const c_char;
    pub(super) fn rd_kafka_error_code(error: *const rd::rd_kafka_error_t) -> c_int;
    pub(super) fn rd_kafka_event_error(event: *mut rd::rd_kafka_event_t) -> c_int;
    pub(super) fn rd_kafka_fatal_error(rk: *mut rd::rd_kafka_t, text: *mut c_char, size: usize) -> c_int;
    pub(super) fn rd_kafka_committed(
        rk: *mut rd::rd_kafka_t,
        partitions: *mut rd::rd_kafka_topic_partition_list_t,
        timeout: c_int,
    ) -> c_int;
    pub(super) fn rd_kafka_offsets_for_times(
        rk: *mut rd::rd_kafka_t,
        offsets: *mut rd::rd_kafka_topic_partition_list_t,
        timeout: c_int,
    ) -> c_int;
    pub(super) fn rd_kafka_commit_queue(
        rk: *mut rd::rd_kafka_t,
        offsets: *const rd::rd_kafka_topic_partition_list_t,
        queue: *mut rd::rd_kafka_queue_t,
        callback: Option<OnCommit>,
        opaque: *mut c_void,
    ) -> c_int;
    pub(super) fn rd_kafka_metadata(
        rk: *mut rd::rd_kafka_t,
        all_topics: c_int,
        only: *mut rd::rd_kafka_topic_t,
        metadata: *mut *const rd::rd_kafka_metadata,
        timeout: c_int,
    ) -> c_int;
}

/// The code in a field.
///
/// # Safety
/// `field` can be read.
pub(super) unsafe fn raw(field: *const RDKafkaRespErr) -> c_int {
    // SAFETY: by the contract above; the enum is an `int` in C.
    unsafe { field.cast::<c_int>().read() }
}

impl KafkaError {
    /// What a code means; [`RDKafkaErrorCode::Unknown`] where librdkafka does not know it.
    pub(super) fn from_code(code: c_int) -> Self {
        // SAFETY: the function takes any number and returns a string that lasts until this thread asks again.
        let text = unsafe { text(rd_kafka_err2str(code)) };
        let known = RDKafkaRespErr::try_from(code).map_or(RDKafkaErrorCode::Unknown, Into::into);
        Self { code: known, text }
    }

    pub(super) fn of(code: RDKafkaRespErr) -> Self {
        Self::from_code(code as c_int)
    }

    pub(super) fn check(code: c_int) -> Result<(), Self> {
        if code == 0 { Ok(()) } else { Err(Self::from_code(code)) }
    }

    /// Takes ownership of an error object; null is success.
    ///
    /// # Safety
    /// `error` is null or an error object that nobody else destroys.
    pub(super) unsafe fn check_object(error: *mut rd::rd_kafka_error_t) -> Result<(), Self> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, and ours to read and destroy.
        unsafe {
            let result =
                Self { text: text(rd::rd_kafka_error_string(error)), ..Self::from_code(rd_kafka_error_code(error)) };
            rd::rd_kafka_error_destroy(error);
            Err(result)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_librdkafka_does_not_know_is_an_error_that_tells_its_number() {
        for code in [131, 135, 32767, -12345] {
            let error = KafkaError::check(code).expect_err("an error");
            assert_eq!(error.code, RDKafkaErrorCode::Unknown);
            assert!(error.text.contains(&code.abs().to_string()), "{error}");
        }
        assert_eq!(KafkaError::check(0), Ok(()));
        let error = KafkaError::check(3).expect_err("an error");
        assert_eq!(error.code, RDKafkaErrorCode::UnknownTopicOrPartition);
    }

    #[test]
    fn a_field_with_such_a_code_is_read_as_a_number() {
        let field: c_int = 131;
        // SAFETY: an `int`, as the enum is one in C.
        assert_eq!(unsafe { raw((&raw const field).cast()) }, 131);
    }
}
