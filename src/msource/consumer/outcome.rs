//! What the answer to the commit of a seal means.
//!
//! **Promise.** Only a broker's answer counts as one. Whatever may have been sent, and has no answer, is not known: neither taken nor
//! refused.

use super::Code;
use super::group::is_member;
use crate::msource::native::KafkaError;

/// What an answer to the commit of a seal leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Taken,
    /// It is sent again while the partition is ours, and that is told when it lasts.
    Again,
    /// It stays prepared: we are no member any more, and were giving the partition up.
    LetGo,
    /// It may have arrived, or may arrive later: the group is joined again to find out.
    Unknown,
}

/// Whether partitions are being given up, be it those of the seal or others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    Yes,
}

impl Outcome {
    pub(super) fn of(answer: Result<(), &KafkaError>, leaving: Leaving) -> Self {
        match answer {
            Ok(()) => Self::Taken,
            // librdkafka does not take a partition for lost that it is giving up.
            Err(error) if leaving == Leaving::Yes && !is_member(error) => Self::LetGo,
            Err(error) if is_answer(error) => Self::Again,
            Err(_) => Self::Unknown,
        }
    }
}

/// Whether an error is a broker's answer, or says that nothing was sent. librdkafka's own errors are below zero, and so is a
/// broker's that it does not know. It waits for a coordinator also with a commit that was sent and whose connection broke: that
/// there was none in time does not say that nothing was sent. What a coordinator in trouble has not taken may be in its log
/// all the same: sent again, it says the same.
pub fn is_answer(error: &KafkaError) -> bool {
    error.code as i32 > 0 || error.code == Code::NoOffset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_to_a_commit_leads_to_one_of_four_ends() {
        use Outcome::{Again, LetGo, Unknown};
        // In the middle of an assignment, and while the partition is given up.
        let table = [
            // The assignment is over, or about to be: librdkafka tells when.
            (Code::IllegalGeneration, Again, LetGo),
            (Code::RebalanceInProgress, Again, Again),
            (Code::StaleMemberEpoch, Again, Again),
            (Code::UnknownMemberId, Again, LetGo),
            (Code::FencedInstanceId, Again, LetGo),
            (Code::FencedMemberEpoch, Again, LetGo),
            // The coordinator is not there, or not yet.
            (Code::CoordinatorLoadInProgress, Again, Again),
            (Code::CoordinatorNotAvailable, Again, Again),
            (Code::NotCoordinator, Again, Again),
            (Code::RequestTimedOut, Again, Again),
            // These last until someone changes the brokers: see `lasts`.
            (Code::OffsetMetadataTooLarge, Again, Again),
            (Code::InvalidCommitOffsetSize, Again, Again),
            (Code::GroupAuthorizationFailed, Again, Again),
            (Code::TopicAuthorizationFailed, Again, Again),
            (Code::UnknownTopicOrPartition, Again, Again),
            // Nothing was sent.
            (Code::NoOffset, Again, Again),
            // It may have been sent.
            (Code::WaitingForCoordinator, Unknown, Unknown),
            (Code::OperationTimedOut, Unknown, Unknown),
            (Code::TimedOutQueue, Unknown, Unknown),
            (Code::BrokerTransportFailure, Unknown, Unknown),
            (Code::PurgeInflight, Unknown, Unknown),
            (Code::Fatal, Unknown, Unknown),
            (Code::Unknown, Unknown, Unknown),
        ];
        for (code, here, leaving) in table {
            let error = KafkaError { code, text: String::new() };
            let tell = |leaving| Outcome::of(Err(&error), leaving);
            assert_eq!((tell(Leaving::No), tell(Leaving::Yes)), (here, leaving), "{code:?}");
        }
        assert_eq!(Outcome::of(Ok(()), Leaving::Yes), Outcome::Taken);
    }
}
