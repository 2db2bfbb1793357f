//! Random bytes that nobody can guess.

use anyhow::Context;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes` from the operating system.
///
/// # Errors
/// When it has none.
pub(crate) fn fill(bytes: &mut [u8]) -> anyhow::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            getrandom(&mut bytes[filled..], GetRandomFlags::empty()).context("there are no random bytes to be had")?;
    }
    Ok(())
}
