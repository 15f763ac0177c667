//! The JSON grammar: a cursor that validates what it steps over and notes where values lie.
//!
//! It takes exactly RFC 8259, as `serde_json` does when it reads raw values: one pass, no recursion, no allocation. The input
//! is UTF-8 already. Escapes are checked for their form only, so `\ud800` without its partner passes and stays as it is.
//! Containers may be nested up to [`MAX_DEPTH`], the record's own object counted. A [`Fault`] names the byte.

use super::lanes;

/// How deep containers may be nested, the outermost one counted.
pub(super) const MAX_DEPTH: u32 = 128;

/// What is wrong with the text, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: &'static str,
}

fn fault<T>(at: usize, what: &'static str) -> Result<T, Fault> {
    Err(Fault { at, what })
}

/// What kind of value a [`Value`] is.
///
/// It is as wide as a position: values are then copied whole, and not in parts that the processor must put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Kind {
    #[default]
    Absent,
    Number,
    /// A string without escapes.
    Plain,
    /// A string with at least one escape.
    Escaped,
    Object,
    Array,
    Bool,
    Null,
    /// Of a [`Step`] only: there is white space before the value.
    White,
    /// Of a [`Step`] only: there is a fault.
    Invalid,
}

/// What lies at a position and where it ends: a pair of registers, where a `Result` would go through memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) end: usize,
    pub(super) kind: Kind,
}

/// Where a value lies; of a string the text between its quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: Kind,
}

impl Value {
    /// The value that starts at `start` and was stepped over.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    pub(super) fn stepped(start: usize, step: Step) -> Self {
        let quote = usize::from(matches!(step.kind, Kind::Plain | Kind::Escaped));
        Self { start: start + quote, end: step.end - quote, kind: step.kind }
    }

    /// Whether it can be the text of a `#` value: only numbers and strings can.
    pub(super) fn is_text(self) -> bool {
        matches!(self.kind, Kind::Number | Kind::Plain | Kind::Escaped)
    }

    pub(super) fn is_string(self) -> bool {
        matches!(self.kind, Kind::Plain | Kind::Escaped)
    }

    pub(super) fn of(self, text: &str) -> &str {
        &text[self.start..self.end]
    }
}

/// A position in the text of a record.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// Whether white space was stepped over since this was last reset.
    pub(super) white: bool,
    /// What is wrong where a step was [`Kind::Invalid`].
    pub(super) what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, at: usize) -> Self {
        Self { bytes: text.as_bytes(), at, white: false, what: "" }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_white(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
            self.white = true;
        }
    }

    /// Steps to the value of the next member and returns its key, or over the closing brace and returns `None`.
    /// `separator` is `{` before the first member and `,` before the others.
    pub(super) fn key(&mut self, separator: u8) -> Result<Option<Value>, Fault> {
        self.skip_white();
        match self.peek() {
            Some(byte) if byte == separator => self.at += 1,
            Some(b'}') if separator == b',' => {
                self.at += 1;
                return Ok(None);
            }
            _ if separator == b'{' => return fault(self.at, "expected `{`"),
            _ => return fault(self.at, "expected `,` or `}`"),
        }
        self.skip_white();
        match self.peek() {
            Some(b'"') => {}
            Some(b'}') if separator == b'{' => {
                self.at += 1;
                return Ok(None);
            }
            _ => return fault(self.at, "expected a key"),
        }
        let key = self.value(0)?;
        self.skip_white();
        if self.peek() != Some(b':') {
            return fault(self.at, "expected `:`");
        }
        self.at += 1;
        self.skip_white();
        Ok(Some(key))
    }

    /// Steps over one value that lies inside `depth` containers.
    pub(super) fn value(&mut self, depth: u32) -> Result<Value, Fault> {
        loop {
            let step = self.step(self.at, depth);
            if step.kind == Kind::Invalid {
                return Err(self.fault(step));
            }
            let start = std::mem::replace(&mut self.at, step.end);
            if step.kind != Kind::White {
                return Ok(Value::stepped(start, step));
            }
        }
    }

    /// The fault that an invalid step met.
    #[cold]
    pub(super) fn fault(&self, step: Step) -> Fault {
        Fault { at: step.end, what: self.what }
    }

    #[cold]
    fn invalid(&mut self, at: usize, what: &'static str) -> Step {
        self.what = what;
        Step { end: at, kind: Kind::Invalid }
    }

    /// What the value at `at` is, which lies inside `depth` containers, and where it ends.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    pub(super) fn step(&mut self, at: usize, depth: u32) -> Step {
        match self.bytes.get(at) {
            Some(b'"') => self.string(at + 1),
            Some(b'0'..=b'9' | b'-') => self.number(at),
            _ => self.other(at, depth),
        }
    }

    /// The values that are rarer in logs, and white space before one.
    #[inline(never)]
    fn other(&mut self, at: usize, depth: u32) -> Step {
        match self.bytes.get(at) {
            Some(b'{') => self.container(at, Kind::Object, depth),
            Some(b'[') => self.container(at, Kind::Array, depth),
            Some(b't') => self.literal(at, "true", Kind::Bool),
            Some(b'f') => self.literal(at, "false", Kind::Bool),
            Some(b'n') => self.literal(at, "null", Kind::Null),
            Some(b' ' | b'\n' | b'\r' | b'\t') => {
                self.white = true;
                Step { end: at + 1, kind: Kind::White }
            }
            Some(_) => self.invalid(at, "expected a value"),
            None => self.invalid(at, "unexpected end"),
        }
    }

    fn literal(&mut self, at: usize, word: &'static str, kind: Kind) -> Step {
        if self.bytes[at..].starts_with(word.as_bytes()) {
            Step { end: at + word.len(), kind }
        } else {
            self.invalid(at, "expected a value")
        }
    }

    /// The string whose text starts at `start`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    fn string(&mut self, start: usize) -> Step {
        let mask = lanes::special(self.bytes, start);
        let end = start + mask.trailing_zeros() as usize;
        if mask != 0 && self.bytes.get(end) == Some(&b'"') {
            Step { end: end + 1, kind: Kind::Plain }
        } else {
            self.long_string(start)
        }
    }

    /// A string that does not end within the first lanes, or has escapes.
    #[inline(never)]
    fn long_string(&mut self, start: usize) -> Step {
        let mut kind = Kind::Plain;
        let mut at = start;
        loop {
            let mask = lanes::special(self.bytes, at);
            if mask == 0 {
                at += lanes::WIDTH;
                continue;
            }
            at += mask.trailing_zeros() as usize;
            match self.bytes.get(at) {
                Some(b'"') => return Step { end: at + 1, kind },
                Some(b'\\') => match self.escape(at) {
                    Ok(behind) => (at, kind) = (behind, Kind::Escaped),
                    Err(Fault { at, what }) => return self.invalid(at, what),
                },
                Some(_) => return self.invalid(at, "control character in a string"),
                None => return self.invalid(at, "unterminated string"),
            }
        }
    }

    /// Checks the escape at `at` and returns the position behind it.
    fn escape(&self, at: usize) -> Result<usize, Fault> {
        match self.bytes.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => match self.bytes.get(at + 2..at + 6) {
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => Ok(at + 6),
                _ => fault(at, "bad `\\u` escape"),
            },
            _ => fault(at, "bad escape"),
        }
    }

    /// The number at `at`. The way of most numbers: an integer that fits the lanes.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    fn number(&mut self, at: usize) -> Step {
        let count = (!lanes::digits(self.bytes, at)).trailing_zeros() as usize;
        let end = at + count;
        // Whatever is not plainly such an integer takes the other way.
        let more = matches!(self.bytes.get(end), Some(b'0'..=b'9' | b'.' | b'e' | b'E'));
        if count == 0 || more || (count > 1 && self.bytes[at] == b'0') {
            return self.long_number(at);
        }
        Step { end, kind: Kind::Number }
    }

    fn digits(&self, mut at: usize) -> usize {
        while self.bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    }

    /// The whole grammar of numbers.
    #[inline(never)]
    fn long_number(&mut self, start: usize) -> Step {
        let whole = start + usize::from(self.bytes[start] == b'-');
        let mut at = self.digits(whole);
        if at == whole {
            return self.invalid(at, "expected a digit");
        }
        if self.bytes[whole] == b'0' && at > whole + 1 {
            return self.invalid(whole, "number with a leading zero");
        }
        if self.bytes.get(at) == Some(&b'.') {
            let fraction = at + 1;
            at = self.digits(fraction);
            if at == fraction {
                return self.invalid(at, "expected a digit after the point");
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(at) {
            let signed = usize::from(matches!(self.bytes.get(at + 1), Some(b'+' | b'-')));
            let exponent = at + 1 + signed;
            at = self.digits(exponent);
            if at == exponent {
                return self.invalid(at, "expected a digit in the exponent");
            }
        }
        Step { end: at, kind: Kind::Number }
    }

    /// The object or array at `at`, inside `depth` containers, with all that is in it.
    fn container(&mut self, at: usize, kind: Kind, depth: u32) -> Step {
        let before = std::mem::replace(&mut self.at, at);
        let walked = self.walk(depth);
        let end = std::mem::replace(&mut self.at, before);
        match walked {
            Ok(()) => Step { end, kind },
            Err(Fault { at, what }) => self.invalid(at, what),
        }
    }

    /// Steps over the container at whose opening bracket the cursor stands.
    fn walk(&mut self, depth: u32) -> Result<(), Fault> {
        // One bit a level, the innermost lowest: set for an object. The levels in here are at most MAX_DEPTH.
        let mut objects: u128 = 0;
        let mut level = 0;
        loop {
            // A value starts here.
            self.skip_white();
            let mut separator = Some(b',');
            if let Some(byte @ (b'{' | b'[')) = self.peek() {
                level += 1;
                if depth + level > MAX_DEPTH {
                    return fault(self.at, "nested deeper than 128 levels");
                }
                objects = (objects << 1) | u128::from(byte == b'{');
                separator = Some(byte);
            } else {
                // No container and no white space, so this does not come back here.
                self.value(depth + level)?;
            }
            // A value ended, or a container was entered: close what closes, then go to the next value.
            while let Some(byte) = separator {
                let more = if objects & 1 == 1 { self.key(byte)?.is_some() } else { self.element(byte)? };
                if more {
                    break;
                }
                objects >>= 1;
                level -= 1;
                if level == 0 {
                    return Ok(());
                }
                separator = Some(b',');
            }
        }
    }

    /// Steps to the next element and says so, or over the closing bracket. `separator` is `[` before the first element
    /// and `,` before the others.
    pub(super) fn element(&mut self, separator: u8) -> Result<bool, Fault> {
        self.skip_white();
        if separator == b'[' {
            self.at += 1;
            self.skip_white();
            let empty = self.peek() == Some(b']');
            self.at += usize::from(empty);
            return Ok(!empty);
        }
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(b']') => {
                self.at += 1;
                Ok(false)
            }
            _ => fault(self.at, "expected `,` or `]`"),
        }
    }

    /// Checks that nothing but white space follows.
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        self.skip_white();
        if self.at == self.bytes.len() { Ok(()) } else { fault(self.at, "trailing text after the object") }
    }
}

/// Appends the JSON text `json`, which is valid, without the white space between its tokens.
pub(super) fn compact(json: &str, out: &mut Vec<u8>) {
    let mut cursor = Cursor::new(json, 0);
    let mut copied = 0;
    while let Some(byte) = cursor.peek() {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' => {
                out.extend_from_slice(&cursor.bytes[copied..cursor.at]);
                cursor.skip_white();
                copied = cursor.at;
            }
            // The text was validated, so a string cannot fail; were it not, the copy would go on byte by byte.
            b'"' if cursor.value(0).is_ok() => {}
            _ => cursor.at += 1,
        }
    }
    out.extend_from_slice(&cursor.bytes[copied..]);
}
