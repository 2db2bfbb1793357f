//! A trap in one backend ends its session, and nothing else.
//!
//! PostgreSQL in wasm does not trap by itself, as far as is known. But a superuser may load libraries, as in any
//! PostgreSQL: these tests bring one along whose functions do what C programs do when they go wrong.

mod support;

use support::{
    library::{self, body},
    server::{Server, rows},
    session::Session,
};
use wasm_encoder::{
    CodeSection, CustomSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection, Instruction,
    MemArg, Module, TypeSection,
};

/// Its functions, each by its name in SQL, and what it does.
const FUNCTIONS: [(&str, &[Instruction<'static>]); 4] = [
    ("aborts", &[Instruction::Unreachable]),
    (
        "reads_outside",
        &[Instruction::I32Const(-4), Instruction::I32Load(MemArg { offset: 0, align: 2, memory_index: 0 })],
    ),
    ("divides_by_zero", &[Instruction::I32Const(1), Instruction::I32Const(0), Instruction::I32DivS]),
    ("recurses", &[Instruction::LocalGet(0), Instruction::Call(RECURSES)]),
];

/// The index of the last of them.
const RECURSES: u32 = library::FIRST + 3;

/// A library that needs another one, and whose constructor calls a function that nobody defines.
fn library_with_constructor(needed: &str) -> Vec<u8> {
    let mut module = Module::new();
    // Subsection 1 (memory information), 4 bytes: nothing of anything. Subsection 2: one library that it needs.
    let name = u8::try_from(needed.len()).expect("a short name");
    let sections = [&[1, 4, 0, 0, 0, 0, 2, name + 2, 1, name][..], needed.as_bytes()].concat();
    module.section(&CustomSection { name: "dylink.0".into(), data: sections.into() });
    let mut types = TypeSection::new();
    types.ty().function([], []);
    let mut imports = ImportSection::new();
    imports.import("env", "memory", library::memory(1)).import("env", "defined_by_nobody", EntityType::Function(0));
    let mut functions = FunctionSection::new();
    functions.function(0);
    let mut exports = ExportSection::new();
    exports.export("__wasm_call_ctors", ExportKind::Func, 1);
    let mut code = CodeSection::new();
    code.function(&body(&[Instruction::Call(0)]));
    module.section(&types).section(&imports).section(&functions).section(&exports).section(&code);
    module.finish()
}

/// A session in whose database those functions are.
fn with_library(server: &Server) -> Session {
    let mut session = server.session(&[]);
    session.values(&library::export(&library::with_functions(&FUNCTIONS), "/tmp/traps.so"));
    for (name, _) in FUNCTIONS {
        session.values(&format!("create function {name}() returns int language c as '/tmp/traps.so'"));
    }
    session
}

#[test]
fn the_client_is_told_the_log_has_the_backtrace_and_the_others_go_on() {
    let server = Server::with(&["--mode", "isolated", "--allow-user-libraries"]);
    let mut other = server.connect();
    other.batch_execute("create table t (a int); begin; insert into t values (1)").expect("a transaction");
    for (name, _) in FUNCTIONS {
        let mut session = with_library(&server);
        session.query(&format!("select {name}()"));
        let messages = session.until_closed();
        let [error] = &messages[..] else { panic!("{name}: {messages:?}") };
        let error = error.fields();
        assert_eq!((&error[&'S'][..], &error[&'C'][..]), ("FATAL", "XX000"), "{name}");
        assert!(error[&'M'].starts_with("the backend trapped: "), "{name}: {error:?}");
        loop {
            let line = server.program.stderr_line();
            if line.contains("wasm backtrace") {
                break;
            }
        }
        server.wait_for_connections(1);
    }
    other.batch_execute("commit").expect("nothing has happened to it");
    assert_eq!(rows(&mut other, "select a from t"), ["1"]);
}

#[test]
fn a_library_that_is_none_is_refused_and_the_session_goes_on() {
    let server = Server::start();
    let mut client = server.connect();
    client.batch_execute("copy (select 'no library') to '/tmp/none.so'").expect("a file");
    for path in ["/tmp/none.so", "/tmp/nonexistent.so", "$libdir/nonexistent"] {
        let error = client.simple_query(&format!("load '{path}'")).expect_err("no library");
        let error = error.as_db_error().expect("an error of the server");
        assert!(["42501", "58P01"].contains(&error.code().code()), "{path}: {error}");
        assert!(error.message().contains(path.trim_start_matches("$libdir/")), "{path}: {error}");
    }
    assert_eq!(rows(&mut client, "select 'alive'"), ["alive"]);
}

#[test]
fn libraries_may_need_each_other_and_an_error_in_a_constructor_is_that_of_the_statement() {
    let server = Server::with(&["--mode", "isolated", "--allow-user-libraries"]);
    let mut client = server.connect();
    for (object, path, needed) in [(8_u32, "/tmp/a.so", "/tmp/b.so"), (9, "/tmp/b.so", "/tmp/a.so")] {
        let library = library_with_constructor(needed);
        client.execute("select lo_from_bytea($1, $2)", &[&object, &library]).expect("an object");
        client.execute("select lo_export($1, $2)", &[&object, &path]).expect("a file");
    }
    let error = client.simple_query("load '/tmp/a.so'").expect_err("an error in the constructor of b.so");
    let error = error.as_db_error().expect("PostgreSQL's own error");
    assert_eq!(error.code().code(), "0A000", "{error}");
    assert!(error.message().contains("defined_by_nobody"), "{error}");
    assert_eq!(rows(&mut client, "select 1"), ["1"]);
}
