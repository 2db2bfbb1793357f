//! What a template is made from: a database, a role, SQL.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::{
    backend::{BOOTSTRAP_USER, Backend},
    protocol::messages::SqlError,
};

/// What a template is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The database in it, which clients ask for.
    pub database: String,
    /// The role that owns the database and runs the SQL, made with `LOGIN` and `SUPERUSER` unless it is the bootstrap
    /// superuser `postgres`.
    pub user: String,
    /// SQL to run in the database, in this order and in one session.
    pub scripts: Vec<Script>,
}

/// SQL with a name for error messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The file's name, say.
    pub name: String,
    /// The SQL: one simple query, so one transaction unless it says otherwise.
    pub sql: String,
}

impl Recipe {
    /// A database of that name with nothing in it.
    #[must_use]
    pub fn empty(database: &str) -> Self {
        Self { database: database.to_owned(), user: BOOTSTRAP_USER.to_owned(), scripts: Vec::new() }
    }
}

impl Script {
    /// Reads an SQL file; a byte order mark is skipped.
    ///
    /// # Errors
    /// When it cannot be read or is not UTF-8.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let bytes = fs::read(path).with_context(|| format!("{name} cannot be read"))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let line = 1 + valid.matches('\n').count();
            anyhow::anyhow!("{name}:{line}: this is not UTF-8; convert the file")
        })?;
        Ok(Self { name, sql: text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned() })
    }

    /// Reads all of these files.
    ///
    /// # Errors
    /// As [`Script::read`].
    pub fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Self>> {
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// Runs it; a transaction that it leaves open is an error, because nothing would end it.
    fn run(&self, backend: &mut Backend) -> anyhow::Result<()> {
        if let Err(error) = backend.execute(&self.sql) {
            match error.downcast::<SqlError>() {
                Ok(error) => bail!(self.explain(&error)),
                Err(error) => return Err(error.context(self.name.clone())),
            }
        }
        if backend.is_in_transaction()? {
            bail!("{}: the file ends in an open transaction; end it with COMMIT", self.name);
        }
        Ok(())
    }

    /// The error with its place in the file, and with what to do where the reason is that this is not psql.
    fn explain(&self, error: &SqlError) -> String {
        let place = match error.position {
            Some(position) => {
                let (line, column) = line_and_column(&self.sql, position);
                format!("{}:{line}:{column}", self.name)
            }
            None if error.completed > 0 => format!("{}: statement {}", self.name, error.completed + 1),
            None => self.name.clone(),
        };
        let at = error.position.and_then(|position| self.sql.chars().nth(position.checked_sub(1)?));
        let advice = match error.code.as_str() {
            // active_sql_transaction: VACUUM, CREATE DATABASE, CREATE INDEX CONCURRENTLY, …
            "25001" => "; a file runs as one transaction: put this statement into a file of its own (another --sql)",
            "42601" if at == Some('\\') => "; commands of psql are not SQL and cannot be used here",
            _ => "",
        };
        format!("{place}: {error}{advice}")
    }
}

impl Recipe {
    /// Makes role and database, in a backend that is connected to another database as the bootstrap superuser.
    pub(super) fn make_database(&self, backend: &mut Backend, exists: bool) -> anyhow::Result<()> {
        let user = quote_identifier(&self.user)?;
        if self.user != BOOTSTRAP_USER {
            backend.execute(&format!("CREATE ROLE {user} LOGIN SUPERUSER")).context("the role cannot be made")?;
        }
        if !exists {
            let database = quote_identifier(&self.database)?;
            let create = format!("CREATE DATABASE {database} OWNER {user}");
            backend.execute(&create).context("the database cannot be made")?;
        }
        Ok(())
    }

    /// Runs the scripts, in a backend that is connected to the database as the bootstrap superuser.
    pub(super) fn run_scripts(&self, backend: &mut Backend, progress: &ProgressBar) -> anyhow::Result<()> {
        backend.execute(&format!("SET SESSION AUTHORIZATION {}", quote_identifier(&self.user)?))?;
        for script in &self.scripts {
            progress.set_message(format!("running {}", script.name));
            script.run(backend)?;
        }
        Ok(())
    }
}

/// The line and the column, from 1 on, of a position in characters, from 1 on.
fn line_and_column(text: &str, position: usize) -> (usize, usize) {
    let before = text.chars().take(position.saturating_sub(1));
    before.fold((1, 1), |(line, column), c| if c == '\n' { (line + 1, 1) } else { (line, column + 1) })
}

/// An identifier as SQL has it, whatever characters are in it.
pub(crate) fn quote_identifier(name: &str) -> anyhow::Result<String> {
    ensure!(!name.is_empty() && !name.contains('\0'), "{name:?} cannot be the name of a database or role");
    ensure!(name.len() < 64, "{name:?} is too long for the name of a database or role, the longest has 63 bytes");
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(sql: &str, error: &SqlError) -> String {
        Script { name: "a.sql".into(), sql: sql.into() }.explain(error)
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier(r#"a "b""#).unwrap(), r#""a ""b""""#);
        assert_eq!(quote_identifier(&"x".repeat(63)).unwrap().len(), 65);
        for (name, problem) in
            [("", "cannot be the name"), ("a\0", "cannot be the name"), (&"x".repeat(64), "too long")]
        {
            assert!(quote_identifier(name).unwrap_err().to_string().contains(problem), "{name}");
        }
    }

    #[test]
    fn a_position_in_characters_becomes_line_and_column() {
        assert_eq!(line_and_column("SELECT 1;\nSELECT 'ä', x", 23), (2, 13));
        assert_eq!(line_and_column("x", 1), (1, 1));
        assert_eq!(line_and_column("", 9), (1, 1));
    }

    #[test]
    fn an_error_is_one_line_with_file_place_and_code() {
        let error = SqlError {
            code: "42703".into(),
            message: "column \"x\"\ndoes not exist".into(),
            position: Some(11),
            ..SqlError::default()
        };
        assert_eq!(explained("SELECT\n   x", &error), "a.sql:2:4: column \"x\" does not exist (SQLSTATE 42703)");
    }

    #[test]
    fn an_error_without_a_position_names_its_statement() {
        let error = SqlError { code: "23505".into(), message: "twice".into(), completed: 2, ..SqlError::default() };
        assert_eq!(explained("", &error), "a.sql: statement 3: twice (SQLSTATE 23505)");
    }

    #[test]
    fn what_only_psql_can_do_comes_with_advice() {
        let error = SqlError { code: "42601".into(), message: "no".into(), position: Some(1), ..SqlError::default() };
        assert!(explained("\\connect x", &error).ends_with("commands of psql are not SQL and cannot be used here"));
        let error = SqlError { code: "25001".into(), message: "no".into(), ..SqlError::default() };
        assert!(explained("VACUUM; SELECT 1", &error).contains("put this statement into a file of its own"));
    }
}
