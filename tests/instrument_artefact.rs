//! The rewriter on the real `pglite.wasm`, `initdb.wasm` and side modules.
//!
//! They are looked for in `$PGLITE_DIR`, or where `npm ci` in `pglite/` puts them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::LazyLock;

use pglite_port::instrument::{
    HAS_CACHES, HAS_CHECKPOINTER, HOOK_MODULE, Hook, IS_MODEL, IS_TEMPORARY, InstrumentError, Instrumented,
    SAFEPOINT_PAGE, SIDE_MODULE_START, instrument, instrument_plain, instrument_side_module, side_module_globals,
};
use wasmparser::{Catch, ExternalKind, FunctionBody, KnownCustom, Name, Operator, Parser, Payload, TypeRef, Validator};

/// What Emscripten's `getpid()` answers.
const PROCESS_ID: u32 = 42;

fn artefact(name: &str) -> Vec<u8> {
    let installed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pglite/node_modules/@electric-sql/pglite/dist");
    let path = std::env::var_os("PGLITE_DIR").map_or(installed, PathBuf::from).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}; install PGlite first", path.display()))
}

/// The instrumented backend, once for all tests of this process.
fn backend() -> &'static Instrumented {
    static BACKEND: LazyLock<Instrumented> =
        LazyLock::new(|| instrument(&artefact("pglite.wasm")).expect("the supported version is accepted"));
    &BACKEND
}

/// Exports by name and bodies by function index.
struct Code<'a> {
    exports: BTreeMap<&'a str, (ExternalKind, u32)>,
    imports: Vec<(&'a str, &'a str)>,
    imported_functions: u32,
    bodies: Vec<FunctionBody<'a>>,
    mutable_globals: Vec<u32>,
    custom_sections: Vec<&'a str>,
    names: BTreeMap<&'a str, u32>,
    /// Function indices of the hooks.
    hooks: BTreeMap<&'a str, u32>,
}

impl<'a> Code<'a> {
    fn read(wasm: &'a [u8]) -> Self {
        let mut code = Code {
            exports: BTreeMap::new(),
            imports: Vec::new(),
            imported_functions: 0,
            bodies: Vec::new(),
            mutable_globals: Vec::new(),
            custom_sections: Vec::new(),
            names: BTreeMap::new(),
            hooks: BTreeMap::new(),
        };
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.unwrap() {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import.unwrap();
                        code.imports.push((import.module, import.name));
                        if import.module == HOOK_MODULE {
                            code.hooks.insert(import.name, code.imported_functions);
                        }
                        code.imported_functions += u32::from(matches!(import.ty, TypeRef::Func(_)));
                    }
                }
                Payload::GlobalSection(section) => {
                    for (index, global) in (0..).zip(section) {
                        if global.unwrap().ty.mutable {
                            code.mutable_globals.push(index);
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export.unwrap();
                        code.exports.insert(export.name, (export.kind, export.index));
                    }
                }
                Payload::CodeSectionEntry(body) => code.bodies.push(body),
                Payload::CustomSection(section) => {
                    code.custom_sections.push(section.name());
                    if let KnownCustom::Name(subsections) = section.as_known() {
                        for subsection in subsections {
                            if let Name::Function(names) = subsection.unwrap() {
                                code.names.extend(names.into_iter().map(Result::unwrap).map(|it| (it.name, it.index)));
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        code
    }

    fn exported_body(&self, name: &str) -> Vec<Operator<'a>> {
        self.body(self.exports[name].1)
    }

    fn body(&self, index: u32) -> Vec<Operator<'a>> {
        let body = &self.bodies[(index - self.imported_functions) as usize];
        body.get_operators_reader().unwrap().into_iter().collect::<Result<_, _>>().unwrap()
    }
}

fn sections(wasm: &[u8]) -> Vec<&'static str> {
    let name = |payload| match payload {
        Payload::StartSection { .. } => Some("start"),
        Payload::DataCountSection { .. } => Some("data count"),
        Payload::DataSection(_) => Some("data"),
        _ => None,
    };
    Parser::new(0).parse_all(wasm).filter_map(|payload| name(payload.unwrap())).collect()
}

/// The values of the constants that are exported, the addresses of variables, by their names.
fn exported_constants(wasm: &[u8]) -> BTreeMap<&str, u32> {
    let (mut values, mut exports) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.unwrap() {
            Payload::ImportSection(section) => {
                let imports = section.into_imports().map(Result::unwrap);
                values.extend(imports.filter(|import| matches!(import.ty, TypeRef::Global(_))).map(|_| None));
            }
            Payload::GlobalSection(section) => values.extend(section.into_iter().map(|global| {
                match global.unwrap().init_expr.get_operators_reader().read().unwrap() {
                    Operator::I32Const { value } => Some(value.cast_unsigned()),
                    _ => None,
                }
            })),
            Payload::ExportSection(section) => exports.extend(section.into_iter().map(Result::unwrap)),
            _ => {}
        }
    }
    let globals = exports.into_iter().filter(|export| export.kind == ExternalKind::Global);
    globals.filter_map(|export| Some((export.name, values[export.index as usize]?))).collect()
}

/// The bytes of the data segments.
fn data(wasm: &[u8]) -> Vec<&[u8]> {
    let segments = Parser::new(0).parse_all(wasm).filter_map(|payload| match payload.unwrap() {
        Payload::DataSection(section) => Some(section),
        _ => None,
    });
    segments.flatten().map(|segment| segment.unwrap().data).collect()
}

fn constants_of(body: &[Operator], wanted: u32) -> usize {
    body.iter().filter(|it| matches!(it, Operator::I32Const { value } if value.cast_unsigned() == wanted)).count()
}

#[test]
fn every_function_is_found_and_the_code_is_valid_and_brings_no_data() {
    let Instrumented { code, facts, .. } = backend();
    Validator::new().validate_all(code).unwrap();
    assert_eq!(sections(code), [""; 0], "no start function, no data");
    let code = Code::read(code);
    for name in [
        "InitProcess",
        "PostgresMain",
        "BackendMain",
        "InitPostgres",
        "InitializeSessionUserId",
        "process_startup_options",
        "ApplySetting",
        "CreateCheckPoint",
        "load_hba",
        "load_libraries",
        "pgstat_bestart_initial",
        "pgstat_bestart_final",
        "EventTriggerOnLogin",
        "proc_exit",
        "raise",
    ] {
        assert_eq!(code.exports[name], (ExternalKind::Func, code.names[name]), "{name}");
    }
    assert_eq!(code.exports["memory"], (ExternalKind::Memory, 0));
    assert!(!code.imports.contains(&("env", "memory")), "the memory is its own");
    let hooks = code.imports.iter().filter(|(module, _)| *module == HOOK_MODULE).map(|(_, name)| *name);
    assert_eq!(hooks.collect::<Vec<_>>(), Hook::ALL.map(Hook::name));
    assert_eq!(code.custom_sections, ["dylink.0", "name"]);
    assert_eq!((facts.memory.minimum, facts.memory.maximum), (2048, Some(32768)));
}

#[test]
fn no_safepoint_lies_between_the_load_and_the_store_of_a_lock() {
    let code = Code::read(&backend().code);
    // A spinlock is one word. A lightweight lock has its state behind its tranche (`src/include/storage/lwlock.h`).
    for (name, place) in [("s_lock", 0), ("LWLockAcquire", 4), ("LWLockConditionalAcquire", 4)] {
        let (mut is_loaded, mut stores, mut safepoints, mut is_mode) = (false, 0, 0, false);
        let operators = code.exported_body(name);
        for (at, operator) in operators.iter().enumerate() {
            match operator {
                Operator::I32Load { memarg } if memarg.offset == place => is_loaded = true,
                // The process may have lost its turn on the way.
                Operator::Loop { .. } => is_loaded = false,
                Operator::I32Store { .. } if at >= 2 && is_safepoint(&operators[at - 2..=at]) => safepoints += 1,
                // The mode, which is the second parameter, is kept in the list of the locks that the process has.
                Operator::I32Store { memarg } if memarg.offset == place && !is_mode => {
                    assert!(is_loaded, "{name} stores what it has not loaded since it could lose its turn");
                    (is_loaded, stores) = (false, stores + 1);
                }
                _ => {}
            }
            is_mode = matches!(operator, Operator::LocalGet { local_index: 1 });
        }
        assert!(stores > 0 && safepoints > 0, "{name}: {stores} stores, {safepoints} safepoints");
    }
}

#[test]
fn memory_holds_the_string_constants_where_the_code_looks_for_them() {
    let Instrumented { code, memory, .. } = backend();
    let body = Code::read(code).exported_body("InitProcess");
    let string = b"\0sorry, too many clients already\0";
    let at = memory.windows(string.len()).position(|window| window == string).expect("the message is in memory") + 1;
    assert_eq!(constants_of(&body, u32::try_from(at).unwrap()), 1);
}

#[test]
fn the_settings_with_libraries_to_load_are_found_by_their_names() {
    let Instrumented { memory, facts, .. } = backend();
    let name = |address: u32| {
        let bytes = &memory[address as usize..];
        bytes.split(|&byte| byte == 0).next().map(String::from_utf8_lossy)
    };
    let names = facts.preloads.map(|preload| (name(preload.name).expect("a name"), preload.is_restricted));
    assert_eq!(names, [("session_preload_libraries".into(), 0), ("local_preload_libraries".into(), 1)]);
}

/// Which hooks a function calls, in order.
fn hooks_called(code: &Code, body: &[Operator]) -> Vec<&'static str> {
    let hook = |operator: &Operator| match operator {
        Operator::Call { function_index } => {
            Hook::ALL.map(Hook::name).into_iter().find(|name| code.hooks.get(name) == Some(function_index))
        }
        _ => None,
    };
    body.iter().filter_map(hook).collect()
}

#[test]
fn each_hook_is_called_by_one_function_where_it_belongs() {
    let Instrumented { code, .. } = backend();
    let code = Code::read(code);
    let (mut callers, mut waits, mut timeouts) = (Vec::new(), 0, 0);
    for (index, _) in (code.imported_functions..).zip(&code.bodies) {
        let mut called = hooks_called(&code, &code.body(index));
        // Six loops of functions that have no names in the file; see `instrument/semaphores.rs`.
        called.retain(|hook| {
            waits += usize::from(*hook == "semaphore_wait");
            *hook != "semaphore_wait"
        });
        let name = code.names.iter().find(|(_, it)| **it == index);
        // Functions of timeout.c, most of which have no names in the file; see `instrument/real_time.rs`.
        if name.is_none() {
            timeouts += called.extract_if(.., |hook| *hook == "real_timestamp").count();
        }
        called.dedup();
        if !called.is_empty() {
            callers.push((called, *name.expect("it has a name").0));
        }
    }
    callers.sort_unstable();
    let expected = [
        (vec!["clear_mapping"], "mmap"),
        (vec!["client_is_trusted", "client_authenticated"], "PerformAuthentication"),
        (vec!["crc32c"], "pg_comp_crc32c_sb8"),
        (vec!["database_chosen"], "RelationCacheInitializePhase3"),
        (vec!["database_statistics"], "pgstat_database_flush_cb"),
        (vec!["exit"], "proc_exit"),
        (vec!["import_rules"], "BundleImporter::getRules"),
        (vec!["inherit_caches"], "InitPostgres"),
        (vec!["init_process"], "InitProcess"),
        (vec!["is_overdue"], "MemoryContextAlloc"),
        (vec!["is_overdue"], "MemoryContextAllocZero"),
        (vec!["is_overdue"], "palloc"),
        (vec!["is_overdue"], "palloc0"),
        (vec!["is_overdue"], "repalloc"),
        (vec!["kill"], "kill"),
        (vec!["like"], "SB_MatchText"),
        (vec!["like"], "UTF8_MatchText"),
        (vec!["locale_exists"], "__get_locale"),
        (vec!["open_collator"], "icu_validate_locale"),
        (vec!["open_collator"], "pg_ucol_open"),
        (vec!["page_checksum"], "pg_checksum_page"),
        (vec!["parse_double"], "strtod"),
        (vec!["parse_float"], "strtof"),
        (vec!["pg_usleep"], "pg_usleep"),
        (vec!["postmaster_is_alive"], "PostmasterIsAliveInternal"),
        (vec!["process_interrupts"], "ProcessInterrupts"),
        (vec!["real_timestamp"], "InvalidatePossiblyObsoleteSlot"),
        (vec!["real_timestamp"], "ReplicationSlotRelease"),
        (vec!["real_timestamp"], "XLogWrite"),
        (vec!["real_timestamp"], "pg_sleep"),
        (vec!["real_timestamp"], "pgstat_report_stat"),
        (vec!["request_checkpoint"], "CreateCheckPoint"),
        (vec!["scram_compare"], "scram_init"),
        (vec!["scram_exchange", "scram_compare"], "scram_exchange"),
        (vec!["scram_mechanisms"], "scram_get_mechanisms"),
        (vec!["shown_timestamp", "real_timestamp"], "ProcSleep"),
        (vec!["stack_depth"], "check_stack_depth"),
        (vec!["stack_depth"], "stack_is_too_deep"),
        (vec!["time_of_day"], "gettimeofday"),
        (vec!["timestamp"], "GetCurrentTimestamp"),
        (vec!["to_lower"], "towlower"),
        (vec!["to_upper"], "towupper"),
        (vec!["wait_event_set_wait"], "WaitEventSetWait"),
        (vec!["wal_segment"], "XLogFileInit"),
    ];
    assert_eq!(callers, expected);
    assert_eq!((waits, timeouts), (6, 9));

    for (name, hook) in [("InitProcess", "init_process"), ("ProcessInterrupts", "process_interrupts")] {
        let first = &code.exported_body(name)[..1];
        assert_eq!(hooks_called(&code, first), [hook], "{name} calls it first");
    }
    let [Operator::LocalGet { local_index: 0 }, Operator::LocalGet { local_index: 1 }, call] =
        &code.body(code.names["pgstat_database_flush_cb"])[..3]
    else {
        panic!("statistics are counted before they are added");
    };
    assert_eq!(hooks_called(&code, std::slice::from_ref(call)), ["database_statistics"]);
    let wait = code.body(code.names["WaitEventSetWait"]);
    let at = wait.iter().position(|it| !hooks_called(&code, std::slice::from_ref(it)).is_empty()).unwrap();
    let looped = wait[..at].iter().position(|it| matches!(it, Operator::Loop { .. })).expect("it waits in a loop");
    let slept_on = |it: &Operator| matches!(it, Operator::I32Store { memarg } if memarg.offset == 4);
    assert!(wait[looped..at].iter().any(slept_on), "the latch is marked as being slept on before the host is called");
}

#[test]
fn allocations_begin_with_a_check_for_interrupts_that_are_overdue() {
    let Instrumented { code, facts, .. } = backend();
    let code = Code::read(code);
    let (_, process_interrupts) = code.exports["ProcessInterrupts"];
    for name in ["palloc", "palloc0", "repalloc", "MemoryContextAlloc", "MemoryContextAllocZero"] {
        let body = code.exported_body(name);
        let [
            Operator::I32Const { value },
            Operator::I32Load { .. },
            Operator::If { .. },
            asks @ Operator::Call { .. },
            Operator::If { .. },
            Operator::Call { function_index },
            Operator::End,
            Operator::End,
        ] = &body[..8]
        else {
            panic!("{name} begins with {:?}", &body[..8]);
        };
        assert_eq!(Some(value.cast_unsigned()), facts.address("InterruptPending").ok());
        assert_eq!(hooks_called(&code, std::slice::from_ref(asks)), ["is_overdue"]);
        assert_eq!(*function_index, process_interrupts);
        let calls =
            |it: &&Operator| matches!(it, Operator::Call { function_index } if *function_index == code.names["palloc"]);
        assert_eq!(body.iter().filter(calls).count(), 0, "{name} does not do it twice");
    }
}

#[test]
fn the_authentication_is_a_function_of_its_own_that_init_postgres_calls_once() {
    let Instrumented { code, memory, .. } = backend();
    let code = Code::read(code);
    let (kind, authentication) = code.exports["PerformAuthentication"];
    assert_eq!(kind, ExternalKind::Func);
    let message = b"\0no pg_hba.conf entry for host \"%s\", user \"%s\", database \"%s\", %s\0";
    let at = memory.windows(message.len()).position(|window| window == message).expect("the message is in memory") + 1;
    let at = u32::try_from(at).unwrap();
    assert_eq!(constants_of(&code.body(authentication), at), 1);
    let init = code.exported_body("InitPostgres");
    assert_eq!(constants_of(&init, at), 0, "there is one copy");
    let calls =
        init.iter().filter(|it| matches!(it, Operator::Call { function_index } if *function_index == authentication));
    assert_eq!(calls.count(), 1);
}

#[test]
fn the_cancel_key_is_read_from_memory_when_it_is_sent() {
    let Instrumented { code, facts, .. } = backend();
    let body = Code::read(code).exported_body("pgl_sendConnData");
    assert_eq!(constants_of(&body, facts.my_cancel_key.swap_bytes()), 0, "its address is not sent");
    let read = body.windows(2).any(|pair| match pair {
        [Operator::I32Const { value }, Operator::I32Load { .. }] => value.cast_unsigned() == facts.my_cancel_key,
        _ => false,
    });
    assert!(read);
}

#[test]
fn checkpoints_begin_with_a_look_at_whether_the_checkpointer_makes_them() {
    let Instrumented { code, .. } = backend();
    let code = Code::read(code);
    let (_, has_checkpointer) = code.exports[HAS_CHECKPOINTER];
    let body = code.exported_body("CreateCheckPoint");
    let asks = matches!(
        body[..4],
        [Operator::GlobalGet { global_index }, Operator::If { .. }, Operator::LocalGet { local_index: 0 }, Operator::Call { .. }]
            if global_index == has_checkpointer
    );
    assert!(asks);
    let (_, is_temporary) = code.exports[IS_TEMPORARY];
    let body = code.body(code.names["ShutdownXLOG"]);
    let returns = matches!(
        body[..4],
        [Operator::GlobalGet { global_index }, Operator::If { .. }, Operator::Return, Operator::End]
            if global_index == is_temporary
    );
    assert!(returns, "a cluster that ends with its session writes no shutdown checkpoint");
    let slot = code.body(code.names["RegisterPostmasterChildActive"]);
    assert!(matches!(slot[..], [Operator::End]), "the slots of a postmaster are left alone");
    let pre_sync = code.body(code.names["pre_sync_fname"]);
    assert!(matches!(pre_sync[..], [Operator::End]), "recovery syncs every file once");
}

#[test]
fn a_process_with_caches_makes_none_and_a_model_takes_no_settings_of_its_role() {
    let Instrumented { code, .. } = backend();
    let code = Code::read(code);
    let is_left_out = |name: &str, global: &str| {
        let (_, global) = code.exports[global];
        let body = code.body(code.names[name]);
        matches!(
            body[..4],
            [Operator::GlobalGet { global_index }, Operator::If { .. }, Operator::Return, Operator::End]
                if global_index == global
        )
    };
    let (_, has_caches) = code.exports[HAS_CACHES];
    let body = code.body(code.names["RelationCacheInitializePhase3"]);
    let is_replaced = matches!(
        body[..5],
        [
            Operator::GlobalGet { global_index },
            Operator::If { .. },
            Operator::Call { .. },
            Operator::Return,
            Operator::End
        ] if global_index == has_caches
    );
    assert!(is_replaced);
    assert!(is_left_out("ApplySetting", IS_MODEL));
    assert!(is_left_out("EventTriggerOnLogin", IS_MODEL));
    // The caches of relations, catalogs and plans, and the portals are made in one part of InitPostgres.
    let body = code.exported_body("InitPostgres");
    let asks = |it: &Operator| matches!(*it, Operator::GlobalGet { global_index } if global_index == has_caches);
    let start = body.iter().position(asks).expect("it asks whether there are caches");
    let Operator::Else = body[start + 3] else { panic!("what makes them is the other case") };
    let mut depth = 1;
    let length = body[start + 4..].iter().position(|it| {
        match it {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => depth += 1,
            Operator::End => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    let made = &body[start + 4..][..length.expect("it ends")];
    for (name, calls) in [
        ("CreateCacheMemoryContext", 1),
        ("hash_create", 2),
        ("CacheRegisterSyscacheCallback", 10),
        ("before_shmem_exit", 0),
    ] {
        let (_, function) = code.exports[name];
        let is_call = |it: &&Operator| matches!(**it, Operator::Call { function_index } if function_index == function);
        assert_eq!(made.iter().filter(is_call).count(), calls, "{name}");
    }
    assert!(
        matches!(body[start + 4 + made.len()..][..4], [Operator::End, Operator::I32Const { .. }, Operator::I32Const { value: 0 }, Operator::Call { function_index }] if function_index == code.exports["before_shmem_exit"].1)
    );
}

#[test]
fn the_children_of_a_postmaster_are_found_in_its_table() {
    let Instrumented { facts, .. } = backend();
    // `BackendType` in PostgreSQL's src/include/miscadmin.h.
    let numbers = [
        ("backend", 1),
        ("autovacuum launcher", 3),
        ("autovacuum worker", 4),
        ("bgwriter", 10),
        ("checkpointer", 11),
        ("startup", 13),
        ("wal_writer", 16),
        ("syslogger", 17),
    ];
    for (name, number) in numbers {
        let child = facts.child(name).unwrap();
        assert_eq!(child.number, number, "{name}");
        assert!(u64::from(child.main) < facts.table_elements, "{name}");
    }
    assert!(facts.child("standalone backend").is_err(), "it has no main function");
}

#[test]
fn every_mutable_global_is_exported_under_the_name_that_the_facts_give() {
    let Instrumented { code, facts, .. } = backend();
    let code = Code::read(code);
    let mut exported: Vec<u32> = facts.mutable_globals.iter().map(|name| code.exports[name.as_str()].1).collect();
    exported.sort_unstable();
    assert_eq!(exported, code.mutable_globals);
    assert!(facts.mutable_globals.iter().any(|name| name == "__stack_pointer"));
    for added in [HAS_CHECKPOINTER, IS_TEMPORARY, HAS_CACHES, IS_MODEL] {
        assert!(facts.mutable_globals.iter().any(|name| name == added), "{added}");
    }
}

#[test]
fn no_process_id_is_left_that_the_compiler_put_in_place_of_getpid() {
    let Instrumented { code, memory, facts, .. } = backend();
    let code = Code::read(code);
    let my_proc_pid = facts.address("MyProcPid").unwrap();
    for name in ["proc_exit", "ProcKill", "AuxiliaryProcKill", "wrapper_handler", "kill", "XLogFileInitInternal"] {
        let body = code.body(code.names[name]);
        assert_eq!(constants_of(&body, PROCESS_ID), 0, "{name}");
        assert_eq!(constants_of(&body, my_proc_pid) > 0, name != "kill", "{name}");
    }
    // Functions that put a process id into the name of a temporary file of WAL, and how many keep the constant: the
    // startup process' StartupXLOG, and writeTimeLineHistoryFile of a standby.
    let format = b"\0pg_wal/xlogtemp.%d\0";
    let at = memory.windows(format.len()).position(|window| window == format).expect("the format is in memory") + 1;
    let bodies = (code.imported_functions..).zip(&code.bodies).map(|(index, _)| code.body(index));
    let users: Vec<_> = bodies.filter(|body| constants_of(body, u32::try_from(at).unwrap()) > 0).collect();
    assert_eq!(users.len(), 3);
    assert_eq!(users.iter().filter(|body| constants_of(body, PROCESS_ID) > 0).count(), 2);
}

#[test]
fn addresses_are_those_of_the_variables_named() {
    let Instrumented { memory, facts, .. } = backend();
    let wasm = artefact("pglite.wasm");
    let constants = exported_constants(&wasm);
    for symbol in [
        "InterruptPending",
        "QueryCancelPending",
        "ProcDiePending",
        "MyProcPid",
        "MyLatch",
        "MyProcPort",
        "MyStartTime",
        "InterruptHoldoffCount",
        "CritSectionCount",
        "pg_global_prng_state",
        "IsUnderPostmaster",
    ] {
        assert_eq!(facts.address(symbol).unwrap(), constants[symbol], "{symbol}");
    }
    // The second is a variable, but of WebAssembly's: it has no address.
    for symbol in ["NoSuchVariable", "__stack_pointer"] {
        assert!(matches!(facts.address(symbol), Err(InstrumentError::Evidence { .. })), "{symbol}");
    }
    let others = [
        facts.errno,
        facts.my_cancel_key,
        facts.my_cancel_key_length,
        facts.signal_handlers,
        facts.encoding_names,
        facts.encoding_functions,
        facts.heap,
        facts.message_context,
    ];
    for address in others {
        assert!(address % 4 == 0 && address < facts.stack_pointer, "{address}");
    }
    assert_eq!(others.iter().collect::<BTreeSet<_>>().len(), others.len(), "{others:?}");
    let callbacks = facts.exit_callbacks;
    assert_eq!(callbacks.iter().collect::<BTreeSet<_>>().len(), 3, "{callbacks:?}");
    let word = |address: u32| u32::from_le_bytes(memory[address as usize..][..4].try_into().unwrap());
    // UTF8 has the number 6 (`pg_enc` in PostgreSQL's src/include/mb/pg_wchar.h) and characters of four bytes at most.
    assert!(memory[word(facts.encoding_names + 8 * 6) as usize..].starts_with(b"UTF8\0"));
    assert_eq!(word(facts.encoding_names + 8 * 6 + 4), 6);
    assert_eq!(word(facts.encoding_functions + 28 * 6 + 24), 4);
    // The vtables of C++'s type information: no offset, type information that points to the name, and eight functions.
    for name in ["17__class_type_info", "20__si_class_type_info", "21__vmi_class_type_info"] {
        let vtable = facts.address(&format!("_ZTVN10__cxxabiv1{name}E")).unwrap();
        let text = format!("N10__cxxabiv1{name}E\0");
        assert_eq!(word(vtable), 0, "{name}");
        assert!(memory[word(word(vtable + 4) + 4) as usize..].starts_with(text.as_bytes()), "{name}");
        for slot in (8..40).step_by(4).map(|place| word(vtable + place)) {
            assert!(slot > 0 && u64::from(slot) < facts.table_elements, "{name}: {slot}");
        }
    }
    let errno_location = Code::read(&backend().code).exported_body("__errno_location");
    assert!(
        matches!(errno_location[..], [Operator::I32Const { value }, Operator::End] if value.cast_unsigned() == facts.errno),
        "{errno_location:?}"
    );
}

#[test]
fn a_file_in_which_a_function_has_another_name_is_refused_by_that_name() {
    let wasm = artefact("pglite.wasm");
    for (string, function) in [
        ("WaitEventSetWaitBlock", "WaitEventSetWait"),
        ("proc header uninitialized", "InitProcess"),
        ("can't create a checkpoint during recovery", "CreateCheckPoint"),
        ("load_hba", "load_hba"),
        ("could not generate random cancel key", "PostgresMain"),
        ("AuxiliaryProcKill() called in child process", "ProcKill"),
    ] {
        let mut altered = wasm.clone();
        let terminated = [string.as_bytes(), b"\0"].concat();
        let mut places = 0;
        for at in 0..altered.len() - terminated.len() {
            if altered[at..].starts_with(&terminated) {
                altered[at + string.len() - 1] ^= 1;
                places += 1;
            }
        }
        assert!(places > 0, "{string} is in the file");
        let Err(error) = instrument(&altered) else { panic!("{string} was altered and not missed") };
        let message = error.to_string();
        assert!(message.starts_with(function) && message.contains("found none"), "{message}");
    }
}

#[test]
fn what_was_found_can_be_printed_and_compared_line_by_line() {
    let print = || {
        let mut program = support::program::Program::spawn(&["evidence"]);
        let (status, stdout, stderr) = program.output();
        assert_eq!(status, Some(0), "{stderr}");
        stdout
    };
    let printed = print();
    let line = |wanted: &str| printed.lines().filter(|line| line.starts_with(wanted)).count();
    for name in ["InitProcess", "WaitEventSetWait", "CreateCheckPoint", "kill"] {
        assert_eq!(line(&format!("function {name} ")), 1, "{name}");
    }
    let address = backend().facts.address("MyProcPid").unwrap();
    assert_eq!(line(&format!("fact data_symbols MyProcPid: {address}")), 1);
    assert_eq!(print(), printed, "it is the same every time");
}

#[test]
fn initdb_keeps_its_data() {
    let wasm = artefact("initdb.wasm");
    let plain = instrument_plain(&wasm).unwrap();
    Validator::new().validate_all(&plain).unwrap();
    assert_eq!(sections(&plain), sections(&wasm));
    assert!(!data(&wasm).is_empty() && data(&plain) == data(&wasm));
    assert_eq!(Code::read(&plain).exports["memory"].0, ExternalKind::Memory);
}

/// The bytes of a library in an extension's bundle.
fn library(bundle: &str, path: &str) -> Vec<u8> {
    let bundle = artefact(bundle);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bundle[..]));
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let mut entry = entries.find(|entry| entry.path().unwrap().ends_with(path)).expect("it is in the bundle");
    let mut wasm = Vec::new();
    entry.read_to_end(&mut wasm).unwrap();
    wasm
}

#[test]
fn side_modules_do_nothing_by_themselves_and_show_their_globals() {
    for (bundle, path, globals) in [
        ("pgcrypto.tar.gz", "lib/postgresql/pgcrypto.so", 2),
        ("bloom.tar.gz", "lib/postgresql/bloom.so", 11),
        ("citext.tar.gz", "lib/postgresql/citext.so", 0),
    ] {
        let wasm = library(bundle, path);
        let code = instrument_side_module(&wasm).unwrap();
        Validator::new().validate_all(&code).unwrap();
        assert_eq!(sections(&code), [""; 0], "{path}");
        let mutable_globals = side_module_globals(&wasm).unwrap();
        assert_eq!(mutable_globals.len(), globals, "{path}");
        let code = Code::read(&code);
        assert_eq!(code.exports.contains_key(SIDE_MODULE_START), globals > 0, "{path}");
        assert!(mutable_globals.iter().all(|name| code.exports[name.as_str()].0 == ExternalKind::Global));
    }
}

/// Whether these are the instructions of a safepoint.
fn is_safepoint(operators: &[Operator]) -> bool {
    matches!(operators, [Operator::I32Const { value }, Operator::I32Const { .. }, Operator::I32Store { .. }]
        if *value == SAFEPOINT_PAGE.cast_signed())
}

/// The ways back to loops without a safepoint in a function, and the safepoints that are elsewhere, by their numbers
/// among its instructions; and how many loops begin with one and how many do not.
fn faults(operators: &[Operator]) -> (Vec<usize>, [usize; 2]) {
    let (mut faults, mut loops) = (Vec::new(), [0; 2]);
    // The blocks around an instruction: whether they are loops, and begin with a safepoint.
    let mut around: Vec<Option<bool>> = Vec::new();
    for (at, operator) in operators.iter().enumerate() {
        let precedes = at.checked_sub(3).is_some_and(|from| is_safepoint(&operators[from..at]));
        let mut back = |around: &[Option<bool>], label: u32, is_met: bool| {
            if around.iter().rev().nth(label as usize).copied().flatten() == Some(false) && !is_met {
                faults.push(at);
            }
        };
        match operator {
            Operator::Br { relative_depth } => back(&around, *relative_depth, precedes),
            Operator::BrIf { relative_depth } => back(&around, *relative_depth, false),
            Operator::BrTable { targets } => {
                let labels = targets.targets().map(Result::unwrap).chain([targets.default()]);
                labels.for_each(|label| back(&around, label, false));
            }
            Operator::TryTable { try_table } => {
                for catch in &try_table.catches {
                    let (Catch::One { label, .. }
                    | Catch::OneRef { label, .. }
                    | Catch::All { label }
                    | Catch::AllRef { label }) = *catch;
                    back(&around, label, false);
                }
                around.push(None);
            }
            Operator::Loop { .. } => {
                let begins = operators.get(at + 1..at + 4).is_some_and(is_safepoint);
                loops[usize::from(!begins)] += 1;
                around.push(Some(begins));
            }
            Operator::Block { .. } | Operator::If { .. } => around.push(None),
            Operator::End => drop(around.pop()),
            _ => {}
        }
        let begins_loop = at >= 4 && matches!(operators[at - 4], Operator::Loop { .. });
        let goes_back = matches!(operator, Operator::Br { relative_depth }
            if around.iter().rev().nth(*relative_depth as usize).copied().flatten().is_some());
        let is_apart = precedes && !goes_back && !begins_loop;
        if is_apart {
            faults.push(at);
        }
    }
    (faults, loops)
}

#[test]
fn no_way_back_to_a_loop_is_without_a_safepoint_and_no_safepoint_is_elsewhere() {
    let mut loops = [0; 2];
    for (number, body) in (0..).zip(&Code::read(&backend().code).bodies) {
        let operators: Vec<_> = body.get_operators_reader().unwrap().into_iter().map(Result::unwrap).collect();
        let (faults, of_this) = faults(&operators);
        assert!(faults.is_empty(), "function {number}: {faults:?}");
        loops = [loops[0] + of_this[0], loops[1] + of_this[1]];
    }
    let [with_safepoint, without] = loops;
    assert!(
        without > 10 * with_safepoint && with_safepoint > 0,
        "{with_safepoint} loops begin with one, {without} do not"
    );
}
