//! Messages about whole transactions: begin, commit, prepare and streaming.

use wasmtime::{Caller, Linker};

use super::message::Message;
use crate::{
    guest::{Guest, memory},
    postgres::decoded_transaction as offsets,
};

pub(super) const FUNCTIONS: [&str; 13] = [
    "logicalrep_write_begin",
    "logicalrep_write_commit",
    "logicalrep_write_begin_prepare",
    "logicalrep_write_prepare",
    "logicalrep_write_commit_prepared",
    "logicalrep_write_rollback_prepared",
    "logicalrep_write_stream_start",
    "logicalrep_write_stream_stop",
    "logicalrep_write_stream_commit",
    "logicalrep_write_stream_abort",
    "logicalrep_write_stream_prepare",
    "logicalrep_write_origin",
    "logicalrep_write_message",
];

/// The kinds of messages: `LogicalRepMsgType` (`src/include/replication/logicalproto.h`).
mod kind {
    pub(super) const BEGIN: u8 = b'B';
    pub(super) const COMMIT: u8 = b'C';
    pub(super) const BEGIN_PREPARE: u8 = b'b';
    pub(super) const PREPARE: u8 = b'P';
    pub(super) const COMMIT_PREPARED: u8 = b'K';
    pub(super) const ROLLBACK_PREPARED: u8 = b'r';
    pub(super) const STREAM_START: u8 = b'S';
    pub(super) const STREAM_STOP: u8 = b'E';
    pub(super) const STREAM_COMMIT: u8 = b'c';
    pub(super) const STREAM_ABORT: u8 = b'A';
    pub(super) const STREAM_PREPARE: u8 = b'p';
    pub(super) const ORIGIN: u8 = b'O';
    pub(super) const MESSAGE: u8 = b'M';
}

/// Flags that no message sets yet.
const NO_FLAGS: u8 = 0;
/// `MESSAGE_TRANSACTIONAL`
const IS_TRANSACTIONAL: u8 = 1;

type Result = wasmtime::Result<()>;

/// Position in the WAL.
type Lsn = u64;

/// What the messages say about a `ReorderBufferTXN`.
struct Transaction {
    id: u32,
    global_id: u32,
    final_lsn: Lsn,
    end_lsn: Lsn,
    time: u64,
}

impl Transaction {
    fn read(caller: &mut Caller<'_, Guest>, address: u32) -> wasmtime::Result<Self> {
        let (memory, _) = memory::of(caller)?;
        Ok(Self {
            id: memory::read_u32(memory, address.wrapping_add(offsets::ID))?,
            global_id: memory::read_u32(memory, address.wrapping_add(offsets::GLOBAL_ID))?,
            final_lsn: memory::read_u64(memory, address.wrapping_add(offsets::FINAL_LSN))?,
            end_lsn: memory::read_u64(memory, address.wrapping_add(offsets::END_LSN))?,
            time: memory::read_u64(memory, address.wrapping_add(offsets::TIME))?,
        })
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> Result {
    linker.func_wrap(
        "env",
        "logicalrep_write_begin",
        |mut caller: Caller<'_, Guest>, out: u32, txn: u32| -> Result {
            let txn = Transaction::read(&mut caller, txn)?;
            let mut message = Message::new(&mut caller, out, kind::BEGIN, 0)?;
            message.u64(txn.final_lsn);
            message.u64(txn.time);
            message.u32(txn.id);
            message.finish()
        },
    )?;
    for (name, kind) in
        [("logicalrep_write_commit", kind::COMMIT), ("logicalrep_write_stream_commit", kind::STREAM_COMMIT)]
    {
        linker.func_wrap(
            "env",
            name,
            move |mut caller: Caller<'_, Guest>, out: u32, txn: u32, lsn: Lsn| -> Result {
                commit(&mut caller, kind, out, txn, lsn)
            },
        )?;
    }
    add_prepared(linker)?;
    linker.func_wrap(
        "env",
        "logicalrep_write_stream_start",
        |mut caller: Caller<'_, Guest>, out: u32, xid: u32, is_first: u32| -> Result {
            let mut message = Message::new(&mut caller, out, kind::STREAM_START, xid)?;
            message.byte(u8::from(is_first != 0));
            message.finish()
        },
    )?;
    linker.func_wrap("env", "logicalrep_write_stream_stop", |mut caller: Caller<'_, Guest>, out: u32| -> Result {
        Message::new(&mut caller, out, kind::STREAM_STOP, 0)?.finish()
    })?;
    linker.func_wrap(
        "env",
        "logicalrep_write_stream_abort",
        |mut caller: Caller<'_, Guest>, out: u32, xid: u32, sub: u32, lsn: Lsn, time: u64, says_when: u32| -> Result {
            let mut message = Message::new(&mut caller, out, kind::STREAM_ABORT, xid)?;
            message.u32(sub);
            if says_when != 0 {
                message.u64(lsn);
                message.u64(time);
            }
            message.finish()
        },
    )?;
    linker.func_wrap(
        "env",
        "logicalrep_write_origin",
        |mut caller: Caller<'_, Guest>, out: u32, origin: u32, lsn: Lsn| -> Result {
            let mut message = Message::new(&mut caller, out, kind::ORIGIN, 0)?;
            message.u64(lsn);
            message.string(origin)?;
            message.finish()
        },
    )?;
    linker.func_wrap(
        "env",
        "logicalrep_write_message",
        |mut caller: Caller<'_, Guest>,
         out: u32,
         xid: u32,
         lsn: Lsn,
         is_transactional: u32,
         prefix: u32,
         size: u32,
         content: u32|
         -> Result {
            let mut message = Message::new(&mut caller, out, kind::MESSAGE, xid)?;
            message.byte(if is_transactional != 0 { IS_TRANSACTIONAL } else { NO_FLAGS });
            message.u64(lsn);
            message.string(prefix)?;
            message.u32(size);
            message.bytes(content, size)?;
            message.finish()
        },
    )?;
    Ok(())
}

fn add_prepared(linker: &mut Linker<Guest>) -> Result {
    linker.func_wrap(
        "env",
        "logicalrep_write_begin_prepare",
        |mut caller: Caller<'_, Guest>, out: u32, txn: u32| -> Result {
            prepared(&mut caller, kind::BEGIN_PREPARE, out, txn, |txn| [txn.final_lsn, txn.end_lsn, txn.time])
        },
    )?;
    for (name, kind) in [
        ("logicalrep_write_prepare", kind::PREPARE),
        ("logicalrep_write_commit_prepared", kind::COMMIT_PREPARED),
        ("logicalrep_write_stream_prepare", kind::STREAM_PREPARE),
    ] {
        linker.func_wrap(
            "env",
            name,
            move |mut caller: Caller<'_, Guest>, out: u32, txn: u32, lsn: Lsn| -> Result {
                prepared(&mut caller, kind, out, txn, |txn| [lsn, txn.end_lsn, txn.time])
            },
        )?;
    }
    linker.func_wrap(
        "env",
        "logicalrep_write_rollback_prepared",
        |mut caller: Caller<'_, Guest>, out: u32, txn: u32, prepared_lsn: Lsn, prepared_at: u64| -> Result {
            prepared(&mut caller, kind::ROLLBACK_PREPARED, out, txn, |txn| {
                [prepared_lsn, txn.end_lsn, prepared_at, txn.time]
            })
        },
    )?;
    Ok(())
}

/// A message about a prepared transaction, with these positions and times of it. All but the one that begins it have
/// flags.
fn prepared<const N: usize>(
    caller: &mut Caller<'_, Guest>,
    kind: u8,
    out: u32,
    txn: u32,
    numbers: impl FnOnce(&Transaction) -> [u64; N],
) -> Result {
    let txn = Transaction::read(caller, txn)?;
    let mut message = Message::new(caller, out, kind, 0)?;
    if kind != kind::BEGIN_PREPARE {
        message.byte(NO_FLAGS);
    }
    numbers(&txn).into_iter().for_each(|number| message.u64(number));
    message.u32(txn.id);
    message.string(txn.global_id)?;
    message.finish()
}

/// The commit of a transaction that is sent at its end, or of one that was sent while it ran.
fn commit(caller: &mut Caller<'_, Guest>, kind: u8, out: u32, txn: u32, lsn: Lsn) -> Result {
    let txn = Transaction::read(caller, txn)?;
    let xid = if kind == kind::STREAM_COMMIT { txn.id } else { 0 };
    let mut message = Message::new(caller, out, kind, xid)?;
    message.byte(NO_FLAGS);
    message.u64(lsn);
    message.u64(txn.end_lsn);
    message.u64(txn.time);
    message.finish()
}
