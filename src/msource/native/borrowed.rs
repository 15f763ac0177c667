//! Arrays, bytes and strings that librdkafka owns, as slices and text.

use std::ffi::{CStr, c_char, c_int, c_void};

/// # Safety
/// `data` points to `count` values that outlive the slice, or `count` is not positive.
pub(super) unsafe fn slice<'a, T>(data: *const T, count: c_int) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: by the contract above.
        Ok(count) if count > 0 => unsafe { std::slice::from_raw_parts(data, count) },
        _ => &[],
    }
}

/// # Safety
/// `data` is null or points to `size` bytes that outlive the slice.
pub(super) unsafe fn bytes<'a>(data: *const c_void, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: by the contract above.
    unsafe { std::slice::from_raw_parts(data.cast(), size) }
}

/// # Safety
/// `string` is null or a NUL-terminated string.
pub(super) unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
