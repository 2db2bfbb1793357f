//! The command `ready`: whether a server takes clients.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use pglite_port::dial::{Address, AskForPassword, Readiness, Server};

/// The exit status when the server refuses clients, as `pg_isready` has it.
const REFUSES: u8 = 1;
/// The exit status when nothing answers, as `pg_isready` has it.
const NO_ANSWER: u8 = 2;

/// Asks the server at `url` and prints what it does.
pub(crate) fn ready(url: &str, patience: Duration) -> ExitCode {
    let address = Address { database: Some(url.to_owned()), ask: AskForPassword::Never, ..Address::default() };
    let readiness = match Server::at(&address) {
        Ok(server) => server.readiness(patience),
        Err(error) => Readiness::NoAnswer(format!("{error:#}")),
    };
    // The status says it as well.
    let _ = writeln!(io::stdout(), "{readiness}");
    match readiness {
        Readiness::Ready | Readiness::AsksForPassword => ExitCode::SUCCESS,
        Readiness::Refuses { .. } => ExitCode::from(REFUSES),
        Readiness::NoAnswer(_) => ExitCode::from(NO_ANSWER),
    }
}
