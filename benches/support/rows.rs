//! Rows of the table that `make bench` prints. Benchmarks write their rows to files, and `report` prints them all.

// Every benchmark compiles this file, and none uses all of it.
#![allow(dead_code, unreachable_pub)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Time; less is better.
    Seconds,
    /// Memory; less is better.
    Bytes,
    /// Transactions or other events per second; more is better.
    PerSecond,
    /// A share of something, such as a processor; less is better.
    Share,
    /// A number; less is better.
    Number,
}

/// A figure that was measured several times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Half of the measurements were below it.
    pub median: f64,
    /// A quarter was below it.
    pub lower: f64,
    /// A quarter was above it.
    pub upper: f64,
}

impl Figure {
    /// The figure of `measurements`, of which there must be at least one.
    pub fn of(mut measurements: Vec<f64>) -> Self {
        measurements.sort_by(f64::total_cmp);
        let [lower, median, upper] =
            [25, 50, 75].map(|percent| percentile(&measurements, percent).expect("there is one"));
        Self { median, lower, upper }
    }
}

/// That percentile of figures in ascending order: the smallest that as large a part of them does not exceed; `None` if
/// there are none.
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

/// The largest acceptable median, or the smallest if more is better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Aim {
    /// Of the program's figure.
    Figure(f64),
    /// Of the program's figure divided by that of the comparison.
    Ratio(f64),
}

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Its unit.
    pub unit: Unit,
    /// The program's figure.
    pub ours: Figure,
    /// The name and the figure of the comparison.
    pub other: Option<(String, Figure)>,
    /// The aim.
    pub aim: Option<Aim>,
}

/// The directory for the benchmarks' results.
pub fn directory() -> PathBuf {
    // Cargo's directory for files of this package's targets: target/tmp.
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures")
}

/// Writes `rows` for the report, replacing earlier rows of `benchmark`.
///
/// # Panics
/// When they cannot be written.
pub fn leave(benchmark: &str, rows: &[Row]) {
    let place = directory().join(format!("{benchmark}.json"));
    fs::create_dir_all(directory()).expect("a directory for figures");
    fs::write(&place, serde_json::to_vec_pretty(rows).expect("plain data")).expect("figures can be written");
}
