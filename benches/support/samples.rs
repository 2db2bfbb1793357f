//! Criterion's measurements, read from its files.

use std::{fs, path::Path};

use serde::Deserialize;

use super::rows::Figure;

/// `sample.json` of one benchmark: the number of iterations of each sample, and their total time in nanoseconds.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Seconds of one iteration of the benchmark `id` (`group/function`), from the last measurement in `directory`; `None`
/// if there is none.
pub fn read(directory: &Path, id: &str) -> Option<Figure> {
    let file = fs::read(directory.join(id).join("new/sample.json")).ok()?;
    let sample: Sample = serde_json::from_slice(&file).ok()?;
    let seconds = sample.times.iter().zip(&sample.iters).map(|(time, iterations)| time / iterations / 1e9);
    Some(Figure::of(seconds.collect()))
}
