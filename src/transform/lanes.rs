//! Sixteen bytes at a time: the three questions that the scanner asks of [`Lanes`], answered as bit masks.
//!
//! Bit `i` of an answer speaks of byte `i`; the sixteen low bits are used. On `x86_64` the answers come from SSE2, which every
//! such processor has, elsewhere from a plain loop that gives the same bits (a test holds the two together). Wider
//! vectors were not worth a second code path: the values of log records are short.

/// The bytes of one [`Lanes`].
pub(super) type Chunk = [u8; 16];

impl Lanes {
    /// The bytes from `at` on; behind the end of `bytes` come NULs, which are neither digits nor allowed in a string, so
    /// every scan stops there.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    pub(super) fn at(bytes: &[u8], at: usize) -> Self {
        match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            Some(chunk) => Self::of(chunk),
            None => Self::of(&last_chunk(bytes, at)),
        }
    }
}

#[cold]
#[inline(never)]
fn last_chunk(bytes: &[u8], at: usize) -> Chunk {
    let mut chunk = [0; 16];
    let rest = bytes.get(at..).unwrap_or_default();
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
#[expect(unsafe_code, reason = "vector instructions; SSE2 is part of every x86_64, and the loads read whole chunks")]
mod sse2 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
        _mm_sub_epi8,
    };

    use super::Chunk;

    /// Sixteen bytes in a register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Lanes(__m128i);

    // SAFETY of all that is unsafe here: SSE2 is there, and but for the load nothing but registers is touched.
    impl Lanes {
        #[inline(always)]
        pub(in super::super) fn of(chunk: &Chunk) -> Self {
            // SAFETY: the reference is valid for its sixteen bytes, and the load needs no alignment.
            Self(unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) })
        }

        /// Which bytes end the plain part of a string: quotes, backslashes and control characters.
        #[inline(always)]
        pub(in super::super) fn special(self) -> u32 {
            // SAFETY: as above.
            unsafe {
                let control = _mm_cmpeq_epi8(_mm_min_epu8(self.0, _mm_set1_epi8(0x1f)), self.0);
                let quote = _mm_cmpeq_epi8(self.0, _mm_set1_epi8(b'"' as i8));
                let backslash = _mm_cmpeq_epi8(self.0, _mm_set1_epi8(b'\\' as i8));
                _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash))) as u32
            }
        }

        /// Which bytes are decimal digits.
        #[inline(always)]
        pub(in super::super) fn digits(self) -> u32 {
            // SAFETY: as above.
            unsafe {
                let value = _mm_sub_epi8(self.0, _mm_set1_epi8(b'0' as i8));
                _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value)) as u32
            }
        }

        /// Which bytes are the same in both.
        #[inline(always)]
        pub(in super::super) fn equal(self, other: Self) -> u32 {
            // SAFETY: as above.
            unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, other.0)) as u32 }
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    use super::Chunk;

    /// Sixteen bytes.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Lanes(Chunk);

    impl Lanes {
        pub(in super::super) fn of(chunk: &Chunk) -> Self {
            Self(*chunk)
        }

        fn mask(self, holds: impl Fn(usize, u8) -> bool) -> u32 {
            self.0.iter().enumerate().fold(0, |mask, (i, &byte)| mask | (u32::from(holds(i, byte)) << i))
        }

        pub(in super::super) fn special(self) -> u32 {
            self.mask(|_, byte| byte < 0x20 || byte == b'"' || byte == b'\\')
        }

        pub(in super::super) fn digits(self) -> u32 {
            self.mask(|_, byte| byte.is_ascii_digit())
        }

        pub(in super::super) fn equal(self, other: Self) -> u32 {
            self.mask(|i, byte| byte == other.0[i])
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use plain::Lanes;
#[cfg(target_arch = "x86_64")]
pub(super) use sse2::Lanes;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agree(left: &Chunk, right: &Chunk) {
        let (fast, plain) = (Lanes::of(left), plain::Lanes::of(left));
        assert_eq!(fast.special(), plain.special(), "{left:?}");
        assert_eq!(fast.digits(), plain.digits(), "{left:?}");
        assert_eq!(fast.equal(Lanes::of(right)), plain.equal(plain::Lanes::of(right)), "{left:?} {right:?}");
    }

    proptest! {
        #[test]
        fn the_vector_answers_are_the_plain_answers(left: Chunk, right: Chunk) {
            agree(&left, &right);
        }
    }

    #[test]
    fn every_byte_value_is_classed_alike() {
        for byte in 0..=u8::MAX {
            agree(&[byte; 16], &[byte ^ 1; 16]);
        }
    }

    #[test]
    fn the_last_chunk_is_filled_with_nul() {
        assert_eq!(&last_chunk(b"abc", 1), b"bc\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(last_chunk(b"abc", 9), [0; 16]);
    }
}
