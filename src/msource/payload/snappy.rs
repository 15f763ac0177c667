//! Snappy: the raw block, the official framing format, and the framing of snappy-java (xerial), which the Java client
//! and many others use.
//!
//! The framings are read here, over the raw decoder of `snap`, because its reader allocates and zeroes 140 KB for each
//! value.

use snap::raw;

use super::{Fault, Input, Output};

/// The three spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A length and one compressed block; it has no magic.
    Raw,
    /// Chunks with CRC-32C, after a stream identifier.
    Framed,
    /// A header of 16 bytes, then raw blocks, each after its length.
    Xerial,
}

const IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";
const XERIAL: &[u8] = b"\x82SNAPPY\x00";
/// Version and oldest compatible version follow the magic of xerial.
const XERIAL_VERSIONS: usize = 8;
/// Bound of a chunk's decompressed size in the framing format.
const MAX_CHUNK: usize = 64 << 10;
/// A block holds at most 64 bytes for every 3 of its own.
const MAX_RATIO: usize = 22;

impl Format {
    /// The format whose magic leads the value.
    pub(super) fn detect(value: &[u8]) -> Option<Self> {
        if value.starts_with(IDENTIFIER) {
            Some(Self::Framed)
        } else if value.starts_with(XERIAL) {
            Some(Self::Xerial)
        } else {
            None
        }
    }
}

/// The bytes from the first literal on, when the value begins as a raw block must: a length of at most 32 bits, then a
/// literal.
pub(super) fn first_literal(value: &[u8]) -> Option<&[u8]> {
    let length = value.iter().take(5).position(|byte| byte & 0x80 == 0)? + 1;
    let tag = *value.get(length)?;
    if tag & 3 != 0 {
        return None;
    }
    let length_bytes = usize::from(tag >> 2).saturating_sub(59);
    value.get(length + 1 + length_bytes..)
}

/// What a raw block's header says, if it can be true. The framings have no length of the whole.
pub(super) fn claimed_size(format: Format, value: &[u8]) -> Option<u64> {
    match format {
        Format::Raw => raw::decompress_len(value).ok().map(|length| length.min(value.len() * MAX_RATIO) as u64),
        Format::Framed | Format::Xerial => None,
    }
}

/// Decompresses a value.
pub(super) fn decompress(format: Format, input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    match format {
        Format::Raw => block(input.0, output),
        Format::Framed => framed(input, output),
        Format::Xerial => xerial(input, output),
    }
}

fn block(data: &[u8], output: &mut Output) -> Result<(), Fault> {
    let corrupt = |error: snap::Error| Fault::corrupt(error.to_string().trim_start_matches("snappy: ").to_owned());
    let length = raw::decompress_len(data).map_err(corrupt)?;
    if length > data.len().saturating_mul(MAX_RATIO) {
        return Err(Fault::corrupt(format!("{} bytes cannot hold the {length} that they claim", data.len())));
    }
    let count = raw::Decoder::new().decompress(data, output.exactly(length)?).map_err(corrupt)?;
    output.advance(count)
}

fn xerial(input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    while !input.is_empty() {
        // Streams written one after the other repeat the header.
        if let Some(rest) = input.0.strip_prefix(XERIAL) {
            input.0 = rest;
            input.take(XERIAL_VERSIONS)?;
            continue;
        }
        let length = u32::from_be_bytes(input.array()?);
        block(input.take(length as usize)?, output)?;
    }
    Ok(())
}

fn framed(input: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    while !input.is_empty() {
        let [kind, length @ ..] = input.array::<4>()?;
        let length = u32::from_le_bytes([length[0], length[1], length[2], 0]);
        let mut chunk = Input(input.take(length as usize)?);
        match kind {
            0x00 | 0x01 => data_chunk(kind, &mut chunk, output)?,
            0xff if chunk.0 == &IDENTIFIER[4..] => {}
            // Padding, and chunks that the format allows to skip.
            0x80..=0xfe => {}
            _ => return Err(Fault::corrupt(format!("unknown chunk type {kind:#04x}"))),
        }
    }
    Ok(())
}

fn data_chunk(kind: u8, chunk: &mut Input<'_>, output: &mut Output) -> Result<(), Fault> {
    let checksum = chunk.u32_le()?;
    let start = output.used;
    if kind == 0x00 {
        block(chunk.0, output)?;
    } else {
        output.extend(chunk.0)?;
    }
    let data = &output.written()[start..];
    if data.len() > MAX_CHUNK {
        return Err(Fault::corrupt("a chunk is larger than the format allows"));
    }
    if checksum != mask(crc32c::crc32c(data)) {
        return Err(Fault::corrupt("a chunk's checksum does not match"));
    }
    Ok(())
}

/// The format stores checksums masked, since the CRC of data that hold CRCs is a poor one.
fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}
