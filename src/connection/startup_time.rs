//! How long a client may take before PostgreSQL sees it, and over its authentication in an isolated session:
//! `authentication_timeout`, read as PostgreSQL reads it but for other forms of numbers, such as `0x5`.

use std::time::Duration;

use super::STARTUP_TIMEOUT;
use crate::backend::parameter;

/// The setting.
const NAME: &str = "authentication_timeout";
/// The largest value, in seconds; the smallest is one (`src/backend/utils/misc/guc_parameters.dat`).
const LONGEST: f64 = 600.0;

/// The time in the settings of the command line, if they have one. The last one counts. A value that is none is not
/// looked at: PostgreSQL reports it when a shared cluster starts, and [`unreadable_timeout`] where there is none.
#[must_use]
pub fn authentication_timeout(settings: &[(String, String)]) -> Option<Duration> {
    seconds(parameter(settings, NAME)?).map(|seconds| Duration::from_secs(seconds.into()))
}

/// The value that these settings have for it, if it is no time from a second to ten minutes.
#[must_use]
pub fn unreadable_timeout(settings: &[(String, String)]) -> Option<&str> {
    parameter(settings, NAME).filter(|value| seconds(value).is_none())
}

/// The time for TLS and the startup packet, by the settings of the command line.
#[must_use]
pub fn startup_timeout(settings: &[(String, String)]) -> Duration {
    authentication_timeout(settings).unwrap_or(STARTUP_TIMEOUT)
}

/// The whole seconds of a time with one of PostgreSQL's units (`time_unit_conversion_table` in
/// `src/backend/utils/misc/guc.c`).
fn seconds(text: &str) -> Option<u32> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|it: char| it.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let seconds = (number.trim().parse::<f64>().ok()? * factor).round_ties_even();
    // It is a whole number within the range.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (1.0..=LONGEST).contains(&seconds).then_some(seconds as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_postgres_reads_it() {
        let timeout = |value: &str| startup_timeout(&[(NAME.to_uppercase(), value.to_owned())]).as_secs();
        for (value, expected) in [("5", 5), ("5s", 5), (" 2 min ", 120), ("1500ms", 2), ("2500ms", 2), ("600", 600)] {
            assert_eq!(timeout(value), expected, "{value}");
        }
        for refused in ["0", "601", "1 hour", "s", "", "-1", "0.4"] {
            assert_eq!(timeout(refused), 60, "{refused}");
            let settings = [(NAME.to_owned(), refused.to_owned())];
            assert_eq!(unreadable_timeout(&settings), Some(refused));
        }
    }

    #[test]
    fn the_last_one_counts_and_other_settings_do_not() {
        let settings = [(NAME, "5"), (NAME, "7"), ("work_mem", "9")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(startup_timeout(&settings), Duration::from_secs(7));
        assert_eq!(startup_timeout(&settings[2..]), Duration::from_mins(1));
    }
}
