//! Unpredictable random bytes.

use anyhow::Context;
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
