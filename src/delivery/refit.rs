//! Fits lines into the place of a piece that cannot be made again as it was.
//!
//! The lines that are there stay as they are: somebody may have read them. They stand for the first records of the piece;
//! the lines of the others follow. Other pieces may begin right behind the place, so what goes into it has exactly its
//! length: whole lines, as many as fit, and blanks; the lines that do not fit go to the end of the file. Where nothing
//! follows, the place may become shorter.
//!
//! A fragment that a crash left of a line is completed when the line still begins like that, else it is ended and stands
//! for no record. NULs, which a power cut leaves, are written over. Done twice, it comes to the same end.

/// What a place is filled with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refit {
    /// Its bytes, from its beginning.
    pub(super) bytes: Vec<u8>,
    /// How many of them are there already.
    pub(super) kept: usize,
    /// Lines that did not fit.
    pub(super) overflow: Vec<u8>,
    /// Lines that stand for a record, in both.
    pub(super) lines: u64,
}

/// What comes behind the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Other pieces.
    Pieces,
    /// The end of the file.
    Nothing,
}

/// Fills a place of `length` bytes of which `there` is there with `lines`, one for each record.
pub(super) fn refit(there: &[u8], lines: &[u8], length: usize, behind: Behind) -> Refit {
    let mut lines = lines.split_inclusive(|byte| *byte == b'\n');
    let mut bytes = Vec::with_capacity(length);
    let mut fit = Refit::default();
    for line in there.split_inclusive(|byte| *byte == b'\n') {
        if line.contains(&0) {
            break;
        }
        if line.ends_with(b"\n") {
            if is_event(line) {
                fit.lines += 1;
                lines.next();
            }
            bytes.extend_from_slice(line);
            fit.kept = bytes.len();
        } else {
            let next = lines.clone().next();
            if next.is_some_and(|next| next.starts_with(line) && bytes.len() + next.len() <= length) {
                // The line completes it.
                fit.kept += line.len();
            } else if bytes.len() + line.len() < length {
                if is_event(line) {
                    fit.lines += 1;
                    lines.next();
                }
                bytes.extend_from_slice(line);
                fit.kept = bytes.len();
                bytes.push(b'\n');
            }
        }
    }
    for line in lines {
        fit.lines += 1;
        if fit.overflow.is_empty() && bytes.len() + line.len() <= length {
            bytes.extend_from_slice(line);
        } else {
            fit.overflow.extend_from_slice(line);
        }
    }
    if behind == Behind::Pieces || !fit.overflow.is_empty() {
        pad(&mut bytes, fit.kept, length);
    }
    fit.bytes = bytes;
    fit
}

/// Fills up with blanks: within the last line when that is new, else as a line of their own.
fn pad(bytes: &mut Vec<u8>, kept: usize, length: usize) {
    if bytes.len() >= length {
        return;
    }
    if bytes.len() > kept {
        bytes.pop();
    }
    bytes.resize(length - 1, b' ');
    bytes.push(b'\n');
}

/// Whether a line is an event, rather than blanks or a fragment that an earlier recovery ended: an object whose brackets
/// close at its end.
fn is_event(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (index, byte) in line.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if in_string {
            match byte {
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                return index > 0 && index + 1 == line.len();
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &str = "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n";

    fn fit(there: &str, lines: &str, behind: Behind) -> (String, String, u64) {
        let fit = refit(there.as_bytes(), lines.as_bytes(), OLD.len(), behind);
        assert_eq!(fit.bytes[..fit.kept], there.as_bytes()[..fit.kept], "what is kept is there");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(fit.bytes), text(fit.overflow), fit.lines)
    }

    #[test]
    fn an_event_is_an_object_that_closes_at_its_end() {
        for line in ["{}\n", "{\"a\":\"}{\\\"\"}\n", "{\"a\":[{}]}   \n"] {
            assert!(is_event(line.as_bytes()), "{line}");
        }
        for line in ["\n", "   \n", "{\"a\":{}\n", "{\"a\":\"}\n", "{}{\n", "\"a\"\n", "}\n", "{}{}\n"] {
            assert!(!is_event(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn lines_that_are_there_stay_and_the_others_follow() {
        let new = "{\"m\":1}\n{\"m\":2}\n{\"m\":3}\n";
        let expected = ("{\"n\":1}\n{\"m\":2}\n{\"m\":3}\n".to_owned(), String::new(), 3);
        assert_eq!(fit("{\"n\":1}\n", new, Behind::Nothing), expected);
        assert_eq!(fit("{\"n\":1}\n{\"m\":", new, Behind::Nothing), expected, "a fragment of the new line");
        assert_eq!(fit("{\"n\":1}\n{\"m\":2}\n\0\0\0\0\0\0\0\n", new, Behind::Pieces), expected, "a hole");
    }

    #[test]
    fn a_fragment_of_another_line_is_ended_and_its_record_follows() {
        let (bytes, overflow, lines) = fit("{\"n\":1}\n{\"n\"", "{\"m\":1}\n{\"m\":2}\n{\"m\":3}\n", Behind::Nothing);
        assert_eq!(bytes, "{\"n\":1}\n{\"n\"\n{\"m\":2}   \n");
        assert_eq!(overflow, "{\"m\":3}\n");
        assert_eq!(lines, 3);
    }

    #[test]
    fn shorter_lines_are_filled_up_with_blanks_where_others_follow() {
        assert_eq!(fit("", "{}\n", Behind::Pieces), (format!("{{}}{}\n", " ".repeat(21)), String::new(), 1));
        assert_eq!(fit("", "{}\n", Behind::Nothing), ("{}\n".to_owned(), String::new(), 1));
    }

    #[test]
    fn lines_that_are_gone_leave_a_blank_line() {
        assert_eq!(
            fit("{\"n\":1}\n", "", Behind::Pieces),
            (format!("{{\"n\":1}}\n{}\n", " ".repeat(15)), String::new(), 1)
        );
        assert_eq!(fit("{\"n\":1}\n", "", Behind::Nothing), ("{\"n\":1}\n".to_owned(), String::new(), 1));
    }

    #[test]
    fn longer_lines_go_to_the_end_of_the_file() {
        let new = "{\"n\":\"longer\"}\n{\"n\":2}\n{\"n\":\"longer\"}\n{}\n";
        let (bytes, overflow, lines) = fit("", new, Behind::Pieces);
        assert_eq!(
            (bytes.as_str(), overflow.as_str(), lines),
            ("{\"n\":\"longer\"}\n{\"n\":2} \n", "{\"n\":\"longer\"}\n{}\n", 4)
        );
    }

    fn lines() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec("\\{\"[a-c{}]{0,6}\":[0-9]{1,6}\\}", 0..6)
            .prop_map(|lines| lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
    }

    proptest! {
        /// Every record has one line: those that are there, from the front, then the new ones. Once more comes to the same.
        #[test]
        fn every_record_has_one_line(old in lines(), new in lines(), cut in any::<prop::sample::Index>(), hole in any::<bool>(), pieces in any::<bool>()) {
            let behind = if pieces { Behind::Pieces } else { Behind::Nothing };
            let cut = cut.index(old.len() + 1);
            let mut there = old[..cut].to_vec();
            if hole {
                there.resize(old.len(), 0);
            }
            let fit = refit(&there, &new, old.len(), behind);
            prop_assert_eq!(&fit.bytes[..fit.kept], &there[..fit.kept]);
            prop_assert!(fit.bytes.len() <= old.len());
            if pieces || !fit.overflow.is_empty() {
                prop_assert_eq!(fit.bytes.len(), old.len());
            }
            prop_assert!(fit.bytes.is_empty() || fit.bytes.ends_with(b"\n"));
            let events = |bytes: &[u8]| -> Vec<Vec<u8>> {
                bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| is_event(line)).map(|line| line.trim_ascii_end().to_vec()).collect()
            };
            // A line that only lacks its end stands for its record too, unless a hole follows it.
            let whole = old[..cut].split_inclusive(|byte| *byte == b'\n').filter(|line| is_event(line) && (!hole || line.ends_with(b"\n"))).count();
            let expected: Vec<_> = events(&old).into_iter().take(whole).chain(events(&new).into_iter().skip(whole)).collect();
            let all = [fit.bytes.clone(), fit.overflow.clone()].concat();
            prop_assert_eq!(events(&all), expected);
            prop_assert_eq!(fit.lines as usize, events(&all).len());

            let again = refit(&fit.bytes, &new, old.len(), behind);
            prop_assert_eq!(&again.bytes, &fit.bytes);
            prop_assert_eq!((again.overflow, again.lines), (fit.overflow, fit.lines));
        }
    }
}
