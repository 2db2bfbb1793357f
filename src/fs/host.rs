//! A directory of the host as a [`Storage`].
//!
//! Every path is walked below one descriptor, follows no symbolic link and stays in one file system: by `openat2`
//! where the kernel has it (Linux 5.6), component by component elsewhere, which does not see another file system. So
//! nothing outside of the directory is reached, whatever is renamed or linked in it meanwhile.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};

use super::{
    node::Timestamp,
    storage::{Storage, StoredEntry, StoredEntryKind, StoredFile},
};

/// Modes of new files and directories on the host. The modes that the guest sets are visible only in the guest.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// Flags for opening a directory, to use names in it.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Flags for opening a file.
const FILE: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NOCTTY);

/// How many descriptors the longest operation on names has open at the same time: the two directories of a `rename`,
/// and the one above where paths are walked by components.
const FOR_NAMES: usize = 3;
/// How many files can be opened when there are no other descriptors, such as those that a checkpoint writes and
/// closes.
const FOR_FILES: usize = 13;

/// A directory of the host.
#[derive(Debug)]
pub struct HostDirectory {
    root: OwnedFd,
    reserve: Arc<Reserve>,
}

/// Descriptors that are closed when there are no others, so that an operation can open one. In `PostgreSQL` a process
/// then closes a file of its own and tries again. Here all processes of a cluster share the descriptors, and a
/// `rename` or the `fsync` of a directory that fails for want of one would end the cluster.
#[derive(Debug)]
struct Reserve {
    spare: Mutex<Vec<OwnedFd>>,
    /// What the spare descriptors are copies of.
    root: OwnedFd,
}

impl Reserve {
    /// Calls `act`, which opens a descriptor and returns it. If there is none, it gets one of the reserve.
    fn open<T>(&self, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match act() {
            Err(error) if is_shortage(&error) => {
                let mut spare = self.spare.lock();
                if spare.len() <= FOR_NAMES {
                    return Err(error);
                }
                spare.pop();
                act()
            }
            done => done,
        }
    }

    /// Calls `act`, which opens directories for a moment. If there are no descriptors, it is called again with those
    /// of the reserve, for which one operation waits for the other.
    fn change_names<T>(&self, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match act() {
            Err(error) if is_shortage(&error) => {
                let mut spare = self.spare.lock();
                let kept = spare.len().saturating_sub(FOR_NAMES);
                spare.truncate(kept);
                let done = act();
                self.refill(&mut spare);
                done
            }
            done => done,
        }
    }

    /// Opens as many spare descriptors as are missing and can be had.
    fn refill(&self, spare: &mut Vec<OwnedFd>) {
        let missing = (FOR_NAMES + FOR_FILES).saturating_sub(spare.len());
        spare.extend((0..missing).map_while(|_| self.root.try_clone().ok()));
    }
}

/// Refills the reserve when a file has been closed.
#[derive(Debug)]
struct Refill(Arc<Reserve>);

impl Drop for Refill {
    fn drop(&mut self) {
        self.0.refill(&mut self.0.spare.lock());
    }
}

impl HostDirectory {
    /// The directory at `path`, which may lead through symbolic links.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let reserve = Reserve { spare: Mutex::default(), root: root.try_clone()? };
        reserve.refill(&mut reserve.spare.lock());
        Ok(Self { root, reserve: Arc::new(reserve) })
    }

    /// Whether it is the directory that is at `path` now.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(there)) = (rustix::fs::fstat(&self.root), rustix::fs::stat(path)) else { return false };
        (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
    }

    /// Locks the directory for as long as this value lives, against other programs and against other values for the
    /// same directory in this program. Returns whether it was free. The lock is not a file, so it does not remain when
    /// the program is killed.
    ///
    /// # Errors
    /// The operating system's.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps other users than its owner from looking into it.
    ///
    /// # Errors
    /// The operating system's, if it belongs to another user.
    pub fn hide_from_others(&self) -> io::Result<()> {
        if !Mode::from_raw_mode(rustix::fs::fstat(&self.root)?.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
            return Ok(());
        }
        Ok(rustix::fs::fchmod(&self.root, DIRECTORY_MODE)?)
    }

    /// Opens what is at `path` below the root.
    fn open_below(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        if path.is_empty() {
            return Ok(rustix::fs::openat(&self.root, c".", flags, mode)?);
        }
        match open_beneath(&self.root, path, flags, mode) {
            // Some containers answer that a system call that they do not know is not permitted.
            Err(error) if is_unavailable(&error) => self.open_by_components(path, flags, mode),
            opened => opened,
        }
    }

    fn open_by_components(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let mut names = path.split(|byte| *byte == b'/').peekable();
        let mut at = None;
        while let Some(name) = names.next() {
            if matches!(name, b"" | b"." | b"..") {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let directory = at.as_ref().map_or(self.root.as_fd(), OwnedFd::as_fd);
            if names.peek().is_none() {
                return Ok(rustix::fs::openat(directory, OsStr::from_bytes(name), flags, mode)?);
            }
            at = Some(rustix::fs::openat(directory, OsStr::from_bytes(name), DIRECTORY, Mode::empty())?);
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// The directory that `path` is in, and the last name of `path`.
    fn parent<'a>(&self, path: &'a [u8]) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((self.open_below(parent, DIRECTORY, Mode::empty())?, OsStr::from_bytes(name)))
    }

    fn open_file(&self, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<Arc<dyn StoredFile>> {
        let file = self.reserve.open(|| self.open_below(path, flags, mode))?;
        Ok(Arc::new(HostFile { file: File::from(file), _refill: Refill(self.reserve.clone()) }))
    }

    /// As [`Storage::list`].
    fn entries(&self, path: &[u8]) -> io::Result<Vec<StoredEntry>> {
        let directory = self.open_below(path, DIRECTORY, Mode::empty())?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => StoredEntryKind::File { len: stat.st_size.cast_unsigned() },
                FileType::Directory => StoredEntryKind::Directory,
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
                    StoredEntryKind::Symlink { target: target.into_bytes() }
                }
                _ => StoredEntryKind::Other,
            };
            let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
            let modified = Timestamp { seconds: stat.st_mtime, nanoseconds };
            entries.push(StoredEntry { name: name.to_bytes().to_vec(), kind, modified });
        }
        Ok(entries)
    }
}

fn is_unavailable(error: &io::Error) -> bool {
    let unavailable = [rustix::io::Errno::NOSYS, rustix::io::Errno::PERM].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| unavailable.contains(&number))
}

/// Whether the process or the system has no descriptors left.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| shortages.contains(&number))
}

#[cfg(target_os = "linux")]
fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(root, OsStr::from_bytes(path), flags, mode, resolve)?)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(_: &OwnedFd, _: &[u8], _: OFlags, _: Mode) -> io::Result<OwnedFd> {
    Err(rustix::io::Errno::NOSYS.into())
}

impl Storage for HostDirectory {
    fn open(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        self.open_file(path, FILE, Mode::empty())
    }

    fn create(&self, path: &[u8]) -> io::Result<Arc<dyn StoredFile>> {
        self.open_file(path, FILE | OFlags::CREATE | OFlags::EXCL, FILE_MODE)
    }

    fn create_directory(&self, path: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| {
            let (parent, name) = self.parent(path)?;
            Ok(rustix::fs::mkdirat(parent, name, DIRECTORY_MODE)?)
        })
    }

    fn create_symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| {
            let (parent, name) = self.parent(path)?;
            Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name)?)
        })
    }

    fn unlink(&self, path: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| {
            let (parent, name) = self.parent(path)?;
            Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
        })
    }

    fn remove_directory(&self, path: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| {
            let (parent, name) = self.parent(path)?;
            Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
        })
    }

    fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| {
            let ((old, old_name), (new, new_name)) = (self.parent(from)?, self.parent(to)?);
            Ok(rustix::fs::renameat(old, old_name, new, new_name)?)
        })
    }

    fn sync_directory(&self, path: &[u8]) -> io::Result<()> {
        self.reserve.change_names(|| Ok(rustix::fs::fsync(self.open_below(path, DIRECTORY, Mode::empty())?)?))
    }

    fn list(&self, path: &[u8]) -> io::Result<Vec<StoredEntry>> {
        self.reserve.change_names(|| self.entries(path))
    }
}

/// A file of the host.
#[derive(Debug)]
struct HostFile {
    file: File,
    /// Dropped after the file is closed.
    _refill: Refill,
}

impl StoredFile for HostFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        // A signal or the end of a page's cache may cut a read short.
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Returns the bytes written so far; the next call returns the error.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, from: u64, end: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), from, end.saturating_sub(from)) {
                Err(rustix::io::Errno::INTR) => {}
                allocated => return Ok(allocated?),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn directory() -> (tempfile::TempDir, HostDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let host = HostDirectory::open(directory.path()).unwrap();
        (directory, host)
    }

    #[test]
    fn files_are_written_where_their_names_say_and_only_their_owner_may_read_them() {
        use std::os::unix::fs::PermissionsExt;
        let (outer, host) = directory();
        host.create_directory(b"base").unwrap();
        let file = host.create(b"base/1").unwrap();
        assert_eq!(file.write_at(3, b"abc").unwrap(), 3);
        file.sync().unwrap();
        host.sync_directory(b"base").unwrap();
        assert_eq!(fs::read(outer.path().join("base/1")).unwrap(), b"\0\0\0abc");
        let mode = |path: &str| fs::metadata(outer.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("base"), mode("base/1")), (0o700, 0o600));
        assert!(host.create(b"base/1").is_err(), "it is there");
        let mut buffer = [9; 8];
        assert_eq!(host.open(b"base/1").unwrap().read_at(1, &mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"\0\0abc");
    }

    #[test]
    fn no_path_and_no_symbolic_link_leads_out_of_the_directory() {
        let (outer, host) = directory();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), outer.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), outer.path().join("file")).unwrap();
        let outside_name = outside.path().file_name().unwrap().as_encoded_bytes();
        let up = [b"../", outside_name, b"/secret"].concat();
        let absolute = outside.path().join("secret").into_os_string().into_encoded_bytes();
        for path in [&b"link/secret"[..], b"file", &up, &absolute] {
            let name = String::from_utf8_lossy(path);
            assert!(host.open(path).is_err(), "{name}");
            assert!(host.open_by_components(path, FILE, Mode::empty()).is_err(), "{name}");
        }
        for path in [&b"link/new"[..], b"../new", b"..", b"."] {
            let name = String::from_utf8_lossy(path);
            assert!(host.create(path).is_err(), "{name}");
            assert!(host.create_directory(path).is_err(), "{name}");
            assert!(host.rename(b"file", path).is_err(), "{name}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_locked_once_and_free_when_its_owner_is_gone() {
        let (outer, host) = directory();
        let other = HostDirectory::open(&outer.path().join(".")).unwrap();
        assert!(host.try_lock().unwrap());
        assert!(!other.try_lock().unwrap());
        drop(host);
        assert!(other.try_lock().unwrap());
    }
}
