//! C structures that system calls fill in, as Emscripten's musl lays them out
//! (`system/lib/libc/musl/arch/emscripten/bits`).

use super::SyscallResult;
use crate::{
    fs::{DirectoryEntry, Errno, S_IFCHR, S_IFDIR, S_IFLNK, Stat, Timestamp},
    guest::memory,
};

/// The size of `struct stat`.
const STAT: u32 = 96;
/// The size of `struct statfs`.
const STATFS: u32 = 72;
/// The size of `struct dirent`.
pub(super) const DIRENT: u32 = 280;
/// The preferred size of a read for files, and the block size of the file system.
const BLOCK: u32 = 4096;
/// The unit of `st_blocks` (`stat(2)`).
const STAT_BLOCK: u64 = 512;

/// Offsets in `struct stat`.
mod stat {
    pub(super) const DEV: u32 = 0;
    pub(super) const MODE: u32 = 4;
    pub(super) const NLINK: u32 = 8;
    pub(super) const RDEV: u32 = 20;
    pub(super) const SIZE: u32 = 24;
    pub(super) const BLKSIZE: u32 = 32;
    pub(super) const BLOCKS: u32 = 36;
    pub(super) const ATIME: u32 = 40;
    pub(super) const MTIME: u32 = 56;
    pub(super) const CTIME: u32 = 72;
    pub(super) const INO: u32 = 88;
}

/// Offsets in `struct statfs`.
mod statfs {
    pub(super) const BSIZE: u32 = 4;
    pub(super) const BLOCKS: u32 = 8;
    pub(super) const BFREE: u32 = 16;
    pub(super) const BAVAIL: u32 = 24;
    pub(super) const FILES: u32 = 32;
    pub(super) const FFREE: u32 = 40;
    pub(super) const FSID: u32 = 48;
    pub(super) const NAMELEN: u32 = 56;
    pub(super) const FRSIZE: u32 = 60;
    pub(super) const FLAGS: u32 = 64;
}

/// Offsets in `struct dirent`.
mod dirent {
    pub(super) const INO: u32 = 0;
    pub(super) const OFF: u32 = 8;
    pub(super) const RECLEN: u32 = 16;
    pub(super) const TYPE: u32 = 18;
    pub(super) const NAME: u32 = 19;
}

/// Fills in a `struct stat`; owner and group are 0.
pub(super) fn write_stat(memory: &mut [u8], buffer: u32, stat: &Stat) -> SyscallResult {
    let fields = memory::bytes_mut(memory, buffer, STAT)?;
    fields.fill(0);
    memory::write_u32(fields, stat::DEV, 1)?;
    memory::write_u32(fields, stat::MODE, stat.mode)?;
    memory::write_u32(fields, stat::NLINK, stat.attributes.links)?;
    memory::write_u32(fields, stat::RDEV, stat.device)?;
    memory::write_u64(fields, stat::SIZE, stat.size)?;
    memory::write_u32(fields, stat::BLKSIZE, BLOCK)?;
    // The field has 32 bits; PostgreSQL does not read it.
    let blocks = u32::try_from(stat.size.div_ceil(STAT_BLOCK)).unwrap_or(u32::MAX);
    memory::write_u32(fields, stat::BLOCKS, blocks)?;
    let times = [
        (stat::ATIME, stat.attributes.accessed),
        (stat::MTIME, stat.attributes.modified),
        (stat::CTIME, stat.attributes.changed),
    ];
    for (offset, Timestamp { seconds, nanoseconds }) in times {
        memory::write_u64(fields, offset, seconds.cast_unsigned())?;
        memory::write_u32(fields, offset + 8, nanoseconds)?;
    }
    memory::write_u64(fields, stat::INO, stat.ino.0)?;
    Ok(0)
}

/// Fills in a `struct statfs` with the figures of Emscripten's `FS.statfsNode` (`libfs.js`), because a file system in
/// memory has no size. `inodes` is the number of inodes that were assigned.
pub(super) fn write_statfs(memory: &mut [u8], buffer: u32, inodes: u64) -> SyscallResult {
    let fields = memory::bytes_mut(memory, buffer, STATFS)?;
    fields.fill(0);
    memory::write_u32(fields, statfs::BSIZE, BLOCK)?;
    memory::write_u32(fields, statfs::FRSIZE, BLOCK)?;
    memory::write_u64(fields, statfs::BLOCKS, 1_000_000)?;
    memory::write_u64(fields, statfs::BFREE, 500_000)?;
    memory::write_u64(fields, statfs::BAVAIL, 500_000)?;
    memory::write_u64(fields, statfs::FILES, inodes)?;
    memory::write_u64(fields, statfs::FFREE, inodes.saturating_sub(1))?;
    memory::write_u32(fields, statfs::FSID, 42)?;
    memory::write_u32(fields, statfs::FLAGS, 2)?;
    memory::write_u32(fields, statfs::NAMELEN, 255)?;
    Ok(0)
}

/// Fills in a `struct dirent`.
pub(super) fn write_dirent(memory: &mut [u8], buffer: u32, entry: &DirectoryEntry) -> Result<(), Errno> {
    let fields = memory::bytes_mut(memory, buffer, DIRENT)?;
    fields.fill(0);
    memory::write_u64(fields, dirent::INO, entry.ino.0)?;
    memory::write_u64(fields, dirent::OFF, entry.next)?;
    memory::write_u16(fields, dirent::RECLEN, 280)?;
    let kind = match entry.kind {
        S_IFCHR => 2,
        S_IFDIR => 4,
        S_IFLNK => 10,
        _ => 8,
    };
    memory::write_bytes(fields, dirent::TYPE, &[kind])?;
    // The bytes after the name are zero already, its final NUL included.
    memory::write_bytes(fields, dirent::NAME, &entry.name)?;
    Ok(())
}
