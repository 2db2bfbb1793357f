//! A message of the logical replication protocol that is being written to a `StringInfo` of the guest's.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use wasmtime::{AsContextMut, Caller, TypedFunc, WasmParams, WasmResults};

use crate::{
    guest::{Guest, memory},
    postgres::{class, string_info},
};

/// The kinds of messages after which there is another one about the same transaction: begin, origin, relation, type,
/// insert, update and delete.
const GO_ON: &[u8] = b"BORYIUD";

/// Up to this many bytes are copied by the host; of texts those that are ASCII, which is the same in all encodings.
const SHORT: usize = 4096;

/// The functions of the guest that a message about a row calls, looked up once.
pub(in crate::guest) struct Calls {
    pub(super) enlarge: TypedFunc<(u32, u32), ()>,
    append: TypedFunc<(u32, u32, u32), ()>,
    pub(super) send_text: TypedFunc<(u32, u32, u32), ()>,
    pub(super) search_cache: TypedFunc<(i32, u32), u32>,
    pub(super) release_cache: TypedFunc<u32, ()>,
    pub(super) output: TypedFunc<(u32, u32), u32>,
    pub(super) free: TypedFunc<u32, ()>,
    /// The functions of the types that come with PostgreSQL, which do not change.
    types: Mutex<HashMap<u32, TypeFunctions>>,
}

/// The functions that make bytes of a type's values, by their object identifiers.
#[derive(Clone, Copy)]
pub(super) struct TypeFunctions {
    /// `typoutput`
    pub(super) output: u32,
    /// `typsend`, or 0.
    pub(super) send: u32,
}

impl Calls {
    fn find(store: &mut impl AsContextMut<Data = Guest>) -> wasmtime::Result<Self> {
        Ok(Self {
            enlarge: find(store, "enlargeStringInfo")?,
            append: find(store, "appendBinaryStringInfo")?,
            send_text: find(store, "pq_sendtext")?,
            search_cache: find(store, "SearchSysCache1")?,
            release_cache: find(store, "ReleaseSysCache")?,
            output: find(store, "OidOutputFunctionCall")?,
            free: find(store, "pfree")?,
            types: Mutex::default(),
        })
    }

    /// The functions of a type, which `find` reads in the catalog.
    ///
    /// # Errors
    /// Those of `find`.
    pub(super) fn functions(
        &self,
        data_type: u32,
        find: impl FnOnce() -> wasmtime::Result<TypeFunctions>,
    ) -> wasmtime::Result<TypeFunctions> {
        if let Some(functions) = self.types.lock().get(&data_type) {
            return Ok(*functions);
        }
        let functions = find()?;
        if data_type < class::FIRST_OF_USERS {
            self.types.lock().insert(data_type, functions);
        }
        Ok(functions)
    }
}

fn find<P: WasmParams, R: WasmResults>(
    store: &mut impl AsContextMut<Data = Guest>,
    name: &str,
) -> wasmtime::Result<TypedFunc<P, R>> {
    let instance = store.as_context().data().exports()?.instance;
    instance.get_typed_func(store, name)
}

/// A message. What is written is kept here until [`Message::finish`], except for texts that need a conversion.
pub(super) struct Message<'a, 'b> {
    pub(super) caller: &'a mut Caller<'b, Guest>,
    pub(super) calls: Arc<Calls>,
    /// Address of the `StringInfo`.
    buffer: u32,
    /// What is not in it yet.
    pending: Vec<u8>,
    kind: u8,
}

impl<'a, 'b> Message<'a, 'b> {
    /// A message of that kind, which begins with the transaction's number if it is not 0: the transaction is then sent
    /// while it runs.
    pub(super) fn new(caller: &'a mut Caller<'b, Guest>, buffer: u32, kind: u8, xid: u32) -> wasmtime::Result<Self> {
        let calls = if let Some(calls) = &caller.data().publishing {
            calls.clone()
        } else {
            let calls = Arc::new(Calls::find(&mut *caller)?);
            caller.data_mut().publishing.insert(calls).clone()
        };
        let mut message = Self { caller, calls, buffer, pending: Vec::with_capacity(256), kind };
        message.byte(kind);
        if xid != 0 {
            message.u32(xid);
        }
        Ok(message)
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.pending.push(byte);
    }

    /// Takes the last byte back.
    pub(super) fn take_back(&mut self) {
        self.pending.pop();
    }

    pub(super) fn u16(&mut self, number: u16) {
        self.pending.extend(number.to_be_bytes());
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.pending.extend(number.to_be_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.pending.extend(number.to_be_bytes());
    }

    /// Bytes of the guest's memory, as they are.
    pub(super) fn bytes(&mut self, address: u32, length: u32) -> wasmtime::Result<()> {
        let memory = self.caller.data().memory()?;
        let bytes = memory::read_bytes(memory.data(&*self.caller), address, length)?;
        if bytes.len() <= SHORT {
            self.pending.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.calls.append.call(&mut *self.caller, (self.buffer, address, length))
    }

    /// Bytes of the guest's memory that are a text in the database's encoding, behind their number, if the host need
    /// not convert them; returns whether it was so.
    pub(super) fn counted_ascii(&mut self, address: u32, length: u32) -> wasmtime::Result<bool> {
        let memory = self.caller.data().memory()?;
        let text = memory::read_bytes(memory.data(&*self.caller), address, length)?;
        let is_plain = text.len() <= SHORT && text.is_ascii();
        if is_plain {
            self.pending.extend(length.to_be_bytes());
            self.pending.extend_from_slice(text);
        }
        Ok(is_plain)
    }

    /// A text of ASCII, behind the number of its bytes.
    pub(super) fn counted(&mut self, text: &[u8]) -> wasmtime::Result<()> {
        self.u32(u32::try_from(text.len())?);
        self.pending.extend_from_slice(text);
        Ok(())
    }

    /// The C string at `address` in the client's encoding, and its final NUL (`pq_sendstring`).
    pub(super) fn string(&mut self, address: u32) -> wasmtime::Result<()> {
        self.text(address)?;
        self.byte(0);
        Ok(())
    }

    /// The C string at `address` in the client's encoding, behind the number of its bytes (`pq_sendcountedtext`).
    pub(super) fn counted_text(&mut self, address: u32) -> wasmtime::Result<()> {
        let before = self.length()?;
        self.u32(0);
        self.text(address)?;
        let count = self.length()?.wrapping_sub(before).wrapping_sub(4).to_be_bytes();
        let written = self.written()?;
        if let Some(at) = before.checked_sub(written) {
            self.pending[at as usize..][..4].copy_from_slice(&count);
        } else {
            let (memory, _) = memory::of(self.caller)?;
            let data = memory::read_u32(memory, self.buffer.wrapping_add(string_info::DATA))?;
            memory::write_bytes(memory, data.wrapping_add(before), &count)?;
        }
        Ok(())
    }

    fn text(&mut self, address: u32) -> wasmtime::Result<()> {
        let memory = self.caller.data().memory()?;
        let text = memory::read_c_string(memory.data(&*self.caller), address)?;
        if text.len() <= SHORT && text.is_ascii() {
            self.pending.extend_from_slice(text);
            return Ok(());
        }
        let length = u32::try_from(text.len())?;
        self.flush()?;
        self.calls.send_text.call(&mut *self.caller, (self.buffer, address, length))
    }

    /// The bytes of the message so far, with what is before it in the buffer.
    fn length(&self) -> wasmtime::Result<u32> {
        Ok(self.written()?.wrapping_add(u32::try_from(self.pending.len())?))
    }

    /// The bytes in the buffer.
    fn written(&self) -> wasmtime::Result<u32> {
        let memory = self.caller.data().memory()?;
        Ok(memory::read_u32(memory.data(&*self.caller), self.buffer.wrapping_add(string_info::LENGTH))?)
    }

    /// Appends what is pending to the buffer (`appendBinaryStringInfo`).
    fn flush(&mut self) -> wasmtime::Result<()> {
        let count = u32::try_from(self.pending.len())?;
        let memory = self.caller.data().memory()?.data(&*self.caller);
        let length = memory::read_u32(memory, self.buffer.wrapping_add(string_info::LENGTH))?;
        let size = memory::read_u32(memory, self.buffer.wrapping_add(string_info::SIZE))?;
        // It has room for a NUL behind its contents.
        if u64::from(length) + u64::from(count) >= u64::from(size) {
            self.calls.enlarge.call(&mut *self.caller, (self.buffer, count))?;
        }
        let (memory, _) = memory::of(self.caller)?;
        let data = memory::read_u32(memory, self.buffer.wrapping_add(string_info::DATA))?;
        self.pending.push(0);
        memory::write_bytes(memory, data.wrapping_add(length), &self.pending)?;
        memory::write_u32(memory, self.buffer.wrapping_add(string_info::LENGTH), length.wrapping_add(count))?;
        self.pending.clear();
        Ok(())
    }

    /// Writes the rest of the message.
    pub(super) fn finish(mut self) -> wasmtime::Result<()> {
        self.flush()?;
        if GO_ON.contains(&self.kind) {
            self.caller.data_mut().client.transaction_goes_on();
        }
        Ok(())
    }
}
