//! A model of the group's coordinator.

use std::collections::VecDeque;

use super::{HOMES, PARTITIONS};
use crate::msource::native::GroupOffset;

/// A commit after which a member is told that its assignment is lost, since none was taken.
pub(super) const FENCED: u32 = 3;

/// What a member learns of one partition's commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Taken,
    Refused,
    Unknown,
}

/// What becomes of one commit request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Taken,
    Refused,
    /// Taken, and nobody learns of it.
    Lost,
    /// On its way for some steps. Taken only if its generation is still the current one.
    Late,
    /// Taken for a part of the partitions.
    Part,
}

#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) partition: i32,
    pub(super) generation: u64,
    pub(super) offset: GroupOffset,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) owner: usize,
    pub(super) generation: u64,
    pub(super) committed: Option<GroupOffset>,
}

/// The group's coordinator.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) partitions: Vec<Member>,
    pub(super) late: Vec<(usize, Vec<Sent>)>,
    pub(super) answers: VecDeque<Answer>,
}

impl Group {
    pub(super) fn new() -> Self {
        let member = |number: i32| Member { owner: number as usize % HOMES, generation: 1, committed: None };
        Self { partitions: (0..PARTITIONS).map(member).collect(), late: Vec::new(), answers: VecDeque::new() }
    }

    pub(super) fn at(&self, number: i32) -> &Member {
        &self.partitions[number as usize]
    }

    pub(super) fn assign(&mut self, number: i32, owner: usize) {
        let member = &mut self.partitions[number as usize];
        member.owner = owner;
        member.generation += 1;
    }

    pub(super) fn is_current(&self, home: usize, sent: &Sent) -> bool {
        let member = self.at(sent.partition);
        (member.owner, member.generation) == (home, sent.generation)
    }

    fn take(&mut self, home: usize, sent: &Sent) -> bool {
        let current = self.is_current(home, sent);
        if current {
            self.partitions[sent.partition as usize].committed = Some(sent.offset.clone());
        }
        current
    }

    /// Lets what is on its way arrive.
    pub(super) fn deliver(&mut self) {
        let arrived = std::mem::take(&mut self.late);
        for (home, commits) in arrived {
            for sent in commits {
                self.take(home, &sent);
            }
        }
    }

    /// Takes a request; returns what is told of each partition.
    pub(super) fn commit(&mut self, home: usize, commits: Vec<Sent>) -> Vec<Told> {
        let told = |taken| if taken { Told::Taken } else { Told::Refused };
        match self.answers.pop_front().unwrap_or(Answer::Taken) {
            Answer::Taken => commits.iter().map(|sent| told(self.take(home, sent))).collect(),
            Answer::Part => {
                let part = |(index, sent): (usize, &Sent)| told(index % 2 == 0 && self.take(home, sent));
                commits.iter().enumerate().map(part).collect()
            }
            Answer::Refused => vec![Told::Refused; commits.len()],
            Answer::Lost => {
                for sent in &commits {
                    self.take(home, sent);
                }
                vec![Told::Unknown; commits.len()]
            }
            Answer::Late => {
                let told = vec![Told::Unknown; commits.len()];
                self.late.push((home, commits));
                told
            }
        }
    }
}
