//! Whether a figure grows over time, whatever its noise: a line through its samples.

/// A line through samples.
#[derive(Clone, Copy, Debug)]
pub struct Trend {
    /// By how much the figure grows in a unit of time.
    pub slope: f64,
    /// The standard error of that.
    pub error: f64,
}

impl Trend {
    /// The line through these samples, each a time and a figure, with the least squares; there must be three of them.
    pub fn of(samples: &[(f64, f64)]) -> Self {
        let count = f64::from(u32::try_from(samples.len()).expect("not that many"));
        assert!(count >= 3.0, "{samples:?}");
        let mean = |value: fn(&(f64, f64)) -> f64| samples.iter().map(value).sum::<f64>() / count;
        let (middle, level) = (mean(|(time, _)| *time), mean(|(_, figure)| *figure));
        let spread: f64 = samples.iter().map(|(time, _)| (time - middle).powi(2)).sum();
        let slope = samples.iter().map(|(time, figure)| (time - middle) * (figure - level)).sum::<f64>() / spread;
        let residue = |(time, figure): &(f64, f64)| (figure - level - slope * (time - middle)).powi(2);
        let error = (samples.iter().map(residue).sum::<f64>() / (count - 2.0) / spread).sqrt();
        Self { slope, error }
    }

    /// Whether the figure grows by more than `bound` in a unit of time, with 99 percent certainty.
    pub fn grows_by_more_than(self, bound: f64) -> bool {
        // The quantile of the normal distribution.
        const CERTAINTY: f64 = 2.326;
        self.slope - CERTAINTY * self.error > bound
    }
}
