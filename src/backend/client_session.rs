//! One client's session in a backend of its own (`isolated` mode): startup, messages, end.

use std::time::Instant;

use anyhow::{Context, bail};
use wasmtime_wasi::I32Exit;

use super::{Admission, Backend};
use crate::{
    client::{Client, Endpoints, Interest, Readiness},
    guest::{ClientStream, call, deliver, wait},
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

/// `AuthenticationOk`.
const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// `ReadyForQuery`, outside a transaction.
const READY_AND_IDLE: &[u8] = b"Z\0\0\0\x05I";

/// The bootstrap superuser, as which a backend is started.
pub(crate) const BOOTSTRAP_USER: &str = "postgres";

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionExit {
    /// The client has sent `Terminate`, or is gone.
    Client,
    /// `PostgreSQL` has ended the session itself and has sent the client its error.
    Fatal,
}

impl SessionExit {
    /// What an exit of the guest means, where `orderly` is its status when the client has gone; any other error is
    /// passed on.
    pub(super) fn by_exit(error: anyhow::Error, orderly: i32) -> anyhow::Result<Self> {
        match call::exit_status(error)? {
            status if status == orderly => Ok(Self::Client),
            // PostgreSQL reports what is fatal before it exits.
            _ => Ok(Self::Fatal),
        }
    }
}

/// What a wait between two messages has ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// The client has sent something, or is gone.
    Input,
    /// Something is asked of the session.
    Asked,
}

/// How a client has introduced itself, and the key it was given.
#[derive(Clone, Copy)]
pub(crate) struct Session<'a> {
    pub(crate) startup: &'a StartupMessage,
    /// The startup packet as it came.
    pub(crate) packet: &'a [u8],
    /// Where the client is.
    pub(crate) endpoints: Endpoints,
    /// What cancels it.
    pub(crate) cancel_key: [u8; 4],
    /// What it has to know of its database.
    pub(crate) admission: Admission,
}

impl Backend {
    /// Begins the session of `client`.
    ///
    /// # Errors
    /// What [`Self::end_session`] makes an end of.
    pub(crate) fn begin_session(&mut self, client: Box<dyn Client>, session: &Session<'_>) -> anyhow::Result<()> {
        self.set_client(ClientStream::new(client, session.packet));
        self.start_session(session)
    }

    /// Takes leave of the client after `error` has ended its session.
    ///
    /// # Errors
    /// When the guest has trapped.
    pub(crate) fn end_session(&mut self, error: anyhow::Error) -> anyhow::Result<SessionExit> {
        self.set_client(ClientStream::default());
        SessionExit::by_exit(error, EXIT_ALIVE)
    }

    /// What `BackendInitialize`, `InitPostgres` and `PostgresMain` do with a startup packet (`PostgreSQL`,
    /// `src/backend/tcop/backend_startup.c`, `src/backend/utils/init/postinit.c`, `src/backend/tcop/postgres.c`), for
    /// a backend that is in its database already.
    fn start_session(&mut self, session: &Session<'_>) -> anyhow::Result<()> {
        let Session { startup, endpoints, cancel_key, admission, .. } = session;
        let port: u32 = self.call("pgl_getMyProcPort", ())?;
        self.set_endpoints(port, *endpoints)?;
        let status: i32 = self.call("ProcessStartupPacket", (port, 1, 1))?;
        if status != 0 {
            return Err(I32Exit(EXIT_ALIVE).into());
        }
        self.call::<(), ()>("pgstat_bestart_initial", ())?;
        // Notices may follow it, but only the negotiation of the protocol's version may come before.
        self.call::<(), ()>("pgl_pq_flush", ())?;
        self.guest().client.write_all(AUTHENTICATION_OK);
        self.write_u32(self.facts().my_cancel_key, u32::from_le_bytes(*cancel_key))?;
        self.write_u32(self.facts().my_cancel_key_length, 4)?;
        // Without a handler an error is fatal, as it is before a session has begun (`errstart` in
        // `src/backend/utils/error/elog.c`).
        let handler = self.facts().address("PG_exception_stack")?;
        let main_loop = self.read_u32(handler)?;
        self.write_u32(handler, 0)?;
        let stack: u32 = self.call("emscripten_stack_get_current", ())?;
        self.call::<(), ()>("StartTransactionCommand", ())?;
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
        // With what belongs to it, such as idle_session_timeout.
        self.write(self.facts().send_ready_for_query, &[1])?;
        self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
        self.call::<(), ()>("pgl_pq_flush", ())
    }

    /// Sends run-time parameters and the cancel key. PGlite's function for it begins with what the client has been
    /// sent already, and ends with what comes when the session is ready.
    fn send_connection_data(&mut self) -> anyhow::Result<()> {
        self.guest().client.hold();
        let sent = self.call::<(), ()>("pgl_sendConnData", ()).and_then(|()| self.call::<(), ()>("pgl_pq_flush", ()));
        let data = self.guest().client.release();
        sent?;
        let data = data.strip_prefix(AUTHENTICATION_OK).and_then(|data| data.strip_suffix(READY_AND_IDLE));
        self.guest().client.write_all(data.context("pgl_sendConnData sends something else than it did")?);
        Ok(())
    }

    /// Applies what `ALTER DATABASE` and `ALTER ROLE` have set (`process_settings` in
    /// `src/backend/utils/init/postinit.c`, which does nothing in a backend without a postmaster). Of a setting that
    /// is there twice, the first counts, and so do those of the startup packet.
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

    /// Serves one query of a client that the host plays, and returns whether the database has let it in.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn rehearse(&mut self, database: &str, admission: Admission) -> anyhow::Result<bool> {
        let packet = StartupMessage::packet(&[("user", BOOTSTRAP_USER), ("database", database)]);
        let Step::Start(startup) = Negotiation::default().accept(&packet)? else { bail!("no startup packet") };
        let (endpoints, cancel_key) = (Endpoints::default(), [0; 4]);
        let session = Session { startup: &startup, packet: &packet, endpoints, cancel_key, admission };
        match self.record(&packet, |backend| backend.start_session(&session)) {
            Ok(_) => self.execute("SELECT 1").map(|()| true),
            Err(error) => call::exit_status(error).map(|_| false),
        }
    }

    /// What a client is sent at the start of its session, as it would be sent now.
    ///
    /// # Errors
    /// When the guest traps.
    pub(crate) fn greeting(&mut self) -> anyhow::Result<Vec<u8>> {
        Ok(self.record(&[], |backend| backend.call::<(), ()>("pgl_sendConnData", ()))?.1)
    }

    /// Begins the session of its client anew, in a backend that has succeeded the one before; `greeting` was that
    /// one's last.
    ///
    /// To its client it is as after the startup: user, database and options are those of its startup packet, its
    /// cancel key stays valid. Run-time parameters that differ from `greeting` are reported (`ParameterStatus` may
    /// come at any time; "Asynchronous Operations" in `PostgreSQL`'s manual). That an open transaction is gone, the
    /// client finds out from the next `ReadyForQuery`.
    ///
    /// # Errors
    /// When the guest traps or exits.
    pub(crate) fn begin_session_again(&mut self, session: &Session<'_>, greeting: &[u8]) -> anyhow::Result<()> {
        // No signal interrupts what its sender cannot know of.
        let holdoff = self.facts().address("InterruptHoldoffCount")?;
        self.write_u32(holdoff, 1)?;
        let ((), told) = self.record(session.packet, |backend| backend.start_session(session))?;
        self.write_u32(holdoff, 0)?;
        // Signals that have come meanwhile: a cancel had nothing to cancel.
        self.handle_idle_interrupts()?;
        let reported: Vec<_> = messages(greeting).filter(|(kind, _)| *kind == PARAMETER_STATUS).collect();
        for (kind, body) in messages(&told).filter(|message| message.0 == PARAMETER_STATUS) {
            if !reported.contains(&(kind, body)) {
                self.guest().client.write_all(&message(kind, body)?);
            }
        }
        Ok(())
    }

    /// Runs the client's messages until `is_asked`, which is called between two of its commands, answers true.
    ///
    /// # Errors
    /// What [`Self::end_session`] makes an end of.
    pub(crate) fn run_session(&mut self, is_asked: impl Fn() -> bool) -> anyhow::Result<()> {
        // The startup, and what was asked last, have ended with ReadyForQuery.
        let mut is_ready = true;
        loop {
            if !self.has_pending_input()? {
                // ReadyForQuery, unless a message of the extended protocol is still to come.
                let sent = self.guest().client.bytes_sent();
                self.call::<(), ()>("PostgresSendReadyForQueryIfNecessary", ())?;
                is_ready |= self.guest().client.bytes_sent() > sent;
                self.forget_message()?;
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

    /// What a postmaster does on `SIGHUP` (`process_pm_reload_request` in `src/backend/postmaster/postmaster.c`): a
    /// cluster with one session has none. A backend under a postmaster would not log what has changed, or cannot
    /// change without a restart.
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

    /// Frees what belonged to the last message. `PostgresMain` does so before it waits for the next one,
    /// `PostgresMainLoopOnce` when it has come.
    fn forget_message(&mut self) -> anyhow::Result<()> {
        let (reset, current) = (self.hot.reset_context.clone(), self.facts().address("CurrentMemoryContext")?);
        let context = self.read_u32(self.facts().message_context)?;
        self.write_u32(current, context)?;
        Ok(reset.call(&mut self.store, context)?)
    }

    /// Waits for the client between two messages, where the guest is not on the stack, or until `is_asked`.
    fn wait_for_input(&mut self, is_asked: impl Fn() -> bool) -> anyhow::Result<Waited> {
        loop {
            let asked = is_asked();
            // Messages that have arrived by now come first, so that tasks are in order with them.
            let deadline = if asked { Some(Instant::now()) } else { self.guest().timers.next() };
            match wait(&mut self.store, Interest::Read, deadline)? {
                Readiness::Ready => return Ok(Waited::Input),
                Readiness::TimedOut if asked => return Ok(Waited::Asked),
                Readiness::Woken | Readiness::TimedOut => self.handle_idle_interrupts()?,
            }
        }
    }

    /// Signals and timers between two messages: a cancel has nothing to cancel, everything else may end the session.
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
