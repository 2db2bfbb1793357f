//! A message of the logical replication protocol that is being written to a `StringInfo` of the guest's.

use std::sync::Arc;

use wasmtime::{AsContextMut, Caller, TypedFunc, WasmParams, WasmResults};

use crate::{
    guest::{Guest, memory},
    postgres::string_info,
};

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
        })
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
        let mut message = Self { caller, calls, buffer, pending: Vec::with_capacity(256) };
        message.byte(kind);
        if xid != 0 {
            message.u32(xid);
        }
        Ok(message)
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.pending.push(byte);
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
        self.calls.enlarge.call(&mut *self.caller, (self.buffer, count))?;
        let (memory, _) = memory::of(self.caller)?;
        let data = memory::read_u32(memory, self.buffer.wrapping_add(string_info::DATA))?;
        let length = memory::read_u32(memory, self.buffer.wrapping_add(string_info::LENGTH))?;
        // The buffer has room for a NUL behind its contents.
        self.pending.push(0);
        memory::write_bytes(memory, data.wrapping_add(length), &self.pending)?;
        memory::write_u32(memory, self.buffer.wrapping_add(string_info::LENGTH), length.wrapping_add(count))?;
        self.pending.clear();
        Ok(())
    }

    /// Writes the rest of the message.
    pub(super) fn finish(mut self) -> wasmtime::Result<()> {
        self.flush()
    }
}
