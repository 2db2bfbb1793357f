//! The session of a client that has its own backend (`isolated` mode): startup, messages, end.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, bail};
use wasmtime_wasi::I32Exit;

use super::{Admission, Backend};
use crate::{
    client::{Client, Endpoints, Interest, Readiness},
    guest::{AUTHENTICATION_OK, ClientStream, call, deliver, wait},
    instrument::{AUTHENTICATION, IS_TEMPORARY},
    postgres::{
        catalog,
        process::{EXIT_ALIVE, EXIT_LONGJMP},
        setting,
    },
    protocol::{
        messages::{message, messages},
        startup::{Negotiation, StartupMessage, Step},
    },
};

/// The type of `ParameterStatus`.
const PARAMETER_STATUS: u8 = b'S';

/// `ReadyForQuery`, outside a transaction.
const READY_AND_IDLE: &[u8] = b"Z\0\0\0\x05I";

/// The bootstrap superuser. Backends are started as this role.
pub(crate) const BOOTSTRAP_USER: &str = "postgres";

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionExit {
    /// The client has sent `Terminate`, or is gone.
    Client,
    /// `PostgreSQL` has ended the session itself and has sent the client its error.
    Fatal,
    /// The host has ended the session at a safepoint, because it did not hear a signal. The client does not know yet.
    Unheard,
}

impl SessionExit {
    /// Translates an exit of the guest; `orderly` is the exit status after the client has gone. Other errors are
    /// returned.
    pub(super) fn by_exit(error: anyhow::Error, orderly: i32) -> anyhow::Result<Self> {
        match call::exit_status(error)? {
            status if status == orderly => Ok(Self::Client),
            // PostgreSQL reports what is fatal before it exits.
            _ => Ok(Self::Fatal),
        }
    }
}

/// Why a wait between two messages has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// The client has sent something, or is gone.
    Input,
    /// There is a task for the session.
    Asked,
}

/// The startup packet of a client, and what its session needs besides.
#[derive(Clone, Copy)]
pub(crate) struct Session<'a> {
    pub(crate) startup: &'a StartupMessage,
    /// The startup packet as it came.
    pub(crate) packet: &'a [u8],
    /// The addresses of the client's connection.
    pub(crate) endpoints: Endpoints,
    /// The key for requests to cancel its statements.
    pub(crate) cancel_key: [u8; 4],
    /// The properties of the database that decide whether the session is let in.
    pub(crate) admission: Admission,
    /// Whether the client need not authenticate.
    pub(crate) is_trusted: bool,
    /// Called when the client has authenticated, or need not.
    pub(crate) on_admitted: &'a OnAdmitted,
}

/// Called when a client is let in.
pub(crate) type OnAdmitted = Arc<dyn Fn() + Send + Sync>;

impl Backend {
    /// Begins the session of `client`.
    ///
    /// # Errors
    /// When the session ends during its startup; [`Self::end_session`] tells how.
    pub(crate) fn begin_session(&mut self, client: Box<dyn Client>, session: &Session<'_>) -> anyhow::Result<()> {
        let admitted = session.on_admitted.clone();
        let client = ClientStream::new(client, session.packet).trusted(session.is_trusted);
        self.set_client(client.on_admitted(move || admitted()));
        self.start_session(session)
    }

    /// Disconnects the client after `error` has ended its session, and returns how the session ended.
    ///
    /// # Errors
    /// When the guest has trapped.
    pub(crate) fn end_session(&mut self, error: anyhow::Error) -> anyhow::Result<SessionExit> {
        self.set_client(ClientStream::default());
        if self.guest().signals.was_ended() {
            Ok(SessionExit::Unheard)
        } else {
            SessionExit::by_exit(error, EXIT_ALIVE)
        }
    }

    /// Does what `BackendInitialize`, `InitPostgres` and `PostgresMain` do with a startup packet (`PostgreSQL`,
    /// `src/backend/tcop/backend_startup.c`, `src/backend/utils/init/postinit.c`, `src/backend/tcop/postgres.c`), for
    /// a backend that is already connected to its database.
    fn start_session(&mut self, session: &Session<'_>) -> anyhow::Result<()> {
        let Session { startup, endpoints, cancel_key, admission, .. } = session;
        self.set_global(IS_TEMPORARY, true)?;
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        self.set_endpoints(port, *endpoints)?;
        let status: i32 = self.call("ProcessStartupPacket", (port, 1, 1))?;
        if status != 0 {
            return Err(I32Exit(EXIT_ALIVE).into());
        }
        self.call::<(), ()>("pgstat_bestart_initial", ())?;
        self.write_u32(self.facts().my_cancel_key, u32::from_le_bytes(*cancel_key))?;
        self.write_u32(self.facts().my_cancel_key_length, 4)?;
        // Without a handler an error is fatal, as it is before a session has begun (`errstart` in
        // `src/backend/utils/error/elog.c`).
        let handler = self.facts().address("PG_exception_stack")?;
        let main_loop = self.read_u32(handler)?;
        self.write_u32(handler, 0)?;
        let stack: u32 = self.call("emscripten_stack_get_current", ())?;
        self.call::<(), ()>("StartTransactionCommand", ())?;
        self.call::<(), ()>(AUTHENTICATION, ())?;
        let user = self.push_string(&startup.user)?;
        self.call::<(u32, u32, i32), ()>("InitializeSessionUserId", (user, 0, 0))?;
        let is_superuser: i32 = self.call("superuser", ())?;
        self.check_database(*admission, is_superuser != 0)?;
        self.call::<(u32, i32), ()>("process_startup_options", (port, is_superuser))?;
        if admission.has_settings {
            self.process_settings()?;
        }
        self.preload_libraries()?;
        self.call::<(), ()>("pgstat_bestart_final", ())?;
        self.call::<(), ()>("CommitTransactionCommand", ())?;
        self.call::<u32, ()>("_emscripten_stack_restore", stack)?;
        self.call::<(), ()>("pgl_pq_flush", ())?;
        self.send_connection_data()?;
        self.call::<(), ()>("EventTriggerOnLogin", ())?;
        self.write_u32(handler, main_loop)?;
        // This also does what PostgreSQL does with each ReadyForQuery, such as starting idle_session_timeout.
        self.write(self.facts().send_ready_for_query, &[1])?;
        self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
        self.call::<(), ()>("pgl_pq_flush", ())
    }

    /// Sends run-time parameters and the cancel key. PGlite's function for this also sends `AuthenticationOk`, which
    /// the client already has, and `ReadyForQuery`, which is sent later; both are removed.
    fn send_connection_data(&mut self) -> anyhow::Result<()> {
        self.guest().client.hold();
        let sent = self.call::<(), ()>("pgl_sendConnData", ()).and_then(|()| self.call::<(), ()>("pgl_pq_flush", ()));
        let data = self.guest().client.release();
        sent?;
        let data = data.strip_prefix(AUTHENTICATION_OK).and_then(|data| data.strip_suffix(READY_AND_IDLE));
        self.guest().client.write_all(data.context("pgl_sendConnData sends something else than it did")?);
        Ok(())
    }

    /// Applies the settings of `ALTER DATABASE` and `ALTER ROLE` (`process_settings` in
    /// `src/backend/utils/init/postinit.c`, which does nothing in a backend without a postmaster). If there are
    /// several values for one setting, the first is used; a value in the startup packet takes precedence.
    fn process_settings(&mut self) -> anyhow::Result<()> {
        let relation: u32 = self.call("table_open", (catalog::DB_ROLE_SETTING, catalog::ACCESS_SHARE_LOCK))?;
        let snapshot: u32 = self.call("GetLatestSnapshot", ())?;
        let snapshot: u32 = self.call("RegisterSnapshot", snapshot)?;
        let database = self.read_u32(self.facts().address("MyDatabaseId")?)?;
        let role: u32 = self.call("GetSessionUserId", ())?;
        for (database, role, source) in [
            (database, role, setting::DATABASE_USER),
            (0, role, setting::USER),
            (database, 0, setting::DATABASE),
            (0, 0, setting::GLOBAL),
        ] {
            self.call::<_, ()>("ApplySetting", (snapshot, database, role, relation, source))?;
        }
        self.call::<_, ()>("UnregisterSnapshot", snapshot)?;
        self.call("table_close", (relation, catalog::ACCESS_SHARE_LOCK))
    }

    /// Starts a session without a client and runs one query in it; returns whether the database has let the session
    /// in.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn rehearse(&mut self, database: &str, admission: Admission) -> anyhow::Result<bool> {
        let packet = StartupMessage::packet(&[("user", BOOTSTRAP_USER), ("database", database)]);
        let Step::Start(startup) = Negotiation::default().accept(&packet)? else { bail!("no startup packet") };
        let (endpoints, cancel_key) = (Endpoints::default(), [0; 4]);
        let on_admitted: OnAdmitted = Arc::new(|| {});
        let (is_trusted, on_admitted) = (true, &on_admitted);
        let session =
            Session { startup: &startup, packet: &packet, endpoints, cancel_key, admission, is_trusted, on_admitted };
        match self.record(&packet, |backend| backend.start_session(&session)) {
            Ok(_) => self.execute("SELECT 1").map(|()| true),
            Err(error) => call::exit_status(error).map(|_| false),
        }
    }

    /// The run-time parameters and the other messages that a client would be sent if its session started now.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn greeting(&mut self) -> anyhow::Result<Vec<u8>> {
        Ok(self.record(&[], |backend| backend.call::<(), ()>("pgl_sendConnData", ()))?.1)
    }

    /// Begins the client's session again, in a backend that has replaced the previous one; `greeting` is what
    /// [`Self::greeting`] returned in the previous backend.
    ///
    /// For the client the session is in the same state as after its startup: user, database and options are those of
    /// its startup packet, and its cancel key stays valid. Run-time parameters that differ from `greeting` are
    /// reported (`ParameterStatus` may be sent at any time; "Asynchronous Operations" in `PostgreSQL`'s manual). If a
    /// transaction was open, it is gone, as the next `ReadyForQuery` tells the client.
    ///
    /// # Errors
    /// When the guest traps or exits.
    pub(crate) fn begin_session_again(&mut self, session: &Session<'_>, greeting: &[u8]) -> anyhow::Result<()> {
        // Signals must not interrupt this startup: their senders know only of the session before.
        let holdoff = self.facts().address("InterruptHoldoffCount")?;
        self.write_u32(holdoff, 1)?;
        let ((), told) = self.record(session.packet, |backend| backend.start_session(session))?;
        self.write_u32(holdoff, 0)?;
        // Signals that have arrived meanwhile are handled now. A cancel request has no effect, as in any idle session.
        self.handle_idle_interrupts()?;
        let reported: Vec<_> = messages(greeting).filter(|(kind, _)| *kind == PARAMETER_STATUS).collect();
        for (kind, body) in messages(&told).filter(|message| message.0 == PARAMETER_STATUS) {
            if !reported.contains(&(kind, body)) {
                self.guest().client.write_all(&message(kind, body)?);
            }
        }
        Ok(())
    }

    /// Runs the client's messages until `is_asked`, which is called between two of its commands, returns true.
    ///
    /// # Errors
    /// When the session ends; [`Self::end_session`] tells how.
    pub(crate) fn run_session(&mut self, is_asked: impl Fn() -> bool) -> anyhow::Result<()> {
        // The startup and the last task have ended with ReadyForQuery.
        let mut is_ready = true;
        loop {
            if !self.has_pending_input()? {
                // Sends ReadyForQuery, unless it has to wait for a message of the extended protocol.
                let sent = self.guest().client.bytes_sent();
                self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
                is_ready |= self.guest().client.bytes_sent() > sent;
                self.forget_message()?;
                self.checkpoint_if_due()?;
                if self.wait_for_input(|| is_ready && is_asked())? == Waited::Asked {
                    return Ok(());
                }
                is_ready = false;
            }
            if self.read_u32(self.hot.config_reload_pending)? != 0 {
                self.reload_configuration()?;
            }
            self.run_message()?;
        }
    }

    /// Does what a postmaster does on `SIGHUP` (`process_pm_reload_request` in
    /// `src/backend/postmaster/postmaster.c`), because a cluster with one session has no postmaster. Meanwhile
    /// `IsUnderPostmaster` is off: otherwise PostgreSQL would not log the settings that change or need a restart.
    fn reload_configuration(&mut self) -> anyhow::Result<()> {
        self.write_u32(self.hot.config_reload_pending, 0)?;
        let is_under_postmaster = self.facts().address("IsUnderPostmaster")?;
        self.write(is_under_postmaster, &[0])?;
        self.call::<i32, ()>("ProcessConfigFile", setting::ON_RELOAD)?;
        self.write(is_under_postmaster, &[1])
    }

    /// Whether bytes that the client has sent are in `PostgreSQL`'s buffer.
    pub(super) fn has_pending_input(&mut self) -> anyhow::Result<bool> {
        let pending = self.hot.pending_input.clone();
        Ok(pending.call(&mut self.store, ())? != 0)
    }

    /// Runs one message of the client. An SQL error is reported to the client and is not an error of this function.
    pub(super) fn run_message(&mut self) -> anyhow::Result<()> {
        let (run, stack) = (self.hot.main_loop_once.clone(), self.hot.stack_pointer);
        let stack_pointer = stack.get(&mut self.store);
        let guest = self.store.data_mut();
        guest.native_stack.begin();
        guest.wal.begin_message();
        let Err(error) = run.call(&mut self.store, ()) else { return Ok(()) };
        match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(EXIT_LONGJMP)) => {
                stack.set(&mut self.store, stack_pointer)?;
                self.call::<(), ()>("PostgresMainLongJmp", ())
            }
            _ => Err(error.into()),
        }
    }

    /// Frees what belonged to the last message. `PostgresMain` does so before it waits for the next one,
    /// `PostgresMainLoopOnce` when it has come.
    fn forget_message(&mut self) -> anyhow::Result<()> {
        let (reset, current) = (self.hot.reset_context.clone(), self.facts().address("CurrentMemoryContext")?);
        let context = self.read_u32(self.facts().message_context)?;
        self.write_u32(current, context)?;
        Ok(reset.call(&mut self.store, context)?)
    }

    /// Waits between two messages, without guest frames on the stack, until the client sends something or `is_asked`
    /// returns true.
    fn wait_for_input(&mut self, is_asked: impl Fn() -> bool) -> anyhow::Result<Waited> {
        loop {
            let asked = is_asked();
            // Messages that have already arrived are handled before the task, so that their order is kept.
            let deadline = if asked { Some(Instant::now()) } else { self.guest().timers.next() };
            match wait(&mut self.store, Interest::Read, deadline)? {
                Readiness::Ready => return Ok(Waited::Input),
                Readiness::TimedOut if asked => return Ok(Waited::Asked),
                Readiness::Woken | Readiness::TimedOut => self.handle_idle_interrupts()?,
            }
        }
    }

    /// Handles signals and timers between two messages. A cancel request has no effect; the others may end the
    /// session.
    pub(crate) fn handle_idle_interrupts(&mut self) -> anyhow::Result<()> {
        self.guest().is_idle = true;
        let handled = self.deliver_and_process();
        self.guest().is_idle = false;
        handled
    }

    fn deliver_and_process(&mut self) -> anyhow::Result<()> {
        deliver(&mut self.store)?;
        let facts = self.facts();
        let cancel = facts.address("QueryCancelPending")?;
        self.write_u32(cancel, 0)?;
        if self.signals().is_interrupt_pending() {
            self.call::<(), ()>("ProcessInterrupts", ())?;
        }
        Ok(())
    }
}
