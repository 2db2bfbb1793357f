use super::*;

fn limited(memory: Option<u64>, disk: Option<u64>) -> Arc<Quota> {
    let quota = Quota::unlimited();
    quota.limit(Limits { memory, disk }, || "a test".to_owned());
    quota
}

#[test]
fn what_is_held_counts_until_it_is_dropped_and_no_more_than_the_limit_is_granted() {
    // A thirty-second is kept.
    let quota = limited(Some(103), None);
    let mut linear = Held::new(quota.clone(), Resource::LinearMemory);
    let mut files = Held::new(quota.clone(), Resource::Files);
    assert!(linear.grow(60) && files.grow(40));
    assert!(!files.grow(1) && !linear.grow(1), "both are memory");
    assert_eq!(quota.used(), (100, 0));
    drop(linear);
    assert!(files.grow(60));
    files.set(10);
    assert_eq!(quota.used(), (10, 0));
}

#[test]
fn the_last_part_of_a_limit_is_for_small_needs() {
    let mut held = Held::new(limited(Some(3200), None), Resource::Files);
    held.add(3100);
    assert!(!held.has_room(1, Need::Bulk));
    assert!(held.has_room(100, Need::Small) && !held.has_room(101, Need::Small));
}

#[test]
fn disk_and_memory_have_limits_of_their_own() {
    let quota = limited(Some(1), Some(1032));
    let mut disk = Held::new(quota.clone(), Resource::Disk);
    assert!(disk.grow(1000) && !disk.grow(1));
    assert!(Held::new(quota, Resource::Files).grow(1));
}

#[test]
fn what_must_be_is_counted_beyond_the_limit_and_ends_what_may_be() {
    let quota = limited(Some(100), None);
    let mut held = Held::new(quota.clone(), Resource::Files);
    held.add(150);
    assert!(!held.has_room(1, Need::Small));
    assert_eq!(quota.used().0, 150);
    quota.limit(Limits::default(), String::new);
    assert!(held.has_room(1 << 20, Need::Bulk));
}

#[test]
fn limits_of_a_cluster_come_before_those_of_the_program_and_a_tiny_one_is_refused() {
    let own = Limits { memory: Some(LEAST_MEMORY), disk: None };
    let others = Limits { memory: Some(1 << 30), disk: Some(1 << 31) };
    assert_eq!(own.or(others), Limits { memory: Some(LEAST_MEMORY), disk: Some(1 << 31) });
    assert_eq!(own.check(), Ok(own));
    let error = Limits { memory: Some(LEAST_MEMORY - 1), disk: None }.check().unwrap_err().to_string();
    assert!(error.contains("16MB"), "{error}");
}

#[test]
fn sizes_have_postgresqls_units() {
    for (text, bytes) in
        [("1kB", 1 << 10), ("2 MB", 2 << 20), (" 3GB ", 3 << 30), ("1TB", 1 << 40), ("7B", 7), ("0", 0)]
    {
        assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
    }
    for text in ["", "MB", "-1", "1mb", "1 KiB", "nan", "inf", "99999999999TB"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
    let shown = [0, 7, 4096, 5 << 20, (5 << 20) + 1, 3 << 30].map(|bytes| Size(bytes).to_string());
    assert_eq!(shown, ["0B", "7B", "4kB", "5MB", "5120kB", "3GB"]);
}
