//! Patterns of topics: regular expressions in the one dialect that all who match them read alike.
//!
//! librdkafka matches them with the C library (POSIX extended expressions), `check` and the lag with `regex-lite`, and the
//! brokers with RE2/J in the protocol of KIP-848. What these three read differently (`\d`, `(?:…)`, `(?i)`, `a+?`) is
//! refused, with what to write instead: a pattern means the same topics everywhere.

/// Most repetitions in `{…}`: what every engine takes.
const MOST_REPEATED: u32 = 255;

/// Checks a pattern with its leading `^`.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    let refuse = |what: String| Err(format!("`{}`: {what}", pattern.escape_debug()));
    let Some(rest) = pattern.strip_prefix('^') else { return refuse("a pattern begins with `^`".to_owned()) };
    if rest.is_empty() {
        return refuse("`^` is followed by no regular expression, write one such as ^mulog_.*".to_owned());
    }
    if rest.starts_with("__") {
        return refuse(
            "patterns take no topic that begins with `__`, those are the brokers' own; name it outright".to_owned(),
        );
    }
    Walk { rest: rest.as_bytes(), before: Before::Nothing, depth: 0 }.run().or_else(refuse)
}

/// What stands before the present place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The start of the pattern, a group or an alternative.
    Nothing,
    /// What can be repeated.
    Atom,
    /// What cannot: a repetition or an anchor.
    Other,
}

struct Walk<'a> {
    rest: &'a [u8],
    before: Before,
    depth: u32,
}

impl Walk<'_> {
    fn run(mut self) -> Result<(), String> {
        while let Some(byte) = self.next() {
            self.before = self.step(byte)?;
        }
        self.end_alternative()?;
        if self.depth > 0 { Err("a `(` is not closed".to_owned()) } else { Ok(()) }
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn step(&mut self, byte: u8) -> Result<Before, String> {
        match byte {
            b'\\' => match self.next() {
                Some(
                    b'.' | b'^' | b'$' | b'*' | b'+' | b'?' | b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'|' | b'\\',
                ) => Ok(Before::Atom),
                Some(b'd') => Err("`\\d` is not read alike everywhere, write [0-9]".to_owned()),
                Some(b'w') => Err("`\\w` is not read alike everywhere, write [A-Za-z0-9_]".to_owned()),
                _ => Err("a `\\` can stand only before one of .^$*+?()[]{}|\\".to_owned()),
            },
            b'(' if self.rest.first() == Some(&b'?') => {
                Err("`(?…)` is not read alike everywhere, write (a|b) for a group and [aA] for both cases".to_owned())
            }
            b'(' => {
                self.depth += 1;
                Ok(Before::Nothing)
            }
            b')' if self.depth == 0 => Err("a `)` has no `(`, write \\) for the character itself".to_owned()),
            b')' => {
                self.end_alternative()?;
                self.depth -= 1;
                Ok(Before::Atom)
            }
            b'|' => self.end_alternative().map(|()| Before::Nothing),
            b'*' | b'+' | b'?' => self.repeat(),
            b'{' => {
                self.bounds()?;
                self.repeat()
            }
            b'[' => self.class().map(|()| Before::Atom),
            b'^' if self.before == Before::Nothing => Ok(Before::Other),
            b'$' => Ok(Before::Other),
            b'.' | b'_' | b'-' => Ok(Before::Atom),
            _ if byte.is_ascii_alphanumeric() => Ok(Before::Atom),
            _ if byte.is_ascii_graphic() => Err(format!("no topic has a `{}` in its name", char::from(byte))),
            _ => Err("no topic has blanks, control characters or other than ASCII letters in its name".to_owned()),
        }
    }

    fn end_alternative(&self) -> Result<(), String> {
        if self.before == Before::Nothing { Err("an alternative is empty".to_owned()) } else { Ok(()) }
    }

    fn repeat(&self) -> Result<Before, String> {
        match self.before {
            Before::Atom => Ok(Before::Other),
            _ => Err("a repetition must follow a character, a class or a group, and only one may".to_owned()),
        }
    }

    /// The rest of `{n}`, `{n,}` or `{n,m}`.
    fn bounds(&mut self) -> Result<(), String> {
        let wrong = || format!("write {{n}}, {{n,}} or {{n,m}} with numbers up to {MOST_REPEATED}, or \\{{");
        let end = self.rest.iter().position(|byte| *byte == b'}').ok_or_else(wrong)?;
        let (inner, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        let number = |text: &str| -> Option<u32> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|number| digits && *number <= MOST_REPEATED)
        };
        let inner = std::str::from_utf8(inner).unwrap_or_default();
        let fits = match inner.split_once(',') {
            None => number(inner).is_some(),
            Some((least, "")) => number(least).is_some(),
            Some((least, most)) => number(least).zip(number(most)).is_some_and(|(least, most)| least <= most),
        };
        if fits { Ok(()) } else { Err(wrong()) }
    }

    /// The rest of a class: characters of names, and ranges of letters or digits.
    fn class(&mut self) -> Result<(), String> {
        const WRONG: &str = "a class has letters, digits, `.`, `_`, ranges such as a-z, and a `-` at its end";
        if self.rest.first() == Some(&b'^') {
            self.next();
        }
        let mut empty = true;
        loop {
            match self.next().ok_or("a `[` is not closed")? {
                b']' if empty => return Err("a class is empty".to_owned()),
                b']' => return Ok(()),
                b'-' if self.rest.first() == Some(&b']') => {}
                b'.' | b'_' if self.rest.first() != Some(&b'-') || self.rest.get(1) == Some(&b']') => {}
                from if from.is_ascii_alphanumeric() => {
                    if let [b'-', to, ..] = self.rest
                        && *to != b']'
                    {
                        let alike = [u8::is_ascii_digit, u8::is_ascii_lowercase, u8::is_ascii_uppercase];
                        if from > *to || !alike.iter().any(|kind| kind(&from) && kind(to)) {
                            return Err(WRONG.to_owned());
                        }
                        self.rest = &self.rest[2..];
                        // What follows a range begins again: `a-c-e` is read in several ways.
                        if self.rest.first() == Some(&b'-') && self.rest.get(1) != Some(&b']') {
                            return Err(WRONG.to_owned());
                        }
                    }
                }
                _ => return Err(WRONG.to_owned()),
            }
            empty = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_engine_reads_alike_is_taken() {
        for pattern in [
            "^.*",
            "^mulog_",
            "^mulog_.*$",
            "^(a|b)+$",
            "^a|b",
            "^[a-z0-9._-]+$",
            "^[^a-c]{2,3}x",
            r"^a\.b",
            "^x{3}",
            "^x{3,}",
            "^(a|(b|c)d)?e",
            "^[0-9][A-F]*",
            "^_x",
        ] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_is_read_in_several_ways_is_refused_with_what_to_write() {
        for (pattern, hint) in [
            ("^", "is followed by no regular expression"),
            (r"^a\d", "write [0-9]"),
            (r"^\w+", "[A-Za-z0-9_]"),
            (r"^a\b", "can stand only before"),
            (r"^a\", "can stand only before"),
            ("^(?:a|b)", "write (a|b)"),
            ("^(?i)a", "[aA]"),
            ("^a+?", "only one may"),
            ("^a**", "only one may"),
            ("^*a", "must follow"),
            ("^a|*b", "must follow"),
            ("^(|a)", "empty"),
            ("^a|", "empty"),
            ("^(a", "not closed"),
            ("^a)", "has no `(`"),
            ("^a{2", "write {n}"),
            ("^a{3,2}", "write {n}"),
            ("^a{,2}", "write {n}"),
            ("^a{256}", "up to 255"),
            ("^[]a]", "a class is empty"),
            ("^[a", "not closed"),
            ("^[z-a]", "ranges such as a-z"),
            ("^[A-z]", "ranges such as a-z"),
            ("^[a-c-e]", "ranges such as a-z"),
            (r"^[\d]", "ranges such as a-z"),
            ("^[[:digit:]]", "ranges such as a-z"),
            ("^a b", "blanks"),
            ("^日", "ASCII"),
            ("^a/b", "no topic has a `/`"),
            ("^a}", "no topic has a `}`"),
            ("^__consumer.*", "name it outright"),
        ] {
            let refused = check_pattern(pattern).expect_err(pattern);
            assert!(refused.contains(hint), "{pattern}: {refused}");
        }
    }
}
