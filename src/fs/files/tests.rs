use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::fs::{
    Access, CHUNK, FrozenTree, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, Stream, Timestamp, lay_out,
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
    origin.write(fd, Some(10), &[2]).unwrap();
    copy.truncate(b"/f", 5).unwrap();
    assert_eq!(get(&mut origin, "/f").unwrap().len(), 3 * CHUNK);
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
    let copy = clone(&origin);
    assert_eq!(copy.fstat(fd).unwrap_err(), Errno::EBADF);
    assert_eq!(get_open(&mut origin, fd), b"x");
}

#[test]
fn a_rename_over_an_open_file_keeps_the_old_content_readable() {
    let mut files = files();
    put(&mut files, "/old", b"old");
    put(&mut files, "/new", b"new");
    let fd = files.open(HERE, b"/old", OpenFlags::READ_ONLY, 0).unwrap();
    files.rename((HERE, b"/new"), (HERE, b"/old")).unwrap();
    assert_eq!(get_open(&mut files, fd), b"old");
    assert_eq!(get(&mut files, "/old").unwrap(), b"new");
    assert_eq!(get(&mut files, "/new"), Err(Errno::ENOENT));
}

#[test]
fn a_directory_may_replace_an_empty_directory_and_nothing_else() {
    let mut files = files();
    for directory in ["/a", "/b", "/full", "/full/x"] {
        files.mkdir(HERE, directory.as_bytes(), 0o777).unwrap();
    }
    put(&mut files, "/f", b"");
    let mut rename = |from: &str, to: &str| files.rename((HERE, from.as_bytes()), (HERE, to.as_bytes()));
    assert_eq!(rename("/a", "/full"), Err(Errno::ENOTEMPTY));
    assert_eq!(rename("/a", "/f"), Err(Errno::ENOTDIR));
    assert_eq!(rename("/f", "/a"), Err(Errno::EISDIR));
    assert_eq!(rename("/full", "/full/x/y"), Err(Errno::EINVAL));
    assert_eq!(rename("/full", "/full"), Ok(()));
    assert_eq!(rename("/full", "/b"), Ok(()));
    assert_eq!(mode(&files, "/b/x") & S_IFMT, S_IFDIR);
}

#[test]
fn a_moved_directory_knows_its_new_parent() {
    let mut files = files();
    for directory in ["/a", "/b", "/a/deep"] {
        files.mkdir(HERE, directory.as_bytes(), 0o777).unwrap();
    }
    files.chdir(b"/a/deep").unwrap();
    files.rename((HERE, b"/a/deep"), (HERE, b"/b/moved")).unwrap();
    assert_eq!(files.getcwd().unwrap(), b"/b/moved");
    put(&mut files, "../sibling", b"");
    assert_eq!(mode(&files, "/b/sibling") & S_IFMT, S_IFREG);
}

#[test]
fn hard_links_are_one_file_and_count_their_names() {
    let mut files = files();
    put(&mut files, "/one", b"1");
    files.link((HERE, b"/one"), (HERE, b"/two"), Follow::No).unwrap();
    put(&mut files, "/two", b"both");
    assert_eq!(get(&mut files, "/one").unwrap(), b"both");
    assert_eq!(files.stat(HERE, b"/one", Follow::No).unwrap().attributes.links, 2);
    files.unlink(HERE, b"/one").unwrap();
    assert_eq!(get(&mut files, "/two").unwrap(), b"both");
    assert_eq!(files.link((HERE, b"/tmp"), (HERE, b"/t"), Follow::No), Err(Errno::EPERM));
}

#[test]
fn symbolic_links_are_followed_relative_to_where_they_lie_and_loops_end() {
    let mut files = files();
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    put(&mut files, "/d/f", b"x");
    files.symlink(b"f", HERE, b"/d/relative").unwrap();
    files.symlink(b"/d/relative", HERE, b"/absolute").unwrap();
    files.symlink(b"loop", HERE, b"/loop").unwrap();
    assert_eq!(get(&mut files, "/absolute").unwrap(), b"x");
    assert_eq!(get(&mut files, "/loop"), Err(Errno::ELOOP));
    assert_eq!(files.readlink(HERE, b"/absolute").unwrap(), b"/d/relative");
    assert_eq!(mode(&files, "/absolute") & S_IFMT, S_IFLNK);
    let no_follow = OpenFlags::NO_FOLLOW;
    assert_eq!(files.open(HERE, b"/absolute", no_follow, 0), Err(Errno::ELOOP));
    assert_eq!(files.readlink(HERE, b"/d/f"), Err(Errno::EINVAL));
}

#[test]
fn a_file_is_created_where_a_dangling_link_points() {
    let mut files = files();
    files.symlink(b"/tmp/target", HERE, b"/link").unwrap();
    put(&mut files, "/link", b"x");
    assert_eq!(get(&mut files, "/tmp/target").unwrap(), b"x");
    assert_eq!(files.open(HERE, b"/link", CREATE.with(OpenFlags::EXCLUSIVE), 0), Err(Errno::EEXIST));
}

#[test]
fn the_flags_of_open_mean_what_posix_says() {
    let mut files = files();
    let exclusive = CREATE.with(OpenFlags::EXCLUSIVE);
    put(&mut files, "/f", b"old");
    assert_eq!(files.open(HERE, b"/f", exclusive, 0), Err(Errno::EEXIST));
    assert_eq!(files.open(HERE, b"/f", OpenFlags::DIRECTORY, 0), Err(Errno::ENOTDIR));
    assert_eq!(files.open(HERE, b"/f/", OpenFlags::READ_ONLY, 0), Err(Errno::ENOTDIR));
    assert_eq!(files.open(HERE, b"/new/", CREATE, 0), Err(Errno::EISDIR));
    assert_eq!(files.open(HERE, b"/tmp", OpenFlags::READ_WRITE, 0), Err(Errno::EISDIR));
    assert_eq!(files.open(HERE, b"", OpenFlags::READ_ONLY, 0), Err(Errno::ENOENT));
    let truncate = OpenFlags::WRITE_ONLY.with(OpenFlags::TRUNCATE);
    let fd = files.open(HERE, b"/f", truncate, 0).unwrap();
    assert_eq!(files.fstat(fd).unwrap().size, 0);
    assert_eq!(files.read(fd, None, &mut [0]), Err(Errno::EBADF));
    let fd = files.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    assert_eq!(files.write(fd, None, b"x"), Err(Errno::EBADF));
    assert_eq!(files.ftruncate(fd, 1), Err(Errno::EINVAL));
}

#[test]
fn appending_always_writes_at_the_end() {
    let mut files = files();
    put(&mut files, "/f", b"abc");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE.with(OpenFlags::APPEND), 0).unwrap();
    files.seek(fd, 0, Whence::Start).unwrap();
    files.write(fd, None, b"d").unwrap();
    files.write(fd, Some(0), b"e").unwrap();
    assert_eq!(get(&mut files, "/f").unwrap(), b"abcde");
    assert_eq!(files.seek(fd, 0, Whence::Current), Ok(4));
}

#[test]
fn duplicates_share_a_position_and_a_fork_does_not() {
    let mut files = files();
    put(&mut files, "/f", b"abcdef");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    let duplicate = files.dup(fd, 0).unwrap();
    let mut byte = [0];
    files.read(fd, None, &mut byte).unwrap();
    let mut fork = Files::resume(Arc::clone(files.tree()), &files.state(), console());
    files.read(duplicate, None, &mut byte).unwrap();
    assert_eq!(byte, *b"b");
    fork.read(duplicate, None, &mut byte).unwrap();
    assert_eq!(byte, *b"b");
    fork.read(fd, None, &mut byte).unwrap();
    assert_eq!(byte, *b"c");
}

#[test]
fn descriptors_are_the_lowest_that_are_free() {
    let mut files = files();
    let open = |files: &mut Files| files.open(HERE, b"/tmp", OpenFlags::READ_ONLY, 0).unwrap();
    assert_eq!((open(&mut files), open(&mut files), open(&mut files)), (3, 4, 5));
    files.close(4).unwrap();
    assert_eq!(files.dup(3, 5), Ok(6));
    assert_eq!(open(&mut files), 4);
    assert_eq!(files.dup_to(3, 20), Ok(20));
    assert_eq!(files.dup_to(3, 4), Ok(4));
    assert_eq!(files.close(99), Err(Errno::EBADF));
    assert_eq!(files.close(-1), Err(Errno::EBADF));
}

#[test]
fn a_process_with_all_descriptors_in_use_gets_emfile() {
    let mut files = files();
    let count = (0..5000).take_while(|_| files.dup(0, 0).is_ok()).count();
    assert_eq!(count, crate::fs::MAX_DESCRIPTORS - 3);
    assert_eq!(files.open(HERE, b"/tmp", OpenFlags::READ_ONLY, 0), Err(Errno::EMFILE));
    assert_eq!(files.pipe(OpenFlags::default()), Err(Errno::EMFILE));
}

#[test]
fn closing_all_descriptors_lets_go_of_every_file() {
    let mut files = files();
    put(&mut files, "/f", b"x");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    let ino = files.fstat(fd).unwrap().ino;
    files.dup(fd, 0).unwrap();
    files.unlink(HERE, b"/f").unwrap();
    files.close_all();
    assert!(files.tree().lock().node(ino).is_none());
    assert_eq!(files.read(fd, None, &mut [0]), Err(Errno::EBADF));
}

#[test]
fn seeking_before_the_start_fails_and_past_the_end_does_not() {
    let mut files = files();
    put(&mut files, "/f", b"abc");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    assert_eq!(files.seek(fd, 0, Whence::End), Ok(3));
    assert_eq!(files.seek(fd, -4, Whence::Current), Err(Errno::EINVAL));
    assert_eq!(files.seek(fd, 100, Whence::Current), Ok(103));
    assert_eq!(files.read(fd, None, &mut [0]), Ok(0));
    assert_eq!(files.write(fd, Some(u64::MAX), b"x"), Err(Errno::EFBIG));
    assert_eq!(files.seek(0, 0, Whence::Start), Err(Errno::ESPIPE));
}

#[test]
fn truncating_and_allocating_change_the_length_and_nothing_else() {
    let mut files = files();
    put(&mut files, "/f", b"abcdef");
    files.truncate(b"/f", 2).unwrap();
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    files.allocate(fd, 4).unwrap();
    files.allocate(fd, 1).unwrap();
    assert_eq!(get_open(&mut files, fd), b"ab\0\0");
    assert_eq!(files.truncate(b"/tmp", 0), Err(Errno::EISDIR));
    assert_eq!(files.ftruncate(fd, u64::MAX), Err(Errno::EFBIG));
}

#[test]
fn a_directory_is_read_over_many_calls_without_doubles_or_gaps() {
    let mut files = files();
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    for number in 0..10 {
        put(&mut files, &format!("/d/{number}"), b"");
    }
    let fd = files.open(HERE, b"/d", OpenFlags::DIRECTORY, 0).unwrap();
    assert_eq!(names(&mut files, fd, 4), [".", "..", "0", "1"]);
    files.unlink(HERE, b"/d/1").unwrap();
    files.unlink(HERE, b"/d/2").unwrap();
    put(&mut files, "/d/late", b"");
    assert_eq!(names(&mut files, fd, 100), ["3", "4", "5", "6", "7", "8", "9", "late"]);
    assert!(names(&mut files, fd, 100).is_empty());
    files.seek(fd, 0, Whence::Start).unwrap();
    assert_eq!(names(&mut files, fd, 100).len(), 11);
}

#[test]
fn removing_a_directory_asks_for_an_empty_one() {
    let mut files = files();
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    put(&mut files, "/d/f", b"");
    assert_eq!(files.rmdir(HERE, b"/d"), Err(Errno::ENOTEMPTY));
    assert_eq!(files.rmdir(HERE, b"/d/f"), Err(Errno::ENOTDIR));
    assert_eq!(files.rmdir(HERE, b"/d/."), Err(Errno::EINVAL));
    assert_eq!(files.rmdir(HERE, b"/"), Err(Errno::EBUSY));
    assert_eq!(files.unlink(HERE, b"/d"), Err(Errno::EISDIR));
    files.unlink(HERE, b"/d/f").unwrap();
    files.chdir(b"/d").unwrap();
    assert_eq!(files.rmdir(HERE, b"/d/"), Ok(()));
    assert_eq!(files.getcwd(), Err(Errno::ENOENT));
    assert_eq!(files.open(HERE, b"f", CREATE, 0o666), Err(Errno::ENOENT));
}

#[test]
fn permission_bits_are_kept_masked_and_minded() {
    let mut files = files();
    assert_eq!(files.umask(0o077), 0o022);
    put(&mut files, "/f", b"x");
    assert_eq!(mode(&files, "/f"), S_IFREG | 0o600);
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    assert_eq!(mode(&files, "/d"), S_IFDIR | 0o700);
    files.chmod(HERE, b"/f", 0o400, Follow::Yes).unwrap();
    assert_eq!(files.access(HERE, b"/f", &[Access::Read]), Ok(()));
    assert_eq!(files.access(HERE, b"/f", &[Access::Write]), Err(Errno::EACCES));
    assert_eq!(files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0), Err(Errno::EACCES));
    files.chmod(HERE, b"/d", 0o600, Follow::Yes).unwrap();
    assert_eq!(files.stat(HERE, b"/d/x", Follow::Yes).unwrap_err(), Errno::EACCES);
    files.chmod(HERE, b"/d", 0o500, Follow::Yes).unwrap();
    assert_eq!(files.mkdir(HERE, b"/d/x", 0o777), Err(Errno::EACCES));
}

#[test]
fn times_follow_writes_and_can_be_set() {
    let mut files = files();
    put(&mut files, "/f", b"x");
    let long_ago = Timestamp { seconds: 5, nanoseconds: 7 };
    files.utimens(HERE, b"/f", NewTime::At(long_ago), NewTime::At(long_ago), Follow::Yes).unwrap();
    files.utimens(HERE, b"/f", NewTime::Now, NewTime::Keep, Follow::Yes).unwrap();
    let times = files.stat(HERE, b"/f", Follow::Yes).unwrap().attributes;
    assert_eq!(times.modified, long_ago);
    assert!(times.accessed > long_ago && times.changed > long_ago);
    put(&mut files, "/f", b"y");
    assert!(files.stat(HERE, b"/f", Follow::Yes).unwrap().attributes.modified > long_ago);
}

#[test]
fn names_and_paths_have_the_limits_of_linux_and_may_be_any_bytes() {
    let mut files = files();
    let longest = [b"/".as_slice(), &[0xff; 255]].concat();
    files.open(HERE, &longest, CREATE, 0o666).unwrap();
    assert!(files.stat(HERE, &longest, Follow::Yes).is_ok());
    let too_long = [b"/".as_slice(), &[b'a'; 256]].concat();
    assert_eq!(files.open(HERE, &too_long, CREATE, 0), Err(Errno::ENAMETOOLONG));
    assert_eq!(files.open(HERE, &b"/./".repeat(1366), CREATE, 0), Err(Errno::ENAMETOOLONG));
}

#[test]
fn paths_are_relative_to_an_open_directory_when_asked() {
    let mut files = files();
    put(&mut files, "/tmp/f", b"x");
    let fd = files.open(HERE, b"/tmp", OpenFlags::DIRECTORY, 0).unwrap();
    assert!(files.stat(At::Descriptor(fd), b"f", Follow::Yes).is_ok());
    assert!(files.stat(At::Descriptor(99), b"/tmp/f", Follow::Yes).is_ok());
    assert_eq!(files.stat(At::Descriptor(99), b"f", Follow::Yes).unwrap_err(), Errno::EBADF);
    assert_eq!(files.stat(At::Descriptor(0), b"f", Follow::Yes).unwrap_err(), Errno::ENOTDIR);
}

#[test]
fn the_terminal_devices_write_to_the_console() {
    let transcript = Transcript::default();
    let mut files = files();
    files.set_console(Box::new(transcript.clone()));
    files.write(1, None, b"out").unwrap();
    files.write(2, None, b"err").unwrap();
    assert_eq!(files.read(0, None, &mut [0; 4]), Ok(0));
    assert_eq!(*transcript.0.lock(), [(Stream::Out, b"out".to_vec()), (Stream::Err, b"err".to_vec())]);
    assert_eq!(mode(&files, "/dev/tty") & S_IFMT, S_IFCHR);
    assert_eq!(files.device(1), Ok(Some(Device::Terminal)));
}

#[test]
fn the_devices_null_zero_and_urandom_do_what_their_names_say() {
    let mut files = files();
    let mut read = |path: &str| {
        let fd = files.open(HERE, path.as_bytes(), OpenFlags::READ_WRITE, 0).unwrap();
        let mut bytes = [7; 64];
        let count = files.read(fd, None, &mut bytes).unwrap();
        assert_eq!(files.write(fd, None, b"gone"), Ok(4));
        bytes[..count].to_vec()
    };
    assert!(read("/dev/null").is_empty());
    assert_eq!(read("/dev/zero"), [0; 64]);
    assert_ne!(read("/dev/urandom"), read("/dev/urandom"));
}

#[test]
fn a_pipe_hands_bytes_on_and_ends_with_its_last_writer() {
    let mut files = files();
    let (read, write) = files.pipe(OpenFlags::NONBLOCKING).unwrap();
    let mut bytes = [0; 10];
    assert_eq!(files.read(read, None, &mut bytes), Err(Errno::EAGAIN));
    assert_eq!(files.poll(read, 1), 0);
    let second = files.dup(write, 0).unwrap();
    files.write(write, None, b"abc").unwrap();
    assert_eq!((files.poll(read, 1), files.bytes_in_pipe(read)), (1, Ok(Some(3))));
    files.close(write).unwrap();
    assert_eq!(files.read(read, None, &mut bytes), Ok(3));
    assert_eq!(files.read(read, None, &mut bytes), Err(Errno::EAGAIN));
    files.close(second).unwrap();
    assert_eq!(files.read(read, None, &mut bytes), Ok(0));
    assert_eq!(files.fstat(read).unwrap().mode & S_IFMT, S_IFIFO);
    assert_eq!(files.seek(read, 0, Whence::Start), Err(Errno::ESPIPE));
}

#[test]
fn writing_to_a_pipe_nobody_reads_fails() {
    let mut files = files();
    let (read, write) = files.pipe(OpenFlags::default()).unwrap();
    files.close(read).unwrap();
    assert_eq!(files.write(write, None, b"x"), Err(Errno::EPIPE));
    assert_eq!(files.poll(99, 1), 0x20);
}

#[test]
fn proc_self_fd_shows_and_opens_what_the_process_has_open() {
    let mut files = files();
    put(&mut files, "/tmp/f", b"x");
    let fd = files.open(HERE, b"/tmp/f", OpenFlags::READ_ONLY, 0).unwrap();
    let path = format!("/proc/self/fd/{fd}");
    assert_eq!(files.readlink(HERE, path.as_bytes()).unwrap(), b"/tmp/f");
    assert_eq!(get(&mut files, &path).unwrap(), b"x");
    assert_eq!(mode(&files, &path) & S_IFMT, S_IFLNK);
    let directory = files.open(HERE, b"/proc/self/fd", OpenFlags::DIRECTORY, 0).unwrap();
    assert_eq!(names(&mut files, directory, 5), [".", "..", "0", "1", "2"]);
    assert_eq!(names(&mut files, directory, 5), ["3", "4"]);
    assert_eq!(get(&mut files, "/proc/self/fd/77"), Err(Errno::ENOENT));
    assert_eq!(files.open(HERE, b"/proc/self/fd/x", CREATE, 0), Err(Errno::EPERM));
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

#[test]
fn a_mapping_outlives_its_descriptor_and_writes_back_what_lies_within_the_file() {
    let mut files = files();
    put(&mut files, "/f", b"abcdef");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let mut memory = [0; 8];
    let mapping = files.prepare_mapping(fd, 0x1_0000, 2, true).unwrap();
    files.map(mapping, &mut memory).unwrap();
    assert_eq!(&memory, b"cdef\0\0\0\0");
    files.close(fd).unwrap();
    assert_eq!(files.unmap(0x2_0000, &memory), Err(Errno::EINVAL));
    files.unmap(0x1_0000, b"CDEFGHIJ").unwrap();
    assert_eq!(get(&mut files, "/f").unwrap(), b"abCDEF");
    assert_eq!(files.unmap(0x1_0000, &memory), Err(Errno::EINVAL));
}

#[test]
fn a_mapping_is_carried_into_a_clone_and_keeps_its_file_alive() {
    let mut origin = files();
    put(&mut origin, "/f", b"abc");
    let fd = origin.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let mapping = origin.prepare_mapping(fd, 0x1_0000, 0, true).unwrap();
    origin.map(mapping, &mut [0; 3]).unwrap();
    origin.close(fd).unwrap();
    let mut copy = clone(&origin);
    copy.unmap(0x1_0000, b"xyz").unwrap();
    assert_eq!(get(&mut copy, "/f").unwrap(), b"xyz");
    assert_eq!(get(&mut origin, "/f").unwrap(), b"abc");
    let ino = origin.stat(HERE, b"/f", Follow::Yes).unwrap().ino;
    origin.unlink(HERE, b"/f").unwrap();
    assert!(origin.tree().lock().node(ino).is_some());
    origin.close_all();
    assert!(origin.tree().lock().node(ino).is_none());
}

#[test]
fn only_files_that_are_open_for_it_can_be_mapped() {
    let mut files = files();
    put(&mut files, "/f", b"abc");
    let read_only = files.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap();
    let write_only = files.open(HERE, b"/f", OpenFlags::WRITE_ONLY, 0).unwrap();
    assert!(files.prepare_mapping(read_only, 0, 0, false).is_ok());
    assert_eq!(files.prepare_mapping(read_only, 0, 0, true).unwrap_err(), Errno::EACCES);
    assert_eq!(files.prepare_mapping(write_only, 0, 0, false).unwrap_err(), Errno::EACCES);
    assert_eq!(files.prepare_mapping(0, 0, 0, false).unwrap_err(), Errno::ENODEV);
    assert_eq!(files.prepare_mapping(99, 0, 0, false).unwrap_err(), Errno::EBADF);
}

#[test]
fn the_host_reads_a_whole_file_at_once() {
    let mut files = files();
    put(&mut files, "/f", &[5; 3 * CHUNK]);
    assert_eq!(files.read_file(b"/f").unwrap(), [5; 3 * CHUNK]);
    assert_eq!(files.read_file(b"/tmp"), Err(Errno::EISDIR));
    assert_eq!(files.read_file(b"/dev/null"), Err(Errno::EINVAL));
    files.truncate(b"/f", 1 << 62).unwrap();
    assert_eq!(files.read_file(b"/f"), Err(Errno::EFBIG));
}
