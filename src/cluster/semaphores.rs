//! The semaphores on which sessions wait for each other's lightweight locks.
//!
//! Sessions change places only where they would let interrupts through, and so never while they hold such a lock; but one that holds it may
//! sleep, or wait for its client. Then another one may want the lock, and waits as `PostgreSQL` does, on the semaphore of its process slot.
//! In this build `sem_wait` and `sem_post` do nothing (Emscripten, `library_pthread_stub.c`), so it would wait in a loop that nobody else runs beside.

use std::collections::HashMap;

use parking_lot::{Condvar, Mutex};

use super::Crashed;

/// The semaphores of one cluster, by their addresses in shared memory. All begin with zero.
#[derive(Default)]
pub(super) struct Semaphores {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    counts: HashMap<u32, u32>,
    crashed: bool,
}

impl Semaphores {
    /// Adds one to a semaphore, and wakes who waits for it.
    pub(super) fn unlock(&self, address: u32) {
        *self.state.lock().counts.entry(address).or_default() += 1;
        self.changed.notify_all();
    }

    /// Waits until the semaphore is not zero, and takes one from it.
    ///
    /// # Errors
    /// [`Crashed`] when another session of the cluster has crashed: nobody unlocks anything any more.
    pub(super) fn lock(&self, address: u32) -> Result<(), Crashed> {
        let mut state = self.state.lock();
        loop {
            if state.crashed {
                return Err(Crashed);
            }
            if let Some(count) = state.counts.get_mut(&address).filter(|count| **count > 0) {
                *count -= 1;
                return Ok(());
            }
            self.changed.wait(&mut state);
        }
    }

    /// Nobody runs any more: ends all waits.
    pub(super) fn crash(&self) {
        self.state.lock().crashed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_semaphore_lets_as_many_through_as_unlocked_it() {
        let semaphores = Arc::new(Semaphores::default());
        semaphores.unlock(8);
        semaphores.unlock(8);
        assert_eq!((semaphores.lock(8), semaphores.lock(8)), (Ok(()), Ok(())));
        let waiter = {
            let semaphores = semaphores.clone();
            thread::spawn(move || semaphores.lock(8))
        };
        semaphores.unlock(16);
        assert!(!waiter.is_finished());
        semaphores.unlock(8);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_crash_ends_all_waits() {
        let semaphores = Arc::new(Semaphores::default());
        let waiter = {
            let semaphores = semaphores.clone();
            thread::spawn(move || semaphores.lock(8))
        };
        semaphores.crash();
        assert_eq!(waiter.join().unwrap(), Err(Crashed));
    }
}
