//! What the receiver would silently drop (`strict`): names and values of properties.
//!
//! A property's name is a letter and up to 49 letters, digits and underscores, or one of the receiver's presets. Numbers lie
//! within ±9E15, as the double that the receiver reads; null is no value; text has at most 2048 bytes; a list at most 500 elements, each of at most 255 bytes
//! (text decoded, anything else as it is written) or an object; an object at most 100 sub-properties, whose names start
//! with a letter. The members are read from a line's finished `properties`: omitted ones do not count.

use super::check::is_name;
use super::scan::{Cursor, Kind, Value};
use super::text;
use crate::record::{Reason, Reject};

const LARGEST_NUMBER: f64 = 9e15;
const LONGEST_TEXT: usize = 2048;
const MOST_ELEMENTS: usize = 500;
const LONGEST_ELEMENT: usize = 255;
const MOST_SUB_PROPERTIES: usize = 100;

/// The properties with a `#` that the receiver knows.
const PRESETS: [&str; 47] = [
    "#app_crashed_reason",
    "#app_version",
    "#background_duration",
    "#browser",
    "#browser_version",
    "#bundle_id",
    "#carrier",
    "#city",
    "#country",
    "#country_code",
    "#device_id",
    "#device_model",
    "#device_type",
    "#disk",
    "#duration",
    "#element_content",
    "#element_id",
    "#element_position",
    "#element_selector",
    "#element_type",
    "#fps",
    "#install_time",
    "#lib",
    "#lib_version",
    "#manufacturer",
    "#mp_platform",
    "#network_type",
    "#os",
    "#os_version",
    "#province",
    "#ram",
    "#referrer",
    "#referrer_host",
    "#resume_from_background",
    "#scene",
    "#screen_height",
    "#screen_name",
    "#screen_width",
    "#simulator",
    "#start_reason",
    "#system_language",
    "#title",
    "#ua",
    "#url",
    "#url_path",
    "#utm",
    "#zone_offset",
];

/// What the rules see of a property.
struct Checker<'a> {
    json: &'a str,
    cursor: Cursor<'a>,
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Member,
    Element,
}

/// Checks the properties of an event, a valid JSON object without white space between its tokens.
pub(super) fn check(properties: &str) -> Result<(), Reject> {
    let mut checker = Checker { json: properties, cursor: Cursor::new(properties, 0) };
    let mut separator = b'{';
    while let Some(key) = checker.key(separator)? {
        separator = b',';
        let name = text::decoded(properties, key);
        if !is_name(&name) && !PRESETS.contains(&&*name) {
            return Err(bad(format!("the property at byte {} has a name that the receiver does not take", key.start)));
        }
        // The name is a plain word from here on, so it can be told.
        checker.value(Place::Member).map_err(|what| bad(format!("property `{name}`: {what}")))?;
    }
    Ok(())
}

fn bad(detail: String) -> Reject {
    Reject::new(Reason::BadProperty, detail)
}

impl Checker<'_> {
    /// The next key. The text was validated before: a fault cannot come, and would be one of the property.
    fn key(&mut self, separator: u8) -> Result<Option<Value>, Reject> {
        self.cursor.key(separator).map_err(|fault| bad(fault.what.to_owned()))
    }

    /// Checks the value that starts here. Recursion goes as deep as the JSON does: to 128 at most.
    fn value(&mut self, place: Place) -> Result<(), &'static str> {
        match self.cursor.bytes.get(self.cursor.at) {
            Some(b'{') => return self.object(),
            Some(b'[') if place == Place::Member => return self.list(),
            _ => {}
        }
        let value = self.cursor.value(1).map_err(|fault| fault.what)?;
        match value.kind {
            Kind::Null => Err("null is no value, leave the property out"),
            Kind::Number if !in_range(value.of(self.json)) => Err("number beyond ±9E15, send it as a string"),
            _ if place == Place::Element && self.bytes(value) > LONGEST_ELEMENT => {
                Err("list element of more than 255 bytes")
            }
            _ if value.is_string() && self.bytes(value) > LONGEST_TEXT => Err("text of more than 2048 bytes"),
            _ => Ok(()),
        }
    }

    /// The length of a value in bytes, decoded when it is a string.
    fn bytes(&self, value: Value) -> usize {
        if value.kind == Kind::Escaped { text::decoded(self.json, value).len() } else { value.end - value.start }
    }

    fn object(&mut self) -> Result<(), &'static str> {
        let mut count = 0;
        let mut separator = b'{';
        while let Some(key) = self.cursor.key(separator).map_err(|fault| fault.what)? {
            separator = b',';
            count += 1;
            if count > MOST_SUB_PROPERTIES {
                return Err("object of more than 100 sub-properties");
            }
            if !is_name(&text::decoded(self.json, key)) {
                return Err("sub-property with a name that the receiver does not take");
            }
            self.value(Place::Member)?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<(), &'static str> {
        let mut count = 0;
        let mut separator = b'[';
        while self.cursor.element(separator).map_err(|fault| fault.what)? {
            separator = b',';
            count += 1;
            if count > MOST_ELEMENTS {
                return Err("list of more than 500 elements");
            }
            self.value(Place::Element)?;
        }
        Ok(())
    }
}

fn in_range(number: &str) -> bool {
    number.parse::<f64>().is_ok_and(|number| number.abs() <= LARGEST_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(properties: &str) -> bool {
        check(properties).is_ok()
    }

    #[test]
    fn names_are_words_or_presets() {
        assert!(takes(r##"{"level":1,"Level_2":2,"#zone_offset":8,"#os":"x"}"##));
        for name in
            ["", "1a", "_id", "#user_id", "#event_time", "$part_date", "a-b", "名", "a b", "#Level", &"x".repeat(51)]
        {
            assert!(!takes(&format!("{{\"{name}\":1}}")), "{name}");
        }
        assert!(takes(r#"{"l\u0065vel":1}"#), "names are compared decoded");
    }

    #[test]
    fn numbers_lie_within_nine_quadrillions() {
        for (number, good) in [
            ("9000000000000000", true),
            ("-9e15", true),
            ("9000000000000001", false),
            // The receiver reads a double, and this one is 9E15.
            ("9000000000000000.5", true),
            ("9000000000000000.6", false),
            ("-9000000000000001", false),
            ("1e400", false),
            ("1e-400", true),
            ("0", true),
            ("-0", true),
            ("1608184244000008", true),
        ] {
            assert_eq!(takes(&format!("{{\"a\":{number}}}")), good, "{number}");
            assert_eq!(takes(&format!("{{\"a\":[{number}]}}")), good, "[{number}]");
            assert_eq!(takes(&format!("{{\"a\":{{\"b\":{number}}}}}")), good, "{{{number}}}");
        }
    }

    #[test]
    fn null_is_no_value_anywhere() {
        for properties in [r#"{"a":null}"#, r#"{"a":[null]}"#, r#"{"a":{"b":null}}"#, r#"{"a":[{"b":null}]}"#] {
            assert!(!takes(properties), "{properties}");
        }
        assert!(takes(r#"{"a":true,"b":"","c":[],"d":{},"e":[{}]}"#));
    }

    #[test]
    fn text_is_measured_decoded_and_in_bytes() {
        assert!(takes(&format!("{{\"a\":\"{}\"}}", "x".repeat(2048))));
        assert!(!takes(&format!("{{\"a\":\"{}\"}}", "x".repeat(2049))));
        assert!(!takes(&format!("{{\"a\":\"{}\"}}", "汉".repeat(683))));
        assert!(takes(&format!("{{\"a\":\"{}\"}}", r"\u0041".repeat(2048))));
        assert!(!takes(&format!("{{\"a\":\"{}\"}}", r"\u0041".repeat(2049))));
    }

    #[test]
    fn lists_have_500_elements_of_255_bytes() {
        let list = |count: usize, element: &str| format!("{{\"a\":[{}]}}", vec![element; count].join(","));
        assert!(takes(&list(500, "1")) && takes(&list(500, r#"{"b":1}"#)));
        assert!(!takes(&list(501, "1")) && !takes(&list(501, r#"{"b":1}"#)));
        assert!(takes(&list(1, &format!("\"{}\"", "x".repeat(255)))));
        assert!(!takes(&list(1, &format!("\"{}\"", "x".repeat(256)))));
        assert!(!takes(&list(1, &format!("[{}1]", "1,".repeat(128)))), "a list in a list is measured as it is written");
        assert!(takes(&list(1, &format!("{{\"b\":\"{}\"}}", "x".repeat(256)))), "an object is no text");
    }

    #[test]
    fn objects_have_100_sub_properties_named_with_words() {
        let object = |count: usize| {
            let members: Vec<_> = (0..count).map(|i| format!("\"k{i}\":1")).collect();
            format!("{{\"a\":{{{}}}}}", members.join(","))
        };
        assert!(takes(&object(100)));
        assert!(!takes(&object(101)));
        assert!(!takes(r##"{"a":{"#os":1}}"##));
        assert!(!takes(r#"{"a":[{"b c":1}]}"#));
    }
}
