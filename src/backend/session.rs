//! One client's session in a backend of its own (`isolated` mode): startup, messages, end.

use std::mem;

use wasmtime_wasi::I32Exit;

use super::{Backend, boot::EXIT_ALIVE};
use crate::{
    guest::{
        ClientStream,
        client::{Client, Interest, Readiness},
        deliver,
    },
    startup::StartupMessage,
};

/// With this status an error has reached the main loop (PGlite, `pglite.ts`: `POSTGRES_MAIN_LONGJMP`).
const EXIT_LONGJMP: i32 = 100;

/// The message `Sync`, with which a client ends a series of messages.
const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];

/// The bootstrap superuser, as whom a backend is started.
pub(crate) const BOOTSTRAP_USER: &str = "postgres";

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client has said that it goes, or is gone.
    Client,
    /// `PostgreSQL` has ended the session itself and has told the client why.
    Fatal,
}

/// The key with which a session can be cancelled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackendKey {
    pub(crate) secret: [u8; 4],
}

impl Backend {
    /// Serves `client`, whose startup packet was `packet`, until the session ends.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn serve(
        &mut self,
        client: Box<dyn Client>,
        startup: &StartupMessage,
        packet: &[u8],
        key: BackendKey,
    ) -> anyhow::Result<Ended> {
        self.set_client(ClientStream::new(client, packet));
        let ended = match self.start_session(startup, key) {
            Ok(()) => self.run_session(),
            Err(error) => Err(error),
        };
        let ended = match ended {
            Ok(ended) => Ok(ended),
            // PostgreSQL reports what is fatal before it exits.
            Err(error) => match error.downcast_ref::<I32Exit>() {
                Some(I32Exit(EXIT_ALIVE)) => Ok(Ended::Client),
                Some(I32Exit(_)) => Ok(Ended::Fatal),
                None => Err(error),
            },
        };
        self.set_client(ClientStream::default());
        ended
    }

    /// What `BackendInitialize`, `PerformAuthentication` and `InitPostgres` do with a startup packet
    /// (`PostgreSQL`, `src/backend/tcop/backend_startup.c`, `src/backend/utils/init/postinit.c`), for a backend that is in its database already.
    fn start_session(&mut self, startup: &StartupMessage, key: BackendKey) -> anyhow::Result<()> {
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        let status: i32 = self.call("ProcessStartupPacket", (port, 1, 1))?;
        if status != 0 {
            return Err(I32Exit(EXIT_ALIVE).into());
        }
        self.write_u32(self.facts().my_cancel_key, u32::from_le_bytes(key.secret))?;
        self.write_u32(self.facts().my_cancel_key_length, 4)?;
        // Without a handler an error is fatal, as it is to a session that is not there yet (`errstart` in `src/backend/utils/error/elog.c`).
        let handler = self.facts().address("PG_exception_stack")?;
        let main_loop = self.read_u32(handler)?;
        self.write_u32(handler, 0)?;
        let stack: u32 = self.call("emscripten_stack_get_current", ())?;
        self.call::<(), ()>("StartTransactionCommand", ())?;
        let user = self.push(&[&startup.user, &b"\0"[..]].concat())?;
        self.call::<(u32, u32, i32), ()>("InitializeSessionUserId", (user, 0, 0))?;
        let is_superuser: i32 = self.call("superuser", ())?;
        self.call::<(u32, i32), ()>("process_startup_options", (port, is_superuser))?;
        self.call::<(), ()>("CommitTransactionCommand", ())?;
        self.call::<u32, ()>("_emscripten_stack_restore", stack)?;
        self.write_u32(handler, main_loop)?;
        self.forget_changed_settings()?;
        self.call::<(), ()>("pgl_sendConnData", ())?;
        self.call::<(), ()>("pgl_pq_flush", ())
    }

    /// Takes the settings that have changed off the list of those that the client has to be told of: it is about to be told of all.
    ///
    /// `PostgreSQL` remembers what it has told last and tells nothing twice; PGlite has lost that memory (`ReportGUCOption` in
    /// `src/backend/utils/misc/guc.c`).
    fn forget_changed_settings(&mut self) -> anyhow::Result<()> {
        // What was said already, about the version of the protocol, is for the client.
        self.call::<(), ()>("pgl_pq_flush", ())?;
        let client = mem::replace(&mut self.guest().client, ClientStream::silent(&SYNC));
        // Nothing is reported at all before this has been called once.
        self.call::<(), ()>("pgl_sendConnData", ())?;
        self.run_message()?;
        self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
        self.call::<(), ()>("pgl_pq_flush", ())?;
        self.guest().client = client;
        Ok(())
    }

    fn run_session(&mut self) -> anyhow::Result<Ended> {
        loop {
            if !self.has_pending_input()? {
                // ReadyForQuery, unless a message of the extended protocol is still to come.
                self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
                self.wait_for_input()?;
            }
            self.run_message()?;
        }
    }

    /// Whether bytes that the client has sent are in `PostgreSQL`'s buffer.
    pub(super) fn has_pending_input(&mut self) -> anyhow::Result<bool> {
        let pending = self.hot.pending_input.clone();
        Ok(pending.call(&mut self.store, ())? != 0)
    }

    /// Runs one message of the client. An SQL error is reported to it here.
    pub(super) fn run_message(&mut self) -> anyhow::Result<()> {
        let (run, stack) = (self.hot.main_loop_once.clone(), self.hot.stack_pointer);
        let stack_pointer = stack.get(&mut self.store);
        self.store.data_mut().native_stack.begin();
        let Err(error) = run.call(&mut self.store, ()) else { return Ok(()) };
        match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(EXIT_LONGJMP)) => {
                stack.set(&mut self.store, stack_pointer)?;
                self.call::<(), ()>("PostgresMainLongJmp", ())
            }
            _ => Err(error.into()),
        }
    }

    /// Waits for the client between two messages, where the guest is not on the stack.
    fn wait_for_input(&mut self) -> anyhow::Result<()> {
        loop {
            let guest = self.store.data_mut();
            let deadline = guest.timers.next();
            match guest.client.wait(Interest::Read, deadline) {
                Readiness::Ready => return Ok(()),
                Readiness::Woken | Readiness::TimedOut => self.handle_idle_interrupts()?,
            }
        }
    }

    /// Signals and timers between two messages: a cancel has nothing to cancel, everything else may end the session.
    fn handle_idle_interrupts(&mut self) -> anyhow::Result<()> {
        deliver(&mut self.store)?;
        let facts = self.facts();
        let (cancel, interrupt) = (facts.address("QueryCancelPending")?, facts.address("InterruptPending")?);
        self.write_u32(cancel, 0)?;
        if self.read_u32(interrupt)? != 0 {
            self.call::<(), ()>("ProcessInterrupts", ())?;
        }
        Ok(())
    }
}
