//! Random bytes: unpredictable ones, and for the sessions of a cluster, if it was seeded, those of its seed.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes` with random bytes of the operating system.
///
/// # Errors
/// When the operating system has none.
pub(crate) fn fill(bytes: &mut [u8]) -> anyhow::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())
            .context("the operating system has no random bytes")?;
    }
    Ok(())
}

/// The random bytes of a cluster, for all of its sessions: those of the operating system until it is seeded.
#[derive(Default)]
pub(crate) struct Entropy {
    seeded: Mutex<Option<Seeded>>,
    beginnings: AtomicU64,
}

/// A seed and the generator that it was the beginning of. `ChaCha20Rng` gives the same bytes for the same seed on every
/// machine and in every version.
struct Seeded {
    seed: u64,
    generator: ChaCha20Rng,
}

impl Entropy {
    /// Fills `bytes` with the next random bytes.
    ///
    /// # Errors
    /// When the operating system has none.
    pub(crate) fn fill(&self, bytes: &mut [u8]) -> anyhow::Result<()> {
        match &mut *self.seeded.lock() {
            Some(seeded) => seeded.generator.fill_bytes(bytes),
            None => fill(bytes)?,
        }
        Ok(())
    }

    /// From now on the bytes are those of `seed`, from the first one on.
    pub(crate) fn seed(&self, seed: u64) {
        self.begin(&mut self.seeded.lock(), seed);
    }

    /// Begins with the first byte of its seed again; does nothing if it was not seeded.
    pub(crate) fn begin_again(&self) {
        let mut seeded = self.seeded.lock();
        if let Some(seed) = seeded.as_ref().map(|seeded| seeded.seed) {
            self.begin(&mut seeded, seed);
        }
    }

    fn begin(&self, seeded: &mut Option<Seeded>, seed: u64) {
        *seeded = Some(Seeded { seed, generator: ChaCha20Rng::seed_from_u64(seed) });
        self.beginnings.fetch_add(1, Ordering::Release);
    }

    /// How often the bytes have begun with the first one of a seed; a session whose number differs has to begin again
    /// as well.
    pub(crate) fn beginnings(&self) -> u64 {
        self.beginnings.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entropy: &Entropy) -> [u8; 40] {
        let mut bytes = [0; 40];
        entropy.fill(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn equal_seeds_give_equal_bytes_and_nothing_else_does() {
        let [first, second] = [Entropy::default(), Entropy::default()];
        assert_ne!(bytes(&first), bytes(&second));
        first.seed(7);
        second.seed(7);
        let of_seven = bytes(&first);
        assert_eq!(bytes(&second), of_seven);
        assert_ne!(bytes(&second), of_seven);
        second.seed(8);
        assert_ne!(bytes(&second), of_seven);
        second.seed(7);
        assert_eq!(bytes(&second), of_seven);
    }

    #[test]
    fn what_begins_again_repeats_its_bytes_if_it_has_a_seed() {
        let entropy = Entropy::default();
        entropy.begin_again();
        assert_eq!(entropy.beginnings(), 0);
        assert_ne!(bytes(&entropy), bytes(&entropy));
        entropy.seed(1);
        let first = bytes(&entropy);
        entropy.begin_again();
        assert_eq!((bytes(&entropy), entropy.beginnings()), (first, 2));
    }

    #[test]
    fn a_seed_gives_the_same_bytes_in_every_version() {
        let entropy = Entropy::default();
        entropy.seed(42);
        assert_eq!(bytes(&entropy)[..8], [120, 72, 181, 215, 17, 188, 152, 131]);
    }
}
