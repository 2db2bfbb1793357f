//! Stored templates whose files are damaged although their checksums and digests are right: a connection is refused, or
//! is a session that may fail; the program goes on.

mod support;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use sha2::{Digest, Sha256};
use support::{
    cache,
    power::{self, Dice},
    program::Program,
    server::{Server, rows},
    wire,
};

/// Bytes before the content of a record: magic and checksum.
const HEAD: usize = 12;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the seal of the template anew, as if its files had always been as they are.
fn seal(template: &Path) {
    let seal = fs::read_to_string(template.join("seal")).expect("a seal");
    let paths = seal.lines().filter_map(|line| line.split_once(' ')).map(|(_, path)| path);
    let line = |path: &str| {
        let content = fs::read(template.join(path)).expect("a file");
        format!("{} {path}\n", hex(&Sha256::digest(&content)))
    };
    let lines: String = paths.map(line).collect();
    let own = hex(&Sha256::digest(&lines));
    fs::write(template.join("seal"), format!("{lines}{own}\n")).expect("written");
    let _ = fs::remove_file(template.join(".compared"));
}

/// Copies a directory to a place where there is none, or an empty one.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let (path, place) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if path.is_dir() {
            copy(&path, &place);
        } else {
            fs::copy(path, place).expect("a copy");
        }
    }
}

/// The record with a few bytes of its content changed and its checksum right.
fn damaged(record: &[u8], dice: &mut Dice) -> Vec<u8> {
    let (head, mut content) = (&record[..8], record[HEAD..].to_vec());
    for _ in 0..=dice.below(2) {
        let place = usize::try_from(dice.below(content.len() as u64)).expect("it fits");
        match dice.below(3) {
            0 => content[place] ^= 1 << dice.below(8),
            1 => content[place] = dice.below(256).to_le_bytes()[0],
            _ => content.truncate(place.max(1)),
        }
    }
    [head, &crc32fast::hash(&content).to_le_bytes(), &content].concat()
}

/// `PGLITE_PORT_SEED` repeats the damage, `PGLITE_PORT_TEMPLATES` makes more of it, as `make fuzz` does.
#[test]
fn a_damaged_template_ends_no_session_but_its_own() {
    let cache = cache::own();
    let arguments = ["--cache-dir", cache.path().to_str().expect("text")];
    let sql = cache.path().join("t.sql");
    fs::write(&sql, "CREATE TABLE t AS SELECT 1 AS a").expect("written");
    Program::succeed(&[&["prepare", "damaged", "--sql", sql.to_str().expect("text")], &arguments[..]].concat());
    let template = cache.path().join("templates").read_dir().expect("a directory").find_map(|entry| {
        let path = entry.expect("an entry").path();
        (path.is_dir() && path.file_name()?.to_str()?.starts_with("damaged")).then_some(path)
    });
    let template = template.expect("the template");
    let whole = tempfile::tempdir().expect("a directory");
    copy(&template, whole.path());
    let mut dice = Dice(power::seed() | 1);
    let (mut served, mut failed, mut again) = (0, 0, 0);
    for number in 0..power::number("PGLITE_PORT_TEMPLATES", 12) {
        // It has been made again if the damage before was noticed.
        fs::remove_dir_all(&template).expect("removed");
        copy(whole.path(), &template);
        let name = if number % 4 == 3 { "first-pages" } else { "state" };
        let record = fs::read(template.join(name)).expect("a file");
        fs::write(template.join(name), damaged(&record, &mut dice)).expect("written");
        seal(&template);
        let server = Server::with(&[&["--mode", "isolated"], &arguments[..]].concat());
        let mut other = server.connect();
        let mut stream = server.stream();
        // What it does may have no end.
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let start = wire::startup(&[("user", "postgres"), ("database", "damaged")]);
        stream.write_all(&[start, wire::query("SELECT a FROM t")].concat()).expect("it listens");
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = stream.read(&mut chunk) {
            answer.extend_from_slice(&chunk[..read]);
            if answer.windows(7).any(|bytes| bytes == b"\0\0\0\x011C\0") {
                break;
            }
        }
        let is_served = answer.windows(5).any(|bytes| bytes == b"\0\0\0\x011");
        *(if is_served { &mut served } else { &mut failed }) += 1;
        drop(stream);
        assert_eq!(rows(&mut other, "select 1"), ["1"], "{name}");
        drop(other);
        let log = server.kill();
        let noticed = log.iter().find(|line| line.contains("building the template \"damaged\" again"));
        assert!(!noticed.is_some_and(|line| line.contains("digest")), "{noticed:?}");
        again += usize::from(noticed.is_some());
    }
    println!("{served} served, {failed} failed, {again} made again");
    assert!(served > 0);
}
