//! Locks, conditions and atomic numbers: those of `parking_lot` and of the standard library.
//!
//! In tests with the feature `loom` they are those of a model checker, which runs a test once for every order of its
//! threads' operations: `cargo test --features loom --lib interleavings`.

#[cfg(not(all(test, feature = "loom")))]
pub(crate) use std::sync::atomic::AtomicUsize;

#[cfg(not(all(test, feature = "loom")))]
pub(crate) use parking_lot::{Condvar, Mutex};

#[cfg(all(test, feature = "loom"))]
pub(crate) use modelled::{AtomicUsize, Condvar, Mutex};

/// `loom`'s locks with the interface of `parking_lot`'s. No time passes in a model, so no wait ends at a deadline.
#[cfg(all(test, feature = "loom"))]
mod modelled {
    use std::{
        ops::{Deref, DerefMut},
        time::{Duration, Instant},
    };

    pub(crate) use loom::sync::atomic::AtomicUsize;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    /// Empty only while a condition is waited for.
    pub(crate) struct Guard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().expect("no thread has panicked")))
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("it is locked")
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("it is locked")
        }
    }

    #[derive(Default)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    /// The result of a wait that did not reach its deadline.
    pub(crate) struct Waited;

    impl Waited {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            guard.0 = guard.0.take().map(|guard| self.0.wait(guard).expect("no thread has panicked"));
        }

        pub(crate) fn wait_for<T>(&self, guard: &mut Guard<'_, T>, _at_most: Duration) -> Waited {
            self.wait(guard);
            Waited
        }

        pub(crate) fn wait_until<T>(&self, guard: &mut Guard<'_, T>, _deadline: Instant) -> Waited {
            self.wait(guard);
            Waited
        }
    }
}
