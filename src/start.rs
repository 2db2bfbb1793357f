//! The start of a command, which a request to stop the program and the end of its parent interrupt.

use std::thread;

use anyhow::Context;
use crossbeam_channel::{Receiver, bounded, select};

/// The stack of the thread that starts, as large as that of a program's first thread on Linux.
const STACK: usize = 8 << 20;

/// Calls `open` on a thread of its own, and returns what it has opened. Returns `None` at a message in `stop` or
/// `parent_gone` before that; `open` still runs then, so the program must exit.
///
/// # Errors
/// Those of `open`; when no thread can be started.
pub(crate) fn unless_stopped<T: Send + 'static>(
    stop: &Receiver<()>,
    parent_gone: &Receiver<()>,
    open: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Option<T>> {
    let (done, opened) = bounded(1);
    let work = move || {
        // The receiver is gone after a stop.
        let _ = done.send(open());
    };
    thread::Builder::new()
        .name("start".to_owned())
        .stack_size(STACK)
        .spawn(work)
        .context("no thread can be started to open a cluster or a connection")?;
    select! {
        recv(opened) -> opened => return opened.context("the start has panicked; the log says where")?.map(Some),
        recv(stop) -> _ => {}
        recv(parent_gone) -> _ => {}
    }
    Ok(None)
}
