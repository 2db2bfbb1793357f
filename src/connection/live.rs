//! All connections: starts a thread for each, counts them and ends them.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, at, bounded, never, select};
use parking_lot::{Condvar, Mutex};

use super::{Opening, STARTUP_TIMEOUT, half_open::HalfOpen, serve};
use crate::{
    administration::figure::{self, Figure},
    client::{Client, LAST_WORDS},
    engine::THREAD_STACK,
    protocol::error_response::ErrorResponse,
    session::{
        Control, Sessions,
        cancel::{CancelRegistry, Interrupt},
    },
};

/// The part of the time for a shutdown that subscribers get to receive the rest. What is left is for the clusters.
const FOR_SUBSCRIBERS: f64 = 0.75;
/// How long the clusters take at least.
const FOR_CLUSTERS: Duration = Duration::from_millis(250);

/// How long subscribers have to receive the rest, in a shutdown that may last for `grace`.
fn for_subscribers(grace: Duration) -> Duration {
    grace.mul_f64(FOR_SUBSCRIBERS).min(grace.saturating_sub(LAST_WORDS + FOR_CLUSTERS))
}

/// How long a client waits for those that have to make room for it. On a busy machine their threads take a while to
/// end.
const END_OF_OTHERS: Duration = Duration::from_secs(1);

/// How often others have to make room for one client.
const ROUNDS: usize = 4;

/// All connections of the program.
pub struct Connections {
    sessions: Arc<dyn Sessions>,
    cancels: CancelRegistry,
    startup_timeout: Duration,
    live: Mutex<Live>,
    half_open: HalfOpen,
    /// Notified when a connection's thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Live {
    next: u64,
    stopping: bool,
    /// Those of the connections that are open.
    controls: HashMap<u64, Control>,
    /// How many threads have not ended, with those whose connection is closed and that still have to say so.
    threads: usize,
}

impl Connections {
    /// No connections yet; `sessions` will serve them.
    pub fn new(sessions: Arc<dyn Sessions>) -> Self {
        Self {
            sessions,
            cancels: CancelRegistry::default(),
            startup_timeout: STARTUP_TIMEOUT,
            live: Mutex::default(),
            half_open: HalfOpen::default(),
            ended: Condvar::new(),
        }
    }

    /// The same with another time that clients may take over their startup packet.
    #[must_use]
    pub fn with_startup_timeout(self, startup_timeout: Duration) -> Self {
        Self { startup_timeout, ..self }
    }

    /// Serves `client` on a thread of its own. `on_end` is called there, with the report of how it
    /// ended, when nothing more will be written.
    ///
    /// # Errors
    /// The operating system's, if no thread can be started; `on_end` is not called then.
    pub fn start<C: Client + Clone + 'static>(
        self: &Arc<Self>,
        client: C,
        opening: Opening,
        on_end: impl FnOnce(C, ErrorResponse) + Send + 'static,
    ) -> io::Result<Control> {
        let (number, control) = self.enter(&client);
        // Dropped with the closure if the thread does not start.
        let leave = Leave { connections: self.clone(), number };
        let on_thread = control.clone();
        let is_trusted = opening.is_trusted;
        thread::Builder::new().name(format!("connection-{}", opening.id)).stack_size(THREAD_STACK).spawn(
            move || {
                let _span = tracing::info_span!("connection", id = opening.id).entered();
                let report = serve(&leave.connections, client.clone(), &opening, &on_thread);
                on_thread.settle();
                // Whoever learns of the end sees the connection counted no more, and its descriptors free.
                leave.close();
                drop(on_thread);
                on_end(client, report);
            },
        )?;
        // Whoever answers for its client need not hurry.
        if !is_trusted {
            self.half_open.enter(number, &control);
        }
        Ok(control)
    }

    /// Unless there is room, ends those connections that have waited longest for their clients to authenticate, and
    /// waits a moment for their ends; a few times at most, because authenticated clients may be what uses the room.
    pub(crate) fn make_room(&self, has_room: impl Fn() -> bool) {
        let deadline = Instant::now() + END_OF_OTHERS;
        for _ in 0..ROUNDS {
            if has_room() {
                return;
            }
            let threads = self.live.lock().threads;
            let ending = self.half_open.make_room();
            let mut live = self.live.lock();
            while live.threads + ending > threads {
                if self.ended.wait_until(&mut live, deadline).timed_out() {
                    return;
                }
            }
        }
    }

    /// Asks every session to end (`57P01`) and refuses those that come later (`57P03`).
    pub fn terminate_all(&self) {
        let controls: Vec<Control> = {
            let mut live = self.live.lock();
            live.stopping = true;
            live.controls.values().cloned().collect()
        };
        self.sessions.close();
        for control in controls {
            control.interrupt(Interrupt::ShutDown);
        }
    }

    /// Asks every session to end, waits until all have ended but those that leave last, and calls
    /// [`Sessions::shut_down`], with which these end.
    pub fn shut_down(&self) {
        self.terminate_all();
        self.wait_while(|live| live.threads > live.controls.values().filter(|control| control.leaves_last()).count());
        self.sessions.shut_down();
        self.wait_while(|live| live.threads > 0);
    }

    fn wait_while(&self, waits: impl Fn(&Live) -> bool) {
        let mut live = self.live.lock();
        while waits(&live) {
            self.ended.wait(&mut live);
        }
    }

    /// [`Self::shut_down`], but waits no longer than `grace`, and for subscribers a part of it. Each message that arrives
    /// in `news` meanwhile can only shorten the wait: from then on it lasts at most the time that `grace_after` returns
    /// for the message.
    pub fn shut_down_within<T>(
        self: &Arc<Self>,
        grace: Duration,
        news: &Receiver<T>,
        mut grace_after: impl FnMut(T) -> Duration,
    ) {
        let mut deadline = Instant::now() + grace;
        let mut subscribers_until = Some(Instant::now() + for_subscribers(grace));
        let mut news = news.clone();
        let (done, all_ended) = bounded(1);
        let connections = self.clone();
        let spawned = thread::Builder::new().name("shutdown".to_owned()).spawn(move || {
            connections.shut_down();
            // The receiver is gone after the deadline.
            let _ = done.send(());
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to wait for the sessions' end");
            return;
        }
        loop {
            select! {
                recv(all_ended) -> _ => return,
                recv(news) -> received => if let Ok(received) = received {
                    let grace = grace_after(received);
                    deadline = deadline.min(Instant::now() + grace);
                    let sooner = Instant::now() + for_subscribers(grace);
                    subscribers_until = subscribers_until.map(|until| until.min(sooner));
                } else {
                    // Disconnected: no further message can shorten the wait.
                    news = never();
                },
                recv(at(subscribers_until.map_or(deadline, |until| until.min(deadline)))) -> _ => {
                    if Instant::now() >= deadline {
                        self.warn_about_end();
                        return;
                    }
                    subscribers_until = None;
                    self.terminate_subscribers();
                }
            }
        }
    }

    /// Ends the sessions that are left because their clients have not received all that was committed: a cluster is shut
    /// down after these.
    fn terminate_subscribers(&self) {
        let left: Vec<Control> =
            self.live.lock().controls.values().filter(|control| control.leaves_last()).cloned().collect();
        if !left.is_empty() {
            tracing::warn!(subscribers = left.len(), "subscribers are cut off that have not received everything");
        }
        left.iter().for_each(|control| control.interrupt(Interrupt::Terminate));
    }

    /// Says what has not ended in time.
    fn warn_about_end(&self) {
        match self.count() {
            0 => tracing::warn!(
                "the program ends before its clusters were shut down: one in a directory recovers at its next start"
            ),
            connections => tracing::warn!(
                connections,
                "the program ends before all sessions have: a cluster in a directory recovers at its next start"
            ),
        }
    }

    /// The number of open connections, and of all connections that were opened.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let live = self.live.lock();
        vec![figure::CONNECTIONS.figure(live.controls.len() as u64), figure::CONNECTIONS_OPENED.figure(live.next)]
    }

    /// How many connections there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.lock().controls.len()
    }

    /// What makes the sessions.
    pub(super) fn sessions(&self) -> &dyn Sessions {
        &*self.sessions
    }

    pub(super) fn cancels(&self) -> &CancelRegistry {
        &self.cancels
    }

    pub(super) fn startup_timeout(&self) -> Duration {
        self.startup_timeout
    }

    fn enter(&self, client: &impl Client) -> (u64, Control) {
        let mut live = self.live.lock();
        let number = live.next;
        live.next += 1;
        let control = Control::new(self.cancels.clone(), client.waker(), live.stopping);
        live.controls.insert(number, control.clone());
        live.threads += 1;
        (number, control)
    }
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Leave {
    connections: Arc<Connections>,
    number: u64,
}

impl Leave {
    /// The connection is no longer open.
    fn close(&self) {
        self.connections.live.lock().controls.remove(&self.number);
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.close();
        self.connections.half_open.leave(self.number);
        self.connections.live.lock().threads -= 1;
        self.connections.ended.notify_all();
    }
}
