use std::{
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, SystemTime},
};

use super::*;

#[test]
fn a_new_cache_directory_is_private() {
    let outer = tempfile::tempdir().unwrap();
    let place = outer.path().join("a/b");
    Cache::open(Some(&place)).unwrap();
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let outer = tempfile::tempdir().unwrap();
    for (mode, told) in [(0o777, "0777"), (0o770, "0770"), (0o702, "0702")] {
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = format!("{:#}", Cache::open(Some(outer.path())).unwrap_err());
        assert!(error.contains(&format!("others can write to it (mode {told})")), "{error}");
        assert!(error.contains("--cache-dir"), "{error}");
    }
}

#[test]
fn a_published_directory_replaces_the_one_before_it_whole() {
    let outer = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
    for content in ["one", "two"] {
        let lock = cache.lock("entry").unwrap();
        cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join(content), content)?)).unwrap();
    }
    assert!(!cache.path("entry").join("one").exists());
    assert_eq!(fs::read_to_string(cache.path("entry").join("two")).unwrap(), "two");
    assert_eq!(names(&cache), ["entry", "entry.lock"], "nothing else is left behind");
}

#[test]
fn a_failed_fill_leaves_what_was_there() {
    let outer = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
    let lock = cache.lock("entry").unwrap();
    cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join("x"), "1")?)).unwrap();
    cache.publish_directory(&lock, |_| bail!("no")).unwrap_err();
    assert!(cache.path("entry").join("x").exists());
    assert_eq!(names(&cache), ["entry", "entry.lock"]);
}

#[test]
fn what_a_dead_process_left_half_done_is_swept_away_by_the_next_one() {
    let outer = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
    for name in [".new-entry", ".old-entry", ".new-other"] {
        fs::create_dir(cache.path(name)).unwrap();
        fs::write(cache.path(name).join("half"), "1").unwrap();
    }
    let lock = cache.lock("entry").unwrap();
    cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join("x"), "1")?)).unwrap();
    assert_eq!(names(&cache), [".new-other", "entry", "entry.lock"]);
    assert!(!cache.path("entry").join("half").exists());
    assert!(cache.remove_directory(&lock).unwrap());
    assert!(!cache.remove_directory(&lock).unwrap());
    assert_eq!(names(&cache), [".new-other", "entry.lock"]);
}

/// A cache with the entry `entry`, a directory that was last used `days` days ago.
fn with_entry(days: u64) -> (tempfile::TempDir, Cache) {
    let outer = tempfile::tempdir().unwrap();
    let cache = Cache::open(Some(&outer.path().join("c"))).unwrap();
    let lock = cache.lock("entry").unwrap();
    cache.publish_directory(&lock, |directory| Ok(fs::write(directory.join("x"), [1; 5000])?)).unwrap();
    use_ago(&cache, "entry", Duration::from_hours(24 * days));
    (outer, cache)
}

fn use_ago(cache: &Cache, name: &str, age: Duration) {
    File::open(cache.path(name)).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

fn entry(cache: &Cache) -> Usage {
    let [entry] = cache.entries().unwrap().try_into().unwrap();
    entry
}

#[test]
fn an_entry_is_listed_with_its_size_and_the_day_of_its_last_use() {
    let (_outer, cache) = with_entry(40);
    let found = entry(&cache);
    assert!(
        found.name == "entry" && found.size >= 5000 && age(found.used) > Duration::from_hours(24 * 39),
        "{found:?}"
    );
    drop(cache.hold("entry").unwrap().unwrap());
    assert!(age(entry(&cache).used) < Duration::from_hours(1));
    // Not again on the same day.
    use_ago(&cache, "entry", Duration::from_hours(23));
    let before = entry(&cache);
    drop(cache.hold("entry").unwrap().unwrap());
    assert_eq!(entry(&cache), before);
}

#[test]
fn an_entry_is_not_removed_while_it_is_used_and_counts_as_used_then() {
    let (_outer, cache) = with_entry(40);
    let looked_at = entry(&cache);
    let held = [cache.hold("entry").unwrap().unwrap(), cache.hold("entry").unwrap().unwrap()];
    for in_use in held {
        use_ago(&cache, "entry", Duration::from_hours(24 * 40));
        assert_eq!(cache.remove_unused(&entry(&cache)).unwrap(), Removed::InUse);
        assert!(age(entry(&cache).used) < Duration::from_hours(1));
        drop(in_use);
    }
    assert_eq!(cache.remove_unused(&looked_at).unwrap(), Removed::InUse, "it has been used since");
    assert_eq!(cache.remove_unused(&entry(&cache)).unwrap(), Removed::Yes);
    assert_eq!(names(&cache), [""; 0], "its lock file is gone too");
    assert!(cache.hold("entry").unwrap().is_none());
}

#[test]
fn an_entry_that_is_being_made_is_not_removed() {
    let (_outer, cache) = with_entry(40);
    let lock = cache.lock("entry").unwrap();
    assert_eq!(cache.remove_unused(&entry(&cache)).unwrap(), Removed::InUse);
    drop(lock);
    assert_eq!(cache.remove_unused(&entry(&cache)).unwrap(), Removed::Yes);
}

#[test]
fn parts_of_an_entry_are_removed_and_its_last_use_stays() {
    let (_outer, cache) = with_entry(40);
    let before = entry(&cache).used;
    fs::write(cache.path("entry").join("kept"), "1").unwrap();
    use_ago(&cache, "entry", before.elapsed().unwrap());
    let before = entry(&cache);
    assert_eq!(cache.remove_unused_parts(&before, &["x", "missing"]).unwrap(), Removed::Yes);
    let after = entry(&cache);
    assert!(after.used == before.used && after.size < before.size, "{after:?}");
    assert!(cache.path("entry").join("kept").exists());
}

#[test]
fn what_dead_processes_left_is_swept_and_what_live_ones_make_is_not() {
    let (_outer, cache) = with_entry(0);
    for name in [".new-dead", ".new-live", ".old-dead"] {
        fs::create_dir(cache.path(name)).unwrap();
    }
    for name in [".new-old-file", ".new-file", ".old-entry", "gone.lock", ".pruned"] {
        fs::write(cache.path(name), "").unwrap();
    }
    use_ago(&cache, ".new-old-file", Duration::from_hours(25));
    let _live = cache.lock("live").unwrap();
    cache.sweep().unwrap();
    assert_eq!(names(&cache), [".new-file", ".new-live", ".pruned", "entry", "entry.lock", "live.lock"]);
}

#[test]
fn two_never_hold_a_lock_whose_file_was_removed_while_one_waited_for_it() {
    let (_outer, cache) = with_entry(40);
    let lock = cache.lock("entry").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| cache.lock("entry").unwrap());
        let inode = fs::metadata(cache.path("entry.lock")).unwrap().ino();
        let waits = |line: &str| line.contains(" -> ") && line.contains(&format!(":{inode} "));
        while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
            thread::yield_now();
        }
        fs::remove_file(cache.path("entry.lock")).unwrap();
        drop(lock);
        let _held = waiting.join().unwrap();
        assert_eq!(cache.remove_unused(&entry(&cache)).unwrap(), Removed::InUse);
    });
}

fn names(cache: &Cache) -> Vec<String> {
    let entries = fs::read_dir(cache.path("")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
