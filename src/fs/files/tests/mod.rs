//! A process' files: helpers, and the visibility of changes between sessions and clones of one tree.

mod descriptors;
mod devices;
mod mappings;
mod paths;

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::fs::{
    FrozenTree, Stream,
    chunk::CHUNK,
    layout::lay_out,
    node::{Access, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, Timestamp},
};

const HERE: At = At::WorkingDirectory;
const CREATE: OpenFlags = OpenFlags::READ_WRITE.with(OpenFlags::CREATE);

/// A console that remembers what was written to it.
#[derive(Clone, Default)]
struct Transcript(Arc<Mutex<Vec<(Stream, Vec<u8>)>>>);

impl Console for Transcript {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        self.0.lock().push((stream, bytes.to_vec()));
    }
}

fn console() -> Box<dyn Console> {
    Box::new(Transcript::default())
}

fn files() -> Files {
    let mut tree = Tree::new();
    lay_out(&mut tree).unwrap();
    Files::new(Arc::new(Mutex::new(tree)), console()).unwrap()
}

/// Another process on the same tree.
fn neighbour(files: &Files) -> Files {
    Files::new(Arc::clone(files.tree()), console()).unwrap()
}

/// A process on a clone of the tree, with the same descriptors.
fn clone(files: &Files) -> Files {
    let frozen = files.tree().lock().freeze();
    let tree = Arc::new(Mutex::new(Tree::from_frozen(frozen)));
    Files::resume(tree, &files.state(), console())
}

fn put(files: &mut Files, path: &str, bytes: &[u8]) {
    let flags = CREATE.with(OpenFlags::TRUNCATE);
    let fd = files.open(HERE, path.as_bytes(), flags, 0o666).unwrap();
    assert_eq!(files.write(fd, None, bytes), Ok(bytes.len()));
    files.close(fd).unwrap();
}

fn get(files: &mut Files, path: &str) -> Result<Vec<u8>, Errno> {
    let fd = files.open(HERE, path.as_bytes(), OpenFlags::READ_ONLY, 0)?;
    let bytes = get_open(files, fd);
    files.close(fd)?;
    Ok(bytes)
}

fn get_open(files: &mut Files, fd: i32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(files.fstat(fd).unwrap().size).unwrap()];
    assert_eq!(files.read(fd, Some(0), &mut bytes), Ok(bytes.len()));
    bytes
}

fn mode(files: &Files, path: &str) -> u32 {
    files.stat(HERE, path.as_bytes(), Follow::No).unwrap().mode
}

fn names(files: &mut Files, fd: i32, limit: usize) -> Vec<String> {
    let entries = files.read_directory(fd, limit).unwrap();
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

#[test]
fn what_one_session_writes_another_session_of_the_tree_reads() {
    let mut writer = files();
    let mut reader = neighbour(&writer);
    put(&mut writer, "/f", b"hello");
    assert_eq!(get(&mut reader, "/f").unwrap(), b"hello");
}

#[test]
fn a_clone_and_its_origin_never_see_each_others_writes() {
    let mut origin = files();
    put(&mut origin, "/f", &[1; 3 * CHUNK]);
    let mut copy = clone(&origin);
    put(&mut origin, "/only-origin", b"");
    put(&mut copy, "/only-copy", b"");
    let fd = origin.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    origin.write(fd, Some(3), &[2]).unwrap();
    copy.truncate(b"/f", 5).unwrap();
    let mut expected = [1; 3 * CHUNK];
    expected[3] = 2;
    assert!(get(&mut origin, "/f").unwrap() == expected);
    assert_eq!(get(&mut copy, "/f").unwrap(), [1; 5]);
    assert_eq!(get(&mut origin, "/only-copy"), Err(Errno::ENOENT));
    assert_eq!(get(&mut copy, "/only-origin"), Err(Errno::ENOENT));
}

#[test]
fn a_clone_holds_nothing_of_its_own_until_it_writes_and_then_only_the_chunks_it_wrote() {
    let mut origin = files();
    put(&mut origin, "/wal", &vec![1; 16 << 20]);
    let mut copy = clone(&origin);
    assert_eq!(copy.tree().lock().private_bytes(), 0);
    let fd = copy.open(HERE, b"/wal", OpenFlags::READ_WRITE, 0).unwrap();
    copy.write(fd, Some(CHUNK as u64), &[2; CHUNK]).unwrap();
    let private = copy.tree().lock().private_bytes();
    assert!((CHUNK..CHUNK + 1024).contains(&private), "{private} bytes for one chunk");
}

#[test]
fn the_account_of_private_bytes_returns_to_where_it_was_when_a_file_is_gone() {
    let mut files = files();
    let before = files.tree().lock().private_bytes();
    put(&mut files, "/f", &[1; 10 * CHUNK]);
    assert!(files.tree().lock().private_bytes() >= before + 10 * CHUNK);
    files.unlink(HERE, b"/f").unwrap();
    assert_eq!(files.tree().lock().private_bytes(), before);
}

#[test]
fn a_file_without_a_name_lives_until_its_last_user_in_any_session_closes_it() {
    let mut one = files();
    put(&mut one, "/f", b"still here");
    let mut two = neighbour(&one);
    let fd = one.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    let other = two.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let ino = one.fstat(fd).unwrap().ino;
    one.unlink(HERE, b"/f").unwrap();
    one.close(fd).unwrap();
    assert_eq!(get_open(&mut two, other), b"still here");
    drop(two);
    assert!(one.tree().lock().node(ino).is_none());
}

#[test]
fn a_file_without_a_name_is_not_part_of_a_frozen_tree() {
    let mut origin = files();
    put(&mut origin, "/f", b"x");
    let fd = origin.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    origin.unlink(HERE, b"/f").unwrap();
    let mut copy = clone(&origin);
    assert_eq!(copy.fstat(fd).unwrap_err(), Errno::EBADF);
    assert_eq!(copy.open(HERE, b"/tmp", OpenFlags::READ_ONLY, 0), Ok(fd), "its descriptor is free");
    assert_eq!(get_open(&mut origin, fd), b"x");
}

#[test]
fn the_state_of_a_process_survives_being_written_to_disk() {
    let mut origin = files();
    put(&mut origin, "/f", b"abc");
    let fd = origin.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    origin.seek(fd, 1, Whence::Start).unwrap();
    origin.chdir(b"/tmp").unwrap();
    let stored = postcard::to_allocvec(&origin.state()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    origin.tree().lock().freeze().write_to(directory.path()).unwrap();
    let tree = Tree::from_frozen(FrozenTree::open(directory.path()).unwrap());
    let state = postcard::from_bytes(&stored).unwrap();
    let mut copy = Files::resume(Arc::new(Mutex::new(tree)), &state, console());
    let mut bytes = [0; 2];
    assert_eq!((copy.read(fd, None, &mut bytes), bytes), (Ok(2), *b"bc"));
    assert_eq!(copy.getcwd().unwrap(), b"/tmp");
}
