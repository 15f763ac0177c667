//! YAML whose keys and values know their lines.
//!
//! Scalars stay text, quoted or plain: the schema decides what type they have. Duplicate keys are kept for the reader to
//! judge. Refused, since a configuration needs none of them: tags, aliases, keys that are not text, a second document.
//! Anchors are ignored. Fails with the first error of syntax and its line; no text makes it panic.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};

/// Deepest nesting that is read; the schema needs four.
const MAX_DEPTH: usize = 32;

/// A value and its line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// `~`, `null`, or nothing at all.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Member>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// An error of syntax: its line and message.
pub(super) type SyntaxError = (usize, String);

/// Reads a document; `None` when there is nothing but comments.
pub(super) fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    let mut reader = Reader { parser: Parser::new_from_str(text) };
    let mut root = None;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(root),
            (Event::DocumentStart(_), line) if root.is_some() => {
                return Err((line, "a second document starts here, keep one".to_owned()));
            }
            (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
            (event, line) => root = Some(reader.node(event, line, 0)?),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err((line, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let value = match event {
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return Err((line, "tags are not supported, write the value without `!`".to_owned()));
            }
            Event::Alias(_) => return Err((line, "aliases are not supported, write the value out".to_owned())),
            Event::Scalar(text, ScalarStyle::Plain, _, None)
                if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") =>
            {
                Value::Null
            }
            Event::Scalar(text, _, _, None) => Value::Scalar(text.into_owned()),
            Event::SequenceStart(_, None) => Value::List(self.list(depth)?),
            Event::MappingStart(_, None) => Value::Map(self.map(depth)?),
            _ => return Err((line, "expected a value".to_owned())),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, line) => items.push(self.node(event, line, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Member>, SyntaxError> {
        let mut members = Vec::new();
        loop {
            let (event, line) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(members),
                Event::Scalar(text, _, _, None) => text.into_owned(),
                _ => return Err((line, "a key must be plain text".to_owned())),
            };
            let (event, value_line) = self.next()?;
            members.push(Member { key, line, node: self.node(event, value_line, depth + 1)? });
        }
    }
}

fn syntax(error: &ScanError) -> SyntaxError {
    // The parser may notice an error in the empty line behind the last one.
    (error.marker().line().max(1), format!("no valid YAML: {} (column {})", error.info(), error.marker().col() + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_values_know_their_lines() {
        let node = parse("# head\na: 1\nb:\n  - x\n  - 'null'\nc: ~\na: {d: [] }\n").unwrap().unwrap();
        let scalar = |line, text: &str| Node { line, value: Value::Scalar(text.into()) };
        let member = |key: &str, line, node| Member { key: key.into(), line, node };
        let list = Node { line: 4, value: Value::List(vec![scalar(4, "x"), scalar(5, "null")]) };
        let map = Value::Map(vec![member("d", 7, Node { line: 7, value: Value::List(Vec::new()) })]);
        let members = vec![
            member("a", 2, scalar(2, "1")),
            member("b", 3, list),
            member("c", 6, Node { line: 6, value: Value::Null }),
            member("a", 7, Node { line: 7, value: map }),
        ];
        assert_eq!(node, Node { line: 2, value: Value::Map(members) });
    }

    #[test]
    fn a_document_of_comments_is_empty() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("# a\n\n# b"), Ok(None));
        assert_eq!(parse("\u{feff}# a\r\n"), Ok(None));
    }

    #[test]
    fn what_a_configuration_does_not_need_is_refused_with_its_line() {
        let cases = [
            ("a: 1\nb: !!str 2", 2, "tags"),
            ("a: &x 1\nb: *x", 2, "aliases"),
            ("a: 1\n? [b]\n: 1", 2, "a key must be"),
            ("a: 1\n---\nb: 1", 2, "second document"),
            ("a: [1\nb: 2", 2, "no valid YAML"),
            ("a:\n\t- 1", 2, "no valid YAML"),
        ];
        for (text, line, message) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.0 == line && error.1.contains(message), "{text:?}: {error:?}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse(&"a: {".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), "[\\[\\]{}:,\"'| \n#!&*?>%@`~a-c-]{0,40}"]) {
            let _ = parse(&text);
        }
    }
}
