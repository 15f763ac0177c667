//! zstd frames (RFC 8878), skippable ones included.
//!
//! They are decompressed in one call, not as a stream: the output serves as the window, whereas a stream allocates
//! whatever window a header asks for, 128 MiB at worst.

use std::fmt;

use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{self, DCtx};

use super::{Fault, Output, USUAL_RATIO};

/// Bound on what a block holds.
const MAX_BLOCK: u64 = 128 << 10;

/// The decompression context, made when the first zstd value comes.
#[derive(Default)]
pub(super) struct Context(Option<DCtx<'static>>);

impl Context {
    /// Decompresses every frame.
    pub(super) fn decompress(&mut self, value: &[u8], output: &mut Output) -> Result<(), Fault> {
        let context = self.0.get_or_insert_with(DCtx::default);
        let mut wanted = value.len().saturating_mul(8);
        loop {
            // Sizes in headers are not trusted: the space doubles until the data fit. It is kept from value to value,
            // so that after the first few one call is enough.
            let space = output.space(wanted);
            let offered = space.len();
            match context.decompress(space, value) {
                Ok(count) => return output.advance(count),
                Err(code) if zstd_safe::is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) => {
                    if offered > output.limit {
                        return Err(Fault::TooLarge);
                    }
                    wanted = offered.saturating_mul(2);
                }
                Err(code) => return Err(Fault::corrupt(zstd_safe::get_error_name(code).to_lowercase())),
            }
        }
    }
}

/// What the frames say: each its header, or else its blocks.
pub(super) fn claimed_size(value: &[u8]) -> Option<u64> {
    let (mut rest, mut size) = (value, 0_u64);
    while !rest.is_empty() {
        if let Some(length) = skippable(rest) {
            rest = rest.get(length..).unwrap_or_default();
            continue;
        }
        let stated = zstd_safe::get_frame_content_size(rest).ok()?;
        let frame = Frame::read(rest);
        size = size.saturating_add(stated.or(frame.map(|frame| frame.held))?);
        // What lies behind a frame that is cut short is nothing that would be decompressed.
        rest = frame.and_then(|frame| rest.get(frame.length..)).unwrap_or_default();
    }
    Some(size)
}

/// The length of a skippable frame.
fn skippable(value: &[u8]) -> Option<usize> {
    let (magic, rest) = value.split_first_chunk().map(|(magic, rest)| (u32::from_le_bytes(*magic), rest))?;
    let length = rest.first_chunk().map(|length| u32::from_le_bytes(*length) as usize)?;
    (magic & !0xf == 0x184d_2a50).then_some(8 + length)
}

/// What the blocks of a frame say.
#[derive(Clone, Copy)]
struct Frame {
    /// The most that they can hold. There is no bound on how far a block of zstd is compressed, but one on what it holds,
    /// which all but the last one do.
    held: u64,
    /// Its own bytes.
    length: usize,
}

impl Frame {
    fn read(value: &[u8]) -> Option<Self> {
        let descriptor = *value.get(4)?;
        let is_single = descriptor >> 5 & 1 == 1;
        // Magic, descriptor, window, the dictionary's id, and the size of the content.
        let id = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content = [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)];
        let mut at = 5 + usize::from(!is_single) + id + content;
        let mut held = 0_u64;
        loop {
            let header = value.get(at..)?.first_chunk().map(|&[a, b, c]| u32::from_le_bytes([a, b, c, 0]))?;
            let (is_last, length) = (header & 1 == 1, header >> 3);
            let (stored, holds) = match header >> 1 & 3 {
                0 => (length, u64::from(length)),
                // One byte, so many times.
                1 => (1, u64::from(length)),
                _ if is_last => (length, MAX_BLOCK.min(u64::from(length) * USUAL_RATIO)),
                _ => (length, MAX_BLOCK),
            };
            held += holds;
            at = at.saturating_add(3 + stored as usize);
            if is_last {
                let checksum = if descriptor >> 2 & 1 == 1 { 4 } else { 0 };
                return Some(Self { held, length: at + checksum });
            }
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}
