//! What the coordinator of a group is asked: who its members are, and what they have.
//!
//! **Promise.** Whoever coordinates the group now is asked. librdkafka keeps the coordinator that a client has found for as long
//! as that client asks about the group, although another broker coordinates it by now, or the one that it found is gone. So
//! each question is asked by a client of its own, which finds the coordinator anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::asking::Beside;
use super::borrowed::text;
use super::list::{c_string, elements};
use super::rights::{Reading, reads};
use super::{Client, KafkaError, code};
use crate::msource::TopicPartition;

/// Pause before a coordinator that is not ready is asked again; each is twice as long as the one before it.
const PAUSE: Duration = Duration::from_millis(100);

/// The coordinator of a group; see the module.
#[derive(Clone, Debug)]
pub struct Coordinator {
    properties: BTreeMap<String, String>,
    group: String,
}

impl Coordinator {
    /// Asked by clients with these properties, about the group that they name.
    pub fn new(mut properties: BTreeMap<String, String>) -> Self {
        // Nobody needs the metrics of a client that lives for one question, and it would wait to push them.
        properties.entry("enable.metrics.push".to_owned()).or_insert_with(|| "false".to_owned());
        let group = properties.get("group.id").cloned().unwrap_or_default();
        Self { properties, group }
    }

    /// The id of the static member of this name, if the group has one.
    pub fn member_named(&self, instance: &str, timeout: Duration) -> Result<Option<String>, KafkaError> {
        let found = self.describe(Beside::Nothing, timeout, |group| {
            // SAFETY: the description is live, and so are its members.
            unsafe {
                let named = |member| text(rd::rd_kafka_MemberDescription_group_instance_id(member)) == instance;
                members(group).find(|member| named(*member)).map(|member| id(member))
            }
        })?;
        Ok(found.flatten())
    }

    /// The partitions that the group has given to its members; `None` while it is changing that.
    pub fn assigned(&self, timeout: Duration) -> Result<Option<BTreeSet<TopicPartition>>, KafkaError> {
        // SAFETY: the description is live.
        let found = self.describe(Beside::Nothing, timeout, |group| unsafe { assigned(group) })?;
        Ok(found.flatten())
    }

    /// How many members the group has, with those that are gone and whose session lasts, besides the one of this id.
    pub fn members_besides(&self, own: Option<&str>, timeout: Duration) -> Result<usize, KafkaError> {
        let found = self.describe(Beside::Nothing, timeout, |group| {
            // SAFETY: the description is live, and so are its members.
            unsafe { members(group).filter(|member| Some(id(*member).as_str()) != own).count() }
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Whether the group may be joined and its offsets committed. This does not join it.
    pub fn reading(&self, timeout: Duration) -> Result<Reading, KafkaError> {
        let reading = self.describe(Beside::Rights, timeout, |description| {
            let mut count = 0;
            // SAFETY: the description is live, and so is what it returns.
            unsafe {
                let operations =
                    rd::rd_kafka_ConsumerGroupDescription_authorized_operations(description, &raw mut count);
                reads(operations, count)
            }
        });
        match reading {
            Ok(reading) => Ok(reading.unwrap_or(Reading::Unknown)),
            Err(error) if error.code == Code::GroupAuthorizationFailed => Ok(Reading::Denied),
            Err(error) if matches!(error.code, Code::UnsupportedFeature | Code::UnsupportedVersion) => {
                Ok(Reading::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the group described; the description is live while it is read. `None` where there is no such group. A coordinator
    /// that is not ready yet is asked again.
    fn describe<T>(
        &self,
        beside: Beside,
        timeout: Duration,
        read: impl Fn(*const rd::rd_kafka_ConsumerGroupDescription_t) -> T,
    ) -> Result<Option<T>, KafkaError> {
        let begun = Instant::now();
        let mut pause = PAUSE;
        let mut client = Client::new(&self.properties)?;
        loop {
            let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            let found = client.describe_group(&self.group, beside, left, &read);
            match &found {
                Err(error) if is_of_new_coordinator(error) && begun.elapsed() + pause < timeout => {
                    std::thread::park_timeout(pause);
                    pause *= 2;
                    if error.code != Code::CoordinatorLoadInProgress {
                        std::mem::replace(&mut client, Client::new(&self.properties)?).abandon();
                    }
                }
                _ => {
                    client.abandon();
                    let is_there = |error: &KafkaError| error.code != Code::GroupIdNotFound;
                    return if found.as_ref().err().is_none_or(is_there) { found } else { Ok(None) };
                }
            }
        }
    }
}

impl Client {
    /// Whether the group knew this client by this id last, as far as it has heard.
    pub fn had_member_id(&self, id: &str) -> bool {
        *self.shared.member_id.lock().unwrap_or_else(PoisonError::into_inner) == id
    }

    /// The id that the group knows this client by; empty while it is no member.
    pub fn member_id(&self) -> String {
        // SAFETY: the id is copied and given back.
        unsafe {
            let id = rd::rd_kafka_memberid(self.rk);
            let own = text(id);
            if !id.is_null() {
                rd::rd_kafka_mem_free(self.rk, id.cast());
            }
            own
        }
    }

    pub(super) fn describe_group<T>(
        &self,
        group: &str,
        beside: Beside,
        timeout: Duration,
        read: impl Fn(*const rd::rd_kafka_ConsumerGroupDescription_t) -> T,
    ) -> Result<Option<T>, KafkaError> {
        let name = c_string(group)?;
        let mut names = [name.as_ptr()];
        let mut found = Ok(None);
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        self.admin(
            operation,
            beside,
            timeout,
            |options, queue| {
                // SAFETY: all are live; the name is copied.
                unsafe { rd::rd_kafka_DescribeConsumerGroups(self.rk, names.as_mut_ptr(), 1, options, queue) }
            },
            |event| {
                let mut count = 0;
                // SAFETY: the event is a DescribeConsumerGroups result; what it holds is live until it is destroyed.
                unsafe {
                    let result = rd::rd_kafka_event_DescribeConsumerGroups_result(event);
                    let groups = rd::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
                    if count == 1 {
                        let error = rd::rd_kafka_ConsumerGroupDescription_error(*groups);
                        let code = if error.is_null() { 0 } else { code::rd_kafka_error_code(error) };
                        found = KafkaError::check(code).map(|()| Some(read(*groups)));
                    }
                }
            },
        )?;
        found
    }
}

/// # Safety
/// `group` is a group description, live for as long as its members are used.
unsafe fn members(
    group: *const rd::rd_kafka_ConsumerGroupDescription_t,
) -> impl Iterator<Item = *const rd::rd_kafka_MemberDescription_t> {
    // SAFETY: by the contract above.
    let count = unsafe { rd::rd_kafka_ConsumerGroupDescription_member_count(group) };
    // SAFETY: as above.
    (0..count).map(move |index| unsafe { rd::rd_kafka_ConsumerGroupDescription_member(group, index) })
}

/// # Safety
/// `member` is a live member description.
unsafe fn id(member: *const rd::rd_kafka_MemberDescription_t) -> String {
    // SAFETY: by the contract above; what it returns lives as long as the description.
    unsafe { text(rd::rd_kafka_MemberDescription_consumer_id(member)) }
}

/// What the members have; `None` while that is changing.
///
/// # Safety
/// `group` is a live group description.
unsafe fn assigned(group: *const rd::rd_kafka_ConsumerGroupDescription_t) -> Option<BTreeSet<TopicPartition>> {
    // SAFETY: by the contract above; what it returns lives as long as the description.
    unsafe {
        let state = rd::rd_kafka_ConsumerGroupDescription_state(group);
        if state != rd::rd_kafka_consumer_group_state_t::RD_KAFKA_CONSUMER_GROUP_STATE_STABLE {
            return None;
        }
        let of_member = |member| {
            let assignment = rd::rd_kafka_MemberDescription_assignment(member);
            let list =
                if assignment.is_null() { ptr::null() } else { rd::rd_kafka_MemberAssignment_partitions(assignment) };
            elements(list.cast_mut())
        };
        let all = members(group).flat_map(of_member);
        Some(
            all.map(|element| TopicPartition { topic: text(element.topic).into(), partition: element.partition })
                .collect(),
        )
    }
}

/// Whether this is the answer of a broker that is no coordinator any more, or not yet.
fn is_of_new_coordinator(error: &KafkaError) -> bool {
    matches!(error.code, Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator)
}
