//! All metrics of clusters, each named once. Where `postgres_exporter` has a name for the same thing, it is that name,
//! although some of these are not as Prometheus' conventions want them.

use super::{
    exposition::{Exposition, Family, Kind, Labels},
    process,
};
use crate::{
    administration::{Watched, WatchedCluster},
    engine::artefact::{PGLITE_VERSION, POSTGRES_VERSION},
    quota::{self, Usage},
    tally::{Doing, ENTRANCE, Histogram, Tally},
};

/// A counter of every cluster.
struct Count {
    family: Family,
    read: fn(&Tally) -> u64,
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

const fn count(name: &'static str, help: &'static str, read: fn(&Tally) -> u64) -> Count {
    Count { family: Family { name, kind: Kind::Counter, help }, read }
}

static INFO: Family = gauge("pglite_port_info", "1, with the versions of the program, of PGlite and of PostgreSQL.");
static READY: Family = gauge("pglite_port_ready", "1 if clients get a session, else 0.");
static CLUSTERS: Family = gauge("pglite_port_clusters", "Clusters that take several sessions.");
static WARM: Family = gauge("pglite_port_warm_clones", "Clones and copies of clusters that are ready to be taken.");
static CACHE: Family =
    gauge("pglite_port_cache_bytes", "Compiled code, clusters and templates in the cache; counted once a minute.");
static CLUSTER_STARTS: Family =
    histogram("pglite_port_cluster_start_seconds", "How long it took to start clusters that take several sessions.");
static UP: Family = gauge("pg_up", "1 if the cluster takes sessions, else 0.");
static ALLOCATED: Family = gauge(
    "pglite_port_allocated_bytes",
    "Memory that clusters have allocated, without what they share with templates.",
);
static USED: Family = gauge("pglite_port_memory_used_bytes", "Memory of the program that counts against its limit.");
static LIMIT: Family = gauge("pglite_port_memory_limit_bytes", "The limit of the program's memory.");
static ISOLATED: Family = gauge(
    "pglite_port_isolated_memory_bytes",
    "Memory of the clusters of isolated connections, without what they share with templates: of all, and of the largest.",
);
static ISOLATED_DISK: Family = gauge(
    "pglite_port_isolated_disk_bytes",
    "The length of all files of the clusters of isolated connections: of all, and of the largest.",
);
static ACTIVITY: Family =
    gauge("pg_stat_activity_count", "Sessions of clients by what they do, as their messages show it.");
static HALF_OPEN: Family = gauge("pglite_port_half_open_connections", "Connections whose clients were not let in yet.");
static REFUSED: Family = Family {
    name: "pglite_port_refused_connections_total",
    kind: Kind::Counter,
    help: "Connections that an error of the program ended before they had a session, by the class of its SQLSTATE.",
};
static ERRORS: Family = Family {
    name: "pglite_port_errors_total",
    kind: Kind::Counter,
    help: "Errors that clients were sent, by the class of their SQLSTATE.",
};

/// What clusters that take several sessions use, and may; a limit is missing where there is none.
static USES: &[(Family, fn(&WatchedCluster) -> Option<u64>)] = &[
    (
        gauge("pglite_port_cluster_memory_bytes", "Memory of the cluster, without what it shares with its template."),
        |it| Some(it.memory),
    ),
    (gauge("pglite_port_cluster_memory_limit_bytes", "The limit of the cluster's memory."), |it| it.limits.memory),
    (gauge("pglite_port_cluster_disk_bytes", "The length of all files of the cluster."), |it| Some(it.disk)),
    (gauge("pglite_port_cluster_disk_limit_bytes", "The limit of the cluster's files."), |it| it.limits.disk),
];

/// Counters of clusters. Those of `pg_stat_database` are sums over the databases of a cluster, since the cluster was
/// made, or the program started. A process adds what it has counted about once a second, and at its end.
static COUNTS: &[Count] = &[
    count("pglite_port_sessions_total", "Sessions of clients that have begun.", |it| it.sessions_begun.get()),
    count("pglite_port_received_bytes_total", "Bytes that clients have sent.", |it| it.received.get()),
    count("pglite_port_sent_bytes_total", "Bytes that clients were sent.", |it| it.sent.get()),
    count("pglite_port_turns_total", "Turns that have begun.", |it| it.turns.get()),
    count(
        "pglite_port_slices_total",
        "How often a process had used up its slice while another one waited, and was asked to hand over.",
        |it| it.slices.get(),
    ),
    count(
        "pglite_port_preemptions_total",
        "How often a process was stopped, because it did not hand over when it was asked to.",
        |it| it.preemptions.get(),
    ),
    count("pglite_port_wal_bytes_total", "Bytes of WAL that transactions have written.", |it| it.wal_bytes.get()),
    count("pglite_port_wal_segments_total", "Segments of WAL that were begun.", |it| it.wal_segments.get()),
    count(
        "pglite_port_checkpoints_total",
        "Checkpoints of the cluster's checkpointer; isolated sessions make those that are due themselves.",
        |it| it.checkpoints.get(),
    ),
    count("pglite_port_autovacuum_workers_total", "Autovacuum workers that were started.", |it| {
        it.autovacuum_workers.get()
    }),
    count("pglite_port_traps_total", "Sessions whose wasm trapped.", |it| it.traps.get()),
    count(
        "pglite_port_unresponsive_sessions_total",
        "Sessions that were ended by force, because they did not check for interrupts when they were to end or to cancel \
         their statement.",
        |it| it.unresponsive.get(),
    ),
    count("pglite_port_restarts_total", "How often the cluster has crashed and was started again.", |it| {
        it.restarts.get()
    }),
    count("pg_stat_database_xact_commit", "Transactions that were committed.", |it| it.database.commits.get()),
    count("pg_stat_database_xact_rollback", "Transactions that were rolled back.", |it| it.database.rollbacks.get()),
    count("pg_stat_database_blks_read", "Blocks that were read from files.", |it| it.database.blocks_read.get()),
    count("pg_stat_database_blks_hit", "Blocks that were found in shared buffers.", |it| it.database.blocks_hit.get()),
    count(
        "pg_stat_database_tup_returned",
        "Rows that were read by scans of tables, and entries by scans of indexes.",
        |it| it.database.tuples_returned.get(),
    ),
    count("pg_stat_database_tup_fetched", "Rows that were fetched by scans of indexes.", |it| {
        it.database.tuples_fetched.get()
    }),
    count("pg_stat_database_tup_inserted", "Rows that were inserted.", |it| it.database.tuples_inserted.get()),
    count("pg_stat_database_tup_updated", "Rows that were updated.", |it| it.database.tuples_updated.get()),
    count("pg_stat_database_tup_deleted", "Rows that were deleted.", |it| it.database.tuples_deleted.get()),
    count("pg_stat_database_temp_files", "Temporary files of queries.", |it| it.database.temporary_files.get()),
    count("pg_stat_database_temp_bytes", "Bytes in temporary files of queries.", |it| {
        it.database.temporary_bytes.get()
    }),
    count("pg_stat_database_deadlocks", "Deadlocks that were detected.", |it| it.database.deadlocks.get()),
];

/// Histograms of clusters.
static HISTOGRAMS: &[(Family, fn(&Tally) -> &Histogram)] = &[
    (
        histogram(
            "pglite_port_session_start_seconds",
            "How long it took to make what a session runs in: a process of its cluster, or a clone.",
        ),
        |it| &it.starts,
    ),
    (
        histogram(
            "pglite_port_turn_wait_seconds",
            "How long processes have waited for a turn that they did not get at once.",
        ),
        |it| &it.waits,
    ),
    (histogram("pglite_port_sync_seconds", "How long syncs of files in a directory of the host have taken."), |it| {
        &it.syncs
    }),
];

/// The text for Prometheus. `watched` is missing while the program starts.
pub(super) fn exposition(watched: Option<&Watched>, is_ready: bool, cache: Option<u64>) -> String {
    let mut exposition = Exposition::default();
    let versions = [("version", env!("CARGO_PKG_VERSION")), ("pglite", PGLITE_VERSION), ("postgres", POSTGRES_VERSION)];
    exposition.family(&INFO).add(&versions, 1);
    exposition.family(&READY).add(&[], u64::from(is_ready));
    if let Some(cache) = cache {
        exposition.family(&CACHE).add(&[], cache);
    }
    process::add(&mut exposition);
    exposition.family(&HALF_OPEN).add(&[], ENTRANCE.half_open());
    let mut refused = exposition.family(&REFUSED);
    for (class, count) in ENTRANCE.refused.by_class() {
        refused.add(&[("class", class)], count);
    }
    add_memory(&mut exposition);
    if let Some(watched) = watched {
        add_clusters(&mut exposition, watched);
    }
    exposition.text()
}

fn add_memory(exposition: &mut Exposition) {
    let Usage { linear_memory, files, shared_memory, images, used, limit } = quota::usage();
    let mut allocated = exposition.family(&ALLOCATED);
    let kinds =
        [("linear_memory", linear_memory), ("files", files), ("shared_memory", shared_memory), ("images", images)];
    for (kind, bytes) in kinds {
        allocated.add(&[("kind", kind)], bytes);
    }
    exposition.family(&USED).add(&[], used);
    if let Some(limit) = limit {
        exposition.family(&LIMIT).add(&[], limit);
    }
}

fn add_clusters(exposition: &mut Exposition, watched: &Watched) {
    exposition.family(&CLUSTERS).add(&[], watched.clusters.len() as u64);
    exposition.family(&WARM).add(&[], watched.warm as u64);
    let mut starts = exposition.family(&CLUSTER_STARTS);
    for (origin, histogram) in
        [("empty", &watched.starts.empty), ("template", &watched.starts.template), ("branch", &watched.starts.branch)]
    {
        starts.add_histogram(&[("origin", origin)], &histogram.observed());
    }
    let mut up = exposition.family(&UP);
    for cluster in &watched.clusters {
        up.add(&[("cluster", &cluster.name)], u64::from(cluster.is_running));
    }
    for (family, read) in USES {
        let mut samples = exposition.family(family);
        for cluster in &watched.clusters {
            if let Some(bytes) = read(cluster) {
                samples.add(&[("cluster", &cluster.name)], bytes);
            }
        }
    }
    for (family, of) in [(&ISOLATED, watched.isolated_memory), (&ISOLATED_DISK, watched.isolated_disk)] {
        let mut samples = exposition.family(family);
        samples.add(&[("of", "all")], of.all);
        samples.add(&[("of", "largest")], of.largest);
    }
    // Clusters of single connections have no names, and are one.
    let isolated = [("mode", "isolated")];
    let named: Vec<[(&'static str, &str); 2]> =
        watched.clusters.iter().map(|cluster| [("mode", "shared"), ("cluster", cluster.name.as_str())]).collect();
    let tallies: Vec<(Labels<'_>, &Tally)> = named
        .iter()
        .zip(&watched.clusters)
        .map(|(labels, cluster)| (&labels[..], &*cluster.tally))
        .chain([(&isolated[..], &*watched.isolated)])
        .collect();
    let mut activity = exposition.family(&ACTIVITY);
    for (labels, tally) in &tallies {
        for (doing, sessions) in Doing::ALL.into_iter().zip(tally.sessions()) {
            activity.add(&[labels, &[("state", doing.name())][..]].concat(), sessions);
        }
    }
    let mut errors = exposition.family(&ERRORS);
    for (labels, tally) in &tallies {
        for (class, count) in tally.errors.by_class() {
            errors.add(&[labels, &[("class", class)][..]].concat(), count);
        }
    }
    for Count { family, read } in COUNTS {
        let mut samples = exposition.family(family);
        for (labels, tally) in &tallies {
            samples.add(labels, read(tally));
        }
    }
    for (family, read) in HISTOGRAMS {
        let mut samples = exposition.family(family);
        for (labels, tally) in &tallies {
            samples.add_histogram(labels, &read(tally).observed());
        }
    }
}
