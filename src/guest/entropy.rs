//! The guest's random numbers.
//!
//! `pg_strong_random` reads `/dev/urandom` (`src/port/pg_strong_random.c`). Two states of pseudo-random numbers in the
//! guest's memory begin with such bytes: `pg_global_prng_state`, for `TABLESAMPLE`, `array_shuffle()` and the like, and
//! that of `random()`, which takes its seed when it is first used in a session
//! (`src/backend/utils/adt/pseudorandomfuncs.c`).

use wasmtime::{Caller, Linker};

use super::{Guest, memory};
use crate::{fs::Errno, instrument::Facts, random::Entropy};

/// `random_get` of WASI, with the bytes that `/dev/urandom` has.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "random_get",
        |mut caller: Caller<'_, Guest>, address: u32, length: u32| -> wasmtime::Result<i32> {
            let (memory, guest) = memory::of(&mut caller)?;
            let filled = guest.files.entropy().fill(memory::bytes_mut(memory, address, length)?);
            Ok(filled.map_or(Errno::EIO.number(), |()| 0))
        },
    )?;
    Ok(())
}

/// Has the session use the random bytes of its cluster's seed, if it was seeded since the session last looked. It
/// looks when it has read something from its client, so that the order of the clients' statements decides which session
/// gets which bytes.
///
/// A session that is still being let in does not look, so that what secures the connection, such as its cancel key and
/// the nonces of SCRAM, stays unpredictable.
///
/// # Errors
/// When the operating system has no random bytes.
pub(super) fn follow_seed(caller: &mut Caller<'_, Guest>) -> wasmtime::Result<()> {
    let beginnings = caller.data().entropy.beginnings();
    if beginnings == caller.data().followed_beginnings {
        return Ok(());
    }
    let (memory, guest) = memory::of(caller)?;
    // InitPostgres sets it after the client has authenticated itself, but a process that has begun with the caches of
    // another one has it before.
    let is_being_let_in = guest.caches.is_some() && !guest.client.is_admitted();
    if is_being_let_in || memory::read_u32(memory, guest.facts.address("MyDatabaseId")?)? == 0 {
        return Ok(());
    }
    guest.followed_beginnings = beginnings;
    guest.files.set_entropy(guest.entropy.clone());
    memory::write_bytes(memory, guest.facts.random_is_seeded, &[0])?;
    seed_prng(memory, &guest.facts, &guest.entropy).map_err(wasmtime::Error::from_anyhow)
}

/// Sets `pg_global_prng_state`.
///
/// # Errors
/// When the operating system has no random bytes.
pub(crate) fn seed_prng(memory: &mut [u8], facts: &Facts, entropy: &Entropy) -> anyhow::Result<()> {
    let mut state = [0; 16];
    entropy.fill(&mut state)?;
    // xoroshiro128** must not start from zero (src/common/pg_prng.c).
    state[0] |= 1;
    Ok(memory::write_bytes(memory, facts.address("pg_global_prng_state")?, &state)?)
}
