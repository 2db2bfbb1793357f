//! The control groups of this process (Linux' `cgroups(7)`), which limit its memory and its threads.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The directories of the groups with `controller` that this process is in, and of those above them. A container sees
/// its own group as the root.
pub(crate) fn directories(controller: &str) -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(|line| of_line(line, controller)).flatten().collect()
}

/// Those of a line of `/proc/self/cgroup`.
fn of_line(line: &str, controller: &str) -> Option<Vec<PathBuf>> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let root = match controllers {
        "" => Path::new("/sys/fs/cgroup").to_owned(),
        _ if controllers.split(',').any(|name| name == controller) => Path::new("/sys/fs/cgroup").join(controller),
        _ => return None,
    };
    let groups = Path::new(path).ancestors().filter_map(|group| group.strip_prefix("/").ok());
    Some(groups.map(|group| root.join(group)).collect())
}

/// The number in a file; `None` if there is none, such as where there is no limit.
pub(crate) fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_both_versions_are_found_with_those_above() {
        let found = |line, controller| {
            let directories = of_line(line, controller).unwrap_or_default();
            directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("0::/a/b", "memory"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"]);
        assert_eq!(found("9:pids:/a", "pids"), ["/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids/"]);
        assert!(found("9:pids:/a", "memory").is_empty());
        assert!(found("no line", "memory").is_empty());
    }
}
