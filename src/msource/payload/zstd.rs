//! zstd frames (RFC 8878), skippable ones included.
//!
//! They are decompressed in one call, not as a stream: the output serves as the window, whereas a stream allocates
//! whatever window a header asks for, 128 MiB at worst.

use std::fmt;

use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{self, DCtx};

use super::{Fault, Output};

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

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context")
    }
}
