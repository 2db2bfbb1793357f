//! Extensions in npm packages of their own: each does what it is for in every kind of cluster, and may be missing.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    engine::artefact::{Artefact, PACKAGES, Package},
    engine::cache::Cache,
    fs::{Archived, read_archive},
    log::LogSink,
    session::Mode,
};
use sha2::{Digest, Sha256};
use support::{
    cache,
    extension::{self, Use, extension, try_one},
    local::{Connect, Local},
    peer::Peer,
    program::Program,
    server::Server,
    session::errors,
};

/// A use of every package but of the one that has to be loaded when the server starts.
const USES: &[Use] = &[
    extension(
        "create extension age; load 'age'",
        "set search_path = ag_catalog, public; select create_graph('people'); \
         select * from cypher('people', $$ create (:Person {name: 'Ann'})-[:KNOWS]->(:Person {name: 'Bob'}) $$) as (a agtype); \
         select * from cypher('people', $$ match (a)-[:KNOWS]->(b) return a.name, b.name $$) as (a agtype, b agtype); \
         reset search_path",
        &["", "\"Ann\"", "\"Bob\""],
    ),
    extension("create extension pg_hashids", "select id_encode(1001), id_decode('jNl')", &["jNl", "{1001}"]),
    extension(
        "create extension pg_ivm",
        "create table sales (shop int, amount int); \
         select pgivm.create_immv('totals', 'select shop, sum(amount) as total from sales group by shop'); \
         insert into sales values (1, 2), (1, 3), (2, 5); select shop, total from totals order by shop; \
         delete from sales where amount = 3; update sales set amount = 7 where shop = 2; \
         select shop, total from totals order by shop",
        &["0", "1", "5", "2", "5", "1", "2", "2", "7"],
    ),
    extension(
        "create extension pg_uuidv7",
        "select substr(uuid_generate_v7()::text, 15, 1), \
         abs(extract(epoch from now() - uuid_v7_to_timestamptz(uuid_generate_v7()))) < 60",
        &["7", "t"],
    ),
    extension(
        "create extension pgmq",
        "select pgmq.create('q'); select pgmq.send('q', '{\"a\": 1}'); select msg_id, message from pgmq.read('q', 30, 1); \
         select count(*) from pgmq.read('q', 30, 1); select pgmq.archive('q', 1); \
         select (select count(*) from pgmq.q_q), (select count(*) from pgmq.a_q)",
        &["", "1", "1", "{\"a\": 1}", "0", "t", "0", "1"],
    ),
    extension(
        "create extension pgtap",
        "begin; create table tested (a int primary key); select plan(4); select ok(true, 'true'); \
         select is(1 + 1, 2, 'sum'); select has_pk('tested'); select is(1, 2, 'no'); select count(*) from finish(); \
         rollback",
        &[
            "1..4",
            "ok 1 - true",
            "ok 2 - sum",
            "ok 3 - Table tested should have a primary key",
            "not ok 4 - no\n# Failed test 4: \"no\"\n#         have: 1\n#         want: 2",
            "1",
        ],
    ),
    extension(
        "create extension vector",
        "create table items as select n, array[n % 10, n % 7, n / 100.0]::vector(3) v, \
         array[n % 10, n % 7, n / 100.0]::halfvec(3) h from generate_series(1, 1000) n; \
         create index by_graph on items using hnsw (v vector_l2_ops); \
         create index by_list on items using ivfflat (h halfvec_l2_ops) with (lists = 10); \
         set enable_seqscan = off; \
         select n from items order by v <-> '[3, 3, 0.03]' limit 1; \
         explain (costs off) select n from items order by v <-> '[3, 3, 0.03]' limit 1; \
         explain (costs off) select n from items order by h <-> '[3, 3, 0.5]' limit 1; \
         reset enable_seqscan; \
         select '{1:1,3:2}/5'::sparsevec <#> '{3:5}/5', l2_distance('[3,4]'::halfvec, '[0,0]')",
        &[
            "3",
            "Limit",
            "->  Index Scan using by_graph on items",
            "Order By: (v <-> '[3,3,0.03]'::vector)",
            "Limit",
            "->  Index Scan using by_list on items",
            "Order By: (h <-> '[3,3,0.5]'::halfvec)",
            "-10",
            "5",
        ],
    ),
];

/// The one that `shared_preload_libraries` has to name.
const PRELOADED: Use = extension(
    "create extension pg_textsearch",
    "create table documents (id int, body text); \
     insert into documents values (1, 'a database'), (2, 'cats and dogs'), (3, 'a database of cats, and more cats'); \
     create index ranked on documents using bm25 (body) with (text_config = 'english'); set enable_seqscan = off; \
     select id from documents order by body <@> 'cats' limit 2; \
     explain (costs off) select id from documents order by body <@> 'cats' limit 2",
    &["3", "2", "Limit", "->  Index Scan using ranked on documents"],
);

const PRELOAD: [&str; 2] = ["--set", "shared_preload_libraries=pg_textsearch"];

/// Uses every package in a server with these arguments, in a session for each.
fn try_all_in(server: &Server) {
    for used in USES.iter().chain([&PRELOADED]) {
        let mut session = server.session(&[]);
        try_one(used, |sql| {
            session.query(sql);
            session.until_ready()
        });
    }
}

#[test]
fn each_does_what_it_is_for_in_a_shared_cluster() {
    try_all_in(&Server::with(&[&["--mode", "shared"], &PRELOAD[..]].concat()));
}

#[test]
fn each_does_what_it_is_for_in_a_directory_and_its_data_are_there_after_a_restart() {
    let data = tempfile::tempdir().expect("a directory");
    let data = data.path().to_str().expect("text");
    let arguments = [&["--data", data], &PRELOAD[..]].concat();
    let server = Server::with(&arguments);
    try_all_in(&server);
    server.kill();
    let server = Server::with(&arguments);
    let peer = Peer::connect(&server);
    assert_eq!(peer.value("set enable_seqscan = off; select n from items order by v <-> '[3, 3, 0.03]' limit 1"), "3");
    assert_eq!(peer.value("select id from documents order by body <@> 'cats' limit 1"), "3");
    peer.run("insert into sales values (2, 1)");
    assert_eq!(peer.value("select total from totals where shop = 2"), "8");
}

#[test]
fn each_does_what_it_is_for_in_a_clone() {
    let connections = cache::connections(Settings::default());
    for used in USES {
        let mut clone = Local::connect(&connections, Connect::default()).0;
        try_one(used, |sql| clone.query(sql));
    }
    let mut origin = Local::connect(&connections, Connect::default()).0;
    origin.values("alter system set shared_preload_libraries = 'pg_textsearch'");
    origin.freeze("preloaded");
    let connect = Connect { template: Some("preloaded"), ..Connect::default() };
    let mut clone = Local::connect(&connections, connect).0;
    try_one(&PRELOADED, |sql| clone.query(sql));
}

#[test]
fn clones_of_a_template_with_extensions_have_their_libraries_loaded_and_their_indexes() {
    let connections = cache::connections(Settings::default());
    let mut origin = Local::connect(&connections, Connect::default()).0;
    origin.values(
        "create extension age; load 'age'; create extension vector; create extension pg_hashids; \
         create table items as select n, array[n, n]::vector(2) v from generate_series(1, 100) n; \
         create index on items using hnsw (v vector_l2_ops); select id_encode(1)",
    );
    origin.freeze("with extensions");
    for _ in 0..2 {
        let connect = Connect { template: Some("with extensions"), ..Connect::default() };
        let mut clone = Local::connect(&connections, connect).0;
        // Each library is another than those before, also to PostgreSQL, which compares their inodes.
        clone.values("create extension pg_ivm; create extension hstore; create extension pg_uuidv7");
        assert_eq!(clone.values("select n from items order by v <-> '[7, 7]' limit 1"), ["7"]);
        assert_eq!(clone.values("select id_encode(1001)"), ["jNl"]);
        assert_eq!(clone.values("select 'a=>1'::hstore -> 'a'"), ["1"]);
    }
}

/// The packages that are installed with PGlite.
fn usual() -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(|package| package.is_usual)
}

#[test]
fn every_package_has_a_use_and_is_pinned_by_npm_with_the_same_version() {
    let created = USES.iter().chain([&PRELOADED]).map(|used| used.load.trim_start_matches("create extension "));
    let used: BTreeSet<&str> = created.map(|rest| rest.split(';').next().unwrap_or(rest)).collect();
    assert_eq!(used, usual().flat_map(|package| package.extensions).copied().collect());
    let read = |path| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("text");
    let (with_pglite, alone) = (read("pglite/package.json"), read("tests/postgis/package.json"));
    for Package { name, version, is_usual, .. } in &PACKAGES {
        let pinned = if *is_usual { &with_pglite } else { &alone };
        assert!(pinned.contains(&format!("\"@electric-sql/{name}\": \"{version}\"")), "{name} {version}");
    }
    let optional =
        with_pglite.split_once("\"optionalDependencies\": {").and_then(|(_, rest)| rest.split_once('}')).expect("some");
    let lines = optional.0.lines().filter(|line| line.contains("/pglite-"));
    assert_eq!(lines.count(), usual().count(), "every package of an extension is in the table");
}

#[test]
fn the_pinned_libraries_are_those_of_the_bundles() {
    let cache = Cache::open(Some(&cache::shared())).expect("a cache");
    let (pglite, with_postgis) = (extension::pglite(), extension::with_postgis());
    for package in &PACKAGES {
        let place = if package.is_usual { &pglite } else { with_postgis.path() };
        let artefact = Artefact::find(Some(place), &cache).expect("PGlite");
        let path = artefact.bundle(package, &cache).expect("it can be read");
        let path = path.unwrap_or_else(|| panic!("{} is not installed: npm ci --prefix pglite", package.name));
        let files = read_archive(fs::File::open(path).expect("a file")).expect("an archive");
        for extension in package.extensions {
            let control = format!("share/postgresql/extension/{extension}.control");
            assert!(files.iter().any(|file| file.path == control), "{control}");
        }
        let library = |file: &pglite_port::fs::ArchivedFile| match &file.content {
            Archived::File { bytes, .. } => {
                let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                Some((file.path.strip_prefix("lib/postgresql/")?.to_owned(), digest))
            }
            _ => None,
        };
        let found: Vec<_> = files.iter().filter_map(library).collect();
        let pinned = package.libraries.iter().map(|file| (file.name.to_owned(), file.sha256.to_owned()));
        assert_eq!(found, pinned.collect::<Vec<_>>(), "{}", package.name);
    }
}

/// The bundle of the package with this extension.
fn bundle(extension: &str) -> (PathBuf, &'static str) {
    let package = Package::with_extension(extension).expect("a package");
    let name = package.bundle.name;
    let beside = extension::pglite().join("../..").join(package.name).join("dist").join(name);
    let path = if beside.exists() { beside } else { extension::pglite().join(name) };
    (path, name)
}

/// Puts the bundle of an extension into a directory.
fn install(extension: &str, directory: &Path) {
    let (path, name) = bundle(extension);
    fs::copy(path, directory.join(name)).expect("a copy");
}

/// The program with PGlite's files in `pglite`.
fn open(pglite: &Path) -> (Arc<Databases>, Arc<Connections>) {
    let paths = Paths { cache: Some(cache::shared()), pglite: Some(pglite.to_owned()), ..Paths::default() };
    let opened = Databases::open(&paths, Mode::Isolated, Settings::default(), LogSink::to_own_log());
    let databases = Arc::new(opened.expect("databases"));
    (databases.clone(), Arc::new(Connections::new(databases)))
}

const AVAILABLE: &str = "select count(*) from pg_available_extensions where name in ('pg_hashids', 'vector')";

#[test]
fn a_package_that_is_installed_later_is_there_after_a_reload_in_every_cluster_that_runs() {
    let pglite = extension::without_packages();
    let (databases, connections) = open(pglite.path());
    let directory = tempfile::tempdir().expect("a directory");
    let named = |name: &str| NewCluster { name: Some(name.to_owned()), ..NewCluster::default() };
    let branch = ClusterOrigin::Branch("empty".to_owned());
    let clusters = [
        named("empty"),
        NewCluster { origin: ClusterOrigin::Template("postgres".to_owned()), ..named("of a template") },
        NewCluster { origin: branch.clone(), ..named("branch") },
        NewCluster { data_directory: Some(directory.path().join("data")), ..named("in a directory") },
    ];
    let mut sessions = vec![Local::connect(&connections, Connect::default()).0];
    for new in clusters {
        let name = databases.create_cluster(new).expect("a cluster").name;
        sessions.push(Local::connect_to(&connections, &name));
    }
    for session in &mut sessions {
        assert_eq!(session.values(AVAILABLE), ["0"]);
        assert_eq!(errors(&session.query("create extension vector")), ["0A000"]);
    }
    install("vector", pglite.path());
    install("pg_hashids", pglite.path());
    databases.reload();
    let later = NewCluster { origin: branch, ..named("later branch") };
    let name = databases.create_cluster(later).expect("a cluster").name;
    sessions.push(Local::connect_to(&connections, &name));
    sessions.push(Local::connect(&connections, Connect { id: 2, ..Connect::default() }).0);
    for session in &mut sessions {
        assert_eq!(session.values(AVAILABLE), ["2"]);
        session.values("create extension vector");
        assert_eq!(session.values("select '[3, 4]'::vector <-> '[0, 0]'"), ["5"]);
    }
    // Those that are removed are not offered any more; what is loaded stays.
    fs::remove_file(pglite.path().join(bundle("pg_hashids").1)).expect("it is there");
    databases.reload();
    for session in &mut sessions {
        assert_eq!(session.values(AVAILABLE), ["1"]);
        assert_eq!(session.values("select '[3, 4]'::vector <-> '[0, 0]'"), ["5"]);
    }
}

#[test]
fn a_durable_cluster_has_what_was_installed_since_it_was_made_and_names_what_is_missing() {
    let pglite = extension::without_packages();
    let data = tempfile::tempdir().expect("a directory");
    let arguments =
        ["--pglite-dir", pglite.path().to_str().expect("text"), "--data", data.path().to_str().expect("text")];
    let server = Server::with(&arguments);
    assert_eq!(Peer::connect(&server).value(AVAILABLE), "0");
    server.stop();
    install("vector", pglite.path());
    let server = Server::with(&arguments);
    Peer::connect(&server).run("create extension vector; create table t as select '[3, 4]'::vector v");
    server.stop();
    fs::remove_file(pglite.path().join(bundle("vector").1)).expect("it is there");
    let server = Server::with(&arguments);
    let peer = Peer::connect(&server);
    peer.send("select v from t");
    let failure = peer.answer().expect_err("the library is missing");
    assert_eq!(failure.sqlstate(), "58P01");
    assert!(failure.field('M').contains("could not access file \"vector\""), "{failure:?}");
    for part in ["@electric-sql/pglite-pgvector 0.0.15", "npm ci", "vector.tar.gz"] {
        assert!(failure.field('H').contains(part), "{failure:?}");
    }
    assert_eq!(peer.value("select count(*) from t"), "1", "the session lives");
    drop(peer);
    server.stop();
    install("vector", pglite.path());
    assert_eq!(Peer::connect(&Server::with(&arguments)).value("select v from t"), "[3,4]");
}

#[test]
fn a_library_to_preload_that_is_missing_is_named() {
    let pglite = extension::without_packages();
    let mut program = Program::spawn(
        &[&["serve", "--listen", "127.0.0.1:0", "--pglite-dir", pglite.path().to_str().expect("text")], &PRELOAD[..]]
            .concat(),
    );
    let (status, stdout, stderr) = program.output();
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("could not access file \"pg_textsearch\""), "{stderr}");
    assert!(stderr.contains("@electric-sql/pglite-pg_textsearch 0.0.16"), "{stderr}");
}

#[test]
fn a_template_that_needs_a_package_is_refused_without_it_and_the_package_is_named() {
    let pglite = extension::without_packages();
    install("vector", pglite.path());
    let connect = Connect { template: Some("with vector"), ..Connect::default() };
    {
        let (_, connections) = open(pglite.path());
        let mut origin = Local::connect(&connections, Connect::default()).0;
        origin.values("create extension vector; create table t as select '[3, 4]'::vector v");
        origin.freeze("with vector");
        assert_eq!(Local::connect(&connections, connect).0.values("select v from t"), ["[3,4]"]);
    }
    fs::remove_file(pglite.path().join(bundle("vector").1)).expect("it is there");
    let (databases, connections) = open(pglite.path());
    let report = Local::start(&connections, connect).report();
    assert_eq!(report.code, "58P01");
    assert_eq!(
        report.message,
        "the template \"with vector\" cannot be used: it needs the extension \"vector\", which is not installed"
    );
    assert!(report.hint.expect("what to do").contains("@electric-sql/pglite-pgvector 0.0.15"));
    let origin = ClusterOrigin::Template("with vector".to_owned());
    let report = databases.create_cluster(NewCluster { origin, ..NewCluster::default() }).expect_err("it is missing");
    assert_eq!(report.code, "58P01");
    assert_eq!(Local::connect(&connections, Connect::default()).0.values("select 1"), ["1"], "others are as they were");
    install("vector", pglite.path());
    databases.reload();
    assert_eq!(Local::connect(&connections, connect).0.values("select v from t"), ["[3,4]"]);
}

#[test]
fn a_bundle_with_other_contents_is_named_and_not_offered() {
    let pglite = extension::without_packages();
    install("pg_hashids", pglite.path());
    let name = bundle("vector").1;
    fs::write(pglite.path().join(name), "something else").expect("a file");
    let server = Server::with(&["--mode", "shared", "--pglite-dir", pglite.path().to_str().expect("text")]);
    assert_eq!(Peer::connect(&server).value(AVAILABLE), "1");
    let log = server.stop().join("\n");
    for part in
        ["the package pglite-pgvector is not offered", name, "@electric-sql/pglite-pgvector 0.0.15", "--extension"]
    {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn other_sessions_go_on_while_a_library_is_compiled_when_it_is_first_used() {
    let cache = cache::own();
    for entry in fs::read_dir(cache.path()).expect("a directory") {
        let entry = entry.expect("an entry");
        if entry.file_name().as_encoded_bytes().starts_with(b"age.so-") && entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).expect("it is removed");
        }
    }
    let server = Server::with(&["--mode", "shared", "--cache-dir", cache.path().to_str().expect("text")]);
    let [first, other] = [(); 2].map(|()| Peer::connect(&server));
    first.send("create extension age");
    // The log says what is waited for.
    while !server.program.stderr_line().contains("compiling age.so") {}
    assert_eq!(other.value("select 1"), "1");
    assert!(first.is_busy(), "the other session was answered meanwhile");
    first.rows();
    assert_eq!(other.value("select count(*) from ag_catalog.ag_graph"), "0");
}

#[test]
fn packages_that_the_tests_lack_are_named_before_they_begin() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(root.join("pglite/package.json"), directory.path().join("package.json")).expect("a copy");
    let check = || {
        let output = Command::new(root.join(".ci/packages")).arg(directory.path()).output().expect("bash");
        (output.status.success(), String::from_utf8(output.stderr).expect("text"))
    };
    let (is_complete, said) = check();
    assert!(!is_complete);
    for package in usual() {
        let name = format!("@electric-sql/{}", package.name);
        assert!(said.contains(&name), "{said}");
        fs::create_dir_all(directory.path().join("node_modules").join(name)).expect("a directory");
    }
    assert!(said.contains("without --omit=optional"), "{said}");
    assert_eq!(check(), (true, String::new()));
}
