//! Commented JSON: JSON that people write, with comments and trailing commas.
//!
//! On top of RFC 8259: blank lines, comments from `//` or `#` to the end of the line, `/* */` blocks (they do not nest),
//! one comma after the last member of an object or array, and a byte order mark at the start. Nothing else: no bare
//! words, no single quotes, no missing commas.
//!
//! [`strip`] replaces all of that by spaces, byte for byte, so that any JSON parser reports places of the original.
//! [`parse`] reads the rest into [`Node`]s that know where they stand, because whoever checks the meaning of a file
//! must name the place of every mistake, not only of the first one. Duplicate keys are kept: the reader judges them.
//!
//! Fails with the first error of syntax, its line and column. No text makes it panic; nesting ends at [`MAX_DEPTH`].

use std::fmt;

use serde_json::value::RawValue;

/// Deepest nesting of objects and arrays that is read.
pub const MAX_DEPTH: usize = 128;

/// A place in a text as an editor shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Place {
    /// The place of the byte at `offset`; beyond the end, the place behind the last character.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].trim_start_matches('\u{feff}').chars().count() + 1;
        Self { line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// An error of syntax.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Error {
    /// Where.
    pub place: Place,
    /// What is wrong, for people.
    pub message: String,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The place of its first character.
    pub place: Place,
    /// The value.
    pub value: Value,
}

/// A JSON value whose parts know their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number by its text.
    Number(String),
    /// A string, unescaped.
    String(String),
    /// An array.
    Array(Vec<Node>),
    /// An object: its members in the order of the text, duplicates included.
    Object(Vec<Member>),
}

impl Value {
    /// What it is, for messages.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The key, unescaped.
    pub name: String,
    /// The place of the key.
    pub place: Place,
    /// The value.
    pub node: Node,
}

/// Replaces what JSON does not know by spaces; line ends stay. The result has the length of `text`, byte for byte.
///
/// What is left is not checked: it may still be no JSON.
pub fn strip(text: &str) -> Result<String, Error> {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    // The last byte that means something, and the comma that will be a trailing one if a bracket follows.
    let mut previous = None;
    let mut comma = None;
    if text.starts_with('\u{feff}') {
        at = '\u{feff}'.len_utf8();
        out[..at].fill(b' ');
    }
    while at < bytes.len() {
        let end = match bytes[at] {
            b' ' | b'\t' | b'\r' | b'\n' => at + 1,
            b'#' | b'/' if comment_starts(&bytes[at..]) => {
                let end = comment_end(text, at)?;
                out[at..end].iter_mut().filter(|byte| !matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
                end
            }
            byte => {
                if matches!(byte, b']' | b'}')
                    && let Some(comma) = comma
                {
                    out[comma] = b' ';
                }
                let follows_value = !matches!(previous, None | Some(b'[' | b'{' | b',' | b':'));
                comma = (byte == b',' && follows_value).then_some(at);
                previous = Some(byte);
                if byte == b'"' { string_end(text, at)? } else { at + 1 }
            }
        };
        at = end;
    }
    Ok(String::from_utf8(out).expect("whole characters outside of strings were replaced, by ASCII"))
}

fn comment_starts(bytes: &[u8]) -> bool {
    bytes[0] == b'#' || matches!(bytes.get(1), Some(b'/' | b'*'))
}

/// The end of the comment that starts at `start`: of a line comment, its line end exclusive.
fn comment_end(text: &str, start: usize) -> Result<usize, Error> {
    if text[start..].starts_with("/*") {
        let body = start + 2;
        return match text[body..].find("*/") {
            Some(length) => Ok(body + length + 2),
            None => Err(error(text, start, "this comment is not closed, end it with `*/`")),
        };
    }
    Ok(text[start..].find('\n').map_or(text.len(), |length| start + length))
}

/// The end of the string whose opening quote is at `start`: behind its closing quote.
fn string_end(text: &str, start: usize) -> Result<usize, Error> {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\n' => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Err(error(text, start, "this string is not closed on its line, end it with `\"`"))
}

fn error(text: &str, offset: usize, message: impl Into<String>) -> Error {
    Error { place: Place::of(text, offset), message: message.into() }
}

/// Reads one value, and nothing behind it.
pub fn parse(text: &str) -> Result<Node, Error> {
    let json = strip(text)?;
    let mut parser = Parser { source: text, json: &json, at: 0, marked: (0, Place { line: 1, column: 1 }) };
    let node = parser.value(0)?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.expected("the end of the file")),
    }
}

/// Walks over stripped text. Places are counted in `source`, where characters of comments are whole.
struct Parser<'a> {
    source: &'a str,
    json: &'a str,
    at: usize,
    /// The last place that was asked for, and its offset: places rise, and each is counted from the one before.
    marked: (usize, Place),
}

impl Parser<'_> {
    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.json.as_bytes()[self.at..];
        let white = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        self.at += white;
        rest.get(white).copied()
    }

    /// The place of the next byte.
    fn place(&mut self) -> Place {
        let (from, mut place) = self.marked;
        let Some(between) = self.source.get(from..self.at) else { return Place::of(self.source, self.at) };
        for character in between.chars() {
            match character {
                '\n' => place = Place { line: place.line + 1, column: 1 },
                '\u{feff}' if place.column == 1 => {}
                _ => place.column += 1,
            }
        }
        self.marked = (self.at, place);
        place
    }

    fn expected(&mut self, what: &str) -> Error {
        let found = match self.peek() {
            Some(_) => self.json[self.at..].chars().next().map_or_else(String::new, |found| format!("`{found}`")),
            None => "the end of the file".to_owned(),
        };
        error(self.source, self.at, format!("expected {what}, found {found}"))
    }

    fn value(&mut self, depth: usize) -> Result<Node, Error> {
        let first = self.peek();
        let (start, place) = (self.at, self.place());
        if depth > MAX_DEPTH {
            return Err(error(self.source, start, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let value = match first {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(_) => self.word()?,
            None => return Err(self.expected("a value")),
        };
        Ok(Node { place, value })
    }

    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        let mut members = Vec::new();
        self.at += 1;
        while self.peek() != Some(b'}') {
            if self.peek() != Some(b'"') {
                return Err(self.expected("a key in double quotes or `}`"));
            }
            let place = self.place();
            let name = self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            members.push(Member { name, place, node: self.value(depth + 1)? });
            self.separator(b'}')?;
        }
        self.at += 1;
        Ok(Value::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Value, Error> {
        let mut items = Vec::new();
        self.at += 1;
        while self.peek() != Some(b']') {
            items.push(self.value(depth + 1)?);
            self.separator(b']')?;
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    /// Steps over the comma between two members. One before the closing bracket is an error: a trailing comma that is
    /// allowed was replaced by a space already.
    fn separator(&mut self, close: u8) -> Result<(), Error> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                match self.peek() {
                    Some(byte) if byte == close => Err(self.expected("a value")),
                    _ => Ok(()),
                }
            }
            Some(byte) if byte == close => Ok(()),
            _ => Err(self.expected(&format!("`,` or `{}`", char::from(close)))),
        }
    }

    fn string(&mut self) -> Result<String, Error> {
        let start = self.at;
        self.at = string_end(self.json, start)?;
        serde_json::from_str(&self.json[start..self.at]).map_err(|_| {
            error(self.source, start, "this string has an unknown escape or a control character, write it as \\uXXXX")
        })
    }

    /// A number or one of the three words; `serde_json` judges the numbers.
    fn word(&mut self) -> Result<Value, Error> {
        let rest = &self.json[self.at..];
        let end = rest.find([' ', '\t', '\r', '\n', ',', ':', '[', ']', '{', '}', '"']).unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "" => return Err(self.expected("a value")),
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ if serde_json::from_str::<&RawValue>(word).is_ok() => Value::Number(word.to_owned()),
            _ => {
                return Err(error(
                    self.source,
                    self.at,
                    format!("`{word}` is no JSON value, text needs double quotes"),
                ));
            }
        };
        self.at += end;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn plain(node: &Node) -> serde_json::Value {
        match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap(),
            Value::String(text) => text.as_str().into(),
            Value::Array(items) => items.iter().map(plain).collect(),
            Value::Object(members) => members.iter().map(|member| (member.name.clone(), plain(&member.node))).collect(),
        }
    }

    /// Demands that every place is that of some character, and a name's in its line.
    fn check_places(text: &str, node: &Node) {
        let mut characters = (0..text.len()).filter(|at| text.is_char_boundary(*at));
        assert!(characters.any(|at| Place::of(text, at) == node.place), "{:?}", node.place);
        match &node.value {
            Value::Object(members) => {
                for member in members {
                    assert!(text.lines().nth(member.place.line - 1).is_some_and(|line| line.contains(&member.name)));
                    check_places(text, &member.node);
                }
            }
            Value::Array(items) => {
                for item in items {
                    check_places(text, item);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn places_are_those_that_counting_from_the_beginning_gives() {
        let text = "\u{feff}{ /* \u{feff} */ \"日本\": [1, 2,\n 3], # x\n  \"b\":\n{\"c\": null}}\n";
        check_places(text, &parse(text).unwrap());
        let Value::Object(members) = parse(text).unwrap().value else { panic!("an object") };
        let found: Vec<_> = members.iter().map(|member| (member.place, member.node.place)).collect();
        let expected = ["日本\": ", "[1", "b\":", "{\"c"].map(|part| text.find(part).unwrap());
        let of = |at: usize, back: usize| Place::of(text, at - back);
        assert_eq!(found, [(of(expected[0], 1), of(expected[1], 0)), (of(expected[2], 1), of(expected[3], 0))]);
    }

    #[test]
    fn a_line_of_many_names_is_read_in_time_that_grows_with_its_length_alone() {
        let names: Vec<_> = (0..200_000).map(|n| format!("\"n{n}\"")).collect();
        let Value::Array(items) = parse(&format!("[{}]", names.join(","))).unwrap().value else { panic!("an array") };
        // Counted from the beginning of the line for each of them, this would take minutes.
        assert_eq!(items.len(), 200_000);
    }

    #[test]
    fn every_golden_text_is_read_or_refused_as_recorded() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/commentjson");
        let mut cases = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let input = entry.unwrap().path();
            if input.extension().is_none_or(|extension| extension != "in") {
                continue;
            }
            let found = match parse(&fs::read_to_string(&input).unwrap()) {
                Ok(node) => format!("{}\n", serde_json::to_string(&plain(&node)).unwrap()),
                Err(error) => format!("error {error}\n"),
            };
            let output = input.with_extension("out");
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&output, &found).unwrap();
            }
            assert_eq!(found, fs::read_to_string(&output).unwrap_or_default(), "{}", input.display());
            cases += 1;
        }
        assert!(cases >= 20, "only {cases} golden cases found");
    }

    #[test]
    fn stripping_keeps_every_byte_where_it_was() {
        let text = "{\"a\": 1, // für\n# x\n\"b#\": \"/* // */\", /* é\r\n */ }";
        let stripped = strip(text).unwrap();
        assert_eq!(stripped, "{\"a\": 1,        \n   \n\"b#\": \"/* // */\"       \r\n    }");
        assert_eq!(stripped.len(), text.len());
    }

    #[test]
    fn places_count_characters_also_behind_a_comment() {
        let node = parse("[ /* 日本 */ \"日本\", null]").unwrap();
        let Value::Array(items) = node.value else { panic!("an array") };
        assert_eq!(items.iter().map(|item| item.place.column).collect::<Vec<_>>(), [12, 18]);
    }

    #[test]
    fn nesting_beyond_the_limit_is_an_error_and_no_overflow() {
        assert!(parse(&format!("{}{}", "[".repeat(129), "]".repeat(129))).is_ok());
        let error = parse(&"[".repeat(1_000_000)).unwrap_err();
        assert_eq!(error.message, "nested deeper than 128 levels");
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            // Text that looks like the syntax around it.
            "[#/*\"\\\\,{}\\[\\]: a-c日]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::vec(("[#/*\"a-c]{0,3}", inner), 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Writes the value with comments, as long as they last, wherever white space may stand.
    fn sprinkled(value: &serde_json::Value, comments: &mut impl Iterator<Item = String>, out: &mut String) {
        fn space(comments: &mut impl Iterator<Item = String>, out: &mut String) {
            out.push_str(&comments.next().unwrap_or_default());
        }
        fn close(empty: bool, bracket: char, comments: &mut impl Iterator<Item = String>, out: &mut String) {
            space(comments, out);
            // The comments decide by chance whether a comma trails.
            if !empty && out.len().is_multiple_of(2) {
                out.push(',');
                space(comments, out);
            }
            out.push(bracket);
        }
        space(comments, out);
        match value {
            serde_json::Value::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    sprinkled(item, comments, out);
                }
                close(items.is_empty(), ']', comments, out);
            }
            serde_json::Value::Object(members) => {
                out.push('{');
                for (index, (name, item)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    space(comments, out);
                    out.push_str(&serde_json::to_string(name).unwrap());
                    space(comments, out);
                    out.push(':');
                    sprinkled(item, comments, out);
                }
                close(members.is_empty(), '}', comments, out);
            }
            scalar => out.push_str(&scalar.to_string()),
        }
        space(comments, out);
    }

    proptest! {
        #[test]
        fn comments_and_trailing_commas_change_no_value(
            value in json(),
            comments in prop::collection::vec("(//[^\n]{0,6}\n|#[^\n]{0,6}\n|/\\*[^*]{0,6}\\*/|[ \t\r\n]{1,3}){0,2}", 0..40),
        ) {
            let mut text = String::new();
            sprinkled(&value, &mut comments.into_iter(), &mut text);
            let stripped = strip(&text).unwrap();
            prop_assert_eq!(stripped.len(), text.len());
            prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&stripped).unwrap(), &value);
            prop_assert_eq!(plain(&parse(&text).unwrap()), value);
        }

        #[test]
        fn a_text_is_accepted_exactly_when_what_strip_leaves_is_json(text in "[\\[\\]{}:,\"\\\\ \n/*#a1ntrue.eE+-]{0,24}") {
            let json = strip(&text).ok().filter(|json| serde_json::from_str::<&RawValue>(json).is_ok());
            prop_assert_eq!(parse(&text).is_ok(), json.is_some(), "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
