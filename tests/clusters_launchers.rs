//! Clusters that were made at once want their autovacuum launchers at once, some seconds later. The only test of its file,
//! because the limit of memory mappings is that of the whole process.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    databases::Settings,
};
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    mappings::{Filling, limit_and_margin},
    process,
};

/// Waits until something is so, for what there is no event.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn launchers_wait_for_mappings_and_nothing_ends_for_want_of_them() {
    let (limit, margin) = limit_and_margin();
    let used = || process::mappings(std::process::id());
    let (databases, connections) = cache::administered(Settings::default());
    // Before the program counts its mappings for the first time.
    let filling = Filling::of(limit - margin - used() - 6000);
    let create = |number: usize| {
        let name = format!("cluster{number}");
        let origin = ClusterOrigin::Template("postgres".to_owned());
        databases.create_cluster(NewCluster { name: Some(name.clone()), origin, ..NewCluster::default() }).ok()?;
        let (session, messages) = Local::connect(&connections, Connect { cluster: Some(&name), ..Connect::default() });
        messages.iter().all(|message| message.kind != b'E').then_some(session)
    };
    let mut sessions: Vec<Local> = (0..2000).map_while(create).collect();
    let clusters = sessions.len();
    assert!((100..2000).contains(&clusters), "{clusters} clusters");
    let mut launchers = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum launcher'";
        sessions.iter_mut().filter_map(|session| session.values(sql)[0].parse::<usize>().ok()).sum::<usize>()
    };
    // Some of them have their launchers already if all this has taken long.
    let rest = Filling::of((limit - margin / 2).saturating_sub(used() + 300).max(2));
    wait_until("the mappings for processes are used", || used() + margin / 2 + 400 > limit);
    // The postmasters that have no process of their own yet would need one each.
    databases.reload();
    let some = launchers();
    assert!(used() + margin / 4 < limit, "{} of {limit} with {some} launchers", used());
    assert!(some < clusters, "{some} launchers");
    drop((filling, rest));
    wait_until("each cluster has its launcher", || launchers() == clusters);
}
