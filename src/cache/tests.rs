use std::os::unix::fs::PermissionsExt;

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
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = format!("{:#}", Cache::open(Some(outer.path())).unwrap_err());
    assert!(error.contains("others may write to it (mode 0777)"), "{error}");
    assert!(error.contains("--cache-dir"), "{error}");
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

fn names(cache: &Cache) -> Vec<String> {
    let entries = fs::read_dir(cache.path("")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
