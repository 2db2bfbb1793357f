//! The memory that exceptions cost a session.
//!
//! No destructor runs when an exception is thrown, so that what the code in C++ has allocated stays until the session
//! ends. The host cannot tell it from what is still used, such as caches that the same call has made.

/// So many exceptions and bytes are too many for a session. Both, because memory may have grown for other reasons: one
/// exception of GEOS costs some ten kilobytes.
const EXCEPTIONS_MAX: u32 = 1000;
const BYTES_MAX: u64 = 256 << 20;

/// What a session has lost.
#[derive(Default)]
pub(in crate::guest) struct Lost {
    exceptions: u32,
    /// What its memory had grown by at its first exception.
    at_first: u64,
}

impl Lost {
    /// Counts an exception, when the memory of the session has grown by `grown` bytes since it began. Returns the number
    /// of exceptions and the growth since the first one if both are too many.
    pub(super) fn count(&mut self, grown: u64) -> Option<(u32, u64)> {
        if self.exceptions == 0 {
            self.at_first = grown;
        }
        self.exceptions = self.exceptions.saturating_add(1);
        let bytes = grown.saturating_sub(self.at_first);
        (self.exceptions >= EXCEPTIONS_MAX && bytes >= BYTES_MAX).then_some((self.exceptions, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_exceptions_and_much_memory_together_are_too_much() {
        let mut lost = Lost::default();
        assert!((0..EXCEPTIONS_MAX - 2).all(|_| lost.count(1 << 30).is_none()));
        assert_eq!(lost.count(2 << 30), None, "too few exceptions");
        assert_eq!(lost.count((1 << 30) + BYTES_MAX - 1), None, "not enough memory");
        assert_eq!(lost.count((1 << 30) + BYTES_MAX), Some((EXCEPTIONS_MAX + 1, BYTES_MAX)));
    }
}
