//! Many bytes at a time: the questions that the scanner asks, answered as bit masks.
//!
//! Bit `i` of an answer speaks of the byte `i` behind the place that was asked about. [`special`] and [`digits`] take
//! sixteen bytes, [`fitting`] as many as there are, in the widest steps that the processor has: sixteen with SSE2, which
//! every `x86_64` has, thirty-two with AVX2; elsewhere all of it is a plain loop. A test holds all of them to the plain answers.

/// How many bytes an answer of [`special`] and [`digits`] speaks of; the bits above are 0.
pub(super) const WIDTH: usize = 16;

/// The widest step of [`fitting`].
pub(super) const WIDEST: usize = 32;

/// A way of looking at many bytes at once. All slices that are given to it have `WIDTH` bytes.
pub(super) trait Lanes {
    const WIDTH: usize;

    /// Which bytes are as they should be: see [`fitting`]. The bits above `WIDTH` are set.
    fn fit(bytes: &[u8], least: &[u8], most: &[u8]) -> u32;
}

/// What runs the same with any lanes.
pub(super) trait Job {
    type Out;
    fn run<L: Lanes>(self) -> Self::Out;
}

/// Which bytes end the plain part of a string: quotes, backslashes and control characters. Behind the end of `bytes` every byte
/// does.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
pub(super) fn special(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or_else(|| last(bytes, at, narrow::special, 0xffff), narrow::special)
}

/// Which bytes are decimal digits. Behind the end of `bytes` there are none.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
pub(super) fn digits(bytes: &[u8], at: usize) -> u32 {
    chunk(bytes, at).map_or_else(|| last(bytes, at, narrow::digits, 0), narrow::digits)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
fn chunk(bytes: &[u8], at: usize) -> Option<&[u8; WIDTH]> {
    bytes.get(at..)?.first_chunk()
}

/// An answer near the end; `behind` is that of the bytes behind the end.
#[inline(never)]
fn last(bytes: &[u8], at: usize, ask: fn(&[u8; WIDTH]) -> u32, behind: u32) -> u32 {
    let rest = bytes.get(at..).unwrap_or_default();
    let mut filled = [0; WIDTH];
    let len = rest.len().min(WIDTH);
    filled[..len].copy_from_slice(&rest[..len]);
    let outside = 0xffff << len;
    (ask(&filled) & !outside) | (behind & outside)
}

/// How many bytes of `bytes` from `at` on are as they should be, up to the first that is not: from `least` to `most`, there
/// from `place` on, and neither quote nor backslash where `most` is above 127, so that any character may stand there.
/// Where `least` is 255 and `most` 0 nothing fits, since no text in UTF-8 has a byte 255. It ends with the shortest of the three.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must be compiled for the lanes it runs with")]
pub(super) fn fitting<L: Lanes>((bytes, at): (&[u8], usize), (least, most, place): (&[u8], &[u8], usize)) -> usize {
    let (bytes, least, most) = (&bytes[at..], &least[place..], &most[place..]);
    let len = bytes.len().min(least.len()).min(most.len());
    let (bytes, least, most) = (&bytes[..len], &least[..len], &most[..len]);
    if len < L::WIDTH {
        let mut filled = [[0; WIDEST]; 3];
        for (filled, bytes) in filled.iter_mut().zip([bytes, least, most]) {
            filled[..len].copy_from_slice(bytes);
        }
        let [bytes, least, most] = &filled;
        let fit = L::fit(&bytes[..L::WIDTH], &least[..L::WIDTH], &most[..L::WIDTH]);
        return len.min(fit.trailing_ones() as usize);
    }
    let mut from = 0;
    loop {
        let to = from + L::WIDTH;
        let fit = L::fit(&bytes[from..to], &least[from..to], &most[from..to]);
        if fit != u32::MAX {
            return from + fit.trailing_ones() as usize;
        }
        if to == len {
            return len;
        }
        // What was compared already fits once more.
        from = to.min(len - L::WIDTH);
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
#[expect(
    unsafe_code,
    reason = "vector instructions: used where the processor has them, and the loads read whole chunks"
)]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_and_si128, _mm_andnot_si128, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_max_epu8, _mm_min_epu8,
        _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8, _mm_sub_epi8, _mm256_and_si256, _mm256_andnot_si256,
        _mm256_broadcastsi128_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_max_epu8, _mm256_min_epu8,
        _mm256_movemask_epi8, _mm256_shuffle_epi8,
    };
    use std::sync::LazyLock;

    use super::{Job, Lanes, WIDTH};

    #[inline(always)]
    fn load(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: the reference is valid for its sixteen bytes, and the load needs no alignment; SSE2 is part of every x86_64.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    pub(super) fn special(bytes: &[u8; WIDTH]) -> u32 {
        let chunk = load(bytes);
        // SAFETY: SSE2 is part of every x86_64, and nothing but registers is touched.
        unsafe {
            let control = _mm_cmpeq_epi8(_mm_min_epu8(chunk, _mm_set1_epi8(0x1f)), chunk);
            let quote = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'"' as i8));
            let backslash = _mm_cmpeq_epi8(chunk, _mm_set1_epi8(b'\\' as i8));
            _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash))) as u32
        }
    }

    #[inline(always)]
    pub(super) fn digits(bytes: &[u8; WIDTH]) -> u32 {
        let chunk = load(bytes);
        // SAFETY: as above.
        unsafe {
            let value = _mm_sub_epi8(chunk, _mm_set1_epi8(b'0' as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value)) as u32
        }
    }

    /// Sixteen bytes in a register: SSE2.
    #[derive(Debug)]
    pub(in super::super) struct Narrow;

    impl Lanes for Narrow {
        const WIDTH: usize = 16;

        #[inline(always)]
        fn fit(bytes: &[u8], least: &[u8], most: &[u8]) -> u32 {
            let [Some(bytes), Some(least), Some(most)] = [bytes, least, most].map(|slice| slice.first_chunk()) else {
                return 0;
            };
            let (bytes, least, most) = (load(bytes), load(least), load(most));
            // SAFETY: as above.
            unsafe {
                let within = _mm_cmpeq_epi8(_mm_max_epu8(_mm_min_epu8(bytes, most), least), bytes);
                let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
                let special = _mm_or_si128(quotes, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8)));
                // The mask takes the top bits, which `most` has where there is text.
                _mm_movemask_epi8(_mm_andnot_si128(_mm_and_si128(special, most), within)) as u32 | !0xffff
            }
        }
    }

    /// Thirty-two bytes in a register: AVX2. Only [`dispatch`] may bring it into play, which asks the processor first.
    #[derive(Debug)]
    pub(super) struct Wide;

    #[inline(always)]
    fn load_wide(bytes: &[u8]) -> Option<__m256i> {
        let chunk: &[u8; 32] = bytes.first_chunk()?;
        // SAFETY: the reference is valid for its thirty-two bytes, and the load needs no alignment; AVX2 is there, as below.
        Some(unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) })
    }

    impl Lanes for Wide {
        const WIDTH: usize = 32;

        #[inline(always)]
        fn fit(bytes: &[u8], least: &[u8], most: &[u8]) -> u32 {
            let (Some(bytes), Some(least), Some(most)) = (load_wide(bytes), load_wide(least), load_wide(most)) else {
                return 0;
            };
            // SAFETY: AVX2 is there, since only `dispatch` names this type outside of tests, and memory is read by `load` alone.
            unsafe {
                let within = _mm256_cmpeq_epi8(_mm256_max_epu8(_mm256_min_epu8(bytes, most), least), bytes);
                // Each byte looks up by its lower half what it would have to be; above 127 it gets 0.
                let special =
                    _mm256_cmpeq_epi8(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load(&SPECIAL)), bytes), bytes);
                _mm256_movemask_epi8(_mm256_andnot_si256(_mm256_and_si256(special, most), within)) as u32
            }
        }
    }

    /// Quote and backslash at the places of their lower halves, elsewhere what no byte below 128 is.
    static SPECIAL: [u8; 16] = {
        let mut special = [0xff; 16];
        special[(b'"' & 15) as usize] = b'"';
        special[(b'\\' & 15) as usize] = b'\\';
        special
    };

    pub(super) static HAS_WIDE: LazyLock<bool> =
        LazyLock::new(|| is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1"));

    /// Runs a job with the widest lanes of this processor.
    #[inline]
    pub(in super::super) fn dispatch<J: Job>(job: J) -> J::Out {
        #[target_feature(enable = "avx2,bmi1")]
        fn wide<J: Job>(job: J) -> J::Out {
            job.run::<Wide>()
        }
        if *HAS_WIDE {
            // SAFETY: the processor has what the function needs.
            unsafe { wide(job) }
        } else {
            job.run::<Narrow>()
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod plain {
    #[cfg(not(target_arch = "x86_64"))]
    use super::Job;
    use super::{Lanes, WIDTH};

    fn mask(bytes: &[u8], holds: impl Fn(usize, u8) -> bool) -> u32 {
        bytes.iter().enumerate().fold(0, |mask, (i, &byte)| mask | (u32::from(holds(i, byte)) << i))
    }

    pub(super) fn special(bytes: &[u8; WIDTH]) -> u32 {
        mask(bytes, |_, byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    }

    pub(super) fn digits(bytes: &[u8; WIDTH]) -> u32 {
        mask(bytes, |_, byte| byte.is_ascii_digit())
    }

    /// Sixteen bytes, one after the other.
    #[derive(Debug)]
    pub(super) struct Narrow;

    impl Lanes for Narrow {
        const WIDTH: usize = 16;

        fn fit(bytes: &[u8], least: &[u8], most: &[u8]) -> u32 {
            mask(bytes, |i, byte| {
                let (least, most) = (least.get(i).copied().unwrap_or(u8::MAX), most.get(i).copied().unwrap_or(0));
                byte.min(most).max(least) == byte && !(most > 127 && (byte == b'"' || byte == b'\\'))
            }) | !0xffff
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(in super::super) fn dispatch<J: Job>(job: J) -> J::Out {
        job.run::<Narrow>()
    }
}

#[cfg(not(target_arch = "x86_64"))]
use plain as narrow;
#[cfg(target_arch = "x86_64")]
use x86 as narrow;

#[cfg(test)]
pub(super) use narrow::Narrow;
pub(super) use narrow::dispatch;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agree(bytes: &[u8], expected: &[(u8, u8)]) {
        for at in 0..bytes.len() + 20 {
            if let Some(chunk) = chunk(bytes, at) {
                assert_eq!((special(bytes, at), digits(bytes, at)), (plain::special(chunk), plain::digits(chunk)));
            } else {
                let rest = bytes.len().saturating_sub(at);
                assert_eq!((special(bytes, at) >> rest, digits(bytes, at) >> rest), (0xffff >> rest, 0), "{bytes:?}");
            }
        }
        let (mut least, mut most): (Vec<_>, Vec<_>) = expected.iter().copied().unzip();
        least.resize(least.len() + WIDEST, u8::MAX);
        most.resize(least.len(), 0);
        let fits = fitting::<plain::Narrow>((bytes, 0), (&least, &most, 0));
        assert!(fits <= bytes.len().min(expected.len()));
        assert_eq!(fitting::<Narrow>((bytes, 0), (&least, &most, 0)), fits, "{bytes:?} {expected:?}");
        #[cfg(target_arch = "x86_64")]
        assert!(
            !*x86::HAS_WIDE || fitting::<x86::Wide>((bytes, 0), (&least, &most, 0)) == fits,
            "{bytes:?} {expected:?}"
        );
    }

    proptest! {
        #[test]
        fn the_vector_answers_are_the_plain_answers(
            bytes in proptest::collection::vec(0..u8::MAX, 0..100),
            spread in proptest::collection::vec((0..3_u8, 0..3_u8), 0..100),
            other in proptest::collection::vec(any::<(u8, u8)>(), 0..40),
        ) {
            let near = spread.iter().zip(&bytes);
            let near = near.map(|((less, more), byte)| (byte.saturating_sub(*less), byte.saturating_add(*more)));
            agree(&bytes, &near.chain(other).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_byte_value_is_classed_alike() {
        for byte in 0..=u8::MAX {
            for (least, most) in [
                (byte, byte),
                (0, u8::MAX),
                (0x20, u8::MAX),
                (0, 127),
                (0, 128),
                (b'0', b'9'),
                (b'"', b'"'),
                (u8::MAX, 0),
            ] {
                agree(&[byte; 40], &[(least, most); 40]);
            }
        }
    }

    #[test]
    fn behind_the_end_strings_end_and_there_are_no_digits() {
        assert_eq!((special(b"abc", 1), digits(b"123", 1)), (0xfffc, 0b11));
        assert_eq!((special(b"abc", 9), digits(b"123", 9)), (0xffff, 0));
    }

    #[test]
    fn what_fits_ends_at_the_first_byte_that_does_not() {
        let (mut least, mut most) = (b"a0\" \"".to_vec(), b"a9\"\xff\"".to_vec());
        least.resize(least.len() + WIDEST, u8::MAX);
        most.resize(least.len(), 0);
        for (bytes, fits) in [
            ("", 0),
            ("b", 0),
            ("a", 1),
            ("a5\"x\"", 5),
            ("a5\"x\",", 5),
            ("a5\"\"\"", 3),
            ("a5\"\\\"", 3),
            ("a5\"\u{1f}\"", 3),
            ("a5xx\"", 2),
        ] {
            assert_eq!(fitting::<Narrow>((bytes.as_bytes(), 0), (&least, &most, 0)), fits, "{bytes}");
        }
    }
}
