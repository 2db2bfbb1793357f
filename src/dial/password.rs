//! The password, if none was given: kept in a file, or asked for on the terminal.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use anyhow::Context;
use parking_lot::Mutex;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio_postgres::{Config, config::Host};

/// The terminal of the process.
const TERMINAL: &str = "/dev/tty";

/// The password of the first entry that fits in the file that `PGPASSFILE` names, or `~/.pgpass`, in PostgreSQL's format
/// (`passwordFromFile` in `src/interfaces/libpq/fe-connect.c`). A file that others can read is not used.
pub(super) fn kept(config: &Config, variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let named = variable("PGPASSFILE").map(PathBuf::from);
    let path = named.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".pgpass")))?;
    let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!("{} is not used, because others can read it: chmod 600", path.display());
        return None;
    }
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(_)) => "localhost".to_owned(),
        None => config.get_hostaddrs().first()?.to_string(),
    };
    let port = config.get_ports().first().copied().unwrap_or(super::PORT).to_string();
    let wanted = [&host, &port, config.get_dbname().unwrap_or_default(), config.get_user().unwrap_or_default()];
    let content = fs::read_to_string(&path).ok()?;
    content.lines().filter(|line| !line.starts_with('#')).find_map(|line| password_of(line, wanted))
}

/// The password of an entry, if its first fields are `wanted` or `*`.
fn password_of(entry: &str, wanted: [&str; 4]) -> Option<String> {
    let mut fields = vec![String::new()];
    let mut characters = entry.chars();
    while let Some(character) = characters.next() {
        let is_end = character == ':' && fields.len() <= wanted.len();
        let character = if character == '\\' { characters.next()? } else { character };
        if is_end {
            fields.push(String::new());
        } else {
            fields.last_mut()?.push(character);
        }
    }
    let password = fields.get(wanted.len())?.clone();
    let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    fits.then_some(password)
}

/// Asks on the terminal, which does not show what is typed.
///
/// # Errors
/// When the process has no terminal.
pub(super) fn ask(user: &str) -> anyhow::Result<String> {
    let terminal = OpenOptions::new().read(true).write(true).open(TERMINAL);
    let terminal = terminal.context("there is no terminal to ask for the password on: set PGPASSWORD")?;
    let mut line = String::new();
    let hidden = Hidden::begin(&terminal)?;
    write!(&terminal, "Password for user {user}: ")?;
    BufReader::new(&terminal).read_line(&mut line)?;
    drop(hidden);
    writeln!(&terminal)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// The terminal that does not show what is typed, and its settings before.
static HIDDEN: Mutex<Option<(File, Termios)>> = Mutex::new(None);

/// While this lives, a terminal does not show what is typed.
struct Hidden;

impl Hidden {
    fn begin(terminal: &File) -> anyhow::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        let handle = terminal.try_clone()?;
        *HIDDEN.lock() = Some((handle, before));
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        show_typing();
    }
}

/// Lets the terminal show again what is typed, if a program ends while it asks for a password.
pub fn show_typing() {
    if let Some((terminal, before)) = HIDDEN.lock().take() {
        // The terminal is gone if this fails.
        let _ = tcsetattr(terminal, OptionalActions::Flush, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_a_password_file_fits_with_its_fields_and_stars() {
        let wanted = ["db.example", "5432", "shop", "ada"];
        assert_eq!(password_of("db.example:5432:shop:ada:secret", wanted).as_deref(), Some("secret"));
        assert_eq!(password_of("*:*:*:*:a:b", wanted).as_deref(), Some("a:b"));
        assert_eq!(password_of("db.example:5433:*:*:secret", wanted), None);
        assert_eq!(password_of("db.example:5432:shop", wanted), None);
        let odd = ["a:b", "5432", "c\\d", "ada"];
        assert_eq!(password_of("a\\:b:*:c\\\\d:*:p\\:w\\\\", odd).as_deref(), Some("p:w\\"));
    }
}
