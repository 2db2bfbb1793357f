//! Error numbers as the guest knows them.

use std::fmt;

/// A POSIX error with the number that Emscripten gives it: WASI's, and 100 and up for those that WASI lacks
/// (Emscripten's `bits/errno.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

/// Number and POSIX name of every error that the host answers.
const NAMES: [(u16, &str); 30] = [
    (2, "EACCES"),
    (5, "EAFNOSUPPORT"),
    (6, "EAGAIN"),
    (8, "EBADF"),
    (10, "EBUSY"),
    (20, "EEXIST"),
    (21, "EFAULT"),
    (22, "EFBIG"),
    (28, "EINVAL"),
    (29, "EIO"),
    (31, "EISDIR"),
    (32, "ELOOP"),
    (33, "EMFILE"),
    (34, "EMLINK"),
    (37, "ENAMETOOLONG"),
    (43, "ENODEV"),
    (44, "ENOENT"),
    (48, "ENOMEM"),
    (51, "ENOSPC"),
    (52, "ENOSYS"),
    (54, "ENOTDIR"),
    (55, "ENOTEMPTY"),
    (57, "ENOTSOCK"),
    (59, "ENOTTY"),
    (60, "ENXIO"),
    (63, "EPERM"),
    (64, "EPIPE"),
    (68, "ERANGE"),
    (70, "ESPIPE"),
    (138, "EOPNOTSUPP"),
];

impl Errno {
    /// Permission denied.
    pub const EACCES: Self = Self(2);
    /// Address family not supported.
    pub const EAFNOSUPPORT: Self = Self(5);
    /// Nothing there yet; try again.
    pub const EAGAIN: Self = Self(6);
    /// Not an open file descriptor, or one opened for the other direction.
    pub const EBADF: Self = Self(8);
    /// In use.
    pub const EBUSY: Self = Self(10);
    /// The name is taken.
    pub const EEXIST: Self = Self(20);
    /// A pointer outside the guest's memory.
    pub const EFAULT: Self = Self(21);
    /// File too large.
    pub const EFBIG: Self = Self(22);
    /// Invalid argument.
    pub const EINVAL: Self = Self(28);
    /// Input or output failed.
    pub const EIO: Self = Self(29);
    /// Is a directory.
    pub const EISDIR: Self = Self(31);
    /// Too many symbolic links on the way.
    pub const ELOOP: Self = Self(32);
    /// The process has too many open files.
    pub const EMFILE: Self = Self(33);
    /// Too many links to one file.
    pub const EMLINK: Self = Self(34);
    /// A file name over 255 bytes, or a path over 4095.
    pub const ENAMETOOLONG: Self = Self(37);
    /// The device cannot do that.
    pub const ENODEV: Self = Self(43);
    /// No such file or directory.
    pub const ENOENT: Self = Self(44);
    /// Out of memory.
    pub const ENOMEM: Self = Self(48);
    /// No space left.
    pub const ENOSPC: Self = Self(51);
    /// No such function.
    pub const ENOSYS: Self = Self(52);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(54);
    /// The directory has entries.
    pub const ENOTEMPTY: Self = Self(55);
    /// Not a socket.
    pub const ENOTSOCK: Self = Self(57);
    /// Not a terminal.
    pub const ENOTTY: Self = Self(59);
    /// No such device.
    pub const ENXIO: Self = Self(60);
    /// Not permitted.
    pub const EPERM: Self = Self(63);
    /// The pipe has no reader left.
    pub const EPIPE: Self = Self(64);
    /// The result does not fit.
    pub const ERANGE: Self = Self(68);
    /// Not seekable.
    pub const ESPIPE: Self = Self(70);
    /// Not supported here.
    pub const EOPNOTSUPP: Self = Self(138);

    /// The number, as `errno` holds it.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0 as i32
    }

    /// The POSIX name, `"errno"` for a number without one.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(number, _)| *number == self.0).map_or("errno", |(_, name)| name)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (errno {})", self.name(), self.0)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_posix_name_and_its_wasi_number() {
        assert_eq!(Errno::ENOENT.to_string(), "ENOENT (errno 44)");
        assert_eq!(format!("{:?}", Errno::EOPNOTSUPP), "EOPNOTSUPP");
    }
}
