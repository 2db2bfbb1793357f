use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, FileTimes},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::fs::{At, Files, Follow, HostDirectory, OpenFlags, S_IFDIR, S_IFLNK, S_IFMT, Silent, StoredEntry};

pub(super) const DATA: &[u8] = b"/pglite/data";

/// When a [`Hook`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    BeforeRead,
    AfterRead,
    BeforeWrite,
    AfterWrite,
    /// Before anything else.
    Before,
}

/// What happens around the operations of a storage; an error is that of the operation.
pub(super) type Hook = Arc<dyn Fn(Moment) -> io::Result<()> + Send + Sync>;

/// A storage, or a file in one, around whose operations something happens.
pub(super) struct Hooked<T> {
    pub(super) inner: T,
    pub(super) hook: Hook,
}

impl<T: fmt::Debug> fmt::Debug for Hooked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Hooked<HostDirectory> {
    fn file(&self, file: Arc<dyn StoredFile>) -> Arc<dyn StoredFile> {
        Arc::new(Hooked { inner: file, hook: self.hook.clone() })
    }
}

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> io::Result<$result> {
            (self.hook)(Moment::Before)?;
            self.inner.$name($($argument),*)
        })*
    };
}

impl Storage for Hooked<HostDirectory> {
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        (self.hook)(Moment::Before)?;
        Ok(self.file(self.inner.open(path)?))
    }

    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        (self.hook)(Moment::Before)?;
        Ok(self.file(self.inner.create(path)?))
    }

    forward! {
        create_directory(path: &[u8]) -> ();
        create_symlink(path: &[u8], target: &[u8]) -> ();
        unlink(path: &[u8]) -> ();
        remove_directory(path: &[u8]) -> ();
        rename(from: &[u8], to: &[u8]) -> ();
        sync_directory(path: &[u8]) -> ();
        list(path: &[u8]) -> Vec<StoredEntry>;
    }
}

impl StoredFile for Hooked<Arc<dyn StoredFile>> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        (self.hook)(Moment::BeforeRead)?;
        let read = self.inner.read_at(offset, buffer);
        (self.hook)(Moment::AfterRead)?;
        read
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let written = match (self.hook)(Moment::BeforeWrite) {
            Ok(()) => self.inner.write_at(offset, bytes),
            Err(error) if bytes.len() < 2 => Err(error),
            // A full disk takes a part of what is written.
            Err(_) => self.inner.write_at(offset, &bytes[..bytes.len() / 2]),
        };
        (self.hook)(Moment::AfterWrite)?;
        written
    }

    forward! {
        set_len(len: u64) -> ();
        allocate(from: u64, end: u64) -> ();
        sync() -> ();
    }
}

/// A storage of which one operation fails, when so many have succeeded.
fn failing(path: &Path, left: &Arc<AtomicU32>) -> Arc<dyn Storage> {
    let left = left.clone();
    let hook = move |moment| match moment {
        Moment::AfterRead | Moment::AfterWrite => Ok(()),
        _ if left.fetch_sub(1, Ordering::Relaxed) == 0 => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    };
    Arc::new(Hooked { inner: HostDirectory::open(path).unwrap(), hook: Arc::new(hook) })
}

/// What there is below a directory, by path.
pub(super) type Picture = BTreeMap<Vec<u8>, Seen>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
}

/// What the guest sees.
pub(super) fn as_guest(files: &mut Files, path: &[u8], picture: &mut Picture) {
    let fd = files.open(At::WorkingDirectory, path, OpenFlags::READ_ONLY, 0).unwrap();
    for entry in files.read_directory(fd, usize::MAX).unwrap() {
        if matches!(&*entry.name, b"." | b"..") {
            continue;
        }
        let below = [path, b"/", &entry.name].concat();
        let stat = files.stat(At::WorkingDirectory, &below, Follow::No).unwrap();
        let seen = match stat.mode & S_IFMT {
            S_IFDIR => {
                as_guest(files, &below, picture);
                Seen::Directory
            }
            S_IFLNK => Seen::Symlink(files.readlink(At::WorkingDirectory, &below).unwrap()),
            _ => {
                let file = files.open(At::WorkingDirectory, &below, OpenFlags::READ_ONLY, 0).unwrap();
                let mut bytes = vec![0; usize::try_from(stat.size).unwrap() + 1];
                let read = files.read(file, None, &mut bytes).unwrap();
                assert_eq!(read as u64, stat.size, "{}", String::from_utf8_lossy(&below));
                files.close(file).unwrap();
                bytes.truncate(read);
                Seen::File(bytes)
            }
        };
        picture.insert(below[DATA.len() + 1..].to_vec(), seen);
    }
    files.close(fd).unwrap();
}

/// What the host has.
pub(super) fn as_host(root: &Path, path: &Path, picture: &mut Picture) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let seen = if kind.is_dir() {
            as_host(root, &entry.path(), picture);
            Seen::Directory
        } else if kind.is_symlink() {
            Seen::Symlink(fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes())
        } else {
            Seen::File(fs::read(entry.path()).unwrap())
        };
        let name = entry.path().strip_prefix(root).unwrap().as_os_str().as_encoded_bytes().to_vec();
        picture.insert(name, seen);
    }
}

fn pictures(files: &mut Files, root: &Path) -> (Picture, Picture) {
    let (mut guest, mut host) = (Picture::new(), Picture::new());
    as_guest(files, DATA, &mut guest);
    as_host(root, root, &mut host);
    (guest, host)
}

pub(super) fn mounted(storage: Arc<dyn Storage>) -> Files {
    let mut tree = Tree::new();
    crate::fs::layout::lay_out(&mut tree).unwrap();
    tree.mount(DATA, storage).unwrap();
    Files::new(Arc::new(Mutex::new(tree)), Box::new(Silent)).unwrap()
}

/// What a guest does. Numbers choose among few names, so that they often meet.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Write { name: u8, offset: u16, bytes: Vec<u8> },
    Append { name: u8, bytes: Vec<u8> },
    Truncate { name: u8, len: u16 },
    Allocate { name: u8, end: u16 },
    Rename { from: u8, to: u8 },
    Unlink { name: u8 },
    MakeDirectory { name: u8 },
    RemoveDirectory { name: u8 },
    Symlink { name: u8, target: u8 },
    OpenAndUnlink { name: u8, bytes: Vec<u8> },
    Sync { name: u8 },
}

/// Files and directories two levels deep.
fn path(name: u8) -> Vec<u8> {
    let names: [&[u8]; 3] = [b"a", b"b", b"c"];
    let (first, second) = (names[usize::from(name) % 3], usize::from(name) / 3 % 4);
    let inner = if second == 3 { vec![] } else { [b"/", names[second]].concat() };
    [DATA, b"/", first, &inner].concat()
}

pub(super) fn run(files: &mut Files, step: &Step) -> Result<(), Errno> {
    let cwd = At::WorkingDirectory;
    let mut with_open = |name: u8, flags: OpenFlags, act: &dyn Fn(&mut Files, i32) -> Result<(), Errno>| {
        let fd = files.open(cwd, &path(name), flags, 0o600)?;
        let done = act(files, fd);
        files.close(fd)?;
        done
    };
    let create = OpenFlags::READ_WRITE.with(OpenFlags::CREATE);
    match step {
        Step::Write { name, offset, bytes } => {
            with_open(*name, create, &|files, fd| files.write(fd, Some((*offset).into()), bytes).map(drop))
        }
        Step::Append { name, bytes } => {
            with_open(*name, create.with(OpenFlags::APPEND), &|files, fd| files.write(fd, None, bytes).map(drop))
        }
        Step::Truncate { name, len } => files.truncate(&path(*name), (*len).into()),
        Step::Allocate { name, end } => {
            with_open(*name, OpenFlags::READ_WRITE, &|files, fd| files.allocate(fd, (*end).into()))
        }
        Step::Rename { from, to } => files.rename((cwd, &path(*from)), (cwd, &path(*to))),
        Step::Unlink { name } => files.unlink(cwd, &path(*name)),
        Step::MakeDirectory { name } => files.mkdir(cwd, &path(*name), 0o700),
        Step::RemoveDirectory { name } => files.rmdir(cwd, &path(*name)),
        Step::Symlink { name, target } => files.symlink(&path(*target), cwd, &path(*name)),
        Step::OpenAndUnlink { name, bytes } => {
            let fd = files.open(cwd, &path(*name), create, 0o600)?;
            let removed = files.unlink(cwd, &path(*name));
            // A file without a name can be written and read until it is closed.
            let written = files.write(fd, Some(0), bytes);
            let mut read = vec![0; bytes.len()];
            if written == Ok(bytes.len()) && files.read(fd, Some(0), &mut read).is_ok() {
                assert_eq!(&read, bytes);
            }
            files.close(fd)?;
            removed
        }
        Step::Sync { name } => with_open(*name, OpenFlags::READ_ONLY, &|files, fd| {
            files.to_sync(fd)?.map_or(Ok(()), |to_sync| to_sync.sync())
        }),
    }
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (name, bytes) = (0_u8..12, || prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        (name.clone(), 0_u16..9000, bytes()).prop_map(|(name, offset, bytes)| Step::Write { name, offset, bytes }),
        (name.clone(), bytes()).prop_map(|(name, bytes)| Step::Append { name, bytes }),
        (name.clone(), 0_u16..9000).prop_map(|(name, len)| Step::Truncate { name, len }),
        (name.clone(), 0_u16..9000).prop_map(|(name, end)| Step::Allocate { name, end }),
        (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        name.clone().prop_map(|name| Step::Unlink { name }),
        name.clone().prop_map(|name| Step::MakeDirectory { name }),
        name.clone().prop_map(|name| Step::RemoveDirectory { name }),
        (name.clone(), name.clone()).prop_map(|(name, target)| Step::Symlink { name, target }),
        (name.clone(), bytes()).prop_map(|(name, bytes)| Step::OpenAndUnlink { name, bytes }),
        name.prop_map(|name| Step::Sync { name }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_host_has_what_the_guest_sees_whatever_it_does_and_whichever_operation_fails(
        steps in prop::collection::vec(step(), 0..60),
        fails_at in 0_u32..200,
    ) {
        let outer = tempfile::tempdir().unwrap();
        let left = Arc::new(AtomicU32::new(u32::MAX));
        let mut files = mounted(failing(outer.path(), &left));
        left.store(fails_at, Ordering::Relaxed);
        for step in &steps {
            // Errors are a part of what may happen.
            let _ = run(&mut files, step);
        }
        left.store(u32::MAX, Ordering::Relaxed);
        let (guest, host) = pictures(&mut files, outer.path());
        prop_assert_eq!(&guest, &host);
        // Another start sees the same.
        let mut again = mounted(Arc::new(HostDirectory::open(outer.path()).unwrap()));
        let (guest, _) = pictures(&mut again, outer.path());
        prop_assert_eq!(guest, host);
    }

    #[test]
    fn a_tree_in_a_storage_answers_as_one_in_memory(steps in prop::collection::vec(step(), 0..60)) {
        let outer = tempfile::tempdir().unwrap();
        let mut stored = mounted(Arc::new(HostDirectory::open(outer.path()).unwrap()));
        let mut tree = Tree::new();
        crate::fs::layout::lay_out(&mut tree).unwrap();
        make_directories(&mut tree, DATA).unwrap();
        let mut in_memory = Files::new(Arc::new(Mutex::new(tree)), Box::new(Silent)).unwrap();
        for step in &steps {
            prop_assert_eq!(run(&mut stored, step), run(&mut in_memory, step), "{:?}", step);
        }
        let (mut one, mut other) = (Picture::new(), Picture::new());
        as_guest(&mut stored, DATA, &mut one);
        as_guest(&mut in_memory, DATA, &mut other);
        prop_assert_eq!(one, other);
    }
}

#[test]
fn files_do_not_move_between_a_storage_and_memory() {
    let outer = tempfile::tempdir().unwrap();
    let mut files = mounted(Arc::new(HostDirectory::open(outer.path()).unwrap()));
    let cwd = At::WorkingDirectory;
    for path in [&b"/tmp/x"[..], b"/pglite/data/y"] {
        let fd = files.open(cwd, path, OpenFlags::READ_WRITE.with(OpenFlags::CREATE), 0o600).unwrap();
        files.close(fd).unwrap();
    }
    let exdev = Err(Errno::EXDEV);
    assert_eq!(files.rename((cwd, b"/tmp/x"), (cwd, b"/pglite/data/x")), exdev);
    assert_eq!(files.rename((cwd, b"/pglite/data/y"), (cwd, b"/tmp/y")), exdev);
    assert_eq!(files.link((cwd, b"/tmp/x"), (cwd, b"/pglite/data/x"), Follow::No), exdev);
    assert_eq!(files.link((cwd, b"/pglite/data/y"), (cwd, b"/tmp/y"), Follow::No), exdev);
    let second_name = files.link((cwd, b"/pglite/data/y"), (cwd, b"/pglite/data/z"), Follow::No);
    assert_eq!(second_name, Err(Errno::EPERM));
    let (guest, host) = pictures(&mut files, outer.path());
    assert_eq!(guest, host);
    assert_eq!(guest.len(), 1);
}

#[test]
fn after_a_sync_that_failed_no_sync_succeeds_until_the_cluster_begins_again() {
    let outer = tempfile::tempdir().unwrap();
    let left = Arc::new(AtomicU32::new(u32::MAX));
    let mut files = mounted(failing(outer.path(), &left));
    let flags = OpenFlags::READ_WRITE.with(OpenFlags::CREATE);
    let mut open = |name, flags| files.open(At::WorkingDirectory, name, flags, 0o600).unwrap();
    let one = open(b"/pglite/data/one", flags);
    let synchronous = open(b"/pglite/data/two", flags.with(OpenFlags::SYNCHRONOUS));
    let directory = open(b"/pglite/data", OpenFlags::READ_ONLY);
    let sync = |files: &Files, fd| files.to_sync(fd).unwrap().expect("it is stored").sync();
    assert_eq!(files.write(synchronous, None, b"x"), Ok(1));
    left.store(0, Ordering::Relaxed);
    assert_eq!(sync(&files, one), Err(Errno::ENOSPC));
    // The disk works again, and would say so, but what it lost is lost.
    for fd in [one, directory] {
        assert_eq!(sync(&files, fd), Err(Errno::EIO));
    }
    assert_eq!(files.write(synchronous, None, b"x"), Err(Errno::EIO));
    files.begin_again();
    assert_eq!(sync(&files, one), Ok(()));
    assert_eq!(files.write(synchronous, None, b"x"), Ok(1));
}

/// A file whose sync succeeds after the sync of another process has got an error.
#[derive(Debug)]
struct LostMeanwhile(ToSync);

impl StoredFile for LostMeanwhile {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        assert_eq!(self.0.sync(), Err(Errno::ENOSPC));
        Ok(())
    }
}

#[test]
fn a_sync_during_which_another_one_has_failed_does_not_succeed() {
    let outer = tempfile::tempdir().unwrap();
    let left = Arc::new(AtomicU32::new(u32::MAX));
    let mut files = mounted(failing(outer.path(), &left));
    let flags = OpenFlags::READ_WRITE.with(OpenFlags::CREATE);
    let one = files.open(At::WorkingDirectory, b"/pglite/data/one", flags, 0o600).unwrap();
    let other = files.to_sync(one).unwrap().expect("it is stored");
    let has_lost = other.has_lost.clone();
    left.store(0, Ordering::Relaxed);
    let sync = ToSync { object: Synced::File(Arc::new(LostMeanwhile(other))), has_lost };
    assert_eq!(sync.sync(), Err(Errno::EIO));
}

#[test]
fn a_copy_has_what_is_wanted() {
    let outer = tempfile::tempdir().unwrap();
    let mut tree = Tree::new();
    let data = make_directories(&mut tree, b"/pglite/data/base").unwrap();
    let mut content = Content::default();
    content.write_at(20_000, b"end");
    tree.create(data, b"1", Node::new(Kind::File(content), 0o600)).unwrap();
    let data = make_directories(&mut tree, DATA).unwrap();
    tree.create(data, b"PG_VERSION", Node::new(Kind::File(Content::default()), 0o600)).unwrap();
    tree.create(data, b"link", Node::new(Kind::Symlink(Arc::from(&b"base"[..])), 0o777)).unwrap();
    let directory = HostDirectory::open(outer.path()).unwrap();
    tree.copy_to(DATA, &directory, &|_| true).unwrap();
    let (guest, host) = pictures(&mut mounted(Arc::new(directory)), outer.path());
    assert_eq!(guest, host);
    assert_eq!(host.len(), 4);
    let copied = &host[&b"base/1"[..]];
    assert!(matches!(copied, Seen::File(bytes) if bytes.len() == 20_003 && bytes.ends_with(b"end")));

    let outer = tempfile::tempdir().unwrap();
    let directory = HostDirectory::open(outer.path()).unwrap();
    tree.copy_to(DATA, &directory, &|path| path != b"PG_VERSION").unwrap();
    assert!(!outer.path().join("PG_VERSION").exists() && outer.path().join("base/1").exists());
}

#[test]
fn times_of_the_host_are_shown_to_the_guest() {
    let outer = tempfile::tempdir().unwrap();
    let file = fs::File::create(outer.path().join("f")).unwrap();
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
    let files = mounted(Arc::new(HostDirectory::open(outer.path()).unwrap()));
    let stat = files.stat(At::WorkingDirectory, b"/pglite/data/f", Follow::No).unwrap();
    assert_eq!((stat.attributes.modified.seconds, stat.mode & 0o777), (0, 0o600));
}
