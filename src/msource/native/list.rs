//! Between our types and librdkafka's lists.

use std::ffi::{CString, c_int};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};

use super::borrowed::slice;
use super::code::raw;
use super::{Commit, KafkaError};
use crate::msource::TopicPartition;

pub(super) fn positions(partitions: &[(TopicPartition, i64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.partition, rdkafka::Offset::Offset(*offset))
            .map_err(|error| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text: error.to_string() })?;
    }
    Ok(list)
}

/// Offsets, each with the leader epoch of the record before it.
pub(super) fn places_list(places: &[(TopicPartition, i64, i32)]) -> Result<TopicPartitionList, KafkaError> {
    let plain: Vec<_> = places.iter().map(|(partition, offset, _)| (partition.clone(), *offset)).collect();
    let list = positions(&plain)?;
    for (index, (.., leader_epoch)) in places.iter().enumerate() {
        // SAFETY: the list has as many elements as there are places, in their order.
        unsafe { rd::rd_kafka_topic_partition_set_leader_epoch((*list.ptr()).elems.add(index), *leader_epoch) };
    }
    Ok(list)
}

pub(super) fn names(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

pub(super) fn commit_list(commits: &[Commit]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.partition.topic, commit.partition.partition);
        element
            .set_offset(rdkafka::Offset::Offset(commit.offset))
            .map_err(|error| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text: error.to_string() })?;
        element.set_metadata(&commit.metadata);
        // SAFETY: the element just added is the last one.
        unsafe {
            let native = list.ptr();
            let last = (*native).elems.add((*native).cnt as usize - 1);
            rd::rd_kafka_topic_partition_set_leader_epoch(last, commit.leader_epoch);
        }
    }
    Ok(list)
}

/// The error of an element that no broker has answered.
pub(super) const NOT_ANSWERED: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTIAL;

/// Marks each element as not answered. librdkafka clears that where a broker's answer names the partition; else a partition that
/// is missing from an answer would look like one without an error.
pub(super) fn unanswered(list: TopicPartitionList) -> TopicPartitionList {
    for index in 0..list.count() {
        // SAFETY: the list is live and has so many elements.
        unsafe { (*(*list.ptr()).elems.add(index)).err = NOT_ANSWERED };
    }
    list
}

pub(super) fn first_error(list: &TopicPartitionList) -> Result<(), KafkaError> {
    // SAFETY: the list is live, and so are its elements.
    unsafe { elements(list.ptr()).iter().try_for_each(|element| KafkaError::check(raw(&raw const element.err))) }
}

pub(super) fn millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

pub(super) fn c_string(text: &str) -> Result<CString, KafkaError> {
    CString::new(text).map_err(|_| KafkaError {
        code: RDKafkaErrorCode::InvalidArgument,
        text: format!("the name `{}` has a NUL byte", text.escape_debug()),
    })
}

/// # Safety
/// `list` is null or a live list, which outlives the slice.
pub(super) unsafe fn elements<'a>(
    list: *mut rd::rd_kafka_topic_partition_list_t,
) -> &'a [rd::rd_kafka_topic_partition_t] {
    // SAFETY: by the contract above.
    unsafe { if list.is_null() { &[] } else { slice((*list).elems, (*list).cnt) } }
}
