//! Errors by the class of their SQLSTATE.

use super::Counter;

/// The classes of errors in `PostgreSQL` 18 (`src/backend/utils/errcodes.txt`).
const CLASSES: [&[u8; 2]; 40] = [
    b"03", b"08", b"09", b"0A", b"0B", b"0F", b"0L", b"0P", b"0Z", b"10", b"20", b"21", b"22", b"23", b"24", b"25",
    b"26", b"27", b"28", b"2B", b"2D", b"2F", b"34", b"38", b"39", b"3B", b"3D", b"3F", b"40", b"42", b"44", b"53",
    b"54", b"55", b"57", b"58", b"F0", b"HV", b"P0", b"XX",
];

/// The class of all SQLSTATEs that SQL has made up (`RAISE ... USING ERRCODE`), so that SQL cannot make classes.
const OTHER: &str = "other";

/// Errors by the class of their SQLSTATE, its first two characters.
pub struct Errors {
    known: [Counter; CLASSES.len()],
    other: Counter,
}

impl Default for Errors {
    fn default() -> Self {
        Self { known: std::array::from_fn(|_| Counter::default()), other: Counter::default() }
    }
}

impl Errors {
    /// Counts an error with that SQLSTATE.
    pub fn count(&self, sqlstate: &[u8]) {
        let class = CLASSES.iter().position(|class| sqlstate.starts_with(*class));
        class.map_or(&self.other, |class| &self.known[class]).add(1);
    }

    /// The classes of which there were errors, and their number.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = CLASSES.iter().map(|class| str::from_utf8(*class).unwrap_or(OTHER)).chain([OTHER]);
        let counts = self.known.iter().chain([&self.other]).map(Counter::get);
        names.zip(counts).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_known_classes() {
        let errors = Errors::default();
        for sqlstate in ["42P01", "42601", "40P01", "ZZ123", ""] {
            errors.count(sqlstate.as_bytes());
        }
        assert_eq!(errors.by_class().collect::<Vec<_>>(), [("40", 1), ("42", 2), ("other", 2)]);
    }
}
