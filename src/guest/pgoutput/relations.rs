//! Messages about tables and types, and which columns of a table are published.

use wasmtime::{Caller, Linker};

use super::{
    changes::{missing_type, row_of},
    message::Message,
};
use crate::{
    guest::{Guest, call, memory, report},
    postgres::{
        CATALOG_NAMESPACE, attribute, bitmapset, class, data_type, index, publication, relation, system_cache,
        tuple_descriptor,
    },
    protocol::error_response::sqlstate,
};

pub(super) const FUNCTIONS: [&str; 4] =
    ["logicalrep_write_rel", "logicalrep_write_typ", "logicalrep_should_publish_column", "pub_form_cols_map"];

/// The kinds of messages.
const RELATION: u8 = b'R';
const TYPE: u8 = b'Y';

/// `LOGICALREP_IS_REPLICA_IDENTITY`
const IS_IN_IDENTITY: u8 = 1;

type Result = wasmtime::Result<()>;

/// What a publication says about the columns of a table.
#[derive(Clone, Copy)]
pub(super) struct Published {
    /// Address of the `Bitmapset` of its columns, or 0.
    pub(super) set: u32,
    /// `PublishGencolsType`: whether generated columns are published that are not in a list.
    pub(super) generated: u32,
}

/// A column that is published.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// Its place in the row, from 0.
    pub(super) index: u32,
    /// Address of its row of `pg_attribute`.
    attribute: u32,
    /// Object identifier of its type.
    pub(super) data_type: u32,
    /// Whether its values have a length that varies.
    pub(super) is_varlena: bool,
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result {
    linker.func_wrap(
        "env",
        "logicalrep_write_rel",
        |mut caller: Caller<'_, Guest>, out: u32, xid: u32, relation: u32, set: u32, generated: u32| -> Result {
            write_relation(&mut caller, out, xid, relation, Published { set, generated })
        },
    )?;
    linker.func_wrap("env", "logicalrep_write_typ", write_type)?;
    linker.func_wrap(
        "env",
        "logicalrep_should_publish_column",
        |mut caller: Caller<'_, Guest>, attribute: u32, set: u32, generated: u32| -> wasmtime::Result<u32> {
            let (memory, _) = memory::of(&mut caller)?;
            Ok(is_published(memory, attribute, Published { set, generated })?.into())
        },
    )?;
    linker.func_wrap(
        "env",
        "pub_form_cols_map",
        |mut caller: Caller<'_, Guest>, relation: u32, generated: u32| -> wasmtime::Result<u32> {
            let (memory, _) = memory::of(&mut caller)?;
            let columns = columns(memory, descriptor(memory, relation)?, Published { set: 0, generated })?;
            let mut set = 0;
            for column in columns {
                let (memory, _) = memory::of(&mut caller)?;
                let number = memory::read_u16(memory, column.attribute.wrapping_add(attribute::NUMBER))?;
                set = call::export(&mut caller, "bms_add_member", (set, u32::from(number)))?;
            }
            Ok(set)
        },
    )?;
    Ok(())
}

/// Object identifier of a `Relation`.
pub(super) fn relation_id(memory: &[u8], relation: u32) -> wasmtime::Result<u32> {
    Ok(memory::read_u32(memory, relation.wrapping_add(relation::ID))?)
}

/// Address of the descriptor of a `Relation`'s columns.
pub(super) fn descriptor(memory: &[u8], relation: u32) -> wasmtime::Result<u32> {
    Ok(memory::read_u32(memory, relation.wrapping_add(relation::DESCRIPTOR))?)
}

/// Address of a `Relation`'s row of `pg_class`.
pub(super) fn class_of(memory: &[u8], relation: u32) -> wasmtime::Result<u32> {
    Ok(memory::read_u32(memory, relation.wrapping_add(relation::CLASS))?)
}

/// The replica identity of a `Relation`, a character.
pub(super) fn identity(memory: &[u8], relation: u32) -> wasmtime::Result<u8> {
    byte(memory, class_of(memory, relation)?.wrapping_add(class::REPLICA_IDENTITY))
}

pub(super) fn byte(memory: &[u8], address: u32) -> wasmtime::Result<u8> {
    Ok(memory::read_bytes(memory, address, 1)?[0])
}

/// The published columns of a row.
pub(super) fn columns(memory: &[u8], descriptor: u32, published: Published) -> wasmtime::Result<Vec<Column>> {
    let count = memory::read_u32(memory, descriptor.wrapping_add(tuple_descriptor::COLUMNS))?;
    let compact = count.wrapping_mul(tuple_descriptor::COMPACT_SIZE);
    let first = descriptor.wrapping_add(tuple_descriptor::COMPACT).wrapping_add(compact);
    let mut columns = Vec::with_capacity(count.min(64) as usize);
    for index in 0..count {
        let attribute = first.wrapping_add(index.wrapping_mul(attribute::SIZE));
        if is_published(memory, attribute, published)? {
            let data_type = memory::read_u32(memory, attribute.wrapping_add(attribute::TYPE))?;
            let length = memory::read_u16(memory, attribute.wrapping_add(attribute::LENGTH))?;
            columns.push(Column { index, attribute, data_type, is_varlena: length.cast_signed() == -1 });
        }
    }
    Ok(columns)
}

/// Whether a column is published, given the address of its row of `pg_attribute`.
fn is_published(memory: &[u8], attribute: u32, Published { set, generated }: Published) -> wasmtime::Result<bool> {
    if byte(memory, attribute.wrapping_add(attribute::IS_DROPPED))? != 0 {
        return Ok(false);
    }
    if set != 0 {
        let number = memory::read_u16(memory, attribute.wrapping_add(attribute::NUMBER))?;
        return is_member(memory, set, i32::from(number.cast_signed()));
    }
    Ok(match byte(memory, attribute.wrapping_add(attribute::GENERATED))? {
        0 => true,
        kind => kind == attribute::STORED && generated == u32::from(publication::STORED_COLUMNS),
    })
}

/// Whether a number is in a `Bitmapset` (`bms_is_member`).
fn is_member(memory: &[u8], set: u32, number: i32) -> wasmtime::Result<bool> {
    let Ok(number) = u32::try_from(number) else { return Ok(false) };
    let word = number / u32::BITS;
    if word >= memory::read_u32(memory, set.wrapping_add(bitmapset::WORDS))? {
        return Ok(false);
    }
    let bits = memory::read_u32(memory, set.wrapping_add(bitmapset::FIRST).wrapping_add(4 * word))?;
    Ok(bits >> (number % u32::BITS) & 1 != 0)
}

fn write_relation(caller: &mut Caller<'_, Guest>, out: u32, xid: u32, relation: u32, published: Published) -> Result {
    let (memory, _) = memory::of(caller)?;
    let id = relation_id(memory, relation)?;
    let class = class_of(memory, relation)?;
    let namespace = memory::read_u32(memory, class.wrapping_add(class::NAMESPACE))?;
    let identity = identity(memory, relation)?;
    let columns = columns(memory, descriptor(memory, relation)?, published)?;
    let mut message = Message::new(caller, out, RELATION, xid)?;
    message.u32(id);
    write_namespace(&mut message, namespace)?;
    message.string(class.wrapping_add(class::NAME))?;
    message.byte(identity);
    message.u16(u16::try_from(columns.len())?);
    let keys = if identity == class::FULL { None } else { Some(key_columns(message.caller, relation)?) };
    for column in columns {
        let (memory, _) = memory::of(message.caller)?;
        let number = memory::read_u16(memory, column.attribute.wrapping_add(attribute::NUMBER))?;
        let modifier = memory::read_u32(memory, column.attribute.wrapping_add(attribute::MODIFIER))?;
        let is_key = keys.as_ref().is_none_or(|keys| keys.contains(&number));
        message.byte(if is_key { IS_IN_IDENTITY } else { 0 });
        message.string(column.attribute.wrapping_add(attribute::NAME))?;
        message.u32(column.data_type);
        message.u32(modifier);
    }
    message.finish()
}

/// The numbers of the columns in the index that is the replica identity (`RelationGetIdentityKeyBitmap` in
/// `src/backend/utils/cache/relcache.c`).
fn key_columns(caller: &mut Caller<'_, Guest>, relation: u32) -> wasmtime::Result<Vec<u16>> {
    let (memory, _) = memory::of(caller)?;
    if byte(memory, class_of(memory, relation)?.wrapping_add(class::HAS_INDEX))? == 0 {
        return Ok(Vec::new());
    }
    if byte(memory, relation.wrapping_add(relation::KNOWS_INDEXES))? == 0 {
        let list: u32 = call::export(caller, "RelationGetIndexList", relation)?;
        call::export::<u32, ()>(caller, "list_free", list)?;
    }
    let (memory, _) = memory::of(caller)?;
    let id = memory::read_u32(memory, relation.wrapping_add(relation::REPLICA_INDEX))?;
    if id == 0 {
        return Ok(Vec::new());
    }
    let index: u32 = call::export(caller, "RelationIdGetRelation", id)?;
    if index == 0 {
        let message = format!("could not open relation with OID {id}");
        return Err(report::error(caller, sqlstate::INTERNAL_ERROR, &message));
    }
    let (memory, _) = memory::of(caller)?;
    let row = memory::read_u32(memory, index.wrapping_add(relation::INDEX))?;
    let count = memory::read_u16(memory, row.wrapping_add(index::KEYS))?;
    let first = row.wrapping_add(index::COLUMNS);
    let keys = (0..u32::from(count)).map(|at| memory::read_u16(memory, first.wrapping_add(2 * at)));
    // An expression has the number 0; there is none in a replica identity.
    let keys = keys.collect::<std::result::Result<Vec<u16>, _>>()?;
    call::export::<u32, ()>(caller, "RelationClose", index)?;
    Ok(keys)
}

fn write_type(mut caller: Caller<'_, Guest>, out: u32, xid: u32, id: u32) -> Result {
    let base: u32 = call::export(&mut caller, "getBaseType", id)?;
    let mut message = Message::new(&mut caller, out, TYPE, xid)?;
    let tuple = message.calls.search_cache.call(&mut *message.caller, (system_cache::TYPE, base))?;
    if tuple == 0 {
        return Err(missing_type(message.caller, base));
    }
    let (memory, _) = memory::of(message.caller)?;
    let row = row_of(memory, tuple)?;
    let namespace = memory::read_u32(memory, row.wrapping_add(data_type::NAMESPACE))?;
    message.u32(id);
    write_namespace(&mut message, namespace)?;
    message.string(row.wrapping_add(data_type::NAME))?;
    message.calls.release_cache.call(&mut *message.caller, tuple)?;
    message.finish()
}

/// Writes the name of a schema; that of `pg_catalog` is empty (`logicalrep_write_namespace`).
fn write_namespace(message: &mut Message<'_, '_>, id: u32) -> Result {
    if id == CATALOG_NAMESPACE {
        message.byte(0);
        return Ok(());
    }
    let name: u32 = call::export(message.caller, "get_namespace_name", id)?;
    if name == 0 {
        let text = format!("cache lookup failed for namespace {id}");
        return Err(report::error(message.caller, sqlstate::INTERNAL_ERROR, &text));
    }
    message.string(name)?;
    message.calls.free.call(&mut *message.caller, name)
}
