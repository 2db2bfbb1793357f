//! Digests of the program's sources, for the keys of what the cache holds.
//!
//! What is stored depends on the code that made it. The build script (`build.rs`) hashes that code, so that no key can
//! miss a file: a new file counts unless a list in `sources/digest.rs` says that it decides nothing. There are two
//! digests, because compiling `PostgreSQL` takes longer than making a cluster and depends on less.

#[cfg(test)]
mod digest;
#[cfg(test)]
mod tests;

/// Of what decides which code is compiled, and what memory it begins with: the rewriter, the engine's configuration,
/// the versions of Wasmtime and of what reads and writes WebAssembly.
pub(crate) const CODE: &str = env!("PGLITE_PORT_CODE_DIGEST");

/// Of all that decides what a cluster or a template has in it. It covers [`CODE`].
pub(crate) const CONTENTS: &str = env!("PGLITE_PORT_CONTENTS_DIGEST");
