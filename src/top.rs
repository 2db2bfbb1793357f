//! `pglite-port top`: the metrics of a running program in a terminal.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use pglite_port::metrics::Scrape;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read},
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use signal_hook::{
    consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGWINCH},
    flag,
};

mod table;

/// Another screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows the metrics at `address` every `interval`; if `once`, or without a terminal, prints them once.
///
/// # Errors
/// When nothing answers at first, or the terminal cannot be used.
pub(crate) fn run(address: &str, interval: Duration, once: bool) -> anyhow::Result<()> {
    let mut before = Scrape::fetch(address)?;
    if once || !io::stdout().is_terminal() {
        thread::sleep(interval);
        let lines = table::lines(address, &before, &Scrape::fetch(address)?);
        return writeln!(io::stdout(), "{}", lines.join("\n")).context("stdout cannot be written");
    }
    let (stopped, resized) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, stopped.clone()).context("signals cannot be handled")?;
    }
    flag::register(SIGWINCH, resized).context("signals cannot be handled")?;
    let terminal = Terminal::enter().context("the terminal cannot be used")?;
    let mut lines = table::lines(address, &before, &before);
    let mut next = Instant::now() + interval;
    while !stopped.load(Ordering::Relaxed) {
        terminal.draw(&lines).context("the terminal cannot be written")?;
        if terminal.wait_for_quit(next.saturating_duration_since(Instant::now()))? {
            break;
        }
        if next <= Instant::now() {
            next = Instant::now() + interval;
            match Scrape::fetch(address) {
                Ok(now) => {
                    lines = table::lines(address, &before, &now);
                    before = now;
                }
                // The program may be started again.
                Err(error) => lines = vec![format!("{:#}", error)],
            }
        }
    }
    Ok(())
}

/// The terminal, as it was when this is dropped.
struct Terminal {
    /// Its modes, if keys are read.
    modes: Option<Termios>,
}

impl Terminal {
    fn enter() -> io::Result<Self> {
        let modes = if io::stdin().is_terminal() { Some(tcgetattr(io::stdin())?) } else { None };
        let terminal = Self { modes };
        if let Some(mut modes) = terminal.modes.clone() {
            // Each key at once, and not shown. Ctrl-C stays a signal.
            modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Flush, &modes)?;
        }
        write!(io::stdout(), "{ENTER}")?;
        Ok(terminal)
    }

    /// Draws as much of `lines` as there is room for.
    fn draw(&self, lines: &[String]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout())?;
        // A terminal that does not know its size.
        let or = |size: u16, otherwise: usize| if size == 0 { otherwise } else { usize::from(size) };
        let (rows, columns) = (or(size.ws_row, 24), or(size.ws_col, 80));
        let shown = lines.iter().map(String::as_str).chain(["", "q quits"]).take(rows).map(|line| {
            let line: String = line.chars().take(columns).collect();
            // Erased first: behind the last column, that would erase the last character.
            format!("\x1b[K{line}")
        });
        let text = shown.collect::<Vec<_>>().join("\r\n");
        let mut stdout = io::stdout().lock();
        write!(stdout, "\x1b[H{text}\x1b[J")?;
        stdout.flush()
    }

    /// Waits for the time, a signal or a key; returns whether the key says to quit.
    fn wait_for_quit(&self, time: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let mut watched = [PollFd::new(&stdin, PollFlags::IN)];
        let watched = if self.modes.is_some() { &mut watched[..] } else { &mut [] };
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(watched, Some(&time)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => {
                let mut keys = [0; 64];
                let count = read(&stdin, &mut keys)?;
                // Nothing at all means that the terminal is gone.
                Ok(count == 0 || keys[..count].contains(&b'q'))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone need not be put back.
        let mut stdout = io::stdout();
        let _ = write!(stdout, "{LEAVE}").and_then(|()| stdout.flush());
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, modes);
        }
    }
}
