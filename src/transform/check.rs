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

/// Whether the receiver takes a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    #[default]
    Good,
    Bad,
}

impl Verdict {
    fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }

    /// Judges an event name.
    pub(super) fn of_name(text: &str) -> Self {
        Self::of(is_name(text))
    }

    /// Judges an account id or a distinct id, which is not empty.
    pub(super) fn of_id(text: &str) -> Self {
        Self::of(text.len() <= LONGEST_ID || text.chars().count() <= LONGEST_ID)
    }

    /// Judges a type.
    pub(super) fn of_type(text: &str) -> Self {
        Self::of(TYPES.contains(&text))
    }
}

/// Whether a type, known or not, speaks of a user and not of an event.
pub(super) fn is_user_type(text: &str) -> bool {
    text.starts_with("user_")
}

/// Whether the text is `^[A-Za-z][A-Za-z0-9_]{0,49}$`: the rule of event names and property names.
pub(super) fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 50
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the standard checks look at, in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subject {
    /// The event name; good where the type has none.
    pub(super) event_name: Verdict,
    /// The account id and the distinct id; `None` when empty.
    pub(super) ids: [Option<Verdict>; 2],
    pub(super) event_type: Verdict,
}

impl Subject {
    pub(super) fn check(self) -> Result<(), Reject> {
        if self.event_name == Verdict::Bad {
            let detail = "the event name is not a letter and up to 49 letters, digits and underscores";
            return Err(Reject::new(Reason::BadEventName, detail));
        }
        if self.ids == [None, None] {
            return Err(Reject::new(Reason::NoId, "#account_id and #distinct_id are both empty"));
        }
        for (name, verdict) in ["#account_id", "#distinct_id"].into_iter().zip(self.ids) {
            if verdict == Some(Verdict::Bad) {
                return Err(Reject::new(Reason::BadId, format!("{name} is longer than {LONGEST_ID} characters")));
            }
        }
        if self.event_type == Verdict::Bad {
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
        assert_eq!(Verdict::of_id(&"汉".repeat(128)), Verdict::Good);
        assert_eq!(Verdict::of_id(&"汉".repeat(129)), Verdict::Bad);
        assert_eq!(Verdict::of_id(&"x".repeat(129)), Verdict::Bad);
    }

    #[test]
    fn types_are_known_by_their_exact_spelling() {
        assert!(TYPES.iter().all(|name| Verdict::of_type(name) == Verdict::Good));
        for name in ["", "Track", "user_setonce", "user_", "track "] {
            assert_eq!(Verdict::of_type(name), Verdict::Bad, "{name}");
        }
        assert!(is_user_type("user_del") && !is_user_type("track"));
    }
}
