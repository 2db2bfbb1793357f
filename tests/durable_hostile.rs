//! A data directory in which another process of the host swaps directories and files for symbolic links while the
//! cluster uses them, and a guest that asks for files outside of it.

mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use postgres::Client;
use support::server::{Server, answer, rows};
use tempfile::TempDir;

/// What is planted outside of the data directory, in a file of the same name as one inside.
const SECRET: &str = "outside";

/// How often the guest tries.
const ATTEMPTS: usize = 300;

struct Place {
    outer: TempDir,
    data: PathBuf,
    outside: PathBuf,
}

impl Place {
    /// A cluster that was stopped, with `swapped/file` in it, and a directory outside of it with a file of that name.
    fn new() -> Self {
        let outer = tempfile::tempdir().expect("a directory");
        let (data, outside) = (outer.path().join("data"), outer.path().join("outside"));
        Server::in_directory(&data).stop();
        for (directory, content) in [(&data.join("swapped"), "inside"), (&outside, SECRET)] {
            fs::create_dir(directory).expect("a directory");
            fs::write(directory.join("file"), content).expect("a file");
        }
        Self { outer, data, outside }
    }

    /// Asserts that nothing outside of the data directory was changed or made.
    fn assert_untouched(&self, after: &str) {
        let names = |path: &Path| fs::read_dir(path).expect("a directory").count();
        assert_eq!(names(self.outer.path()), 2, "{after}");
        assert_eq!(names(&self.outside), 1, "{after}");
        assert_eq!(fs::read_to_string(self.outside.join("file")).expect("a file"), SECRET, "{after}");
    }
}

/// Swaps `path` for a symbolic link to `target` and back, again and again.
fn swap(path: PathBuf, target: PathBuf, stop: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let aside = path.with_extension("aside");
        while !stop.load(Ordering::SeqCst) {
            fs::rename(&path, &aside).expect("it is there");
            symlink(&target, &path).expect("a link");
            fs::remove_file(&path).expect("it is a link");
            fs::rename(&aside, &path).expect("it is there");
        }
    })
}

/// Asks for the file in each way that SQL has; whether the guest could read it.
fn attempt(client: &mut Client, path: &str) -> bool {
    let read = answer(client, &format!("select pg_read_file('{path}')"));
    let read = read.map(|rows| rows.concat());
    assert!(read.as_deref().map_or(true, |content| !content.contains(SECRET)), "{path}: {read:?}");
    for statement in [
        format!("copy (select 'guest') to '/pglite/data/{path}'"),
        format!("select lo_export(lo_from_bytea(0, 'guest'), '/pglite/data/{path}.new')"),
        "create table if not exists passing (a int); drop table passing".to_owned(),
    ] {
        // An error is an answer; the file outside says whether it was one too late.
        let _ = answer(client, &statement);
    }
    read.is_ok()
}

/// Tries while `path` in the data directory is swapped for a link to `target`.
fn assert_never_led_outside(place: &Place, path: &str, target: &Path) {
    let server = Server::in_directory(&place.data);
    let mut client = server.connect();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = swap(place.data.join(path), target.to_owned(), stop.clone());
    let could_read = (0..ATTEMPTS).filter(|_| attempt(&mut client, "swapped/file")).count();
    stop.store(true, Ordering::SeqCst);
    swapping.join().expect("every step succeeded");
    assert!((1..ATTEMPTS).contains(&could_read), "the guest could read it {could_read} times");
    place.assert_untouched(path);
    rows(&mut client, "select 1");
}

#[test]
fn a_directory_that_becomes_a_link_while_it_is_used_leads_to_no_file_of_the_host() {
    let place = Place::new();
    assert_never_led_outside(&place, "swapped", &place.outside);
}

#[test]
fn a_file_that_becomes_a_link_while_it_is_used_leads_to_no_file_of_the_host() {
    let place = Place::new();
    assert_never_led_outside(&place, "swapped/file", &place.outside.join("file"));
}

#[test]
fn no_path_and_no_tablespace_of_the_guest_leads_out_of_its_files() {
    let place = Place::new();
    let server = Server::in_directory(&place.data);
    let mut client = server.connect();
    let (outside, absolute) = ("../../outside", place.outside.to_str().expect("text"));
    for path in [
        format!("swapped/{outside}/file"),
        format!("/pglite/data/swapped/{outside}/file"),
        format!("/pglite/data/../../../../../..{absolute}/file"),
        format!("{absolute}/file"),
    ] {
        let read = answer(&mut client, &format!("select pg_read_file('{path}')"));
        assert!(read.is_err(), "{path}: {read:?}");
        let _ = answer(&mut client, &format!("copy (select 'guest') to '{path}'"));
        let _ = answer(&mut client, &format!("select lo_export(lo_from_bytea(0, 'guest'), '{path}')"));
        place.assert_untouched(&path);
    }
    for location in [absolute.to_owned(), format!("/pglite/data/{outside}"), "/tmp".to_owned()] {
        let made = answer(&mut client, &format!("create tablespace space location '{location}'"));
        assert!(made.is_err(), "{location}");
        place.assert_untouched(&location);
    }
}
