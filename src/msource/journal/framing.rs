//! Frames as bytes: how a body of any length is written so that a reader knows whether all of it is there.
//!
//! A frame is one part or several, one behind the other: length of the part (u32, the highest bit set when another part
//! follows), CRC-32C (u32), the part; little-endian. The CRC covers the number of the segment or copy and everything of the
//! frame up to there but the CRCs, so that no part is taken for one of another frame. A length of zero is the end.

use std::borrow::Cow;
use std::io::{self, Read};

use serde::Serialize;

const PREFIX: usize = 8;

/// The longest part; small in tests, so that they see frames of several.
pub(super) const PART_MAX: usize = if cfg!(test) { 512 } else { 1 << 30 };

/// In a length: another part follows.
const MORE: u32 = 1 << 31;

/// What stands before a part.
struct Prefix {
    length: u32,
    crc: u32,
}

impl Prefix {
    fn read([a, b, c, d, crc @ ..]: [u8; PREFIX]) -> Self {
        Self { length: u32::from_le_bytes([a, b, c, d]), crc: u32::from_le_bytes(crc) }
    }

    fn size(&self) -> usize {
        (self.length & !MORE) as usize
    }

    fn is_last(&self) -> bool {
        self.length & MORE == 0
    }
}

fn begin(number: u64) -> u32 {
    crc32c::crc32c(&number.to_le_bytes())
}

fn extend(crc: u32, length: u32, part: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &length.to_le_bytes()), part)
}

/// The frame of a body that is postcard's encoding of something.
pub(super) fn encode(number: u64, body: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(body, vec![0; PREFIX]).map_err(io::Error::other)?;
    if bytes.len() - PREFIX > PART_MAX {
        return Ok(in_parts(number, &bytes[PREFIX..]));
    }
    let length = (bytes.len() - PREFIX) as u32;
    let crc = extend(begin(number), length, &bytes[PREFIX..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..PREFIX].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The frame of some bytes.
pub(super) fn in_parts(number: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + (body.len() / PART_MAX + 1) * PREFIX);
    let (mut crc, mut parts) = (begin(number), body.chunks(PART_MAX).peekable());
    while let Some(part) = parts.next() {
        let more = if parts.peek().is_some() { MORE } else { 0 };
        let length = part.len() as u32 | more;
        crc = extend(crc, length, part);
        bytes.extend(length.to_le_bytes());
        bytes.extend(crc.to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The body of the frame at the beginning of `bytes`, and the length of the frame; `None` when it is bad, or the end.
pub(super) fn decode(number: u64, bytes: &[u8]) -> Option<(Cow<'_, [u8]>, usize)> {
    let (mut body, mut crc, mut rest) = (Cow::Borrowed(&[][..]), begin(number), bytes);
    loop {
        let (prefix, behind) = rest.split_first_chunk::<PREFIX>()?;
        let prefix = Prefix::read(*prefix);
        let (part, behind) = behind.split_at_checked(prefix.size()).filter(|(part, _)| !part.is_empty())?;
        crc = extend(crc, prefix.length, part);
        if crc != prefix.crc {
            return None;
        }
        rest = behind;
        if body.is_empty() {
            body = Cow::Borrowed(part);
        } else {
            body.to_mut().extend_from_slice(part);
        }
        if prefix.is_last() {
            return Some((body, bytes.len() - rest.len()));
        }
    }
}

/// The body of the next frame of a file; `None` when it is bad, or the end. Takes no more memory than the file has bytes.
pub(super) fn read(number: u64, file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let (mut body, mut crc) = (Vec::new(), begin(number));
    loop {
        let mut prefix = [0; PREFIX];
        match file.read_exact(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let prefix = Prefix::read(prefix);
        let begun = body.len();
        let read = file.by_ref().take(prefix.size() as u64).read_to_end(&mut body)?;
        crc = extend(crc, prefix.length, &body[begun..]);
        if read == 0 || read != prefix.size() || crc != prefix.crc {
            return Ok(None);
        }
        if prefix.is_last() {
            return Ok(Some(body));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is written is read, by both readers, and no part of it is taken for a whole.
        #[test]
        fn a_body_of_any_length_is_read_back_and_nothing_less(length in 1..5 * PART_MAX, cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
            let body: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            let frame = in_parts(3, &body);
            let (found, used) = decode(3, &frame).expect("it is whole");
            prop_assert_eq!((found.as_ref(), used), (body.as_slice(), frame.len()));
            prop_assert_eq!(read(3, &mut frame.as_slice()).unwrap(), Some(body));
            let mut others = vec![frame[..cut.index(frame.len())].to_vec(), frame.clone()];
            others[1][flip.index(frame.len())] ^= 0x40;
            // Zeros are what a file has beyond its end.
            others.push([&others[0][..], &vec![0; frame.len()][..]].concat());
            for other in others.iter().filter(|other| !other.starts_with(&frame)) {
                prop_assert!(decode(3, other).is_none());
                prop_assert_eq!(read(3, &mut other.as_slice()).unwrap(), None);
            }
            prop_assert!(decode(4, &frame).is_none(), "of another segment");
            let second = frame.get(PREFIX + PART_MAX..).and_then(|rest| decode(3, rest));
            prop_assert!(second.is_none(), "a part that is no first one");
        }
    }

    #[test]
    fn a_frame_of_one_part_is_what_it_always_was() {
        let body = [1_u8, 2, 3];
        let frame = encode(3, &body).unwrap();
        assert_eq!(frame, in_parts(3, &body));
        assert_eq!(frame[..4], [3, 0, 0, 0]);
        assert!(decode(3, &[0; 64]).is_none() && decode(3, &[]).is_none());
    }
}
