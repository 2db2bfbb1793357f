//! Extensions of the user's own (`--extension`): offered in every cluster, or refused with what is wrong.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use support::{
    cache,
    extension::{archive, pglite},
    library::{
        ADDRESS, BASES, FOUR, NOTHING, NUMBER, THREE, body, memory, that_recurses, with_functions, with_imports,
    },
    local::{Connect, Local},
    peer::Peer,
    program::Program,
    server::{Server, rows},
    session::errors,
};
use tempfile::TempDir;
use wasm_encoder::{
    BlockType, CodeSection, CustomSection, EntityType, ExportKind, ExportSection, FunctionSection, GlobalType,
    ImportSection, Instruction, Module, TypeSection, ValType,
};

/// The scripts of an extension with a function `NAME_answer` in its library.
fn script(name: &str) -> Vec<u8> {
    format!("create function {name}_answer() returns int language c as '$libdir/{name}'").into_bytes()
}

/// A library with that function, which returns `answer`.
fn library(name: &str, answer: i32) -> Vec<u8> {
    with_functions(&[(&format!("{name}_answer"), &[Instruction::I32Const(answer)])])
}

/// The bundle of an extension of which each file may be left out or be another.
struct Files {
    control: (String, Vec<u8>),
    script: (String, Vec<u8>),
    library: (String, Vec<u8>),
}

impl Files {
    fn of(name: &str, answer: i32) -> Self {
        Self {
            control: (
                format!("share/postgresql/extension/{name}.control"),
                b"default_version = '1.0'\nrelocatable = true\n".to_vec(),
            ),
            script: (format!("share/postgresql/extension/{name}--1.0.sql"), script(name)),
            library: (format!("lib/postgresql/{name}.so"), library(name, answer)),
        }
    }

    fn archive(&self) -> Vec<u8> {
        let files = [&self.control, &self.script, &self.library];
        archive(&files.map(|(path, bytes)| (path.as_str(), bytes.as_slice())))
    }
}

/// A directory with a bundle `own.tar.gz`.
fn bundle(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("own.tar.gz");
    fs::write(&path, bytes).expect("a file");
    (directory, path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn open(extensions: &[&Path]) -> (Arc<Databases>, Arc<Connections>) {
    let extensions = extensions.iter().map(|path| path.to_path_buf()).collect();
    let paths = Paths { cache: Some(cache::shared()), extensions, ..Paths::default() };
    let opened = Databases::open(&paths, Mode::Isolated, Settings::default(), LogSink::to_own_log());
    let databases = Arc::new(opened.expect("databases"));
    (databases.clone(), Arc::new(Connections::new(databases)))
}

#[test]
fn it_is_offered_in_every_cluster_and_its_library_counts_as_one_of_the_programs() {
    let (_directory, path) = bundle(&Files::of("own", 42).archive());
    let (databases, connections) = open(&[&path]);
    let data = tempfile::tempdir().expect("a directory");
    let clusters = [
        NewCluster::default(),
        NewCluster { data_directory: Some(data.path().join("data")), ..NewCluster::default() },
        NewCluster { origin: ClusterOrigin::Template("postgres".to_owned()), ..NewCluster::default() },
    ];
    let mut sessions = vec![Local::connect(&connections, Connect::default()).0];
    for new in clusters {
        let name = databases.create_cluster(new).expect("a cluster").name;
        sessions.push(Local::connect_to(&connections, &name));
    }
    for session in &mut sessions {
        let versions = "select default_version from pg_available_extensions where name = 'own'";
        assert_eq!(session.values(versions), ["1.0"]);
        session.values("create extension own; load 'own'");
        assert_eq!(session.values("select own_answer()"), ["42"]);
    }
}

#[test]
fn a_function_of_it_that_calls_itself_without_a_loop_takes_turns_and_can_be_ended() {
    let mut files = Files::of("own", 42);
    let functions =
        ["small", "large"].map(|name| format!("create function {name}() returns int language c as '$libdir/own';"));
    files.script.1 = functions.concat().into_bytes();
    files.library.1 = that_recurses();
    let (_directory, path) = bundle(&files.archive());
    // With short slices the seconds that a session has to hear are less than one.
    let server = Server::with(&["--mode", "shared", "--slice", "200", "--extension", text(&path)]);
    let [busy, other] = [(); 2].map(|()| Peer::connect(&server));
    other.run("create extension own");
    // It does not check for interrupts after it has the lock.
    busy.send("select pg_advisory_lock(1), large()");
    let lock = format!("select from pg_locks where locktype = 'advisory' and pid = {}", busy.process_id);
    other.until(&format!("select exists ({lock})"));
    assert_eq!(other.value("select small()"), "6765", "others have their turns");
    other.run(&format!("select pg_terminate_backend({})", busy.process_id));
    busy.assert_ended("57P01");
}

#[test]
fn serve_port_and_prepare_take_several() {
    let (_one, one) = bundle(&Files::of("own_one", 1).archive());
    let (_two, two) = bundle(&Files::of("own_two", 2).archive());
    let sql = one.with_file_name("a.sql");
    fs::write(&sql, "create extension own_one; create extension own_two").expect("a file");
    let both = ["--extension", text(&one), "--extension", text(&two)];
    Program::succeed(&[&["prepare", "own both", "--sql", text(&sql)], &both[..]].concat());
    let server = Server::with(&[&["--mode", "shared", "--template", "own both"], &both[..]].concat());
    let peer = Peer::connect(&server);
    let extensions = "select string_agg(name, ' ' order by name) from pg_available_extensions where name like 'own%'";
    assert_eq!(peer.value(extensions), "own_one own_two");
    drop(server);
    let stderr =
        Program::fail(&["serve", "--listen", "127.0.0.1:0", "--template", "own both", "--extension", text(&one)]);
    for part in ["the template \"own both\"", "needs the extension \"own_two\"", "--extension FILE", "own.tar.gz"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    let mut port = Program::spawn(&["port", "--extension", "/nonexistent/own.tar.gz"]);
    // Its parent lives.
    let _stdin = port.take_stdin();
    let (status, _, stderr) = port.output();
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("/nonexistent/own.tar.gz") && stderr.contains("cannot be read"), "{stderr}");
}

#[test]
fn a_template_is_built_again_when_its_extension_has_changed() {
    let (_directory, path) = bundle(&Files::of("own_changed", 1).archive());
    let connect = Connect { template: Some("own changed"), ..Connect::default() };
    {
        let (_, connections) = open(&[&path]);
        let mut origin = Local::connect(&connections, Connect::default()).0;
        origin.values("create extension own_changed; create table t as select own_changed_answer()");
        origin.freeze("own changed");
        assert_eq!(Local::connect(&connections, connect).0.values("select own_changed_answer()"), ["1"]);
    }
    fs::write(&path, Files::of("own_changed", 2).archive()).expect("a file");
    let (databases, connections) = open(&[&path]);
    let mut clone = Local::connect(&connections, connect).0;
    assert_eq!(clone.values("select own_changed_answer(), * from t"), ["2", "1"]);
    drop(clone);
    fs::write(&path, Files::of("own_changed", 3).archive()).expect("a file");
    databases.reload();
    assert_eq!(Local::connect(&connections, connect).0.values("select own_changed_answer()"), ["3"]);
    // One that is wrong leaves the one before.
    fs::write(&path, "wrong").expect("a file");
    databases.reload();
    assert_eq!(Local::connect(&connections, connect).0.values("select own_changed_answer()"), ["3"]);
}

/// A side module that imports the function `no_such_function` and the address of `no_such_variable`, and what is there.
fn unresolved() -> Vec<u8> {
    let mut module = Module::new();
    module.section(&CustomSection { name: "dylink.0".into(), data: (&[1_u8, 4, 0, 0, 0, 0][..]).into() });
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32], [ValType::I32]);
    module.section(&types);
    let mut imports = ImportSection::new();
    let address = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
    imports.import("env", "memory", memory(1)).import("env", "palloc", EntityType::Function(1));
    imports.import("env", "no_such_function", EntityType::Function(0));
    imports.import("GOT.mem", "CurrentMemoryContext", address);
    imports.import("GOT.mem", "no_such_variable", address);
    imports.import("GOT.func", "pfree", address);
    module.section(&imports);
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut exports = ExportSection::new();
    exports.export("f", ExportKind::Func, 2);
    let mut code = CodeSection::new();
    code.function(&body(&[]));
    module.section(&functions).section(&exports).section(&code);
    module.finish()
}

/// The bundle of an extension with this library.
fn with_library(wasm: &[u8]) -> Vec<u8> {
    let files = Files::of("own", 0);
    Files { library: (files.library.0.clone(), wasm.to_vec()), ..files }.archive()
}

#[test]
fn what_is_wrong_is_said() {
    let valid = Files::of("own", 0);
    let control = (valid.control.0.as_str(), valid.control.1.as_slice());
    let mut cut = valid.archive();
    cut.truncate(cut.len() / 2);
    let invalid = {
        let mut wasm = library("own", 0);
        let last = wasm.len() - 100;
        wasm.truncate(last);
        wasm
    };
    let mut of_age = Files::of("age", 0);
    of_age.library.0 = "lib/postgresql/other.so".to_owned();
    let mut like_citext = Files::of("own", 0);
    like_citext.library.0 = "lib/postgresql/citext.so".to_owned();
    let wrong: [(Vec<u8>, &[&str]); 14] = [
        (b"PK\x03\x04".to_vec(), &["not compressed with gzip"]),
        (Vec::new(), &["not compressed with gzip"]),
        (cut, &["cannot unpack"]),
        (archive(&[("../escape", b"x"), control]), &["\"../escape\"", "leads out"]),
        (archive(&[("/etc/escape", b"x"), control]), &["\"/etc/escape\"", "leads out"]),
        (archive(&[("lib/postgresql/own.so", &library("own", 0))]), &["no control file"]),
        (
            archive(&[("extension/own.control", b"")]),
            &["no control file share/postgresql/extension/NAME.control", "extension/own.control is at another place"],
        ),
        (archive(&[control]), &["\"own\" has no script share/postgresql/extension/own--VERSION.sql"]),
        (with_library(b"\x7fELF\x02\x01"), &["the library own.so", "it is not WebAssembly"]),
        (with_library(&Module::new().finish()), &["the library own.so", "not an Emscripten side module"]),
        (with_library(&invalid), &["the library own.so", "unexpected end"]),
        (with_library(&unresolved()), &["own.so needs no_such_function, no_such_variable, which PGlite does not have"]),
        (of_age.archive(), &["\"age\"", "the installed package pglite-age"]),
        (like_citext.archive(), &["PGlite has \"citext\" itself"]),
    ];
    for (bytes, parts) in wrong {
        let (_directory, path) = bundle(&bytes);
        let stderr = Program::fail(&["serve", "--listen", "127.0.0.1:0", "--extension", text(&path)]);
        let line = stderr.lines().find(|line| line.starts_with("pglite-port: ")).unwrap_or_else(|| panic!("{stderr}"));
        for part in parts.iter().chain(&[text(&path), "cannot be used"]) {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let (_directory, path) = bundle(&valid.archive());
    let twice = ["serve", "--listen", "127.0.0.1:0", "--extension", text(&path), "--extension", text(&path)];
    assert!(Program::fail(&twice).contains("as well"));
}

#[test]
fn a_bundle_of_the_packages_is_taken_as_well_where_that_is_not_installed() {
    let pglite_only = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(pglite()).expect("a directory") {
        let file = file.expect("an entry");
        std::os::unix::fs::symlink(file.path(), pglite_only.path().join(file.file_name())).expect("a link");
    }
    let package = pglite().join("../../pglite-pg_hashids/dist/pg_hashids.tar.gz");
    let server = Server::with(&["--pglite-dir", text(pglite_only.path()), "--extension", text(&package)]);
    let peer = Peer::connect(&server);
    peer.run("create extension pg_hashids");
    assert_eq!(peer.value("select id_encode(1001)"), "jNl");
    assert_eq!(peer.value("select count(*) from pg_available_extensions where name = 'vector'"), "0");
}

#[test]
fn names_in_an_archive_may_begin_with_the_current_directory() {
    let files = Files::of("own_dotted", 7);
    let [control, script, library] =
        [&files.control, &files.script, &files.library].map(|(path, bytes)| (format!("./{path}"), bytes));
    let files = [&control, &script, &library].map(|(path, bytes)| (path.as_str(), bytes.as_slice()));
    let (_directory, path) = bundle(&archive(&files));
    let (_, connections) = open(&[&path]);
    let mut session = Local::connect(&connections, Connect::default()).0;
    session.values("create extension own_dotted");
    assert_eq!(session.values("select own_dotted_answer()"), ["7"]);
}

#[test]
fn a_library_that_gives_up_ends_its_session_and_no_other_unless_it_only_got_no_memory() {
    let (_directory, path) = bundle_in_cxx();
    let server = Server::with(&["--mode", "shared", "--cluster-memory-limit", "200MB", "--extension", text(&path)]);
    let mut other = server.connect();
    other.batch_execute("create extension own; create table t (a int)").expect("it is offered");
    // What is answered, and whether the session goes on.
    let refused = |sql: &str| {
        let mut session = server.session(&[]);
        session.query(sql);
        let error = session.until(b'E').pop().expect("an error").fields();
        let goes_on = session.next().is_some_and(|message| message.kind == b'Z');
        (['S', 'C', 'M'].map(|field| error[&field].clone()), goes_on)
    };
    let said = |text: [&str; 3], goes_on: bool| (text.map(str::to_owned), goes_on);
    assert_eq!(refused("select own_takes_all()"), said(["ERROR", "53200", "out of memory"], true));
    let abort = "the library \"own\" has called abort()";
    let assertion = "an assertion has failed in the library \"own\"";
    let fatal = |message| said(["FATAL", "XX000", message], false);
    assert_eq!(refused("insert into t values (1); select own_gives_up()"), fatal(abort));
    assert_eq!(refused("begin; lock t; select own_asserts()"), fatal(assertion));
    // It was in no crash, has no lock to wait for, and sees nothing of theirs.
    assert_eq!(rows(&mut other, "begin; lock t; select count(*) from t"), ["0"]);
}

/// A library as a compiler makes it of C++: it throws a `std::bad_cast`, gives up at once, by an assertion, and because
/// it gets no memory, and calls a function of the C library that PGlite does not export.
fn library_in_cxx() -> Vec<u8> {
    let imports = [
        ("env", "__cxa_allocate_exception", NUMBER),
        ("env", "_ZNSt8bad_castC1Ev", NUMBER),
        ("env", "__cxa_throw", THREE),
        ("env", "abort", NOTHING),
        ("env", "islower", NUMBER),
        ("env", "malloc", NUMBER),
        ("env", "__assert_fail", FOUR),
        ("GOT.mem", "_ZTISt8bad_cast", ADDRESS),
        ("GOT.func", "_ZNSt8bad_castD1Ev", ADDRESS),
    ];
    let throws = [
        Instruction::I32Const(4),
        Instruction::Call(0),
        Instruction::LocalTee(0),
        Instruction::Call(1),
        Instruction::GlobalGet(BASES),
        Instruction::GlobalGet(BASES + 1),
        Instruction::Call(2),
        Instruction::I32Const(0),
    ];
    let gives_up = [Instruction::Call(3), Instruction::I32Const(0)];
    // As `operator new` does it: two gigabytes, and once more what is left of four.
    let takes_all = [
        Instruction::I32Const(i32::MAX),
        Instruction::Call(5),
        Instruction::Drop,
        Instruction::I32Const(i32::MAX),
        Instruction::Call(5),
        Instruction::If(BlockType::Empty),
        Instruction::Else,
        Instruction::Call(3),
        Instruction::End,
        Instruction::I32Const(0),
    ];
    // The condition is the name of PostgreSQL's in the library's own description.
    let asserts = [
        Instruction::GlobalGet(0),
        Instruction::I32Const(24),
        Instruction::I32Add,
        Instruction::I32Const(0),
        Instruction::I32Const(7),
        Instruction::I32Const(0),
        Instruction::Call(6),
        Instruction::I32Const(0),
    ];
    let answer = [Instruction::I32Const('a' as i32), Instruction::Call(4)];
    let functions: [(&str, &[Instruction<'static>]); 5] = [
        ("own_throws", &throws),
        ("own_gives_up", &gives_up),
        ("own_takes_all", &takes_all),
        ("own_asserts", &asserts),
        ("own_answer", &answer),
    ];
    with_imports(&imports, &functions)
}

/// A bundle with that library, and the SQL that makes its functions.
fn bundle_in_cxx() -> (TempDir, PathBuf) {
    let files = Files::of("own", 0);
    let script = ["throws", "gives_up", "takes_all", "asserts", "answer"]
        .map(|name| format!("create function own_{name}() returns int language c as '$libdir/own';"))
        .concat();
    let (script, library) = ((files.script.0, script.into_bytes()), (files.library.0, library_in_cxx()));
    bundle(&Files { control: files.control, script, library }.archive())
}

#[test]
fn a_library_in_cxx_has_its_runtime_and_its_exceptions_are_sql_errors_also_in_clones() {
    let (_directory, path) = bundle_in_cxx();
    let (_, connections) = open(&[&path]);
    let mut origin = Local::connect(&connections, Connect::default()).0;
    origin.values("create extension own");
    let check = |session: &mut Local| {
        let answer = session.query("select own_throws()");
        assert_eq!(errors(&answer), ["XX000"]);
        let error = answer.iter().find(|message| message.kind == b'E').expect("an error").fields();
        assert_eq!(
            (error[&'M'].as_str(), error[&'D'].as_str()),
            ("std::bad_cast", "It is a C++ exception of the class std::bad_cast.",)
        );
        let mut refused = |sql: &str| {
            let answer = session.query(sql);
            let error = answer.iter().find(|message| message.kind == b'E').expect("an error").fields();
            ['S', 'C', 'M', 'D'].map(|field| error.get(&field).cloned().unwrap_or_default())
        };
        let gives_up = ["ERROR", "XX000", "the library \"own\" has called abort()", ""];
        assert_eq!(refused("select own_gives_up()"), gives_up);
        let no_memory = "The library \"own\" has called abort() when it got no memory.";
        assert_eq!(refused("select own_takes_all()"), ["ERROR", "53200", "out of memory", no_memory]);
        // That was another statement.
        assert_eq!(refused("select own_gives_up()"), gives_up);
        let assertion = ["ERROR", "XX000", "an assertion has failed in the library \"own\"", "PostgreSQL, in ? at ?:7"];
        assert_eq!(refused("select own_asserts()"), assertion);
        assert_eq!(session.values("select own_answer()"), ["1"]);
    };
    check(&mut origin);
    origin.freeze("with a library in C++");
    for _ in 0..2 {
        let connect = Connect { template: Some("with a library in C++"), ..Connect::default() };
        check(&mut Local::connect(&connections, connect).0);
    }
}
