//! Digests of the program's sources, for the keys of entries in the cache.
//!
//! Stored files depend on the code that made them. The build script (`build.rs`) hashes that code, so that no key
//! misses a file: a new file counts unless a list in `sources/digest.rs` excludes it. There are two digests, because
//! compiling `PostgreSQL` takes longer than making a cluster and depends on fewer sources.

use sha2::{Digest, Sha256};

#[cfg(test)]
mod digest;
#[cfg(test)]
mod tests;

/// The sources that decide the compiled code and its initial memory: the rewriter, the engine's configuration, the
/// versions of Wasmtime and of the packages that read and write WebAssembly.
pub(crate) const CODE: &str = env!("PGLITE_PORT_CODE_DIGEST");

/// The sources that decide the content of clusters and templates, those of [`CODE`] included.
pub(crate) const CONTENTS: &str = env!("PGLITE_PORT_CONTENTS_DIGEST");

/// The key of the code that [`CODE`] makes of `origin`, which stands for its input.
pub(crate) fn code_key(origin: &str) -> String {
    key(origin, CODE)
}

/// The key of the content that [`CONTENTS`] makes with the program that `program` stands for.
pub(crate) fn contents_key(program: &str) -> String {
    key(program, CONTENTS)
}

/// The SHA-256 of the concatenation of `parts`, in lower-case hexadecimal digits.
#[must_use]
pub(crate) fn hex_digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key(origin: &str, digest: &str) -> String {
    // Code that counts its calls is not for other programs.
    let counts = if cfg!(feature = "record-calls") { "record-calls" } else { "" };
    hex_digest(&[origin.as_bytes(), digest.as_bytes(), counts.as_bytes()])
}
