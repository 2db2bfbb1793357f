//! Control of one connection from other threads: interrupts for its session, tasks, an order to end.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use super::PendingTask;
use crate::{
    client::Waker,
    protocol::error_response::{ErrorResponse, sqlstate},
    session::cancel::{CancelRegistry, Interrupt, Interrupter, Registered},
    tally::ENTRANCE,
};

/// Reaches the session of one connection from other threads. A clone reaches the same one.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    cancels: CancelRegistry,
    /// Ends the wait for the startup packet.
    waker: Waker,
    /// Whether the program was already shutting down when the client connected.
    too_late: bool,
    /// Whether the client was let in, or the connection has ended.
    is_settled: AtomicBool,
    leaves_last: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    terminate: bool,
    /// Whether it has to make room for other clients.
    crowded_out: bool,
    client_gone: bool,
    interrupter: Option<Interrupter>,
    /// What the session is to do between two of its client's commands.
    tasks: VecDeque<PendingTask>,
    task_handler: Option<TaskHandler>,
}

/// Does tasks in the place of a session; returns those that the session has to do.
type TaskHandler = Arc<dyn Fn(PendingTask) -> Option<PendingTask> + Send + Sync>;

/// Keeps a session registered; dropping it ends that.
#[must_use = "dropping it at once unregisters the session"]
pub struct Registration {
    control: Control,
    _key: Registered,
}

impl Control {
    pub(crate) fn new(cancels: CancelRegistry, waker: Waker, too_late: bool) -> Self {
        ENTRANCE.enter();
        let state = State { terminate: too_late, ..State::default() };
        let (is_settled, leaves_last) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Inner { cancels, waker, too_late, is_settled, leaves_last, state: Mutex::new(state) }))
    }

    /// Registers the session that now runs on this connection, under the process id and the secret key
    /// that its client gets in `BackendKeyData`.
    ///
    /// `interrupt` may be called at once, on this thread, for interrupts that were sent before; later on any
    /// thread. It must not block.
    pub fn register(
        &self,
        process_id: i32,
        secret_key: &[u8],
        interrupt: impl Fn(Interrupt) + Send + Sync + 'static,
    ) -> Registration {
        let interrupter: Interrupter = Arc::new(interrupt);
        let asked = {
            let mut state = self.0.state.lock();
            state.interrupter = Some(interrupter.clone());
            [(state.terminate, Interrupt::Terminate), (state.client_gone, Interrupt::ClientGone)]
        };
        asked.into_iter().filter(|(asked, _)| *asked).for_each(|(_, kind)| interrupter(kind));
        let key = self.0.cancels.register(process_id, secret_key, interrupter);
        Registration { control: self.clone(), _key: key }
    }

    /// Interrupts the session, or has it interrupted as soon as it registers. A [`Interrupt::Cancel`]
    /// before that has nothing to cancel.
    pub fn interrupt(&self, kind: Interrupt) {
        let interrupter = {
            let mut state = self.0.state.lock();
            match kind {
                Interrupt::Cancel => {}
                Interrupt::Terminate | Interrupt::ShutDown => state.terminate = true,
                Interrupt::ClientGone => state.client_gone = true,
            }
            state.interrupter.clone()
        };
        if let Some(interrupt) = interrupter {
            interrupt(kind);
        }
        self.0.waker.wake();
    }

    /// Gives a task to the session, which may not have started yet, and wakes it if it waits for its client. If the
    /// session ends before the task is done, dropping the task reports an error.
    pub fn assign(&self, task: PendingTask) {
        let handler = {
            let mut state = self.0.state.lock();
            let Some(handler) = &state.task_handler else {
                state.tasks.push_back(task);
                drop(state);
                return self.0.waker.wake();
            };
            handler.clone()
        };
        if let Some(task) = handler(task) {
            self.0.state.lock().tasks.push_back(task);
            self.0.waker.wake();
        }
    }

    /// From now on tasks go to `handler` first, which does those that need no moment between two commands of the
    /// client, and returns the others for the session. It must not block.
    pub fn handle_tasks_with(&self, handler: impl Fn(PendingTask) -> Option<PendingTask> + Send + Sync + 'static) {
        let handler: TaskHandler = Arc::new(handler);
        let waiting = {
            let mut state = self.0.state.lock();
            state.task_handler = Some(handler.clone());
            std::mem::take(&mut state.tasks)
        };
        let left: Vec<PendingTask> = waiting.into_iter().filter_map(|task| handler(task)).collect();
        // Before those that came meanwhile.
        let mut state = self.0.state.lock();
        left.into_iter().rev().for_each(|task| state.tasks.push_front(task));
    }

    /// Whether the session has a task. For the session itself, as is [`Control::take_task`].
    #[must_use]
    pub fn has_tasks(&self) -> bool {
        !self.0.state.lock().tasks.is_empty()
    }

    /// Takes the task that was assigned first.
    #[must_use]
    pub fn take_task(&self) -> Option<PendingTask> {
        self.0.state.lock().tasks.pop_front()
    }

    /// The session sends WAL to a subscriber: it ends when its cluster is shut down, after all others.
    pub(crate) fn leave_last(&self) {
        self.0.leaves_last.store(true, Ordering::Relaxed);
    }

    /// Whether the session ends after all others.
    pub(crate) fn leaves_last(&self) -> bool {
        self.0.leaves_last.load(Ordering::Relaxed)
    }

    /// The client has authenticated, or its connection has ended.
    pub(crate) fn settle(&self) {
        // With the lock, so that nobody who was let in is chosen to make room.
        let _state = self.0.state.lock();
        if !self.0.is_settled.swap(true, Ordering::Relaxed) {
            ENTRANCE.settle();
        }
    }

    /// Whether the connection was not told to end, and its client has not left.
    pub(crate) fn is_wanted(&self) -> bool {
        let state = self.0.state.lock();
        !state.terminate && !state.crowded_out && !state.client_gone
    }

    /// Whether the client has still to authenticate.
    pub(crate) fn is_half_open(&self) -> bool {
        !self.0.is_settled.load(Ordering::Relaxed)
    }

    /// Ends the connection of a client that has not authenticated.
    pub(crate) fn crowd_out(&self) {
        {
            let mut state = self.0.state.lock();
            if !self.is_half_open() {
                return;
            }
            state.crowded_out = true;
        }
        self.interrupt(Interrupt::Terminate);
    }

    /// The error for a client that has no session yet, if it must not get one.
    pub(crate) fn refusal(&self) -> Option<ErrorResponse> {
        if self.0.state.lock().crowded_out {
            let message = "sorry, too many clients already";
            return Some(ErrorResponse::fatal(sqlstate::TOO_MANY_CONNECTIONS, message));
        }
        let is_refused = self.0.state.lock().terminate;
        is_refused.then(|| {
            if self.0.too_late {
                ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, "the database system is shutting down")
            } else {
                ErrorResponse::terminated()
            }
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread of its connection did not start.
        if !*self.is_settled.get_mut() {
            ENTRANCE.settle();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.control.0.state.lock().interrupter = None;
    }
}
