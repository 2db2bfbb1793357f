//! The postmaster as a process of its cluster: its seat, and a backend as soon as it has something to do in its own
//! memory.

use std::sync::Arc;

use anyhow::Context;

use super::running::Running;
use crate::{
    backend::{Backend, program::Program},
    cluster::{Seat, Signals},
    fs::Files,
    guest::Setup,
    log::LineConsole,
};

/// The process of a postmaster.
pub(super) struct Process {
    /// Its signals.
    pub(super) signals: Arc<Signals>,
    program: Arc<Program>,
    /// What it had open when it was captured.
    _files: Files,
    stage: Stage,
}

enum Stage {
    /// It is where it was captured.
    Captured(Seat, LineConsole),
    Running(Box<Backend>),
    /// Its backend could not be made.
    Failed,
}

impl Process {
    /// The process in `seat`, whose log goes to `console`.
    pub(super) fn new(seat: Seat, program: Arc<Program>, console: LineConsole, files: Files) -> Self {
        let signals = seat.signals().clone();
        Self { signals, program, _files: files, stage: Stage::Captured(seat, console) }
    }

    /// Whether its backend has still to be made.
    pub(super) fn has_no_backend(&self) -> bool {
        matches!(self.stage, Stage::Captured(..))
    }

    /// Its backend, which is made when it is first needed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn backend(&mut self, running: &Running) -> anyhow::Result<&mut Backend> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Captured(seat, console) => {
                let setup =
                    |files| Setup { seat: Some(seat), is_unlimited: true, ..Setup::backend(&self.program, files) };
                let backend = running.fork().start(&self.program, console, setup);
                Stage::Running(Box::new(backend.context("the postmaster cannot go on")?))
            }
            stage => stage,
        };
        match &mut self.stage {
            Stage::Running(backend) => Ok(backend),
            Stage::Captured(..) | Stage::Failed => anyhow::bail!("the postmaster could not go on"),
        }
    }

    /// Ends all processes of the cluster at once, without their own cleanup.
    pub(super) fn crash(&mut self, running: &Running) {
        // Waits for the turn, because the process that has it may be writing files. After a crash of another process
        // there are no more turns.
        match &mut self.stage {
            Stage::Captured(seat, _) => {
                if seat.take_turn().is_ok() {
                    seat.crash();
                }
            }
            Stage::Running(backend) => {
                if backend.take_turn().is_ok() {
                    backend.crash();
                }
            }
            Stage::Failed => running.seats.crash(),
        }
    }
}
