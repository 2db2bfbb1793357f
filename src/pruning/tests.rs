use std::{fs, os::unix::fs::DirBuilderExt};

use super::*;

const DAY: Duration = Duration::from_hours(24);

/// A cache with these files of a megabyte each, and the days since their last use.
fn stock(files: &[(&str, u64)]) -> (tempfile::TempDir, Stock) {
    let outer = tempfile::tempdir().unwrap();
    let stock = Stock::open(Some(&outer.path().join("cache"))).unwrap();
    for &(name, days) in files {
        fs::write(stock.cache.path(name), vec![1; 1_000_000]).unwrap();
        use_ago(&stock.cache.path(name), days);
    }
    (outer, stock)
}

fn use_ago(path: &Path, days: u64) {
    File::open(path).unwrap().set_modified(SystemTime::now() - DAY * u32::try_from(days).unwrap()).unwrap();
}

fn names(stock: &Stock) -> Vec<String> {
    stock.entries().unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn what_was_not_used_for_long_goes_and_what_is_not_the_programs_stays() {
    let (_outer, stock) =
        stock(&[("a.cwasm", 29), ("cluster-1", 31), ("extension-1", 32), ("pglite-1", 400), ("mine.txt", 400)]);
    assert_eq!(names(&stock), ["a.cwasm", "cluster-1", "extension-1", "pglite-1"]);
    let pruned = stock.prune(Limits { unused_for: UNUSED_FOR, size: None }).unwrap();
    assert_eq!((pruned.entries, pruned.failures.len(), names(&stock)), (3, 0, vec!["a.cwasm".to_owned()]));
    assert!(pruned.bytes >= 3_000_000 && (1_000_000..1_100_000).contains(&pruned.remaining), "{pruned:?}");
    assert!(stock.cache.path("mine.txt").exists());
}

#[test]
fn until_the_size_is_kept_what_was_not_used_for_the_longest_time_goes_first_unless_it_is_in_use() {
    let (_outer, stock) = stock(&[("a.cwasm", 1), ("b.cwasm", 4), ("c.cwasm", 3), ("d.cwasm", 2)]);
    let in_use = stock.cache.hold("b.cwasm").unwrap();
    use_ago(&stock.cache.path("b.cwasm"), 4);
    let limits = Limits { unused_for: UNUSED_FOR, size: Some(2_500_000) };
    assert_eq!(stock.prune(limits).unwrap().entries, 2);
    assert_eq!(names(&stock), ["b.cwasm", "a.cwasm"]);
    assert_eq!(stock.prune(limits).unwrap().entries, 0);
    drop(in_use);
    assert_eq!(stock.prune(Limits { size: Some(0), ..limits }).unwrap().remaining, 0);
}

#[test]
fn what_cannot_be_removed_is_told_and_the_others_go() {
    let (_outer, stock) = stock(&[("a.cwasm", 40), ("b.cwasm", 40)]);
    // A directory at the path of `a`'s lock file.
    fs::DirBuilder::new().mode(0o700).create(stock.cache.path("a.cwasm.lock")).unwrap();
    let pruned = stock.prune(Limits { unused_for: UNUSED_FOR, size: None }).unwrap();
    let failures: Vec<String> = pruned.failures.iter().map(|error| format!("{error:#}")).collect();
    assert!(failures.len() == 1 && failures[0].contains("a.cwasm cannot be removed"), "{failures:?}");
    assert_eq!(names(&stock), ["a.cwasm"]);
}

#[test]
fn it_is_done_once_a_day() {
    let (outer, stock) = stock(&[("a.cwasm", 40)]);
    let directory = outer.path().join("cache");
    assert_eq!(prune_when_due(Some(&directory)).unwrap().entries, 1);
    fs::write(stock.cache.path("a.cwasm"), "1").unwrap();
    use_ago(&stock.cache.path("a.cwasm"), 40);
    assert_eq!(prune_when_due(Some(&directory)).unwrap().entries, 0);
    use_ago(&stock.cache.path(LOOKED), 2);
    assert_eq!(prune_when_due(Some(&directory)).unwrap().entries, 1);
}
