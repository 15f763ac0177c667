//! Payload codecs: what producers wrapped around the JSON of a value, on top of Kafka's own compression.
//!
//! A [`Decoder`] belongs to one thread and keeps its buffers, so that a value costs no allocation. A plain value is
//! handed through untouched.
//!
//! Formats: gzip (RFC 1952), zstd frames (RFC 8878), LZ4 frames, and snappy in its three spellings: the raw block, the
//! official framing and the framing of snappy-java (xerial). Concatenated members and frames are one value.
//!
//! `auto` tells the codec from each value's own bytes, in this order:
//! 1. White space, `{` followed (after white space) by `"`, `}` or the end, or either of them after a byte order mark:
//!    plain JSON.
//! 2. The magic of gzip, zstd, LZ4, framed snappy or xerial snappy: that codec. Skippable frames are those of the frame that
//!    follows them.
//! 3. A raw snappy block that begins with JSON, that is a length, then a literal whose first byte is one that rule 1
//!    takes: raw snappy. Raw snappy has no magic; this is the closest to one.
//!    (Text such as `4 {}` looks like one as well and is called broken snappy; it is no JSON either.)
//! 4. Anything else is handed through as it is: the transform says what is wrong with it.
//!
//! The rules cannot disagree on a record. A raw block of 123 bytes begins with `{` too, but the tag that follows must
//! be a literal's, which has its low bits clear: `"`, `}` and white space other than a blank have not, and after `{`
//! and a blank rule 1 wants a `"` where the block has the first byte of its JSON. A block that begins with white space
//! is at most 32 bytes of JSON, and the shortest record has 38; one that begins with a byte order mark and white space
//! has 18 MiB or more, and one exact size in two million. No magic is a length followed by a literal of JSON.
//!
//! How it fails: a value that a magic, rule 3 or the configuration gives to a codec and that the codec cannot read to
//! its very end is a reject ([`Reason::BadPayload`]): truncated, corrupt, followed by other bytes, or larger than the
//! limit. What a header claims is never allocated before the data bear it out. A cut between two members or frames
//! cannot be seen, since the formats have no end beyond them.

mod gzip;
mod lz4;
mod snappy;
mod zstd;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::config::Payload;
use crate::record::{Reason, Reject};

/// Unwraps values. One a thread: it reuses its buffers.
#[derive(Debug)]
pub struct Decoder {
    payload: Payload,
    /// Bound on a decompressed value, bytes.
    limit: usize,
    output: Output,
    gzip: gzip::Inflater,
    zstd: zstd::Context,
}

impl Decoder {
    /// A decoder for `kafka.payload`; `limit` is the bound on a value's decompressed size in bytes.
    pub fn new(payload: Payload, limit: usize) -> Self {
        Self {
            payload,
            limit,
            output: Output::new(limit),
            gzip: gzip::Inflater::default(),
            zstd: zstd::Context::default(),
        }
    }

    /// The JSON of a value: the value itself when it is plain, else its decompressed bytes.
    pub fn decode<'a>(&'a mut self, value: &'a [u8]) -> Result<&'a [u8], Reject> {
        match self.codec(value) {
            None => Ok(value),
            Some(codec) => self.decompress(codec, value),
        }
    }

    /// Apart from [`Self::decode`], so that plain values do not save the registers that only this needs.
    #[inline(never)]
    fn decompress(&mut self, codec: Codec, value: &[u8]) -> Result<&[u8], Reject> {
        match self.unwrap(codec, value, usize::MAX) {
            Ok(()) => Ok(self.unwrapped()),
            Err(Unwrapping::Larger(reject) | Unwrapping::Bad(reject)) => Err(reject),
        }
    }

    /// The codec of a value; `None` for a plain one.
    #[inline]
    pub fn codec(&self, value: &[u8]) -> Option<Codec> {
        codec_of(self.payload, value)
    }

    /// Decompresses a value of this codec as far as it has at most `most` bytes, to [`Self::unwrapped`].
    pub fn unwrap(&mut self, codec: Codec, value: &[u8], most: usize) -> Result<(), Unwrapping> {
        let output = &mut self.output;
        output.restart(most.min(self.limit));
        let mut input = Input(value);
        let done = match codec {
            _ if value.is_empty() => Err(Fault::Corrupt("the value is empty".into())),
            Codec::Gzip => self.gzip.decompress(&mut input, output),
            Codec::Zstd => self.zstd.decompress(value, output),
            Codec::Lz4 => lz4::decompress(&mut input, output),
            Codec::Snappy(format) => snappy::decompress(format, &mut input, output),
        };
        done.map_err(|fault| self.refuse(codec, &fault, most))
    }

    /// Apart from [`Self::unwrap`], whose values are good as a rule.
    #[cold]
    fn refuse(&self, codec: Codec, fault: &Fault, most: usize) -> Unwrapping {
        let rejected = reject(codec, fault, self.output.limit);
        match fault {
            Fault::TooLarge if most < self.limit => Unwrapping::Larger(rejected),
            Fault::TooLarge | Fault::Corrupt(_) => Unwrapping::Bad(rejected),
        }
    }

    /// The bytes of the value that was decompressed last.
    pub fn unwrapped(&self) -> &[u8] {
        self.output.written()
    }

    /// Forgets the last value; gives back a buffer that it made large.
    pub fn forget(&mut self) {
        self.output.restart(self.limit);
    }
}

/// Why a value is not decompressed.
#[derive(Debug, PartialEq, Eq)]
pub enum Unwrapping {
    /// It has more bytes than were asked for, though perhaps no more than it may have.
    Larger(Reject),
    /// It cannot be decompressed, or has more bytes than a value may have.
    Bad(Reject),
}

/// How many times its own length a value is taken for that does not say how long it is when decompressed.
const USUAL_RATIO: u64 = 8;

/// How long a value is when it is decompressed, as it says itself, and at most `limit`, where a [`Decoder`] ends; 0 for a
/// plain one. An estimate, by which blocks are cut: nobody has looked whether it is true, and of several members or frames
/// one may speak for all. The workers hold the bound on memory, whatever values claim.
pub fn claimed_size(payload: Payload, limit: usize, value: &[u8]) -> u64 {
    let Some(codec) = codec_of(payload, value) else { return 0 };
    let claimed = match codec {
        Codec::Gzip => gzip::claimed_size(value),
        Codec::Zstd => zstd::claimed_size(value),
        Codec::Lz4 => lz4::claimed_size(value),
        Codec::Snappy(format) => snappy::claimed_size(format, value),
    };
    claimed.unwrap_or(value.len() as u64 * USUAL_RATIO).min(limit as u64)
}

/// The codec of a value; `None` for a plain one.
#[inline]
fn codec_of(payload: Payload, value: &[u8]) -> Option<Codec> {
    match payload {
        // No codec makes nothing of something: what is empty was never compressed.
        _ if value.is_empty() => None,
        Payload::None => None,
        Payload::Auto => detect(value),
        Payload::Snappy => Some(Codec::Snappy(snappy::Format::detect(value).unwrap_or(snappy::Format::Raw))),
        Payload::Gzip => Some(Codec::Gzip),
        Payload::Zstd => Some(Codec::Zstd),
        Payload::Lz4 => Some(Codec::Lz4),
    }
}

/// How a value is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// gzip members.
    Gzip,
    /// zstd frames.
    Zstd,
    /// LZ4 frames.
    Lz4,
    /// Snappy, in one of its spellings.
    Snappy(snappy::Format),
}

/// The codec of a value by the rules of `auto`; `None` for what is handed through.
fn detect(value: &[u8]) -> Option<Codec> {
    // Nearly every plain record begins like this.
    if value.starts_with(b"{\"") || starts_json(value) {
        return None;
    }
    match value {
        [0x1f, 0x8b, ..] => Some(Codec::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Codec::Zstd),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(Codec::Lz4),
        // Both have such frames; what follows them tells which it is, and pzstd begins every value with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(match behind_skippable(value) {
            [0x04, 0x22, 0x4d, 0x18, ..] => Codec::Lz4,
            _ => Codec::Zstd,
        }),
        _ => snappy::Format::detect(value)
            .or_else(|| snappy::first_literal(value).is_some_and(leads_json).then_some(snappy::Format::Raw))
            .map(Codec::Snappy),
    }
}

/// A value without the skippable frames (of zstd and LZ4) that it begins with; nothing when one is cut short.
fn behind_skippable(mut value: &[u8]) -> &[u8] {
    while let [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] = value {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        value = rest.get(length..).unwrap_or_default();
    }
    value
}

/// Rule 1 of `auto`.
fn starts_json(value: &[u8]) -> bool {
    match value {
        [b'{', rest @ ..] => matches!(rest.trim_ascii_start().first(), None | Some(b'"' | b'}')),
        [0xef, 0xbb, 0xbf, rest @ ..] => leads_json(rest),
        _ => leads_json(value),
    }
}

/// Whether a JSON object may begin with the first byte (or, for the byte order mark, bytes).
fn leads_json(text: &[u8]) -> bool {
    matches!(text, [b'{' | b' ' | b'\t' | b'\n' | b'\r', ..] | [0xef, 0xbb, 0xbf, ..])
}

#[cold]
fn reject(codec: Codec, fault: &Fault, limit: usize) -> Reject {
    let codec = match codec {
        Codec::Gzip => "gzip",
        Codec::Zstd => "zstd",
        Codec::Lz4 => "lz4",
        Codec::Snappy(snappy::Format::Raw) => "snappy",
        Codec::Snappy(snappy::Format::Framed) => "framed snappy",
        Codec::Snappy(snappy::Format::Xerial) => "xerial snappy",
    };
    let detail = match fault {
        Fault::TooLarge => format!("{codec}: more than {limit} bytes when decompressed"),
        Fault::Corrupt(cause) => format!("{codec}: {cause}"),
    };
    Reject::new(Reason::BadPayload, detail)
}

/// Why a codec gave up.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// The value decompresses to more than the limit.
    TooLarge,
    /// The value is not what its codec says.
    Corrupt(Cow<'static, str>),
}

impl Fault {
    const TRUNCATED: Self = Self::Corrupt(Cow::Borrowed("truncated"));

    fn corrupt(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::Corrupt(cause.into())
    }
}

/// What is left of a value.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Fault::TRUNCATED)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Fault::TRUNCATED)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32_le(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }
}

/// Decompressed bytes. The buffer stays initialised up to its largest use, so that space is zeroed once, not once a
/// value; it may hold one byte more than the limit, by which too much is noticed.
#[derive(Debug)]
struct Output {
    buffer: Vec<u8>,
    used: usize,
    limit: usize,
}

impl Output {
    /// A buffer that one huge value left larger than this is given back, lest every thread keeps one.
    const KEPT: usize = 1 << 20;

    fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), used: 0, limit }
    }

    fn restart(&mut self, limit: usize) {
        (self.used, self.limit) = (0, limit);
        if self.buffer.len() > Self::KEPT {
            self.buffer = Vec::new();
        }
    }

    fn written(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// The bytes written so far, and space for at least `wanted` more, or for all that the limit leaves and one.
    fn split(&mut self, wanted: usize) -> (&[u8], &mut [u8]) {
        let end = self.used.saturating_add(wanted).min(self.limit.saturating_add(1));
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let (written, space) = self.buffer.split_at_mut(self.used);
        (written, space)
    }

    /// Space as [`Self::split`] gives it.
    fn space(&mut self, wanted: usize) -> &mut [u8] {
        self.split(wanted).1
    }

    /// Space for exactly `wanted` bytes.
    fn exactly(&mut self, wanted: usize) -> Result<&mut [u8], Fault> {
        if wanted > self.limit - self.used {
            return Err(Fault::TooLarge);
        }
        Ok(&mut self.space(wanted)[..wanted])
    }

    /// Takes so many bytes of the space as written.
    fn advance(&mut self, count: usize) -> Result<(), Fault> {
        if count > self.limit - self.used {
            return Err(Fault::TooLarge);
        }
        self.used += count;
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.exactly(bytes.len())?.copy_from_slice(bytes);
        self.advance(bytes.len())
    }
}
