//! Opening, positions and the numbers of descriptors.

use super::*;

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
    assert_eq!(files.allocate(fd, 1), Err(Errno::EINVAL));
    let flags = CREATE.with(OpenFlags::TRUNCATE).with(OpenFlags::APPEND);
    let fd = files.open(HERE, b"/f", flags, 0).unwrap();
    assert_eq!(files.flags(fd), Ok(OpenFlags::READ_WRITE.with(OpenFlags::APPEND)), "those that matter later are kept");
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
    assert_eq!(files.dup_to(3, 3), Ok(3));
    assert_eq!((files.dup(3, -1), files.dup(3, 4096)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
    assert_eq!(files.close(99), Err(Errno::EBADF));
    assert_eq!(files.close(-1), Err(Errno::EBADF));
}

#[test]
fn what_a_descriptor_was_before_it_became_a_duplicate_is_closed() {
    let mut files = files();
    put(&mut files, "/f", b"x");
    let (fd, other) = (files.open(HERE, b"/f", OpenFlags::READ_ONLY, 0).unwrap(), files.dup(0, 0).unwrap());
    let ino = files.fstat(fd).unwrap().ino;
    files.unlink(HERE, b"/f").unwrap();
    assert_eq!(files.dup_to(fd, fd), Ok(fd));
    assert!(files.tree().lock().node(ino).is_some());
    assert_eq!(files.dup_to(other, fd), Ok(fd));
    assert!(files.tree().lock().node(ino).is_none());
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
    assert_eq!(files.read(fd, Some(1), &mut [0; 9]), Ok(2));
    assert_eq!(files.seek(fd, 0, Whence::Current), Ok(103), "reading elsewhere does not move it");
    assert_eq!(files.seek(fd, i64::MAX, Whence::Start), Ok(i64::MAX.cast_unsigned()));
    assert_eq!(files.seek(fd, 1, Whence::Current), Err(Errno::EINVAL));
    assert_eq!(files.write(fd, Some(u64::MAX), b"x"), Err(Errno::EFBIG));
    assert_eq!(files.seek(0, 0, Whence::Start), Err(Errno::ESPIPE));
    let null = files.open(HERE, b"/dev/null", OpenFlags::READ_ONLY, 0).unwrap();
    assert_eq!(files.seek(null, 5, Whence::Start), Ok(0));
    assert_eq!((files.is_seekable(0), files.is_seekable(null), files.is_seekable(fd)), (Ok(false), Ok(true), Ok(true)));
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
