//! Panics of the program's threads, also of those that are caught, and reported only in the log.

use std::{
    panic,
    sync::{Mutex, Once, PoisonError},
};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has the panics of all threads remembered from now on.
pub fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
            default(panic);
        }));
    });
}

/// Asserts that no thread has panicked since [`watch`].
pub fn assert_none(what: &str) {
    let seen = std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(seen.is_empty(), "{what}: {seen:?}");
}
