//! Functions of several of `PostgreSQL`'s files that the linker left out: reading publications, lists of transactions,
//! origins, callbacks.

use wasmtime::{Caller, Linker};

use super::{
    changes::row_of,
    relations::{byte, class_of, relation_id},
};
use crate::{
    guest::{Guest, call, memory, report, table_function},
    instrument::Callbacks,
    postgres::{
        OR_EXPRESSION, RELATION_SYNC_CALLBACKS_MAX, array, class, decoding, pg_list, publication, replication_origin,
        system_cache,
    },
    protocol::error_response::sqlstate,
};

pub(super) const FUNCTIONS: [&str; 10] = [
    "CacheRegisterRelSyncCallback",
    "OutputPluginUpdateProgress",
    "check_and_fetch_column_list",
    "free_attrmap",
    "GetTopMostAncestorInPublication",
    "is_publishable_relation",
    "lappend_xid",
    "list_member_xid",
    "make_orclause",
    "replorigin_by_oid",
];

type Result<T = ()> = wasmtime::Result<T>;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result {
    linker.func_wrap("env", "CacheRegisterRelSyncCallback", register)?;
    linker.func_wrap("env", "OutputPluginUpdateProgress", update_progress)?;
    linker.func_wrap("env", "check_and_fetch_column_list", column_list)?;
    linker.func_wrap("env", "GetTopMostAncestorInPublication", topmost_ancestor)?;
    linker.func_wrap("env", "replorigin_by_oid", origin_name)?;
    // src/backend/access/common/attmap.c
    linker.func_wrap("env", "free_attrmap", |mut caller: Caller<'_, Guest>, map: u32| -> Result {
        let (memory, _) = memory::of(&mut caller)?;
        let numbers = memory::read_u32(memory, map)?;
        call::export::<u32, ()>(&mut caller, "pfree", numbers)?;
        call::export(&mut caller, "pfree", map)
    })?;
    // src/backend/nodes/makefuncs.c
    linker.func_wrap("env", "make_orclause", |mut caller: Caller<'_, Guest>, clauses: u32| -> Result<u32> {
        call::export(&mut caller, "makeBoolExpr", (OR_EXPRESSION, clauses, -1_i32))
    })?;
    // src/backend/catalog/pg_publication.c; IsCatalogRelationOid is for identifiers below those of users.
    linker.func_wrap(
        "env",
        "is_publishable_relation",
        |mut caller: Caller<'_, Guest>, relation: u32| -> Result<u32> {
            let (memory, _) = memory::of(&mut caller)?;
            let class = class_of(memory, relation)?;
            let is_publishable = class::TABLES.contains(&byte(memory, class.wrapping_add(class::KIND))?)
                && byte(memory, class.wrapping_add(class::PERSISTENCE))? == class::PERMANENT
                && relation_id(memory, relation)? >= class::FIRST_OF_USERS;
            Ok(is_publishable.into())
        },
    )?;
    // src/backend/nodes/list.c
    linker.func_wrap("env", "lappend_xid", |mut caller: Caller<'_, Guest>, list: u32, xid: u32| -> Result<u32> {
        let list: u32 = call::export(&mut caller, "lappend_oid", (list, xid))?;
        // A new list has the tag of another type of numbers.
        memory::write_u32(memory::of(&mut caller)?.0, list, pg_list::TAG_OF_TRANSACTIONS)?;
        Ok(list)
    })?;
    linker.func_wrap(
        "env",
        "list_member_xid",
        |mut caller: Caller<'_, Guest>, list: u32, xid: u32| -> Result<u32> {
            Ok(numbers(memory::of(&mut caller)?.0, list)?.contains(&xid).into())
        },
    )?;
    Ok(())
}

/// The numbers in a `List` of them.
fn numbers(memory: &[u8], list: u32) -> Result<Vec<u32>> {
    if list == 0 {
        return Ok(Vec::new());
    }
    let count = memory::read_u32(memory, list.wrapping_add(pg_list::LENGTH))?;
    let elements = memory::read_u32(memory, list.wrapping_add(pg_list::ELEMENTS))?;
    (0..count).map(|at| Ok(memory::read_u32(memory, elements.wrapping_add(4 * at))?)).collect()
}

/// Registers a callback for changes of publications (`src/backend/utils/cache/inval.c`).
fn register(mut caller: Caller<'_, Guest>, function: u32, argument: u32) -> Result {
    let (memory, guest) = memory::of(&mut caller)?;
    let Callbacks { count, list } = guest.facts.relation_sync_callbacks;
    let registered = memory::read_u32(memory, count)?;
    if registered >= RELATION_SYNC_CALLBACKS_MAX {
        return Err(report::fatal(&mut caller, sqlstate::INTERNAL_ERROR, "out of relsync_callback_list slots", None));
    }
    let place = list.wrapping_add(8 * registered);
    memory::write_u32(memory, place, function)?;
    memory::write_u32(memory, place.wrapping_add(4), argument)?;
    memory::write_u32(memory, count, registered + 1)?;
    Ok(())
}

/// Calls the function of a decoding context that reports progress (`src/backend/replication/logical/logical.c`).
fn update_progress(mut caller: Caller<'_, Guest>, context: u32, is_skipped: u32) -> Result {
    let (memory, _) = memory::of(&mut caller)?;
    let function = memory::read_u32(memory, context.wrapping_add(decoding::UPDATE_PROGRESS))?;
    if function == 0 {
        return Ok(());
    }
    let location = memory::read_u64(memory, context.wrapping_add(decoding::WRITE_LOCATION))?;
    let transaction = memory::read_u32(memory, context.wrapping_add(decoding::WRITE_TRANSACTION))?;
    let function = table_function::<(u32, u64, u32, u32), ()>(&mut caller, function)?;
    function.call(&mut caller, (context, location, transaction, is_skipped))
}

/// Finds out whether a publication has a list of columns for a table, and adds it to the `Bitmapset` at `*columns`,
/// unless `columns` is 0 (`src/backend/catalog/pg_publication.c`).
fn column_list(
    mut caller: Caller<'_, Guest>,
    publication: u32,
    relation: u32,
    context: u32,
    columns: u32,
) -> Result<u32> {
    const CACHE: i32 = system_cache::PUBLICATION_RELATION_MAP;
    let caller = &mut caller;
    let (memory, _) = memory::of(caller)?;
    if byte(memory, publication.wrapping_add(publication::HAS_ALL_TABLES))? != 0 {
        return Ok(0);
    }
    let id = memory::read_u32(memory, publication.wrapping_add(publication::ID))?;
    let tuple: u32 = call::export(caller, "SearchSysCache2", (CACHE, relation, id))?;
    if tuple == 0 {
        return Ok(0);
    }
    let stack: u32 = call::export(caller, "emscripten_stack_get_current", ())?;
    let is_null = call::push(caller, &[0])?;
    let list: u32 = call::export(caller, "SysCacheGetAttr", (CACHE, tuple, publication::COLUMNS, is_null))?;
    let has_list = byte(memory::of(caller)?.0, is_null)? == 0;
    call::export::<u32, ()>(caller, "_emscripten_stack_restore", stack)?;
    if has_list && columns != 0 {
        add_columns(caller, list, context, columns)?;
    }
    call::export::<u32, ()>(caller, "ReleaseSysCache", tuple)?;
    Ok(has_list.into())
}

/// Adds the numbers in an `int2vector` to the `Bitmapset` at `*columns`, which is made in the memory context `context`
/// if that is not 0 (`pub_collist_to_bitmapset`).
fn add_columns(caller: &mut Caller<'_, Guest>, list: u32, context: u32, columns: u32) -> Result {
    let current = caller.data().facts.address("CurrentMemoryContext")?;
    let list: u32 = call::export(caller, "pg_detoast_datum", list)?;
    let (memory, _) = memory::of(caller)?;
    let count = memory::read_u32(memory, list.wrapping_add(array::DIMENSION))?;
    let before = memory::read_u32(memory, current)?;
    if context != 0 {
        memory::write_u32(memory, current, context)?;
    }
    let mut set = memory::read_u32(memory, columns)?;
    for at in 0..count {
        let (memory, _) = memory::of(caller)?;
        let number = memory::read_u16(memory, list.wrapping_add(array::ELEMENTS).wrapping_add(2 * at))?;
        set = call::export(caller, "bms_add_member", (set, i32::from(number.cast_signed())))?;
    }
    let (memory, _) = memory::of(caller)?;
    memory::write_u32(memory, current, before)?;
    memory::write_u32(memory, columns, set)?;
    Ok(())
}

/// The last of `ancestors`, a list that begins with the nearest one, that a publication has, or 0; its place in the
/// list, from 1, is stored at `level` if that is not 0 (`src/backend/catalog/pg_publication.c`). PGlite has it without
/// `level`.
fn topmost_ancestor(mut caller: Caller<'_, Guest>, publication: u32, ancestors: u32, level: u32) -> Result<u32> {
    let caller = &mut caller;
    let mut topmost = 0;
    let ancestors = numbers(memory::of(caller)?.0, ancestors)?;
    for (place, ancestor) in (1..).zip(ancestors) {
        let mut is_published = has(caller, "GetRelationPublications", ancestor, publication)?;
        if !is_published {
            let namespace: u32 = call::export(caller, "get_rel_namespace", ancestor)?;
            is_published = has(caller, "GetSchemaPublications", namespace, publication)?;
        }
        if is_published {
            topmost = ancestor;
            if level != 0 {
                memory::write_u32(memory::of(caller)?.0, level, place)?;
            }
        }
    }
    Ok(topmost)
}

/// Whether the list that a function of the guest returns for `of` has `number`.
fn has(caller: &mut Caller<'_, Guest>, function: &str, of: u32, number: u32) -> Result<bool> {
    let list: u32 = call::export(caller, function, of)?;
    let has = numbers(memory::of(caller)?.0, list)?.contains(&number);
    call::export::<u32, ()>(caller, "list_free", list)?;
    Ok(has)
}

/// Stores a copy of the name of a replication origin at `name`, and returns whether there is that origin
/// (`src/backend/replication/logical/origin.c`).
fn origin_name(mut caller: Caller<'_, Guest>, id: u32, may_be_missing: u32, name: u32) -> Result<u32> {
    let caller = &mut caller;
    let tuple: u32 = call::export(caller, "SearchSysCache1", (system_cache::REPLICATION_ORIGIN, id))?;
    if tuple == 0 {
        memory::write_u32(memory::of(caller)?.0, name, 0)?;
        if may_be_missing == 0 {
            let message = format!("replication origin with ID {id} does not exist");
            return Err(report::error(caller, sqlstate::UNDEFINED_OBJECT, &message));
        }
        return Ok(0);
    }
    let text = row_of(memory::of(caller)?.0, tuple)?.wrapping_add(replication_origin::NAME);
    let copy: u32 = call::export(caller, "text_to_cstring", text)?;
    memory::write_u32(memory::of(caller)?.0, name, copy)?;
    call::export::<u32, ()>(caller, "ReleaseSysCache", tuple)?;
    Ok(1)
}
