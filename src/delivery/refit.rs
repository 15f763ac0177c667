//! Fits lines into the place of a piece that is not there as it was.
//!
//! **What is there.** Whole lines stay where they are: a reader may have them. Which of the lines made again they are is
//! told by their content, since records may be gone by now: those that compaction removed anywhere among the others,
//! those that retention took from the front. Equal lines stand for each other.
//!
//! **What is missing.** Each line made again that is not there goes into the free places, in order: the end of the piece that
//! was not written, and holes of NULs, which a power cut leaves. Other pieces may begin right behind, so a free place is
//! filled to its end, with blanks if need be; lines that do not fit go to the end of the file. Where nothing follows, the
//! piece may become shorter.
//!
//! **A torn line** is completed by the first missing line that begins like it. Without one, which means that its record is
//! gone, it is ended with a newline: it stays an object that does not close, which no reader takes for an event.
//!
//! Lines that are there and not among those made again are of records that are gone, unless more lines were made than can be
//! missing: then a line is written otherwise now (rules of time zones change), and so many of them are taken for those that are
//! there, from the front.
//!
//! Done twice, it comes to the same end.

use std::collections::HashMap;

/// Where lines are to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its length, bytes.
    pub(super) length: usize,
    /// CRC-32C of what was to be there.
    pub(super) crc: u32,
    /// How many lines that was.
    pub(super) lines: u64,
    /// What follows.
    pub(super) behind: Behind,
}

/// What comes behind the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Other pieces.
    Pieces,
    /// The end of the file.
    Nothing,
}

/// What a place is filled with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refit {
    /// Its bytes, from its beginning.
    pub(super) bytes: Vec<u8>,
    /// Lines that did not fit.
    pub(super) overflow: Vec<u8>,
    /// Lines that stand for a record, in both.
    pub(super) lines: u64,
    /// Torn lines that were ended and stand for no record.
    pub(super) ended: u64,
}

impl Refit {
    /// Whether it is what was to be there.
    pub(super) fn is_exact(&self, place: &Place) -> bool {
        self.bytes.len() == place.length && self.overflow.is_empty() && crc32c::crc32c(&self.bytes) == place.crc
    }
}

/// Fills a place, of which `there` is there, with what is missing of `made`, one line for each record that is left.
pub(super) fn refit(there: &[u8], made: &[u8], place: &Place) -> Refit {
    let parts = parts(there, place.length);
    let made: Vec<_> = made.split_inclusive(|byte| *byte == b'\n').collect();
    if let Some(exact) = behind_the_last(&parts, &made).map(|missing| lay_out(&parts, missing, place))
        && exact.is_exact(place)
    {
        return exact;
    }
    let missing = missing(&parts, &made, place.lines);
    lay_out(&parts, &missing, place)
}

/// What a place consists of, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    /// A whole line, without its newline.
    Line(&'a [u8], Kind),
    /// Room for this many bytes, of which the first ones are there: a torn line, or none.
    Free(usize, &'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It stands for a record.
    Event,
    /// Blanks, or a torn line that an earlier recovery ended.
    Other,
}

fn parts(there: &[u8], length: usize) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let free = |parts: &mut Vec<Part<'_>>, size| match parts.last_mut() {
        Some(Part::Free(before, _)) => *before += size,
        _ if size > 0 => parts.push(Part::Free(size, &[])),
        _ => {}
    };
    let mut rest = length - there.len();
    for line in there.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            _ if line.contains(&0) => free(&mut parts, line.len()),
            Some(text) => parts.push(Part::Line(text, if is_event(text) { Kind::Event } else { Kind::Other })),
            // Only its newline is missing.
            None if rest > 0 && is_event(line) => {
                parts.push(Part::Line(line, Kind::Event));
                rest -= 1;
            }
            None if rest > 0 => parts.push(Part::Free(line.len() + std::mem::take(&mut rest), line)),
            // The end of the piece is there, and wrong.
            None => free(&mut parts, line.len()),
        }
    }
    free(&mut parts, rest);
    parts
}

fn events<'a>(parts: &[Part<'a>]) -> impl Iterator<Item = &'a [u8]> {
    parts
        .iter()
        .filter_map(|part| if let Part::Line(text, Kind::Event) = part { Some(text.trim_ascii_end()) } else { None })
}

/// The last lines made again that have exactly the length of what is free behind the lines that are there.
fn behind_the_last<'a, 'b>(parts: &[Part<'_>], made: &'b [&'a [u8]]) -> Option<&'b [&'a [u8]]> {
    let free = match parts.last() {
        Some(Part::Free(size, _)) => *size,
        _ => 0,
    };
    let mut length = 0;
    let from = made.iter().rposition(|line| {
        length += line.len();
        length >= free
    });
    (length == free).then(|| &made[from.unwrap_or(made.len())..])
}

/// The lines made again that are not there, of a piece that had so many.
fn missing<'a>(parts: &[Part<'_>], made: &[&'a [u8]], lines: u64) -> Vec<&'a [u8]> {
    let mut there: HashMap<&[u8], usize> = HashMap::new();
    events(parts).for_each(|text| *there.entry(text).or_default() += 1);
    let most = usize::try_from(lines).unwrap_or(usize::MAX).saturating_sub(there.values().sum());
    let mut missing = made.to_vec();
    missing.retain(|line| match there.get_mut(line.trim_ascii_end()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    let unknown: usize = there.values().sum();
    let otherwise = missing.len().saturating_sub(most).min(unknown);
    missing.split_off(otherwise)
}

fn lay_out(parts: &[Part<'_>], missing: &[&[u8]], place: &Place) -> Refit {
    let mut fit = Refit { bytes: Vec::with_capacity(place.length), ..Refit::default() };
    fit.lines = (events(parts).count() + missing.len()) as u64;
    let mut missing = missing.iter().peekable();
    for (index, part) in parts.iter().enumerate() {
        let (size, torn) = match *part {
            Part::Line(text, _) => {
                fit.bytes.extend_from_slice(text);
                fit.bytes.push(b'\n');
                continue;
            }
            Part::Free(size, torn) => (size, torn),
        };
        let end = fit.bytes.len() + size;
        let fits = |bytes: &[u8], line: &[u8]| bytes.len() + line.len() <= end;
        if !torn.is_empty() && !missing.peek().is_some_and(|line| line.starts_with(torn) && fits(&fit.bytes, line)) {
            fit.bytes.extend_from_slice(torn);
            fit.bytes.push(b'\n');
            fit.ended += 1;
        }
        let mut last_is_new = false;
        while let Some(line) = missing.next_if(|line| fits(&fit.bytes, line)) {
            fit.bytes.extend_from_slice(line);
            last_is_new = true;
        }
        let is_last = index + 1 == parts.len();
        if !is_last || place.behind == Behind::Pieces || missing.peek().is_some() {
            pad(&mut fit.bytes, end, last_is_new);
        }
    }
    fit.overflow = missing.copied().flatten().copied().collect();
    fit
}

/// Fills up with blanks: within the last line when that is new, else as a line of their own.
fn pad(bytes: &mut Vec<u8>, end: usize, last_is_new: bool) {
    if bytes.len() >= end {
        return;
    }
    if last_is_new {
        bytes.pop();
    }
    bytes.resize(end - 1, b' ');
    bytes.push(b'\n');
}

/// Whether a line is an event, rather than blanks or a torn line that was ended: an object whose brackets close at its end.
pub(super) fn is_event(line: &[u8]) -> bool {
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
    use proptest::sample::Index;

    use super::*;

    const OLD: &str = "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n";

    fn place(old: &[u8], behind: Behind) -> Place {
        let lines = memchr::memchr_iter(b'\n', old).count() as u64;
        Place { length: old.len(), crc: crc32c::crc32c(old), lines, behind }
    }

    fn fit(there: &str, lines: &str, behind: Behind) -> (String, String, u64) {
        let fit = refit(there.as_bytes(), lines.as_bytes(), &place(OLD.as_bytes(), behind));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(fit.bytes), text(fit.overflow), fit.lines)
    }

    fn whole(bytes: &str) -> (String, String, u64) {
        (bytes.to_owned(), String::new(), 3)
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
    fn what_is_gone_before_the_end_that_is_missing_changes_nothing() {
        for there in ["{\"n\":1}\n", "{\"n\":1}\n{\"n\"", "{\"n\":1}\n{\"n\":2}", "{\"n\":1}\n{\"n\":2}\n"] {
            for behind in [Behind::Nothing, Behind::Pieces] {
                let left = if there.contains('2') { "{\"n\":3}\n" } else { "{\"n\":2}\n{\"n\":3}\n" };
                assert_eq!(fit(there, left, behind), whole(OLD), "{there}");
                assert_eq!(fit(there, OLD, behind), whole(OLD), "{there}");
            }
        }
    }

    #[test]
    fn a_line_whose_record_is_gone_leaves_its_room_to_the_next_one() {
        let expected = "{\"n\":1}\n{\"n\":3}\n";
        assert_eq!(
            fit("{\"n\":1}\n{\"n\":", "{\"n\":1}\n{\"n\":3}\n", Behind::Nothing),
            (expected.into(), String::new(), 2)
        );
        let padded = format!("{{\"n\":1}}\n{{\"n\":3}}{}\n", " ".repeat(8));
        assert_eq!(fit("{\"n\":1}\n{\"n\":", "{\"n\":3}\n", Behind::Pieces), (padded, String::new(), 2));
    }

    #[test]
    fn a_torn_line_whose_record_is_gone_is_ended_and_is_no_event() {
        let fit = refit(b"{\"n\":1}\n{\"n\":2", b"{\"n\":1}\n{\"n\":3}\n", &place(OLD.as_bytes(), Behind::Nothing));
        assert_eq!(String::from_utf8(fit.bytes).unwrap(), "{\"n\":1}\n{\"n\":2\n{\"n\":3}\n");
        assert_eq!((fit.lines, fit.ended), (2, 1));
        assert!(!is_event(b"{\"n\":2\n"));
    }

    #[test]
    fn lines_that_are_written_otherwise_now_stand_for_those_that_are_there() {
        let new = "{\"m\":1}\n{\"m\":2}\n{\"m\":3}\n";
        let expected = whole("{\"n\":1}\n{\"m\":2}\n{\"m\":3}\n");
        assert_eq!(fit("{\"n\":1}\n", new, Behind::Nothing), expected);
        assert_eq!(fit("{\"n\":1}\n{\"m\":", new, Behind::Nothing), expected, "a fragment of the new line");
        assert_eq!(fit("{\"n\":1}\n{\"m\":2}\n\0\0\0\0\0\0\0\n", new, Behind::Pieces), expected, "a hole");
        let (bytes, overflow, lines) = fit("{\"n\":1}\n{\"n\"", new, Behind::Nothing);
        assert_eq!((bytes.as_str(), overflow.as_str()), ("{\"n\":1}\n{\"n\"\n{\"m\":2}   \n", "{\"m\":3}\n"));
        assert_eq!(lines, 3);
    }

    #[test]
    fn lines_behind_a_hole_stay_too() {
        let there = "{\"n\":1}\n\0\0\0\0\0\0\0\n{\"n\":3}\n";
        assert_eq!(fit(there, OLD, Behind::Pieces), whole(OLD));
        assert_eq!(fit(there, "{\"n\":2}\n", Behind::Pieces), whole(OLD));
        let blank = format!("{{\"n\":1}}\n{}\n{{\"n\":3}}\n", " ".repeat(7));
        assert_eq!(fit(there, "{\"n\":1}\n{\"n\":3}\n", Behind::Pieces), (blank, String::new(), 2));
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

    /// The events in bytes that consist of whole lines, without blanks at their ends.
    fn events_of(bytes: &[u8]) -> Vec<Vec<u8>> {
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"));
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| is_event(line));
        lines.map(|line| line.trim_ascii_end().to_vec()).collect()
    }

    fn join<'a>(lines: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
        lines.into_iter().flatten().copied().collect()
    }

    /// Lines of which no two are equal, as those of records with a `#uuid` are.
    fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let line = prop_oneof![Just(String::new()), "[a-c{}]{0,12}"];
        prop::collection::vec(line, 1..8).prop_map(|lines| {
            let line = |(n, text)| format!("{{\"{text}\":{n}}}\n").into_bytes();
            lines.into_iter().enumerate().map(line).collect()
        })
    }

    /// What a crash leaves of bytes: a beginning, and perhaps a hole in it.
    fn left(old: &[u8], cut: Index, hole: Option<(Index, Index)>) -> Vec<u8> {
        let mut there = old[..cut.index(old.len() + 1)].to_vec();
        if let (Some((from, to)), false) = (hole, there.is_empty()) {
            let (from, to) = (from.index(there.len()), to.index(there.len()));
            there[from.min(to)..=from.max(to)].fill(0);
        }
        there
    }

    /// Where the lines stand that a crash left whole.
    fn places(there: &[u8], length: usize) -> Vec<(usize, Vec<u8>)> {
        let mut at = 0;
        let mut places = Vec::new();
        for line in there.split_inclusive(|byte| *byte == b'\n') {
            let is_whole = line.ends_with(b"\n") || there.len() < length;
            if is_whole && !line.contains(&0) && is_event(line) {
                places.push((at, line.trim_ascii_end().to_vec()));
            }
            at += line.len();
        }
        places
    }

    proptest! {
        /// Whatever a crash left and whichever records are gone by now: what is there stays where it is, every record that is
        /// left has one line, and nothing else has one. Once more comes to the same.
        #[test]
        fn every_record_that_is_left_has_one_line_and_every_line_that_is_there_stays(
            old in lines(),
            gone in prop::collection::vec(any::<bool>(), 8),
            cut in any::<Index>(),
            hole in prop::option::of(any::<(Index, Index)>()),
            pieces in any::<bool>(),
        ) {
            let bytes = join(&old);
            let place = place(&bytes, if pieces { Behind::Pieces } else { Behind::Nothing });
            let there = left(&bytes, cut, hole);
            let kept = places(&there, bytes.len());
            let made: Vec<_> = old.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(line, _)| line.clone()).collect();
            let fit = refit(&there, &join(&made), &place);
            prop_assert!(fit.bytes.len() <= bytes.len());
            if pieces || !fit.overflow.is_empty() {
                prop_assert_eq!(fit.bytes.len(), bytes.len());
            }
            for (at, line) in &kept {
                prop_assert!(fit.bytes[*at..].starts_with(line), "a line that is there was moved");
            }
            let is_left = |line: &&Vec<u8>| {
                let text = line.trim_ascii_end();
                made.contains(line) || kept.iter().any(|(_, kept)| kept == text)
            };
            let mut expected: Vec<_> = old.iter().filter(is_left).map(|line| line.trim_ascii_end().to_vec()).collect();
            let mut found = events_of(&[fit.bytes.clone(), fit.overflow.clone()].concat());
            prop_assert_eq!(fit.lines as usize, found.len());
            if hole.is_none() && made.len() == old.len() {
                prop_assert_eq!(&found, &expected, "in their order");
                prop_assert!(fit.is_exact(&place));
            }
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
            let again = refit(&fit.bytes, &join(&made), &place);
            prop_assert_eq!((again.bytes, again.overflow, again.lines), (fit.bytes, fit.overflow, fit.lines));
        }

        /// Where only records are gone whose lines are there, the piece is what it was, equal lines or not.
        #[test]
        fn what_retention_took_behind_a_line_that_is_there_changes_nothing(numbers in prop::collection::vec(0..3, 1..8), cut in any::<Index>(), gone in any::<Index>()) {
            let old: Vec<_> = numbers.iter().map(|n| format!("{{\"n\":{n}}}\n").into_bytes()).collect();
            let bytes = join(&old);
            let there = left(&bytes, cut, None);
            let whole = memchr::memchr_iter(b'\n', &there).count();
            let fit = refit(&there, &join(&old[gone.index(whole + 1)..]), &place(&bytes, Behind::Pieces));
            prop_assert_eq!(fit.bytes, bytes);
            prop_assert_eq!(fit.lines as usize, old.len());
        }

        /// A record whose line is another one now has a line once: as it was written, or as it is now.
        #[test]
        fn every_record_has_one_line_when_all_are_written_otherwise(old in lines(), cut in any::<Index>(), pieces in any::<bool>()) {
            let bytes = join(&old);
            let place = place(&bytes, if pieces { Behind::Pieces } else { Behind::Nothing });
            let there = left(&bytes, cut, None);
            let new: Vec<_> = (0..old.len()).map(|n| format!("{{\"new\":{n}}}\n").into_bytes()).collect();
            let fit = refit(&there, &join(&new), &place);
            let kept = places(&there, bytes.len()).len();
            let expected = [events_of(&join(&old[..kept])), events_of(&join(&new[kept..]))].concat();
            prop_assert_eq!(events_of(&[fit.bytes, fit.overflow].concat()), expected);
            prop_assert_eq!(fit.lines as usize, old.len());
        }
    }
}
