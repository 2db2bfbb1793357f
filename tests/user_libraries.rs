//! Libraries that did not come with the program: refused, or, with `--allow-user-libraries`, loaded within limits.

mod support;

use std::{fs, path::Path, sync::Arc};

use pglite_port::{
    administration::{Administration, NewCluster},
    connection::Connections,
    databases::{Databases, Settings},
    engine::artefact::LIBRARIES,
    fs::{Files, Silent, Tree, open_bundle, unpack_extension},
    instrument,
    session::cancel::Interrupt,
};
use sha2::{Digest, Sha256};
use support::{
    cache,
    library::{
        ADDRESS, BASES, FIRST, NUMBER, body, export, hostile, hostile_and_endless, memory, table, that_recurses,
        with_functions, with_imports, with_invokes,
    },
    local::{Connect, Local},
    peer::Peer,
    power::{self, Dice},
    process,
    server::Server,
    wire::{self, Message},
};
use wasm_encoder::{
    BlockType, CodeSection, CustomSection, EntityType, ExportKind, ExportSection, FunctionSection, ImportSection,
    Instruction, MemorySection, Module, RefType, TableSection, TypeSection, ValType,
};

/// A function that returns 42.
const ANSWER: &[(&str, &[Instruction<'static>])] = &[("answer", &[Instruction::I32Const(42)])];

/// The program's databases, which have other libraries only if `user_libraries`.
fn open(user_libraries: bool) -> (Arc<Databases>, Arc<Connections>) {
    cache::administered(Settings { user_libraries, ..Settings::default() })
}

fn connect(connections: &Arc<Connections>) -> Local {
    Local::connect(connections, Connect::default()).0
}

/// The messages of the errors in an answer.
fn errors_of(messages: &[Message]) -> impl Iterator<Item = String> {
    messages.iter().filter(|message| message.kind == b'E').filter_map(|message| message.fields().remove(&'M'))
}

/// SQLSTATE, message and hint of what this query fails with.
fn failure(session: &mut Local, sql: &str) -> [String; 3] {
    let messages = session.query(sql);
    let error = messages.iter().find(|message| message.kind == b'E').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
    let fields = error.fields();
    ['C', 'M', 'H'].map(|field| fields.get(&field).cloned().unwrap_or_default())
}

#[test]
fn the_pinned_libraries_are_those_of_the_bundles() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    let bundle = open_bundle(&package.join("pglite.data"), &package.join("pglite.js")).expect("the bundle");
    let mut tree = Tree::from_frozen(bundle);
    for extension in pglite_port::engine::artefact::EXTENSIONS {
        let archive = fs::File::open(package.join(extension.name)).expect("an archive");
        unpack_extension(&mut tree, archive, "/pglite").expect("its files");
    }
    let files = Files::new(Arc::new(parking_lot::Mutex::new(tree)), Box::new(Silent)).expect("files");
    for library in LIBRARIES {
        let path = format!("/pglite/lib/postgresql/{}", library.name);
        let content = files.read_file(path.as_bytes()).expect("it is there");
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, library.sha256, "{path}");
    }
}

#[test]
fn a_file_that_sql_has_written_is_no_library() {
    let (_, connections) = open(false);
    let mut session = connect(&connections);
    for path in ["/tmp/mine.so", "/pglite/data/mine.so", "/pglite/lib/postgresql/citext.so"] {
        // The last one is a file of an extension, which has its name and no longer its content.
        session.values(&export(&with_functions(ANSWER), path));
        for sql in [format!("LOAD '{path}'"), format!("CREATE FUNCTION answer() RETURNS int LANGUAGE c AS '{path}'")] {
            let [code, message, hint] = failure(&mut session, &sql);
            assert_eq!(code, "42501", "{sql}: {message}");
            assert!(message.contains(path) && message.contains("did not come with this program"), "{message}");
            assert!(hint.contains("--allow-user-libraries"), "{hint}");
        }
    }
    assert_eq!(failure(&mut session, "CREATE EXTENSION citext")[0], "42501");
    session.values("CREATE EXTENSION hstore");
    assert_eq!(session.values("SELECT 'a=>1'::hstore -> 'a'"), ["1"], "others are as they were");
}

#[test]
fn a_file_in_a_data_directory_is_no_library() {
    let (databases, connections) = open(false);
    let directory = tempfile::tempdir().expect("a directory");
    let data_directory = Some(directory.path().join("data"));
    let name = Some("durable".to_owned());
    databases.create_cluster(NewCluster { name, data_directory, ..NewCluster::default() }).expect("a cluster");
    let mut session = Local::connect_to(&connections, "durable");
    session.values(&export(&with_functions(ANSWER), "/pglite/data/mine.so"));
    failure(&mut session, "LOAD '/pglite/data/mine.so'");
    session.values(&export(&with_functions(ANSWER), "/tmp/mine.so"));
    assert_eq!(failure(&mut session, "LOAD '/tmp/mine.so'")[0], "42501");
    assert_eq!(session.values("SELECT 1"), ["1"]);
}

#[test]
fn copies_of_a_library_are_one_library() {
    let (_, connections) = open(false);
    let mut session = connect(&connections);
    session.values("CREATE EXTENSION seg; SELECT lo_import('/pglite/lib/postgresql/seg.so', 7)");
    for number in 0..200 {
        session.values(&format!("SELECT lo_export(7, '/tmp/{number}.so'); LOAD '/tmp/{number}.so'"));
    }
    // 200 of them do not fit into the memory that one has.
    assert_eq!(session.values("SELECT '1 .. 2'::seg"), ["1 .. 2"]);
}

#[test]
fn with_leave_a_library_is_loaded_and_the_cache_has_nothing_of_it() {
    let cache = cache::own();
    let databases = Arc::new(cache::open_at(cache.path(), Settings { user_libraries: true, ..Settings::default() }));
    let connections = Arc::new(Connections::new(databases));
    let mut session = connect(&connections);
    let entries = || fs::read_dir(cache.path()).expect("a directory").count();
    let before = entries();
    let path = "/tmp/two\nlines \u{1b}[31m.so";
    session.values(&export(&with_functions(ANSWER), path));
    session.values(&format!("CREATE FUNCTION answer() RETURNS int LANGUAGE c AS '{path}'"));
    assert_eq!(session.values("SELECT answer()"), ["42"]);
    assert_eq!(entries(), before);
}

#[test]
fn with_leave_another_build_of_a_library_is_loaded() {
    let (_, connections) = open(true);
    let mut session = connect(&connections);
    // The same with a custom section behind it, so that it is none that is known.
    let changed = r"lo_from_bytea(8, lo_get(7) || '\x00020161')";
    session.values(&format!("SELECT lo_import('/pglite/lib/postgresql/pg_trgm.so', 7); SELECT {changed}"));
    session.values("SELECT lo_export(8, '/tmp/mine.so'); LOAD '/tmp/mine.so'");
    session.values("CREATE FUNCTION show_trgm(text) RETURNS text[] LANGUAGE c AS '/tmp/mine.so' STRICT");
    assert_eq!(session.values("SELECT show_trgm('word')"), ["{\"  w\",\" wo\",ord,\"rd \",wor}"]);
}

#[test]
fn a_template_with_such_a_library_needs_leave_as_well() {
    let (_, connections) = open(true);
    let mut session = connect(&connections);
    session.values(&export(&with_functions(ANSWER), "/tmp/mine.so"));
    session.values("CREATE FUNCTION answer() RETURNS int LANGUAGE c AS '/tmp/mine.so'");
    session.freeze("with_a_library");
    let clone = |connections: &Arc<Connections>| {
        Local::connect(connections, Connect { template: Some("with_a_library"), ..Connect::default() }).0
    };
    assert_eq!(clone(&connections).values("SELECT answer()"), ["42"]);
    let (_, without_leave) = open(false);
    let mut refused = clone(&without_leave);
    assert_eq!(failure(&mut refused, "SELECT answer()")[0], "42501");
    assert_eq!(refused.values("SELECT 1"), ["1"]);
    assert_eq!(clone(&connections).values("SELECT answer()"), ["42"]);
}

#[test]
fn a_function_that_a_library_needs_may_be_in_one_that_is_loaded_later() {
    let (_, connections) = open(true);
    let mut session = connect(&connections);
    let ask = [Instruction::I32Const(0), Instruction::Call(0)];
    let asking = with_imports(&[("env", "answer", NUMBER)], &[("ask", &ask)]);
    session.values(&export(&asking, "/tmp/asking.so"));
    session.values("CREATE FUNCTION ask() RETURNS int LANGUAGE c AS '/tmp/asking.so'");
    for _ in 0..2 {
        let [code, message, _] = failure(&mut session, "SELECT ask()");
        assert!(code == "0A000" && message.contains("the function answer,"), "{code}: {message}");
    }
    session.values(&export(&with_functions(ANSWER), "/tmp/answering.so"));
    assert_eq!(failure(&mut session, "SELECT ask()")[0], "0A000");
    session.values("LOAD '/tmp/answering.so'");
    assert_eq!(session.values("SELECT ask(), ask()"), ["42", "42"]);
}

#[test]
fn an_address_is_that_of_the_library_itself_and_otherwise_of_the_one_that_was_loaded_first() {
    let (_, connections) = open(true);
    let mut session = connect(&connections);
    let ask = [
        Instruction::I32Const(0),
        Instruction::GlobalGet(BASES),
        Instruction::CallIndirect { type_index: 1, table_index: 0 },
    ];
    let address = [("GOT.func", "answer", ADDRESS)];
    let libraries = [
        ("first", with_functions(ANSWER)),
        ("own", with_imports(&address, &[("answer", &[Instruction::I32Const(43)]), ("ask_own", &ask)])),
        ("other", with_imports(&address, &[("ask_other", &ask)])),
    ];
    for (name, wasm) in libraries {
        session.values(&export(&wasm, &format!("/tmp/{name}.so")));
        session.values(&format!("LOAD '/tmp/{name}.so'"));
    }
    for (library, answer) in [("own", "43"), ("other", "42")] {
        session.values(&format!("CREATE FUNCTION ask_{library}() RETURNS int LANGUAGE c AS '/tmp/{library}.so'"));
        assert_eq!(session.values(&format!("SELECT ask_{library}()")), [answer]);
    }
}

/// A side module with a constructor that does `instructions`, and what `change` puts in front of its code.
fn module(instructions: &[Instruction<'static>], change: impl FnOnce(&mut ImportSection, &mut Module)) -> Vec<u8> {
    let mut module = Module::new();
    module.section(&CustomSection { name: "dylink.0".into(), data: (&[1_u8, 4, 0, 0, 0, 0][..]).into() });
    let mut types = TypeSection::new();
    types.ty().function([], []);
    module.section(&types);
    let (mut imports, mut own) = (ImportSection::new(), Module::new());
    change(&mut imports, &mut own);
    let mut functions = FunctionSection::new();
    functions.function(0);
    module.section(&imports).section(&functions);
    let mut bytes = module.finish();
    // Without the head of a module.
    bytes.extend(&own.finish()[8..]);
    let mut rest = Module::new();
    let mut exports = ExportSection::new();
    exports.export("__wasm_call_ctors", ExportKind::Func, 0);
    let mut code = CodeSection::new();
    code.function(&body(instructions));
    rest.section(&exports).section(&code);
    bytes.extend(&rest.finish()[8..]);
    bytes
}

/// These instructions so many times, and a result.
fn repeated(instructions: &[Instruction<'static>], number: usize) -> Vec<Instruction<'static>> {
    let all = std::iter::repeat_n(instructions, number).flatten();
    all.chain(&[Instruction::I32Const(0)]).cloned().collect()
}

/// So many calls through the table, each of which would be an error.
fn calls(number: usize) -> Vec<Instruction<'static>> {
    let call = [Instruction::I32Const(-1), Instruction::CallIndirect { type_index: 3, table_index: 0 }];
    repeated(&call, number)
}

/// A library with so many functions of a variable and a hundred loops.
fn with_loops(functions: usize) -> Vec<u8> {
    let around =
        [Instruction::Loop(BlockType::Empty), Instruction::LocalGet(0), Instruction::BrIf(0), Instruction::End];
    let body = repeated(&around, 100);
    let names: Vec<_> = (0..functions).map(|number| format!("f{number}")).collect();
    let functions: Vec<_> = names.iter().map(|name| (&name[..], &body[..])).collect();
    with_functions(&functions)
}

/// Ten thousand values on the stack, two thousand blocks, and a result.
fn values_and_blocks() -> Vec<Instruction<'static>> {
    let block = [Instruction::Loop(BlockType::Empty), Instruction::End];
    let values = std::iter::repeat_n(Instruction::LocalGet(0), 10_000);
    let blocks = std::iter::repeat_n(block, 2_000).flatten();
    let drops = std::iter::repeat_n(Instruction::Drop, 10_000);
    values.chain(blocks).chain(drops).chain([Instruction::I32Const(0)]).collect()
}

/// A module with a type of function with so many parameters and results.
fn with_types(parameters: usize, results: usize) -> Vec<u8> {
    let mut module = Module::new();
    module.section(&CustomSection { name: "dylink.0".into(), data: (&[1_u8, 4, 0, 0, 0, 0][..]).into() });
    let mut types = TypeSection::new();
    types.ty().function(vec![ValType::I32; parameters], vec![ValType::I32; results]);
    module.section(&types);
    module.finish()
}

#[test]
fn with_leave_a_library_has_no_memory_and_no_table_but_those_of_its_guest() {
    let grow_memory = [Instruction::I32Const(1 << 14), Instruction::MemoryGrow(0), Instruction::Drop];
    let grow_table = [
        Instruction::RefNull(wasm_encoder::HeapType::FUNC),
        Instruction::I32Const(1 << 19),
        Instruction::TableGrow(0),
        Instruction::Drop,
    ];
    let own_memory = |_: &mut ImportSection, own: &mut Module| {
        own.section(MemorySection::new().memory(memory(1)));
    };
    let own_table = |_: &mut ImportSection, own: &mut Module| {
        own.section(TableSection::new().table(table(1)));
    };
    let modules = [
        (module(&grow_memory, own_memory), "memory of its own"),
        (module(&[], own_table), "table of its own"),
        (
            module(&grow_table, |imports, _| {
                imports.import("env", "__indirect_function_table", table(1));
            }),
            "enlarges the table",
        ),
        (
            module(&[], |imports, _| {
                imports.import("other", "memory", memory(1));
            }),
            "another memory",
        ),
        (module(&vec![Instruction::Nop; 100_000], |_, _| {}), "a function of more than"),
        (with_functions(&[("calls", &calls(13_000))]), "compiling it takes too long"),
        (with_functions(&[("values", &values_and_blocks())]), "compiling it takes too long"),
        (with_loops(2_100), "compiling it takes too long"),
        (
            module(&[], |imports, _| {
                for number in 0..65 {
                    imports.import("env", &format!("invoke_v{}", "i".repeat(number)), EntityType::Function(0));
                }
            }),
            "more than 64 imports named invoke_",
        ),
        (
            module(&[], |imports, _| {
                for number in 0..10_001 {
                    imports.import("env", &format!("f{number}"), EntityType::Function(0));
                }
            }),
            "more than 10000 imports",
        ),
        (with_types(101, 1), "more than 100 parameters"),
        // A call is two bytes, and takes and returns a hundred values.
        (with_types(100, 100), "multi-value"),
        (module(&[], |_, _| {}), "it has no memory"),
        (
            module(&[], |imports, _| {
                let element_type = RefType::EXTERNREF;
                imports.import("env", "other", wasm_encoder::TableType { element_type, ..table(1) });
            }),
            "another memory or table",
        ),
    ];
    let (_, connections) = open(true);
    let mut session = connect(&connections);
    for (wasm, refusal) in modules {
        session.values(&export(&wasm, "/tmp/hostile.so"));
        let [_, message, _] = failure(&mut session, "LOAD '/tmp/hostile.so'");
        assert!(message.contains(refusal), "{refusal}: {message}");
    }
    // One that is just within the limits.
    session.values(&export(&with_loops(1_900), "/tmp/large.so"));
    session.values("LOAD '/tmp/large.so'");
    assert_eq!(session.values("SELECT 1"), ["1"]);
}

#[test]
fn a_library_takes_few_memory_mappings_of_the_program_whatever_it_imports() {
    let server = Server::with(&["--mode", "isolated", "--allow-user-libraries"]);
    let peer = Peer::connect(&server);
    let load = |number: i32| {
        let answer = [Instruction::I32Const(number)];
        peer.run(&export(&with_invokes(30..94, &[("answer", &answer)]), &format!("/tmp/{number}.so")));
        peer.run(&format!("create function f{number}() returns int language c as '/tmp/{number}.so', 'answer'"));
        assert_eq!(peer.value(&format!("select f{number}()")), number.to_string());
    };
    load(1);
    let before = process::mappings(server.program.id());
    (2..=11).for_each(load);
    let further = process::mappings(server.program.id()).saturating_sub(before);
    assert!(further <= 100, "{further} mappings for ten libraries with 64 functions invoke_…");
}

#[test]
fn the_code_of_libraries_counts_as_memory_of_the_cluster_that_has_them() {
    let server = Server::with(&["--mode", "isolated", "--allow-user-libraries", "--cluster-memory-limit", "40MB"]);
    let load = |peer: &Peer, number: usize| {
        // No two have the same file.
        let instructions = [&vec![Instruction::Nop; number], &calls(2_000)[..]].concat();
        let library = with_functions(&["a", "b", "c", "d"].map(|name| (name, &instructions[..])));
        peer.run(&export(&library, &format!("/tmp/{number}.so")));
        peer.send(&format!("load '/tmp/{number}.so'"));
        peer.answer()
    };
    let peer = Peer::connect(&server);
    let (number, failure) = (1..500).find_map(|number| Some((number, load(&peer, number).err()?))).expect("a limit");
    assert!(failure.field('M').contains("out of memory: its code takes"), "{failure:?}");
    assert!(number > 3, "{number}");
    assert_eq!(peer.value("select 1"), "1");
    load(&Peer::connect(&server), 1).expect("another one has its own memory");
}

#[test]
fn a_function_that_calls_itself_without_a_loop_takes_turns_and_can_be_ended() {
    // With short slices the seconds that a session has to hear are less than one.
    let server = Server::with(&["--mode", "shared", "--slice", "200", "--allow-user-libraries"]);
    let other = Peer::connect(&server);
    other.run(&export(&that_recurses(), "/tmp/recurses.so"));
    for name in ["small", "large"] {
        other.run(&format!("create function {name}() returns int language c as '/tmp/recurses.so'"));
    }
    assert_eq!(other.value("select small()"), "6765");
    for end in ["pg_cancel_backend", "pg_terminate_backend"] {
        let busy = Peer::connect(&server);
        // It does not check for interrupts after it has the lock.
        busy.send("select pg_advisory_lock(1), large()");
        let locks = format!("from pg_locks where locktype = 'advisory' and pid = {}", busy.process_id);
        other.until(&format!("select exists (select {locks})"));
        assert_eq!(other.value("select small()"), "6765", "others have their turns");
        assert!(busy.is_busy());
        other.run(&format!("select {end}({})", busy.process_id));
        busy.assert_ended("57P01");
        assert_eq!(other.value(&format!("select count(*) {locks}")), "0");
    }
}

#[test]
fn a_function_that_calls_itself_for_ever_ends_at_the_end_of_the_stack() {
    let server = Server::with(&["--mode", "shared", "--allow-user-libraries"]);
    let peer = Peer::connect(&server);
    let deeper: &[Instruction<'static>] = &[Instruction::LocalGet(0), Instruction::Call(FIRST)];
    peer.run(&export(&with_functions(&[("deeper", deeper)]), "/tmp/deeper.so"));
    peer.run("create function deeper() returns int language c as '/tmp/deeper.so'");
    peer.send("select deeper()");
    peer.assert_ended("XX000");
    assert_eq!(Peer::connect(&server).value("select 1"), "1");
}

/// `PGLITE_PORT_SEED` repeats the modules, `PGLITE_PORT_MODULES` makes more of them.
#[test]
fn hostile_libraries_end_nothing_but_their_own_session() {
    let mut dice = Dice(power::seed() | 1);
    let (_, connections) = open(true);
    let mut other = connect(&connections);
    other.values("CREATE TABLE t AS SELECT 1 AS a");
    let mut session = connect(&connections);
    let before = process::anonymous_memory(std::process::id());
    let (mut loaded, mut refused, mut ended) = (0, 0, 0);
    let modules = power::number("PGLITE_PORT_MODULES", 150);
    // Few are loaded, so that there may be none by chance.
    for number in 0..10 * modules {
        if number >= modules && loaded > 0 && refused > 0 && ended > 0 {
            break;
        }
        let wasm = hostile(&mut dice);
        let path = format!("/tmp/{number}.so");
        if errors_of(&session.query(&export(&wasm, &path))).next().is_some() {
            // A library before this one has called functions of PostgreSQL's at random.
            session = connect(&connections);
            session.values(&export(&wasm, &path));
        }
        let messages = session.query(&format!("LOAD '{path}'"));
        if session.query("SELECT 1").is_empty() {
            session = connect(&connections);
            ended += 1;
        } else {
            // PostgreSQL refuses what has no Pg_magic_func after it was loaded.
            let is_loaded = errors_of(&messages).any(|text| text.contains("missing magic block"));
            *(if is_loaded { &mut loaded } else { &mut refused }) += 1;
        }
        assert_eq!(other.values("SELECT a FROM t"), ["1"], "{number}");
    }
    println!("{loaded} loaded, {refused} refused, {ended} sessions ended");
    assert!(loaded > 0 && refused > 0 && ended > 0, "{loaded} {refused} {ended}");
    drop(session);
    let grown = process::anonymous_memory(std::process::id()).saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes");
}

/// As above; each round has eight modules, and `PGLITE_PORT_MODULES` makes more rounds.
#[test]
fn hostile_libraries_that_run_for_ever_are_ended() {
    let mut dice = Dice(power::seed() | 1);
    let (databases, connections) = open(true);
    let mut other = connect(&connections);
    other.values("CREATE TABLE t AS SELECT 1 AS a");
    let (rounds, tally) = (power::number("PGLITE_PORT_MODULES", 150) / 150, databases.watched().isolated);
    let mut round = 0;
    // By chance all modules of a round may be refused, or end.
    while round < rounds || tally.unresponsive.get() == 0 {
        round += 1;
        assert!(round <= rounds + 10, "no session was ended by force");
        let load = |number| {
            let mut session = connect(&connections);
            let path = format!("/tmp/{number}.so");
            session.values(&export(&hostile_and_endless(&mut dice), &path));
            session.send(&wire::query(&format!("LOAD '{path}'")));
            session
        };
        let mut sessions: Vec<_> = (0..8).map(load).collect();
        assert_eq!(other.values("SELECT a FROM t, generate_series(1, 1000000) ORDER BY 1 LIMIT 1"), ["1"], "{round}");
        sessions.iter().for_each(|session| session.control.interrupt(Interrupt::Terminate));
        for session in &mut sessions {
            session.until_ready();
            session.report();
        }
        println!("{} sessions were ended by force", tally.unresponsive.get());
    }
    assert_eq!(other.values("SELECT a FROM t"), ["1"]);
}

#[test]
fn hostile_modules_are_rewritten_or_refused() {
    let mut dice = Dice(power::seed() | 1);
    let (mut rewritten, mut refused) = (0, 0);
    for number in 0..power::number("PGLITE_PORT_MODULES", 3000) {
        let wasm = if number % 2 == 0 { hostile(&mut dice) } else { hostile_and_endless(&mut dice) };
        for rewrite in [instrument::instrument_side_module, instrument::instrument_foreign_side_module] {
            match rewrite(&wasm) {
                // What was valid still is.
                Ok(code) if wasmparser::validate(&wasm).is_ok() => {
                    wasmparser::validate(&code).expect("it is valid");
                    rewritten += 1;
                }
                Ok(_) | Err(_) => refused += 1,
            }
        }
        let _ = instrument::side_module_globals(&wasm);
    }
    assert!(rewritten > 0 && refused > 0, "{rewritten} {refused}");
}
