//! Devices, pipes and `/proc/self/fd`.

use super::*;

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
    assert_eq!(files.device(2), Ok(Some(Device::ErrorTerminal)));
    let is_terminal = [0, 1, 2].map(|fd| files.device(fd).unwrap().unwrap().is_terminal());
    assert_eq!(is_terminal, [false, true, true]);
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
    let random = [read("/dev/urandom"), read("/dev/urandom")];
    assert!(random[0][..8] != random[1][..8] && random[0][56..] != random[1][56..], "{random:?}");
}

#[test]
fn a_pipe_hands_bytes_on_and_ends_with_its_last_writer() {
    let mut files = files();
    let (read, write) = files.pipe(OpenFlags::NONBLOCKING).unwrap();
    let mut bytes = [0; 10];
    assert_eq!(files.read(read, None, &mut bytes), Err(Errno::EAGAIN));
    assert_eq!(files.read(read, None, &mut []), Ok(0));
    assert_eq!(files.poll(read, 1), 0);
    let second = files.dup(write, 0).unwrap();
    files.write(write, None, b"abc").unwrap();
    assert_eq!((files.poll(read, 1), files.bytes_in_pipe(read)), (1, Ok(Some(3))));
    files.close(write).unwrap();
    assert_eq!(files.read(read, None, &mut bytes), Ok(3));
    assert_eq!(files.read(read, None, &mut bytes), Err(Errno::EAGAIN));
    files.close(second).unwrap();
    assert_eq!(files.poll(read, 1), 0x11, "there is an end to be read, and it hangs up");
    assert_eq!(files.read(read, None, &mut bytes), Ok(0));
    assert_eq!(files.fstat(read).unwrap().mode & S_IFMT, S_IFIFO);
    assert_eq!(files.seek(read, 0, Whence::Start), Err(Errno::ESPIPE));
}

#[test]
fn a_full_pipe_takes_as_much_as_it_has_room_for_and_then_nothing() {
    let mut files = files();
    let (read, write) = files.pipe(OpenFlags::NONBLOCKING).unwrap();
    assert_eq!(files.write(write, None, &[1; 40_000]), Ok(40_000));
    assert_eq!(files.write(write, None, &[2; 40_000]), Ok(65_536 - 40_000));
    assert_eq!(files.write(write, None, &[3]), Err(Errno::EAGAIN));
    let mut bytes = vec![0; 70_000];
    assert_eq!(files.read(read, None, &mut bytes), Ok(65_536));
    assert!(bytes[..40_000] == [1; 40_000] && bytes[40_000..65_536] == [2; 25_536]);
    assert_eq!(files.write(write, None, &[3]), Ok(1));
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
    assert_eq!(files.readlink(HERE, b"/proc/self/fd/1").unwrap(), b"/dev/tty");
    put(&mut files, "/in the root", b"");
    let in_root = files.open(HERE, b"/in the root", OpenFlags::READ_ONLY, 0).unwrap();
    let link = format!("/proc/self/fd/{in_root}");
    assert_eq!(files.readlink(HERE, link.as_bytes()).unwrap(), b"/in the root");
    files.close(in_root).unwrap();
    let directory = files.open(HERE, b"/proc/self/fd", OpenFlags::DIRECTORY, 0).unwrap();
    assert_eq!(names(&mut files, directory, 5), [".", "..", "0", "1", "2"]);
    assert_eq!(names(&mut files, directory, 5), ["3", "4"]);
    assert_eq!(get(&mut files, "/proc/self/fd/77"), Err(Errno::ENOENT));
    assert_eq!(files.open(HERE, b"/proc/self/fd/x", CREATE, 0), Err(Errno::EPERM));
}
