//! The rules by which clients authenticate (`pg_hba.conf`) and their time for it, as the program sets them.

use std::time::Duration;

use super::Backend;
use crate::{fs::put_file, postgres::setting};

/// The file with the rules of the program, in the guest's files. It is no file of the cluster's, whose own rules stay as
/// they are in the data directory.
pub(crate) const HBA_FILE: &str = "/pglite/pg_hba.conf";

/// Settings with which the log has no copy of what SQL says.
pub(crate) const UNLOGGED: [(&str, &str); 4] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_duration", "off"),
    ("log_min_error_statement", "panic"),
];

impl Backend {
    /// Makes `rules` those of this backend, which was started alone and has its client still to come; returns whether
    /// they can be used. The log says why not.
    ///
    /// # Errors
    /// When the file cannot be made, or the guest traps.
    pub(crate) fn use_rules(&mut self, rules: &str) -> anyhow::Result<bool> {
        put_file(&mut self.guest().files.tree().lock(), HBA_FILE, rules.into())?;
        self.set_at_start("hba_file", HBA_FILE, setting::OVERRIDE)?;
        let is_loaded: i32 = self.call("load_hba", ())?;
        Ok(is_loaded != 0)
    }

    /// Ends the session of the client, which is still to come, if it has not authenticated after `time`, in whole
    /// seconds: PostgreSQL's own timer does so (`PerformAuthentication` in `src/backend/utils/init/postinit.c`). As on
    /// a command line, the files of the configuration do not change it.
    ///
    /// # Errors
    /// When PostgreSQL refuses the time, or the guest traps.
    pub(crate) fn limit_authentication(&mut self, time: Duration) -> anyhow::Result<()> {
        self.set_at_start("authentication_timeout", &time.as_secs().to_string(), setting::COMMAND_LINE)
    }

    /// Sets a setting as at the start of a server.
    fn set_at_start(&mut self, name: &str, value: &str, source: i32) -> anyhow::Result<()> {
        let stack: u32 = self.call("emscripten_stack_get_current", ())?;
        let (name, value) = (self.push_string(name.as_bytes())?, self.push_string(value.as_bytes())?);
        self.call::<_, ()>("SetConfigOption", (name, value, setting::AT_START, source))?;
        self.call("_emscripten_stack_restore", stack)
    }

    /// Runs `statement`, which contains a secret, so that the log has no copy of it.
    ///
    /// # Errors
    /// As [`Backend::execute`].
    pub(crate) fn execute_unlogged(&mut self, statement: &str) -> anyhow::Result<()> {
        let settings = UNLOGGED.map(|(name, value)| format!("SET LOCAL {name} = {value}; ")).concat();
        self.execute(&format!("BEGIN; {settings}SET LOCAL transaction_read_only = off"))?;
        let executed = self.execute(statement);
        self.execute(if executed.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        executed
    }
}
