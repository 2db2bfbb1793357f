//! Backend keys: how a cancel request finds the session that it is for.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::protocol::startup::CancelRequest;

/// What another thread may ask of a session while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Cancel the statement under way, if any (`57014`); PostgreSQL's SIGINT.
    Cancel,
    /// End the session soon (`57P01`); PostgreSQL's SIGTERM.
    Terminate,
    /// The program ends: as [`Interrupt::Terminate`], but a session that sends WAL to a subscriber goes on until its
    /// cluster has written the last of it.
    ShutDown,
    /// The client is known to be gone. Bytes that it sent before are still to be read, so a session that
    /// may change lasting data goes on to its end of input, as PostgreSQL does; one that cannot may stop
    /// at once.
    ClientGone,
}

/// Delivers an interrupt to one session: called from any thread, must not block.
pub type Interrupter = Arc<dyn Fn(Interrupt) + Send + Sync>;

/// The sessions that can be cancelled, by backend key. A clone is the same registry.
#[derive(Clone, Default)]
pub struct CancelRegistry(Arc<Mutex<Keys>>);

#[derive(Default)]
struct Keys {
    next_number: u64,
    /// By process id; several clusters in one program may use the same one.
    by_process: HashMap<i32, Vec<Entry>>,
}

struct Entry {
    number: u64,
    secret_key: Vec<u8>,
    interrupter: Interrupter,
}

/// Keeps a session in the registry; dropping it takes the session out.
#[must_use = "dropping it at once unregisters the session"]
pub struct Registered {
    registry: CancelRegistry,
    process_id: i32,
    number: u64,
}

impl CancelRegistry {
    /// Makes a session cancellable by the process id and the secret key of its `BackendKeyData`.
    pub fn register(&self, process_id: i32, secret_key: &[u8], interrupter: Interrupter) -> Registered {
        let mut sessions = self.0.lock();
        let number = sessions.next_number;
        sessions.next_number += 1;
        let secret_key = secret_key.to_vec();
        sessions.by_process.entry(process_id).or_default().push(Entry { number, secret_key, interrupter });
        Registered { registry: self.clone(), process_id, number }
    }

    /// Cancels the session that `request` names; without one, nothing happens but a debug log.
    pub fn cancel(&self, request: &CancelRequest) {
        let found = self.0.lock().by_process.get(&request.process_id).and_then(|entries| {
            let matching = |entry: &&Entry| equal_in_constant_time(&entry.secret_key, &request.secret_key);
            entries.iter().find(matching).map(|entry| entry.interrupter.clone())
        });
        if let Some(interrupt) = found {
            interrupt(Interrupt::Cancel);
        } else {
            let process_id = request.process_id;
            tracing::debug!(process_id, "cancel request: no session has this key");
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut sessions = self.registry.0.lock();
        if let Some(entries) = sessions.by_process.get_mut(&self.process_id) {
            entries.retain(|entry| entry.number != self.number);
            if entries.is_empty() {
                sessions.by_process.remove(&self.process_id);
            }
        }
    }
}

/// Whether two keys are equal, in a time that depends only on their lengths, so that a key cannot be
/// guessed byte by byte.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn request(process_id: i32, secret_key: &[u8]) -> CancelRequest {
        CancelRequest { process_id, secret_key: secret_key.to_vec() }
    }

    /// A registered session that counts its interrupts.
    fn session(registry: &CancelRegistry, process_id: i32, key: &[u8]) -> (Arc<AtomicUsize>, Registered) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let interrupter = Arc::new(move |interrupt| {
            assert_eq!(interrupt, Interrupt::Cancel);
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (count, registry.register(process_id, key, interrupter))
    }

    #[test]
    fn a_request_interrupts_the_session_with_its_key_and_no_other() {
        let registry = CancelRegistry::default();
        let (one, _one) = session(&registry, 42, b"aaaa");
        let (two, _two) = session(&registry, 42, b"aaab");
        let (three, _three) = session(&registry, 43, b"aaaa");
        registry.cancel(&request(42, b"aaab"));
        let counts = [one, two, three].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [0, 1, 0]);
    }

    #[test]
    fn a_key_that_is_wrong_or_only_a_part_of_the_right_one_does_nothing() {
        let registry = CancelRegistry::default();
        let (count, _registered) = session(&registry, 42, b"abcd");
        for key in [&b"abce"[..], b"abc", b"abcde", b""] {
            registry.cancel(&request(42, key));
        }
        registry.cancel(&request(41, b"abcd"));
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_session_that_has_ended_is_forgotten_and_its_neighbour_is_not() {
        let registry = CancelRegistry::default();
        let (gone, registered) = session(&registry, 42, b"abcd");
        let (stays, neighbour) = session(&registry, 42, b"efgh");
        drop(registered);
        registry.cancel(&request(42, b"abcd"));
        registry.cancel(&request(42, b"efgh"));
        assert_eq!((gone.load(Ordering::Relaxed), stays.load(Ordering::Relaxed)), (0, 1));
        drop(neighbour);
        assert!(registry.0.lock().by_process.is_empty());
    }
}
