//! Passes the digests of the sources to the compiler: see `src/sources.rs`. Has the linker make the program smaller.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

#[path = "src/sources/digest.rs"]
mod digest;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-env=PGLITE_PORT_CODE_DIGEST={}", digest::of(root, digest::decides_code)?);
    println!("cargo::rustc-env=PGLITE_PORT_CONTENTS_DIGEST={}", digest::of(root, digest::decides_contents)?);
    if let Some(directory) = own_lld() {
        // Functions with the same code become one, which is a megabyte of the program.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
        if is("CARGO_CFG_TARGET_ENV", "musl") {
            // For musl Rust does not take its LLD by itself. A program that is linked statically relocates itself, and
            // needs no glibc that knows the short form of relocations, which is another megabyte less.
            println!("cargo::rustc-link-arg-bins=-B{}", directory.display());
            println!("cargo::rustc-link-arg-bins=-fuse-ld=lld");
            println!("cargo::rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
        }
    }
    Ok(())
}

fn is(name: &str, value: &str) -> bool {
    env::var(name).is_ok_and(|found| found == value)
}

/// The directory with the LLD that comes with Rust, if an optimised program is linked by it, as it is on x86-64 Linux:
/// with glibc by default.
fn own_lld() -> Option<PathBuf> {
    // `-C linker`, `-C link-arg`, `-C link-self-contained`, in one word or in two.
    let is_of_linker = |flag: &str| flag.strip_prefix("-C").unwrap_or(flag).starts_with("link");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let is_default = env::var_os("RUSTC_LINKER").is_none() && !flags.split('\u{1f}').any(is_of_linker);
    let is_x86_64_linux = is("TARGET", "x86_64-unknown-linux-gnu") || is("TARGET", "x86_64-unknown-linux-musl");
    if !is("PROFILE", "release") || !is_x86_64_linux || !is_default {
        return None;
    }
    let rustc = Command::new(env::var_os("RUSTC")?).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(rustc.stdout).ok()?;
    // The compiler's machine has it. For glibc Rust looks for it there as well.
    let directory = Path::new(sysroot.trim_end()).join("lib/rustlib").join(env::var("HOST").ok()?).join("bin/gcc-ld");
    directory.join("ld.lld").exists().then_some(directory)
}
