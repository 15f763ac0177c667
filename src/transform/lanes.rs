//! Sixteen bytes at a time: the three questions that the scanner asks of a [`Chunk`], answered as bit masks.
//!
//! Bit `i` of an answer speaks of byte `i`; the sixteen low bits are used. On `x86_64` the answers come from SSE2, which every
//! such processor has, elsewhere from a plain loop that gives the same bits (a test holds the two together). Wider
//! vectors were not worth a second code path: the values of log records are short.

/// Bytes that are looked at together.
pub(super) type Chunk = [u8; 16];

/// The chunk that starts at `at`; behind the end of `bytes` it is filled with NUL, which is neither a digit nor allowed
/// in a string, so every scan stops there.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
pub(super) fn chunk(bytes: &[u8], at: usize) -> Chunk {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(chunk) => *chunk,
        None => last_chunk(bytes, at),
    }
}

#[cold]
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

    #[inline(always)]
    fn load(chunk: &Chunk) -> __m128i {
        // SAFETY: SSE2 is there; the reference is valid for its sixteen bytes, and the load needs no alignment.
        unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }
    }

    #[inline(always)]
    pub(in super::super) fn special(chunk: &Chunk) -> u32 {
        let bytes = load(chunk);
        // SAFETY: SSE2 is there; nothing but registers is touched.
        unsafe {
            let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
            let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
            let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
            _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash))) as u32
        }
    }

    #[inline(always)]
    pub(in super::super) fn digits(chunk: &Chunk) -> u32 {
        // SAFETY: SSE2 is there; nothing but registers is touched.
        unsafe {
            let value = _mm_sub_epi8(load(chunk), _mm_set1_epi8(b'0' as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value)) as u32
        }
    }

    #[inline(always)]
    pub(in super::super) fn equal(left: &Chunk, right: &Chunk) -> u32 {
        // SAFETY: SSE2 is there; nothing but registers is touched.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(load(left), load(right))) as u32 }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    use super::Chunk;

    fn mask(chunk: &Chunk, holds: impl Fn(usize, u8) -> bool) -> u32 {
        chunk.iter().enumerate().fold(0, |mask, (i, &byte)| mask | u32::from(holds(i, byte)) << i)
    }

    pub(in super::super) fn special(chunk: &Chunk) -> u32 {
        mask(chunk, |_, byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    }

    pub(in super::super) fn digits(chunk: &Chunk) -> u32 {
        mask(chunk, |_, byte| byte.is_ascii_digit())
    }

    pub(in super::super) fn equal(left: &Chunk, right: &Chunk) -> u32 {
        mask(left, |i, byte| byte == right[i])
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use plain::{digits, equal, special};
#[cfg(target_arch = "x86_64")]
pub(super) use sse2::{digits, equal, special};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_vector_answers_are_the_plain_answers(left: Chunk, right: Chunk) {
            prop_assert_eq!(special(&left), plain::special(&left));
            prop_assert_eq!(digits(&left), plain::digits(&left));
            prop_assert_eq!(equal(&left, &right), plain::equal(&left, &right));
        }
    }

    #[test]
    fn every_byte_value_is_classed_alike() {
        for byte in 0..=u8::MAX {
            let chunk = [byte; 16];
            assert_eq!(special(&chunk), plain::special(&chunk), "byte {byte}");
            assert_eq!(digits(&chunk), plain::digits(&chunk), "byte {byte}");
        }
    }

    #[test]
    fn the_last_chunk_is_filled_with_nul() {
        assert_eq!(&chunk(b"abc", 1), b"bc\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(chunk(b"abc", 9), [0; 16]);
    }
}
