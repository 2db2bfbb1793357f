//! Files mapped into memory.

use super::*;

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
