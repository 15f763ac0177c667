//! What the receiver refuses whole (`standard`): event names, ids and types.

use crate::record::{Reason, Reject};

/// The longest id that the receiver takes, in characters.
pub(super) const LONGEST_ID: usize = 128;

/// The types of event that the receiver knows.
const TYPES: [&str; 10] = [
    "track",
    "track_update",
    "track_overwrite",
    "user_set",
    "user_setOnce",
    "user_add",
    "user_unset",
    "user_append",
    "user_uniq_append",
    "user_del",
];

/// What the checks need to know of a text, found once for text that is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Whether it is an event name that the receiver takes.
    pub(super) name: bool,
    /// Whether it is a type that the receiver knows.
    pub(super) known_type: bool,
    /// Whether, as a type, it speaks of a user, not of an event.
    pub(super) user: bool,
    /// Whether it is short enough for an id.
    pub(super) id: bool,
}

impl Facts {
    pub(super) fn of(text: &str) -> Self {
        Self {
            name: is_name(text),
            known_type: TYPES.contains(&text),
            user: text.starts_with("user_"),
            id: text.len() <= LONGEST_ID || text.chars().count() <= LONGEST_ID,
        }
    }
}

/// Whether the text is `^[A-Za-z][A-Za-z0-9_]{0,49}$`: the rule of event names and property names.
pub(super) fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 50
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the standard checks look at, in their order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    /// The event name; `None` where the type has none.
    pub(super) event_name: Option<Facts>,
    /// The account id and the distinct id; `None` when empty.
    pub(super) ids: [Option<Facts>; 2],
    pub(super) event_type: Facts,
}

impl Subject {
    pub(super) fn check(self) -> Result<(), Reject> {
        if self.event_name.is_some_and(|facts| !facts.name) {
            let detail = "the event name is not a letter and up to 49 letters, digits and underscores";
            return Err(Reject::new(Reason::BadEventName, detail));
        }
        if self.ids == [None, None] {
            return Err(Reject::new(Reason::NoId, "#account_id and #distinct_id are both empty"));
        }
        for (name, facts) in ["#account_id", "#distinct_id"].into_iter().zip(self.ids) {
            if facts.is_some_and(|facts| !facts.id) {
                return Err(Reject::new(Reason::BadId, format!("{name} is longer than {LONGEST_ID} characters")));
            }
        }
        if !self.event_type.known_type {
            return Err(Reject::new(Reason::BadType, "the event type is none that the receiver knows"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_letter_and_up_to_49_letters_digits_and_underscores() {
        for name in ["a", "Z", "t_log_item", "A1_", &"x".repeat(50)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "1a", "_a", "#a", "a-b", "a b", "a.b", "名", "é", "a\n", &"x".repeat(51)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn an_id_is_measured_in_characters() {
        assert!(Facts::of(&"汉".repeat(128)).id);
        assert!(!Facts::of(&"汉".repeat(129)).id);
        assert!(!Facts::of(&"x".repeat(129)).id);
    }

    #[test]
    fn types_are_known_by_their_exact_spelling() {
        assert!(TYPES.iter().all(|name| Facts::of(name).known_type));
        for name in ["", "Track", "user_setonce", "user_", "track "] {
            assert!(!Facts::of(name).known_type, "{name}");
        }
        assert!(Facts::of("user_del").user && !Facts::of("track").user);
    }
}
