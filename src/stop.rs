//! The events that stop the program or reload its configuration: signals, and a cluster that cannot be kept running.

use std::{process::ExitCode, sync::Arc, thread};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use pglite_port::{databases::OnFailure, log::OwnLog};
use signal_hook::{consts::signal::SIGHUP, iterator::Signals};

/// The exit status when the shared cluster has crashed and does not start again.
const CLUSTER_FAILED: u8 = 3;

/// Reads something again.
type Reload = Box<dyn Fn() + Send>;

/// Collects requests to stop the program.
pub(crate) struct Stop {
    sender: Sender<()>,
    asked: Receiver<()>,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
    reloaded: Arc<Mutex<Vec<Reload>>>,
}

impl Stop {
    /// Makes each of `signals` stop the program.
    ///
    /// # Errors
    /// When the signals cannot be handled.
    pub(crate) fn on(signals: &[i32]) -> anyhow::Result<Self> {
        let mut signals = Signals::new(signals.iter().chain([&SIGHUP])).context("cannot handle signals")?;
        let (sender, asked) = unbounded();
        let reloaded = Arc::<Mutex<Vec<Reload>>>::default();
        let (stop, reload) = (sender.clone(), reloaded.clone());
        let handle = move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    reload.lock().iter().for_each(|reload| reload());
                } else {
                    let _ = stop.send(());
                }
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(handle)
            .context("no thread can be started to handle signals")?;
        Ok(Self { sender, asked, failure: Arc::default(), reloaded })
    }

    /// Receives one message for every request to stop.
    pub(crate) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// Called when a cluster cannot be kept running; stops the program.
    pub(crate) fn on_failure(&self) -> OnFailure {
        let (failure, stop) = (self.failure.clone(), self.sender.clone());
        Arc::new(move |error| {
            *failure.lock() = Some(error);
            let _ = stop.send(());
        })
    }

    /// Makes `SIGHUP` call `reload` as well.
    pub(crate) fn on_hangup(&self, reload: impl Fn() + Send + 'static) {
        self.reloaded.lock().push(Box::new(reload));
    }

    /// The exit status after a stop; an error that caused it is written to `log`.
    pub(crate) fn status(&self, log: &OwnLog) -> ExitCode {
        let Some(error) = self.failure.lock().take() else { return ExitCode::SUCCESS };
        log.line(&format!("{error:#}"));
        ExitCode::from(CLUSTER_FAILED)
    }
}
