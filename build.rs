//! Passes the digests of the sources to the compiler: see `src/sources.rs`. Has the linker make the program smaller.

use std::{env, error::Error, path::Path, process::Command};

#[path = "src/sources/digest.rs"]
mod digest;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-env=PGLITE_PORT_CODE_DIGEST={}", digest::of(root, digest::decides_code)?);
    println!("cargo::rustc-env=PGLITE_PORT_CONTENTS_DIGEST={}", digest::of(root, digest::decides_contents)?);
    if links_with_own_lld() {
        // Functions with the same code become one, which is a megabyte of the program.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
    Ok(())
}

/// Whether an optimised program is linked by the LLD that comes with Rust, as it is by default on x86-64 Linux.
fn links_with_own_lld() -> bool {
    let is = |name, value| env::var(name).is_ok_and(|found| found == value);
    let has_lld = || {
        let rustc = Command::new(env::var_os("RUSTC")?).args(["--print", "sysroot"]).output().ok()?;
        let sysroot = String::from_utf8(rustc.stdout).ok()?;
        let target = env::var("TARGET").ok()?;
        Some(Path::new(sysroot.trim_end()).join("lib/rustlib").join(target).join("bin/gcc-ld/ld.lld").exists())
    };
    let is_default = env::var_os("RUSTC_LINKER").is_none()
        && !env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"));
    is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") && is_default && has_lld().unwrap_or(false)
}
