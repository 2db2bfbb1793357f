//! Files mapped into memory.

use std::os::unix::fs::FileExt;

use rustix::param::page_size;

use super::*;

#[test]
fn a_mapping_outlives_its_descriptor_and_writes_back_what_lies_within_the_file() {
    let mut files = files();
    put(&mut files, "/f", b"abcdef");
    let fd = files.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let mut memory = [9; 8];
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
    let [mut copy, mut other] = [clone(&origin), clone(&origin)];
    let ino = origin.stat(HERE, b"/f", Follow::Yes).unwrap().ino;
    other.unlink(HERE, b"/f").unwrap();
    assert!(other.tree().lock().node(ino).is_some());
    other.unmap(0x1_0000, b"xyz").unwrap();
    assert!(other.tree().lock().node(ino).is_none());
    copy.unmap(0x1_0000, b"xyz").unwrap();
    assert_eq!(get(&mut copy, "/f").unwrap(), b"xyz");
    assert_eq!(get(&mut origin, "/f").unwrap(), b"abc");
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
fn a_file_that_processes_share_takes_no_writes_and_keeps_its_length() {
    let mut one = files();
    put(&mut one, "/f", b"abc");
    let fd = one.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let page = page_size() as u64;
    let mapping = one.prepare_mapping(fd, 0x1_0000, page, true).unwrap();
    let shared = u32::try_from(2 * page).unwrap();
    let object = one.map_shared(Mapping { shared, ..mapping }).unwrap();
    assert_eq!(object.metadata().unwrap().len(), 3 * page, "what is mapped is there to be touched");
    assert_eq!(one.shared_at(0x1_0000), Ok(shared));
    let [(addresses, _, offset)] = &one.shared_mappings()[..] else { panic!("not one mapping") };
    assert_eq!((addresses, *offset), (&(0x1_0000..0x1_0000 + shared), page));

    let mut two = neighbour(&one);
    let other = two.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    object.write_all_at(b"A", 0).unwrap();
    assert_eq!(get(&mut two, "/f").unwrap(), b"Abc");
    assert_eq!(two.write(other, None, b"x"), Err(Errno::EBUSY));
    assert_eq!(two.ftruncate(other, 1), Err(Errno::EBUSY));
    assert_eq!(two.truncate(b"/f", 9), Err(Errno::EBUSY));
    assert_eq!(two.open(HERE, b"/f", CREATE.with(OpenFlags::TRUNCATE), 0), Err(Errno::EBUSY));
    assert_eq!(two.fstat(other).unwrap().size, 3);
    one.unmap(0x1_0000, b"xyz").unwrap();
    assert_eq!(get(&mut two, "/f").unwrap(), b"Abc", "nothing is written back to what was never copied");
}

#[test]
fn a_clone_has_a_shared_file_without_its_bytes_and_its_origin_keeps_them() {
    let mut origin = files();
    put(&mut origin, "/f", b"abc");
    let fd = origin.open(HERE, b"/f", OpenFlags::READ_WRITE, 0).unwrap();
    let mapping = origin.prepare_mapping(fd, 0x1_0000, 0, true).unwrap();
    origin.map_shared(Mapping { shared: u32::try_from(page_size()).unwrap(), ..mapping }).unwrap();
    let mut copy = clone(&origin);
    assert_eq!(get(&mut copy, "/f").unwrap(), b"");
    put(&mut copy, "/f", b"its own");
    assert_eq!(get(&mut origin, "/f").unwrap(), b"abc");
    assert_eq!(origin.write(fd, None, b"x"), Err(Errno::EBUSY), "it is shared as before");
}
