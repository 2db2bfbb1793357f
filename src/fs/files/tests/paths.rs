//! Names, directories and the properties of files.

use super::*;

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
    let ino = files.fstat(fd).unwrap().ino;
    files.close(fd).unwrap();
    assert!(files.tree().lock().node(ino).is_none(), "nobody has the old one any more");
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
    assert_eq!(rename("/f", "/new/"), Err(Errno::ENOTDIR));
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
    assert_eq!(files.link((HERE, b"/one"), (HERE, b"/two"), Follow::No), Err(Errno::EEXIST));
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
    assert_eq!(files.stat(HERE, b"/absolute", Follow::No).unwrap().size, 11);
    assert_eq!(files.symlink(b"", HERE, b"/empty"), Err(Errno::ENOENT));
}

#[test]
fn forty_symbolic_links_are_followed_on_the_way_and_no_more() {
    let mut files = files();
    put(&mut files, "/0", b"x");
    for number in 1..=41 {
        files.symlink(format!("{}", number - 1).as_bytes(), HERE, format!("/{number}").as_bytes()).unwrap();
    }
    assert_eq!(get(&mut files, "/40").unwrap(), b"x");
    assert_eq!(get(&mut files, "/41"), Err(Errno::ELOOP));
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
    let fd = files.open(HERE, b".", OpenFlags::DIRECTORY, 0).unwrap();
    assert_eq!(files.read_directory(fd, 5).unwrap_err(), Errno::ENOENT);
    assert_eq!(files.open(HERE, b"f", CREATE, 0o666), Err(Errno::ENOENT));
    let ino = files.fstat(fd).unwrap().ino;
    files.close(fd).unwrap();
    assert!(files.tree().lock().node(ino).is_some(), "somebody is still in it");
    files.chdir(b"/").unwrap();
    assert!(files.tree().lock().node(ino).is_none());
}

#[test]
fn a_directory_that_was_removed_lives_until_the_last_process_that_is_in_it_ends() {
    let mut files = files();
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    let ino = files.stat(HERE, b"/d", Follow::Yes).unwrap().ino;
    let mut inside = neighbour(&files);
    inside.chdir(b"/d").unwrap();
    files.rmdir(HERE, b"/d").unwrap();
    assert!(files.tree().lock().node(ino).is_some());
    drop(inside);
    assert!(files.tree().lock().node(ino).is_none());
}

#[test]
fn permission_bits_are_kept_masked_and_minded() {
    let mut files = files();
    assert_eq!(files.umask(0o077), 0o022);
    put(&mut files, "/f", b"x");
    assert_eq!(mode(&files, "/f"), S_IFREG | 0o600);
    files.mkdir(HERE, b"/d", 0o777).unwrap();
    assert_eq!(mode(&files, "/d"), S_IFDIR | 0o700);
    files.mkdir(HERE, b"/sticky", 0o7777).unwrap();
    assert_eq!(mode(&files, "/sticky"), S_IFDIR | 0o1700, "a directory is made with no other bit beyond the nine");
    files.chmod(HERE, b"/f", 0o400, Follow::Yes).unwrap();
    assert_eq!(files.access(HERE, b"/f", &[Access::Read]), Ok(()));
    assert_eq!(files.access(HERE, b"/f", &[Access::Write]), Err(Errno::EACCES));
    for flags in [OpenFlags::READ_WRITE, OpenFlags::WRITE_ONLY, OpenFlags::READ_ONLY.with(OpenFlags::TRUNCATE)] {
        assert_eq!(files.open(HERE, b"/f", flags, 0), Err(Errno::EACCES), "{flags:?}");
    }
    assert_eq!(files.access(HERE, b"/f", &[Access::Read, Access::Write]), Err(Errno::EACCES));
    assert_eq!(files.truncate(b"/f", 0), Err(Errno::EACCES));
    assert_eq!(get(&mut files, "/f").unwrap(), b"x");
    files.chmod(HERE, b"/d", 0o600, Follow::Yes).unwrap();
    for path in [&b"/d/x"[..], b"/d/.", b"/d/.."] {
        assert_eq!(files.stat(HERE, path, Follow::Yes).unwrap_err(), Errno::EACCES);
    }
    assert_eq!(files.chdir(b"/d"), Err(Errno::EACCES));
    files.chmod(HERE, b"/d", 0o500, Follow::Yes).unwrap();
    assert_eq!(files.mkdir(HERE, b"/d/x", 0o777), Err(Errno::EACCES));
    // The one user there is is everybody.
    files.chmod(HERE, b"/f", S_IFDIR | 0o006, Follow::Yes).unwrap();
    assert_eq!(mode(&files, "/f"), S_IFREG | 0o006, "the type of a file stays");
    assert_eq!(files.access(HERE, b"/f", &[Access::Read, Access::Write]), Ok(()));
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
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let changes: [fn(&mut Files, i32) -> Result<(), Errno>; 2] =
        [|files, fd| files.write(fd, None, b"y").map(drop), |files, fd| files.ftruncate(fd, 9)];
    for change in changes {
        files.utimens(HERE, b"/f", NewTime::At(long_ago), NewTime::At(long_ago), Follow::Yes).unwrap();
        change(&mut files, fd).unwrap();
        let times = files.fstat(fd).unwrap().attributes;
        assert!(times.modified > long_ago && times.accessed == long_ago, "{times:?}");
    }
    files.utimens(At::Descriptor(fd), b"", NewTime::Keep, NewTime::At(long_ago), Follow::Yes).unwrap();
    assert_eq!(files.fstat(fd).unwrap().attributes.modified, long_ago, "an empty path is the descriptor itself");
}

#[test]
fn names_and_paths_have_the_limits_of_linux_and_may_be_any_bytes() {
    let mut files = files();
    let longest = [b"/".as_slice(), &[0xff; 255]].concat();
    files.open(HERE, &longest, CREATE, 0o666).unwrap();
    assert!(files.stat(HERE, &longest, Follow::Yes).is_ok());
    let too_long = [b"/".as_slice(), &[b'a'; 256]].concat();
    assert_eq!(files.open(HERE, &too_long, CREATE, 0), Err(Errno::ENAMETOOLONG));
    assert_eq!(files.stat(HERE, &b"/".repeat(4095), Follow::Yes).unwrap().mode & S_IFMT, S_IFDIR);
    assert_eq!(files.stat(HERE, &b"/".repeat(4096), Follow::Yes).unwrap_err(), Errno::ENAMETOOLONG);
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
fn the_host_reads_a_whole_file_at_once() {
    let mut files = files();
    put(&mut files, "/f", &[5; 3 * CHUNK]);
    assert_eq!(files.read_file(b"/f").unwrap(), [5; 3 * CHUNK]);
    assert_eq!(files.read_file(b"/tmp"), Err(Errno::EISDIR));
    assert_eq!(files.read_file(b"/dev/null"), Err(Errno::EINVAL));
    files.truncate(b"/f", 1 << 62).unwrap();
    assert_eq!(files.read_file(b"/f"), Err(Errno::EFBIG));
}
