//! Durations, counted by their length.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The longest duration of each bucket, in microseconds; one more bucket has all that are longer.
pub const BOUNDS: [u64; 11] = [100, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000];

/// Durations, counted by their length.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// The state of a [`Histogram`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The number of durations up to each of [`BOUNDS`], and of all.
    pub up_to: [u64; BOUNDS.len() + 1],
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| Duration::from_micros(bound) < duration);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Its state. A duration that is counted meanwhile may be missing in the sum.
    #[must_use]
    pub fn observed(&self) -> Observed {
        let mut total = 0;
        let up_to = self.buckets.each_ref().map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        });
        Observed { up_to, sum: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)) }
    }
}

impl Observed {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.up_to[BOUNDS.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_buckets_from_its_length_on() {
        let histogram = Histogram::default();
        for microseconds in [100, 101, 20_000_000] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let observed = histogram.observed();
        assert_eq!(observed.up_to, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]);
        assert_eq!((observed.count(), observed.sum), (3, Duration::from_micros(20_000_201)));
    }
}
