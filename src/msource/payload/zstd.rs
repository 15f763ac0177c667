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

/// What the header of the first frame says, or else its blocks.
pub(super) fn claimed_size(value: &[u8]) -> Option<u64> {
    zstd_safe::get_frame_content_size(value).ok()?.or_else(|| size_of_blocks(value))
}

/// What the blocks of a frame hold whose header has no size. There is no bound on how far a block of zstd is compressed, but
/// one on what it holds, which all but the last one do.
fn size_of_blocks(value: &[u8]) -> Option<u64> {
    // Magic, descriptor, window, and the dictionary's id.
    let id = [0, 1, 2, 4][usize::from(value.get(4)? & 3)];
    let mut rest = value.get(6 + id..)?;
    let mut size = 0;
    while let Some(&[a, b, c]) = rest.first_chunk() {
        let header = u32::from_le_bytes([a, b, c, 0]);
        let (is_last, length) = (header & 1 == 1, u64::from(header >> 3));
        let (stored, held) = match header >> 1 & 3 {
            0 => (length, length),
            // One byte, so many times.
            1 => (1, length),
            _ if is_last => (length, MAX_BLOCK.min(length * USUAL_RATIO)),
            _ => (length, MAX_BLOCK),
        };
        size += held;
        if is_last {
            break;
        }
        rest = rest.get(3 + stored as usize..)?;
    }
    Some(size)
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}
