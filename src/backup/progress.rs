//! What a terminal shows of something that has so many bytes.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on stderr for so many bytes, invisible when that is not a terminal.
#[must_use]
pub fn bar(message: &'static str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(message);
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
