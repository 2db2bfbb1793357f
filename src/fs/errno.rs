//! Error numbers as the guest knows them.

use std::{fmt, io};

/// A POSIX error with the number that Emscripten gives it: WASI's, and 100 and up for those that WASI lacks
/// (Emscripten's `bits/errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Permission denied.
    EACCES = 2,
    /// Address family not supported.
    EAFNOSUPPORT = 5,
    /// Nothing there yet; try again.
    EAGAIN = 6,
    /// Not an open file descriptor, or one opened for the other direction.
    EBADF = 8,
    /// In use.
    EBUSY = 10,
    /// The client is gone.
    ECONNRESET = 15,
    /// The quota of the file system's user is exhausted.
    EDQUOT = 19,
    /// The name is taken.
    EEXIST = 20,
    /// A pointer outside the guest's memory.
    EFAULT = 21,
    /// File too large.
    EFBIG = 22,
    /// Invalid argument.
    EINVAL = 28,
    /// Input or output failed.
    EIO = 29,
    /// Is a directory.
    EISDIR = 31,
    /// Too many symbolic links on the way.
    ELOOP = 32,
    /// The process has too many open files.
    EMFILE = 33,
    /// Too many links to one file.
    EMLINK = 34,
    /// A file name over 255 bytes, or a path over 4095.
    ENAMETOOLONG = 37,
    /// The system has too many open files.
    ENFILE = 41,
    /// The device cannot do that.
    ENODEV = 43,
    /// No such file or directory.
    ENOENT = 44,
    /// Out of memory.
    ENOMEM = 48,
    /// No room left.
    ENOSPC = 51,
    /// Not a directory.
    ENOTDIR = 54,
    /// The directory has entries.
    ENOTEMPTY = 55,
    /// Not a terminal.
    ENOTTY = 59,
    /// No such device.
    ENXIO = 60,
    /// Not permitted.
    EPERM = 63,
    /// The pipe has no reader left.
    EPIPE = 64,
    /// The result does not fit.
    ERANGE = 68,
    /// The file system is read-only.
    EROFS = 69,
    /// Not seekable.
    ESPIPE = 70,
    /// No such process.
    ESRCH = 71,
    /// The two names are in different storages.
    EXDEV = 75,
    /// Not supported here.
    EOPNOTSUPP = 138,
}

impl Errno {
    /// The number, as `errno` holds it.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?} (errno {})", self.number())
    }
}

impl std::error::Error for Errno {}

/// The error that the guest gets when the operating system fails.
impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::OutOfMemory => Self::ENOMEM,
            io::ErrorKind::StorageFull => Self::ENOSPC,
            io::ErrorKind::QuotaExceeded => Self::EDQUOT,
            io::ErrorKind::ReadOnlyFilesystem => Self::EROFS,
            io::ErrorKind::FileTooLarge => Self::EFBIG,
            io::ErrorKind::NotFound => Self::ENOENT,
            io::ErrorKind::AlreadyExists => Self::EEXIST,
            io::ErrorKind::PermissionDenied => Self::EACCES,
            io::ErrorKind::DirectoryNotEmpty => Self::ENOTEMPTY,
            io::ErrorKind::NotADirectory => Self::ENOTDIR,
            io::ErrorKind::IsADirectory => Self::EISDIR,
            io::ErrorKind::InvalidFilename => Self::ENAMETOOLONG,
            io::ErrorKind::CrossesDevices => Self::EXDEV,
            io::ErrorKind::Unsupported => Self::EOPNOTSUPP,
            _ => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::MFILE) => Self::EMFILE,
                Some(rustix::io::Errno::NFILE) => Self::ENFILE,
                Some(rustix::io::Errno::LOOP) => Self::ELOOP,
                _ => Self::EIO,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_posix_name_and_its_wasi_number() {
        assert_eq!(Errno::ENOENT.to_string(), "ENOENT (errno 44)");
        assert_eq!(format!("{:?}", Errno::EOPNOTSUPP), "EOPNOTSUPP");
    }

    #[test]
    fn what_the_system_lacks_the_guest_lacks() {
        use rustix::io::Errno as System;
        let errors = [
            (System::NOMEM, Errno::ENOMEM),
            (System::NOSPC, Errno::ENOSPC),
            (System::DQUOT, Errno::EDQUOT),
            (System::ROFS, Errno::EROFS),
            (System::MFILE, Errno::EMFILE),
            (System::NFILE, Errno::ENFILE),
            (System::NOENT, Errno::ENOENT),
            (System::EXIST, Errno::EEXIST),
            (System::ACCESS, Errno::EACCES),
            (System::NOTEMPTY, Errno::ENOTEMPTY),
            (System::NOTDIR, Errno::ENOTDIR),
            (System::ISDIR, Errno::EISDIR),
            (System::LOOP, Errno::ELOOP),
            (System::FBIG, Errno::EFBIG),
            (System::XDEV, Errno::EXDEV),
            (System::IO, Errno::EIO),
            (System::STALE, Errno::EIO),
        ];
        for (system, guest) in errors {
            let told = Errno::from(io::Error::from_raw_os_error(system.raw_os_error()));
            assert_eq!(told, guest, "{system:?}");
        }
    }
}
