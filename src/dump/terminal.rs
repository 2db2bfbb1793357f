//! What `pg_dump` writes to stdout and stderr, and what a terminal shows meanwhile.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::{output::Output, wire::Wire};
use crate::fs::{Console, Stream};

/// How many bytes are written to stdout at once.
const PIECE: usize = 1 << 16;
/// How many bytes of the messages are kept.
const KEPT: usize = 4096;

/// Stdout and stderr of the guest.
pub(super) struct Terminal {
    shared: Arc<Shared>,
    progress: ProgressBar,
}

struct Shared {
    out: Mutex<Out>,
    /// The last bytes of the messages.
    messages: Mutex<Vec<u8>>,
    wire: Arc<Wire>,
    is_shown: bool,
    progress: ProgressBar,
}

/// Where stdout goes, and why it cannot be written.
struct Out {
    writer: BufWriter<Box<dyn Write + Send>>,
    failure: Option<io::Error>,
}

impl Terminal {
    /// Stdout goes where `output` says. `is_shown`: stderr is the host's, with the progress if that is a terminal.
    pub(super) fn new(output: &Output, wire: Arc<Wire>, is_shown: bool) -> anyhow::Result<Self> {
        let progress = if is_shown && !output.is_terminal() && io::stderr().is_terminal() { bar() } else { hidden() };
        let writer = BufWriter::with_capacity(PIECE, output.stream()?);
        let out = Mutex::new(Out { writer, failure: None });
        let shared = Shared { out, messages: Mutex::default(), wire, is_shown, progress: progress.clone() };
        Ok(Self { shared: Arc::new(shared), progress })
    }

    /// What counts the bytes that are written.
    pub(super) fn progress(&self) -> ProgressBar {
        self.progress.clone()
    }

    /// The terminal as the guest writes to it.
    pub(super) fn console(&self) -> impl Console + use<> {
        Shown(self.shared.clone())
    }

    /// Writes what is left. Returns how many bytes were written, the last messages, and why stdout cannot be written.
    pub(super) fn finish(self) -> (u64, String, Option<io::Error>) {
        self.progress.finish_and_clear();
        let mut out = self.shared.out.lock();
        let failure = out.failure.take().or_else(|| out.writer.flush().err());
        let messages = String::from_utf8_lossy(&self.shared.messages.lock()).trim().to_owned();
        (self.progress.position(), messages, failure)
    }
}

struct Shown(Arc<Shared>);

impl Console for Shown {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Out => self.0.write(bytes),
            Stream::Err => self.0.tell(bytes),
        }
    }
}

impl Shared {
    fn write(&self, bytes: &[u8]) {
        let mut out = self.out.lock();
        if out.failure.is_some() {
            return;
        }
        match out.writer.write_all(bytes) {
            Ok(()) => self.progress.inc(bytes.len() as u64),
            Err(error) => {
                out.failure = Some(error);
                // Nobody reads the dump: the guest has nothing more to do.
                self.wire.hang_up().hang_up();
            }
        }
    }

    fn tell(&self, bytes: &[u8]) {
        let mut messages = self.messages.lock();
        messages.extend(bytes);
        let excess = messages.len().saturating_sub(KEPT);
        messages.drain(..excess);
        if self.is_shown {
            // Without stderr nothing can be told.
            let _ = self.progress.suspend(|| io::stderr().write_all(bytes));
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message("dumping");
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {decimal_bytes} {decimal_bytes_per_sec} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// One that counts all the same.
fn hidden() -> ProgressBar {
    ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::hidden())
}
