//! A server in this process.

use std::{sync::Arc, thread};

use crossbeam_channel::{Sender, bounded, unbounded};
use pglite_port::{
    connection::STARTUP_TIMEOUT,
    databases::Databases,
    serve::{self, Listener},
    session::Mode,
};
use postgres::Config;

/// A server on a free port.
pub struct Serving {
    /// The driver's configuration for it.
    pub config: Config,
    stop: Sender<()>,
    server: thread::JoinHandle<()>,
}

impl Serving {
    /// Serves the shared cluster of `databases`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(databases: Arc<Databases>) -> Self {
        let listener = Listener::bind("127.0.0.1:0", None).expect("a port");
        let serving = serve::start(listener, Mode::Shared, None, STARTUP_TIMEOUT).expect("threads");
        let ((stop, stopped), (ready, url)) = (unbounded(), bounded(1));
        let server = thread::spawn(move || {
            let on_ready = |url: &str| ready.send(url.to_owned()).expect("it is waited for");
            serving.run(databases, serve::GRACE, &stopped, on_ready).expect("it stops");
        });
        Self { config: url.recv().expect("it serves").parse().expect("a URL"), stop, server }
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When it cannot.
    pub fn stop(self) {
        self.stop.send(()).expect("it serves");
        self.server.join().expect("no panic");
    }
}
