//! The system's limit of memory mappings (`vm.max_map_count`).

use std::fs;

use rustix::{
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
    param::page_size,
};

/// The limit, and what is kept free when sessions are refused; processes that clusters start by themselves have half of
/// that.
///
/// # Panics
/// When this is not Linux.
pub fn limit_and_margin() -> (usize, usize) {
    let limit: usize =
        fs::read_to_string("/proc/sys/vm/max_map_count").expect("Linux").trim().parse().expect("a number");
    (limit, (limit / 8).min(65536))
}

/// Mappings of one page each, as long as this exists.
pub struct Filling {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Filling {
    /// That many.
    ///
    /// # Panics
    /// When the system does not allow them.
    pub fn of(count: usize) -> Self {
        let length = count * page_size();
        // SAFETY: new addresses, which nothing else uses.
        let map = || unsafe { mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE) };
        let filling = Self { start: map().expect("address space"), length };
        // Neighbours with different protection are mappings of their own.
        for page in (0..count).step_by(2) {
            let place = filling.start.wrapping_byte_add(page * page_size());
            // SAFETY: a page of the mapping above.
            unsafe { mprotect(place, page_size(), MprotectFlags::READ) }.expect("a mapping");
        }
        filling
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, which nothing refers to.
        unsafe { munmap(self.start, self.length) }.expect("it is mapped");
    }
}
