//! Many bytes at a time: the three questions that the scanner asks, answered as bit masks.
//!
//! Bit `i` of an answer speaks of the byte `i` behind the place that was asked about. There are two ways of the same answers:
//! [`Narrow`] takes sixteen bytes, on `x86_64` with SSE2, which every such processor has, elsewhere in a plain loop;
//! `Wide` takes thirty-two with AVX2. [`dispatch`] runs a job with the widest that the processor has. A test holds all
//! of them to the plain answers.

/// Bytes of an expected text: what [`Lanes::equal`] compares.
pub(super) type Text = [u8; 32];

/// A way of looking at many bytes at once.
pub(super) trait Lanes {
    /// How many bytes an answer speaks of; the bits above are 0.
    const WIDTH: usize;

    /// Which bytes end the plain part of a string: quotes, backslashes and control characters. `at` lies in `bytes` with the
    /// whole width.
    fn special(bytes: &[u8], at: usize) -> Option<u32>;

    /// Which bytes are decimal digits.
    fn digits(bytes: &[u8], at: usize) -> Option<u32>;

    /// Which bytes are the same in both.
    fn equal(left: &Text, right: &Text) -> u32;
}

/// What runs the same with any lanes.
pub(super) trait Job {
    type Out;
    fn run<L: Lanes>(self) -> Self::Out;
}

/// [`Lanes::special`] anywhere: behind the end of `bytes` every byte ends a string.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
pub(super) fn special<L: Lanes>(bytes: &[u8], at: usize) -> u32 {
    L::special(bytes, at).unwrap_or_else(|| last(bytes, at, Narrow::special, u32::MAX) & (u32::MAX >> (32 - L::WIDTH)))
}

/// [`Lanes::digits`] anywhere: behind the end of `bytes` there are none.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
pub(super) fn digits<L: Lanes>(bytes: &[u8], at: usize) -> u32 {
    L::digits(bytes, at).unwrap_or_else(|| last(bytes, at, Narrow::digits, 0) & (u32::MAX >> (32 - L::WIDTH)))
}

/// An answer near the end; `behind` is that of the bytes behind the end.
#[inline(never)]
fn last(bytes: &[u8], at: usize, ask: fn(&[u8], usize) -> Option<u32>, behind: u32) -> u32 {
    let rest = bytes.get(at..).unwrap_or_default();
    let mut filled = [0; 32];
    let len = rest.len().min(32);
    filled[..len].copy_from_slice(&rest[..len]);
    let answer = ask(&filled, 0).unwrap_or(0) | (ask(&filled, Narrow::WIDTH).unwrap_or(0) << Narrow::WIDTH);
    let outside = u32::MAX.checked_shl(len as u32).unwrap_or(0);
    (answer & !outside) | (behind & outside)
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
#[expect(
    unsafe_code,
    reason = "vector instructions: used where the processor has them, and the loads read whole chunks"
)]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8, _mm_sub_epi8, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_set1_epi8, _mm256_sub_epi8,
    };

    use super::{Job, Lanes, Text};

    /// Sixteen bytes in a register: SSE2.
    #[derive(Debug)]
    pub(in super::super) struct Narrow;

    // SAFETY of all that is unsafe here: SSE2 is part of every x86_64, and but for the load nothing but registers is touched.
    impl Narrow {
        #[inline(always)]
        fn load(bytes: &[u8], at: usize) -> Option<__m128i> {
            let chunk: &[u8; 16] = bytes.get(at..)?.first_chunk()?;
            // SAFETY: the reference is valid for its sixteen bytes, and the load needs no alignment.
            Some(unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) })
        }
    }

    impl Lanes for Narrow {
        const WIDTH: usize = 16;

        #[inline(always)]
        fn special(bytes: &[u8], at: usize) -> Option<u32> {
            let chunk = Self::load(bytes, at)?;
            // SAFETY: as above.
            Some(unsafe {
                let control = _mm_cmpeq_epi8(_mm_min_epu8(chunk, _mm_set1_epi8(0x1f)), chunk);
                let quote = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'"' as i8));
                let backslash = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'\\' as i8));
                _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash))) as u32
            })
        }

        #[inline(always)]
        fn digits(bytes: &[u8], at: usize) -> Option<u32> {
            let chunk = Self::load(bytes, at)?;
            // SAFETY: as above.
            Some(unsafe {
                let value = _mm_sub_epi8(chunk, _mm_set1_epi8(b'0' as i8));
                _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value)) as u32
            })
        }

        #[inline(always)]
        fn equal(left: &Text, right: &Text) -> u32 {
            let half = |at| {
                let (left, right) = (Self::load(left, at), Self::load(right, at));
                // SAFETY: as above.
                left.zip(right)
                    .map_or(0, |(left, right)| unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(left, right)) as u32 })
            };
            half(0) | (half(16) << 16)
        }
    }

    /// Thirty-two bytes in a register: AVX2. Only [`dispatch`] may bring it into play, which asks the processor first.
    #[derive(Debug)]
    pub(in super::super) struct Wide;

    // SAFETY of all that is unsafe here: AVX2 is there, since only `dispatch` names this type outside of tests, and but for
    // the load nothing but registers is touched.
    impl Wide {
        #[inline(always)]
        fn load(bytes: &[u8], at: usize) -> Option<__m256i> {
            let chunk: &[u8; 32] = bytes.get(at..)?.first_chunk()?;
            // SAFETY: the reference is valid for its thirty-two bytes, and the load needs no alignment.
            Some(unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) })
        }
    }

    impl Lanes for Wide {
        const WIDTH: usize = 32;

        #[inline(always)]
        fn special(bytes: &[u8], at: usize) -> Option<u32> {
            let chunk = Self::load(bytes, at)?;
            // SAFETY: as above.
            Some(unsafe {
                let control = _mm256_cmpeq_epi8(_mm256_min_epu8(chunk, _mm256_set1_epi8(0x1f)), chunk);
                let quote = _mm256_cmpeq_epi8(chunk, _mm256_set1_epi8(b'"' as i8));
                let backslash = _mm256_cmpeq_epi8(chunk, _mm256_set1_epi8(b'\\' as i8));
                _mm256_movemask_epi8(_mm256_or_si256(control, _mm256_or_si256(quote, backslash))) as u32
            })
        }

        #[inline(always)]
        fn digits(bytes: &[u8], at: usize) -> Option<u32> {
            let chunk = Self::load(bytes, at)?;
            // SAFETY: as above.
            Some(unsafe {
                let value = _mm256_sub_epi8(chunk, _mm256_set1_epi8(b'0' as i8));
                _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(value, _mm256_set1_epi8(9)), value)) as u32
            })
        }

        #[inline(always)]
        fn equal(left: &Text, right: &Text) -> u32 {
            let (left, right) = (Self::load(left, 0), Self::load(right, 0));
            // SAFETY: as above.
            left.zip(right)
                .map_or(0, |(left, right)| unsafe { _mm256_movemask_epi8(_mm256_cmpeq_epi8(left, right)) as u32 })
        }
    }

    /// Runs a job with the widest lanes of this processor.
    #[inline]
    pub(in super::super) fn dispatch<J: Job>(job: J) -> J::Out {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
        fn wide<J: Job>(job: J) -> J::Out {
            job.run::<Wide>()
        }
        if has_wide() {
            // SAFETY: the processor has what the function needs.
            unsafe { wide(job) }
        } else {
            job.run::<Narrow>()
        }
    }

    #[inline]
    pub(super) fn has_wide() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    #[cfg(not(target_arch = "x86_64"))]
    use super::Job;
    use super::{Lanes, Text};

    /// Sixteen bytes, one after the other.
    #[derive(Debug)]
    pub(in super::super) struct Narrow;

    impl Narrow {
        fn mask(bytes: &[u8], at: usize, holds: impl Fn(u8) -> bool) -> Option<u32> {
            let chunk: &[u8; 16] = bytes.get(at..)?.first_chunk()?;
            Some(chunk.iter().enumerate().fold(0, |mask, (i, &byte)| mask | (u32::from(holds(byte)) << i)))
        }
    }

    impl Lanes for Narrow {
        const WIDTH: usize = 16;

        fn special(bytes: &[u8], at: usize) -> Option<u32> {
            Self::mask(bytes, at, |byte| byte < 0x20 || byte == b'"' || byte == b'\\')
        }

        fn digits(bytes: &[u8], at: usize) -> Option<u32> {
            Self::mask(bytes, at, |byte| byte.is_ascii_digit())
        }

        fn equal(left: &Text, right: &Text) -> u32 {
            let same = left.iter().zip(right).enumerate();
            same.fold(0, |mask, (i, (left, right))| mask | (u32::from(left == right) << i))
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(in super::super) fn dispatch<J: Job>(job: J) -> J::Out {
        job.run::<Narrow>()
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use plain::{Narrow, dispatch};
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Narrow, dispatch};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every answer about `bytes`, at each place and a little behind the end, cut to what the narrow lanes see.
    fn answers<L: Lanes>(bytes: &[u8], other: &Text) -> Vec<[u32; 2]> {
        let mut text = Text::default();
        text.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let seen = |mask: u32| mask & 0xffff;
        let mut all: Vec<_> =
            (0..bytes.len() + 40).map(|at| [seen(special::<L>(bytes, at)), seen(digits::<L>(bytes, at))]).collect();
        all.push([L::equal(&text, other), L::equal(other, other)]);
        all
    }

    fn agree(bytes: &[u8], other: &Text) {
        let plain = answers::<plain::Narrow>(bytes, other);
        assert_eq!(answers::<Narrow>(bytes, other), plain, "{bytes:?}");
        #[cfg(target_arch = "x86_64")]
        if x86::has_wide() {
            assert_eq!(answers::<x86::Wide>(bytes, other), plain, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn the_vector_answers_are_the_plain_answers(bytes in proptest::collection::vec(any::<u8>(), 0..100), other: Text) {
            agree(&bytes, &other);
        }
    }

    #[test]
    fn every_byte_value_is_classed_alike() {
        for byte in 0..=u8::MAX {
            agree(&[byte; 40], &[byte ^ 1; 32]);
        }
    }

    #[test]
    fn behind_the_end_strings_end_and_there_are_no_digits() {
        assert_eq!((special::<Narrow>(b"abc", 1), digits::<Narrow>(b"123", 1)), (0xfffc, 0b11));
        assert_eq!((special::<Narrow>(b"abc", 9), digits::<Narrow>(b"123", 9)), (0xffff, 0));
    }
}
