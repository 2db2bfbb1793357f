//! The cache as the program's user meets it: listed, pruned by hand and by the program itself, while another program
//! uses it, and never at the expense of a template.

mod support;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant, SystemTime},
};

use pglite_port::{
    connection::Connections,
    databases::Settings,
    quota::Limits,
    session::{PendingTask, Task},
    template::{Recipe, Script, Shelf},
};
use rustix::process::Signal;
use support::{
    PATIENCE, cache,
    local::{Connect, Local},
    program::Program,
    server::{Server, text},
};
use tempfile::TempDir;

const DAY: Duration = Duration::from_hours(24);

/// A cache with compiled code in it, which shares no file with any other.
fn own_cache() -> TempDir {
    let directory = cache::own();
    for path in entries(directory.path()).into_iter().filter(|path| path.is_file()) {
        let copy = path.with_extension("copy");
        fs::copy(&path, &copy).expect("a copy");
        fs::rename(copy, path).expect("its place");
    }
    directory
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect()
}

fn use_days_ago(path: &Path, days: u32) {
    File::open(path).expect("an entry").set_modified(SystemTime::now() - days * DAY).expect("a time");
}

fn use_all_days_ago(cache: &Path, days: u32) {
    let templates = entries(&cache.join("templates"));
    for path in entries(cache).into_iter().chain(templates) {
        use_days_ago(&path, days);
    }
}

/// Exit status and stdout.
fn run(cache: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let cache = ["--cache-dir", cache.to_str().expect("a path")];
    let (status, stdout, _) = Program::spawn(&[&["cache"], arguments, &cache].concat()).output();
    (status, stdout)
}

/// Kind, name and use of every entry that `pglite-port cache` lists.
fn list(cache: &Path) -> Vec<[String; 3]> {
    let (status, stdout) = run(cache, &[]);
    assert_eq!(status, Some(0));
    let rows = stdout.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()));
    let rows: Vec<Vec<&str>> = rows.map(Iterator::collect).collect();
    assert_eq!(rows[0], ["KIND", "NAME", "SIZE", "USED"]);
    rows[1..].iter().map(|row| [row[0], row[1], row[3]].map(str::to_owned)).collect()
}

#[test]
fn what_another_program_uses_stays_and_what_none_uses_goes() {
    let cache = own_cache();
    let directory = cache.path().to_str().expect("a path");
    let mut server = Server::with(&["--mode", "isolated", "--cache-dir", directory]);
    assert_eq!(text(&server.psql(&["--command=select 1"])), "1");
    fs::write(cache.path().join("cluster-unused"), "").expect("a file");
    // As after forty days, in which the server has run.
    use_all_days_ago(cache.path(), 40);
    let (status, stdout) = run(cache.path(), &["--prune"]);
    assert!(status == Some(0) && stdout.contains(" removed, "), "{status:?} {stdout}");

    let left = list(cache.path());
    for kind in ["template", "code", "program"] {
        assert!(left.iter().any(|[found, _, used]| found == kind && used == "today"), "{kind}: {left:?}");
    }
    assert!(!left.iter().any(|[_, name, _]| name == "cluster-unused"), "{left:?}");
    assert_eq!(text(&server.psql(&["--command=select 2"])), "2");
    // Nothing that it needs is gone: another one starts without compiling.
    let other = Server::with(&["--mode", "isolated", "--cache-dir", directory]);
    assert_eq!(text(&other.psql(&["--command=select 3"])), "3");

    server.program.signal(Signal::TERM);
    server.program.wait();
    assert_eq!(run(cache.path(), &["--prune", "--older-than", "0"]).0, Some(0));
    assert!(list(cache.path()).iter().any(|[kind, ..]| kind == "code"), "the other one still uses it");
    drop(other);
    assert_eq!(run(cache.path(), &["--prune", "--max-size", "0"]).0, Some(0));
    assert_eq!(list(cache.path()), [[""; 3]; 0].map(|row| row.map(str::to_owned)));
}

#[test]
fn a_program_removes_by_itself_what_was_not_used_for_a_month() {
    let cache = own_cache();
    let (old, young) = (cache.path().join("old.cwasm"), cache.path().join("young.cwasm"));
    for (path, days) in [(&old, 31), (&young, 29)] {
        fs::write(path, "").expect("a file");
        use_days_ago(path, days);
    }
    let server = Server::with(&["--mode", "isolated", "--cache-dir", cache.path().to_str().expect("a path")]);
    let started = Instant::now();
    while old.exists() {
        assert!(started.elapsed() < PATIENCE, "it is still there");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(young.exists());
    assert_eq!(text(&server.psql(&["--command=select 1"])), "1");
}

/// Makes the template look as if another version of the program had built it, a long time ago: the program is the last
/// field of its label.
fn pretend_another_program_built(cache: &Path, name: &str) -> PathBuf {
    let templates = entries(&cache.join("templates"));
    let is_it = |path: &PathBuf| {
        path.is_dir() && path.file_name().expect("a name").to_str().expect("text").starts_with(&format!("{name}-"))
    };
    let directory = templates.into_iter().find(is_it).expect("a template");
    let mut label = fs::read(directory.join("label")).expect("a label");
    let last = label.last_mut().expect("a byte");
    *last = if *last == b'0' { b'1' } else { b'0' };
    let checksum = crc32fast::hash(&label[12..]).to_le_bytes();
    label[8..12].copy_from_slice(&checksum);
    fs::write(directory.join("label"), label).expect("a label");
    use_days_ago(&directory, 400);
    directory
}

#[test]
fn of_templates_only_what_another_version_has_built_goes_and_their_data_stays() {
    let cache = own_cache();
    let rows = |connections: &Arc<Connections>, database: &str| {
        let parameters = &[("user", "postgres"), ("database", database)];
        Local::connect(connections, Connect { parameters, ..Connect::default() }).0.values("SELECT n FROM t ORDER BY n")
    };
    {
        let databases = cache::open_at(cache.path(), Settings::default());
        let script = Script { name: "a.sql".into(), sql: "CREATE TABLE t AS SELECT 1 AS n".into() };
        let recipe = Recipe { scripts: vec![script], ..Recipe::empty("shop") };
        databases.templates().prepare("shop", &recipe, Limits::default()).expect("it is prepared");
        let databases = Arc::new(databases);
        let connections = Arc::new(Connections::new(databases.clone()));
        let parameters = &[("user", "postgres"), ("database", "shop")];
        let mut local = Local::connect(&connections, Connect { parameters, ..Connect::default() }).0;
        local.values("INSERT INTO t VALUES (2)");
        let (sender, answer) = channel();
        let task = Task::Freeze { name: "frozen".into(), key: None, limits: Limits::default() };
        local.control.assign(PendingTask::new(task, move |answer| sender.send(answer).expect("we wait")));
        answer.recv_timeout(PATIENCE).expect("an answer").expect("it is frozen");
        drop((local, connections));
        // The connection's thread uses the template until its end.
        while Arc::strong_count(&databases) > 1 {
            thread::yield_now();
        }
    }
    use_all_days_ago(cache.path(), 400);
    for path in entries(cache.path()) {
        // The code stays, so that this test need not compile it again.
        use_days_ago(&path, 1);
    }
    assert_eq!(run(cache.path(), &["--prune"]).0, Some(0));
    let mut names: Vec<String> =
        list(cache.path()).into_iter().filter(|[kind, ..]| kind == "template").map(|[_, name, _]| name).collect();
    names.sort();
    assert_eq!(names, ["frozen", "shop"], "the one that is there without being prepared is not kept");

    let shop = vec!["label", "label.copy", "recipe", "recipe.copy", "seal"];
    let parts = [("shop", shop), ("frozen", vec!["files", "label", "label.copy", "seal"])];
    for (name, kept) in parts {
        let directory = pretend_another_program_built(cache.path(), name);
        assert!(run(cache.path(), &["--prune"]).1.starts_with("1 removed, "), "{name}");
        let mut found: Vec<_> =
            entries(&directory).into_iter().map(|path| path.file_name().expect("a name").to_owned()).collect();
        // Notes for the program itself.
        found.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        found.sort();
        assert_eq!(found, kept, "{name}");
    }
    assert_eq!(list(cache.path()).iter().filter(|[kind, ..]| kind == "template").count(), 2);
    let connections = Arc::new(Connections::new(Arc::new(cache::open_at(cache.path(), Settings::default()))));
    assert_eq!(rows(&connections, "shop"), ["1"]);
    assert_eq!(rows(&connections, "frozen"), ["1", "2"]);
    assert_eq!(Shelf::open(Some(cache.path())).expect("a shelf").list().expect("a list").len(), 3);
}
