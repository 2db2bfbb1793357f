//! Messages about rows: insert, update, delete, and truncate, which is about whole tables.

use wasmtime::{Caller, Linker};

use super::{
    message::{Message, TypeFunctions},
    relations::{Column, Published, columns, descriptor, identity, relation_id},
};
use crate::{
    guest::{Guest, call, memory, report},
    postgres::{class, data_type, heap_tuple, slot, system_cache, tuple_descriptor, varlena},
    protocol::error_response::sqlstate,
};

pub(super) const FUNCTIONS: [&str; 4] =
    ["logicalrep_write_insert", "logicalrep_write_update", "logicalrep_write_delete", "logicalrep_write_truncate"];

/// The kinds of messages, and of what is in them.
mod kind {
    pub(super) const INSERT: u8 = b'I';
    pub(super) const UPDATE: u8 = b'U';
    pub(super) const DELETE: u8 = b'D';
    pub(super) const TRUNCATE: u8 = b'T';

    pub(super) const NEW_ROW: u8 = b'N';
    pub(super) const OLD_ROW: u8 = b'O';
    pub(super) const OLD_KEY: u8 = b'K';

    pub(super) const NULL: u8 = b'n';
    /// A value in a TOAST table that has not changed.
    pub(super) const UNCHANGED: u8 = b'u';
    pub(super) const TEXT: u8 = b't';
    pub(super) const BINARY: u8 = b'b';
}

/// `TRUNCATE_CASCADE` and `TRUNCATE_RESTART_SEQS`
const CASCADES: u8 = 1;
const RESTARTS_SEQUENCES: u8 = 2;

type Result = wasmtime::Result<()>;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result {
    for (name, kind) in [("logicalrep_write_insert", kind::INSERT), ("logicalrep_write_delete", kind::DELETE)] {
        linker.func_wrap(
            "env",
            name,
            move |mut caller: Caller<'_, Guest>,
                  out: u32,
                  xid: u32,
                  relation: u32,
                  row: u32,
                  is_binary: u32,
                  set: u32,
                  generated: u32|
                  -> Result {
                let (old, new) = if kind == kind::INSERT { (0, row) } else { (row, 0) };
                let published = Published { set, generated };
                Change::new(&mut caller, out, kind, xid, relation, is_binary, published)?.write(old, new)
            },
        )?;
    }
    linker.func_wrap(
        "env",
        "logicalrep_write_update",
        |mut caller: Caller<'_, Guest>,
         out: u32,
         xid: u32,
         relation: u32,
         old: u32,
         new: u32,
         is_binary: u32,
         set: u32,
         generated: u32|
         -> Result {
            let published = Published { set, generated };
            Change::new(&mut caller, out, kind::UPDATE, xid, relation, is_binary, published)?.write(old, new)
        },
    )?;
    linker.func_wrap(
        "env",
        "logicalrep_write_truncate",
        |mut caller: Caller<'_, Guest>,
         out: u32,
         xid: u32,
         count: u32,
         relations: u32,
         cascades: u32,
         restarts: u32|
         -> Result {
            let mut message = Message::new(&mut caller, out, kind::TRUNCATE, xid)?;
            message.u32(count);
            let flags = [(cascades, CASCADES), (restarts, RESTARTS_SEQUENCES)];
            message.byte(flags.iter().filter(|(is_set, _)| *is_set != 0).map(|(_, flag)| flag).sum());
            for at in 0..count {
                let (memory, _) = memory::of(message.caller)?;
                let relation = memory::read_u32(memory, relations.wrapping_add(4 * at))?;
                message.u32(relation);
            }
            message.finish()
        },
    )?;
    Ok(())
}

/// A message about one row.
struct Change<'a, 'b> {
    message: Message<'a, 'b>,
    /// What the old values are: a row or a key.
    old: u8,
    is_binary: bool,
    columns: Vec<Column>,
}

impl<'a, 'b> Change<'a, 'b> {
    fn new(
        caller: &'a mut Caller<'b, Guest>,
        out: u32,
        kind: u8,
        xid: u32,
        relation: u32,
        is_binary: u32,
        published: Published,
    ) -> wasmtime::Result<Self> {
        let (memory, _) = memory::of(caller)?;
        let id = relation_id(memory, relation)?;
        let old = if identity(memory, relation)? == class::FULL { kind::OLD_ROW } else { kind::OLD_KEY };
        let descriptor = descriptor(memory, relation)?;
        let columns = columns(memory, descriptor, published)?;
        let mut message = Message::new(caller, out, kind, xid)?;
        message.u32(id);
        Ok(Self { message, old, is_binary: is_binary != 0, columns })
    }

    /// Writes the old values and the new ones, each the address of a slot, or 0 if there are none.
    fn write(mut self, old: u32, new: u32) -> Result {
        if old != 0 {
            self.message.byte(self.old);
            self.row(old)?;
        }
        if new != 0 {
            self.message.byte(kind::NEW_ROW);
            self.row(new)?;
        }
        self.message.finish()
    }

    /// Writes a row (`logicalrep_write_tuple`).
    fn row(&mut self, slot: u32) -> Result {
        self.message.u16(u16::try_from(self.columns.len())?);
        let (memory, _) = memory::of(self.message.caller)?;
        let descriptor = memory::read_u32(memory, slot.wrapping_add(slot::DESCRIPTOR))?;
        let count = memory::read_u32(memory, descriptor.wrapping_add(tuple_descriptor::COLUMNS))?;
        if u32::from(memory::read_u16(memory, slot.wrapping_add(slot::VALID))?) < count {
            call::export::<(u32, u32), ()>(self.message.caller, "slot_getsomeattrs_int", (slot, count))?;
        }
        let (memory, _) = memory::of(self.message.caller)?;
        let values = memory::read_u32(memory, slot.wrapping_add(slot::VALUES))?;
        let nulls = memory::read_u32(memory, slot.wrapping_add(slot::NULLS))?;
        for at in 0..self.columns.len() {
            let column = self.columns[at];
            let (memory, _) = memory::of(self.message.caller)?;
            if memory::read_bytes(memory, nulls.wrapping_add(column.index), 1)? != [0] {
                self.message.byte(kind::NULL);
                continue;
            }
            let value = memory::read_u32(memory, values.wrapping_add(4 * column.index))?;
            let is_elsewhere =
                column.is_varlena && memory::read_bytes(memory, value, 2)? == [varlena::IS_ELSEWHERE, varlena::ON_DISK];
            if is_elsewhere {
                self.message.byte(kind::UNCHANGED);
            } else {
                self.value(column.data_type, value)?;
            }
        }
        Ok(())
    }

    fn value(&mut self, data_type: u32, value: u32) -> Result {
        if !self.is_binary && self.simple(data_type, value)? {
            return Ok(());
        }
        let functions = self.functions(data_type)?;
        let written = if self.is_binary && functions.send != 0 {
            let caller = &mut *self.message.caller;
            let sent: u32 = call::export(caller, "OidFunctionCall1Coll", (functions.send, 0_u32, value))?;
            let sent: u32 = call::export(caller, "pg_detoast_datum", sent)?;
            let (memory, _) = memory::of(caller)?;
            let length = (memory::read_u32(memory, sent)? >> 2).saturating_sub(varlena::HEADER);
            self.message.byte(kind::BINARY);
            self.message.u32(length);
            self.message.bytes(sent.wrapping_add(varlena::HEADER), length)?;
            sent
        } else {
            let Message { caller, calls, .. } = &mut self.message;
            let text = calls.output.call(&mut **caller, (functions.output, value))?;
            self.message.byte(kind::TEXT);
            self.message.counted_text(text)?;
            text
        };
        let Message { caller, calls, .. } = &mut self.message;
        calls.free.call(&mut **caller, written)
    }

    fn functions(&mut self, data_type: u32) -> wasmtime::Result<TypeFunctions> {
        let Message { caller, calls, .. } = &mut self.message;
        calls.functions(data_type, || {
            let tuple = calls.search_cache.call(&mut **caller, (system_cache::TYPE, data_type))?;
            if tuple == 0 {
                return Err(missing_type(caller, data_type));
            }
            let (memory, _) = memory::of(caller)?;
            let row = row_of(memory, tuple)?;
            let functions = TypeFunctions {
                output: memory::read_u32(memory, row.wrapping_add(data_type::OUTPUT))?,
                send: memory::read_u32(memory, row.wrapping_add(data_type::SEND))?,
            };
            calls.release_cache.call(&mut **caller, tuple)?;
            Ok(functions)
        })
    }

    /// Writes a value of one of the most frequent types as the type's output function would, without calling it;
    /// returns whether it could.
    fn simple(&mut self, data_type: u32, value: u32) -> wasmtime::Result<bool> {
        let memory = self.message.caller.data().memory()?.data(&*self.message.caller);
        let number = match data_type {
            data_type::INT2 => {
                let [low, high, ..] = value.to_le_bytes();
                i64::from(i16::from_le_bytes([low, high]))
            }
            data_type::INT4 => i64::from(value.cast_signed()),
            data_type::INT8 => memory::read_u64(memory, value)?.cast_signed(),
            data_type::TEXT | data_type::VARCHAR => {
                let Some((address, length)) = plain_bytes(memory, value)? else { return Ok(false) };
                self.message.byte(kind::TEXT);
                let is_written = self.message.counted_ascii(address, length)?;
                if !is_written {
                    self.message.take_back();
                }
                return Ok(is_written);
            }
            _ => return Ok(false),
        };
        self.message.byte(kind::TEXT);
        self.message.counted(number.to_string().as_bytes())?;
        Ok(true)
    }
}

/// The address and number of the bytes of a `varlena`, if they are there as they are, neither compressed nor elsewhere.
fn plain_bytes(memory: &[u8], address: u32) -> wasmtime::Result<Option<(u32, u32)>> {
    let first = memory::read_bytes(memory, address, 1)?[0];
    Ok(if first == varlena::IS_ELSEWHERE {
        None
    } else if first & varlena::IS_SHORT != 0 {
        let length = u32::from(first >> 1);
        Some((address.wrapping_add(varlena::SHORT_HEADER), length.saturating_sub(varlena::SHORT_HEADER)))
    } else if first & varlena::IS_COMPRESSED != 0 {
        None
    } else {
        let length = memory::read_u32(memory, address)? >> 2;
        Some((address.wrapping_add(varlena::HEADER), length.saturating_sub(varlena::HEADER)))
    })
}

/// The columns of a `HeapTuple`.
pub(super) fn row_of(memory: &[u8], tuple: u32) -> wasmtime::Result<u32> {
    let header = memory::read_u32(memory, tuple.wrapping_add(heap_tuple::HEADER))?;
    let offset = memory::read_bytes(memory, header.wrapping_add(heap_tuple::COLUMNS), 1)?[0];
    Ok(header.wrapping_add(offset.into()))
}

/// The error for a type that is not in the catalog.
pub(super) fn missing_type(caller: &mut Caller<'_, Guest>, id: u32) -> wasmtime::Error {
    report::error(caller, sqlstate::INTERNAL_ERROR, &format!("cache lookup failed for type {id}"))
}
