//! Passes the digests of the sources to the compiler: see `src/sources.rs`.

use std::{error::Error, path::Path};

#[path = "src/sources/digest.rs"]
mod digest;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-env=PGLITE_PORT_CODE_DIGEST={}", digest::of(root, digest::decides_code)?);
    println!("cargo::rustc-env=PGLITE_PORT_CONTENTS_DIGEST={}", digest::of(root, digest::decides_contents)?);
    Ok(())
}
