//! The same scripts in PGlite on Node.js, for comparison.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};

use super::{conversation::Script, rows::Figure};

fn node() -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/node/pglite.mjs"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Node.js with its version, for the table's head.
pub fn name() -> String {
    let version = Command::new("node").arg("--version").output().expect("node runs");
    format!("PGlite on Node {}", String::from_utf8_lossy(&version.stdout).trim().trim_start_matches('v'))
}

/// Runs every script in one PGlite: `samples` times a number of rounds that takes at least `seconds`. Returns the
/// seconds of one round, by the script's name.
///
/// # Panics
/// When node does not run, or an answer of PGlite is not as expected.
pub fn converse(scripts: &[(&str, &Script)], samples: usize, seconds: f64) -> HashMap<String, Figure> {
    let hexadecimal = |messages: &[Vec<u8>]| messages.iter().map(|message| to_hex(message)).collect::<Vec<_>>();
    let scripts: Vec<Value> = scripts
        .iter()
        .map(|(name, script)| {
            json!({
                "name": name,
                "setup": hexadecimal(&script.setup),
                "round": hexadecimal(&script.round),
                "answer": char::from(script.answer).to_string(),
            })
        })
        .collect();
    let mut child = node().arg("converse").spawn().expect("node runs");
    let order = json!({ "samples": samples, "seconds": seconds, "scripts": scripts }).to_string();
    child.stdin.take().expect("piped").write_all(order.as_bytes()).expect("node reads");
    let output = child.wait_with_output().expect("node ends");
    assert!(output.status.success(), "node failed; run `npm ci` in pglite/");
    let measured: HashMap<String, Vec<f64>> = serde_json::from_slice(&output.stdout).expect("figures");
    measured.into_iter().map(|(name, seconds)| (name, Figure::of(seconds))).collect()
}

/// Seconds from starting node to the first answer of a new PGlite.
///
/// # Panics
/// When node does not run.
pub fn first_answer(samples: usize) -> Figure {
    let measure = || {
        let start = Instant::now();
        let mut child = node().arg("first-answer").spawn().expect("node runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let took = start.elapsed().as_secs_f64();
        child.wait().expect("node ends");
        assert_eq!(line.trim(), "answered");
        took
    };
    Figure::of((0..samples).map(|_| measure()).collect())
}

/// PGlite behind a socket of the loopback interface; prints `HOST:PORT` when it listens. The caller ends it.
pub fn serve() -> Command {
    let mut command = node();
    command.arg("serve");
    command
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
