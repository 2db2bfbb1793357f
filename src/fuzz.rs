//! Inputs for tests of what reads bytes from outside: a kept corpus, and pieces of it that are damaged at random.
//! Compiled for tests only.
//!
//! A target is a test that uses [`fuzz!`]. `cargo test` runs it for a second; `BOLERO_RANDOM_ITERATIONS` says how many
//! inputs it gets instead, and `make fuzz` gives it millions. `cargo bolero test` runs it with libFuzzer. An input that
//! has found a fault is kept as a file in the corpus of its target.

use std::{fs, path::Path};

use bolero::generator::{ValueGenerator, bolero_generator::Driver};

/// The longest input, in bytes.
const LONGEST: usize = 64 << 10;

/// Values at which readers of lengths and counts may be wrong.
const NUMBERS: [u32; 14] = [0, 1, 2, 3, 4, 5, 8, 0x7f, 0xff, 10_004, 0x10_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Checks a property, a function of an [`Input`], for all inputs of a [`Corpus`], and for damaged ones.
macro_rules! fuzz {
    ($corpus:expr, $property:expr) => {{
        let (corpus, property): ($crate::fuzz::Corpus, fn(&$crate::fuzz::Input)) = ($corpus, $property);
        corpus.whole().iter().for_each(property);
        bolero::check!().with_generator(corpus).for_each(property);
    }};
}
pub(crate) use fuzz;

/// Bytes, and where they are cut into the pieces in which they arrive.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) bytes: Vec<u8>,
    cuts: Vec<usize>,
}

impl Input {
    /// The bytes as they arrive.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        let mut cuts = self.cuts.iter().cycle();
        std::iter::from_fn(move || {
            let length = cuts.next().map_or(rest.len(), |&length| length.min(rest.len()));
            let (piece, after) = rest.split_at(length);
            rest = after;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// What a target begins with.
#[derive(Clone, Debug)]
pub(crate) struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    /// The files in the directory `name` of `src/fuzz/corpus`.
    pub(crate) fn kept(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuzz/corpus").join(name);
        let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        Self(paths.into_iter().map(|path| fs::read(path).unwrap()).collect())
    }

    /// Inputs that code makes, because their format is the program's own.
    pub(crate) fn made(inputs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(inputs.into_iter().collect())
    }

    /// All inputs as they are, in one piece and byte by byte.
    pub(crate) fn whole(&self) -> Vec<Input> {
        let cut =
            |cuts: &[usize]| self.0.iter().map(|bytes| Input { bytes: bytes.clone(), cuts: cuts.to_vec() }).collect();
        let [whole, bytes]: [Vec<Input>; 2] = [cut(&[]), cut(&[1])];
        whole.into_iter().chain(bytes).collect()
    }

    /// One to three of the inputs, one after the other; of some, only a part.
    fn joined<D: Driver>(&self, driver: &mut D) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for _ in 0..=below(driver, 3)? {
            let input = self.0.get(below(driver, self.0.len())?)?;
            let part = if below(driver, 4)? == 0 { place(driver, input.len())? } else { 0..input.len() };
            bytes.extend_from_slice(&input[part]);
        }
        Some(bytes)
    }
}

impl ValueGenerator for Corpus {
    type Output = Input;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Input> {
        let mut bytes = match below(driver, 16)? {
            0 => (0..below(driver, 64)?).map(|_| byte(driver)).collect::<Option<_>>()?,
            1..4 => self.joined(driver)?,
            _ => self.0.get(below(driver, self.0.len())?)?.clone(),
        };
        for _ in 0..below(driver, 5)? {
            damage(driver, &mut bytes)?;
        }
        bytes.truncate(LONGEST);
        let cuts = (0..below(driver, 4)?).map(|_| Some(1 + below(driver, 40)?)).collect::<Option<_>>()?;
        Some(Input { bytes, cuts })
    }
}

/// Changes the bytes at one place.
fn damage<D: Driver>(driver: &mut D, bytes: &mut Vec<u8>) -> Option<()> {
    let range = place(driver, bytes.len())?;
    match below(driver, 8)? {
        0 if !bytes.is_empty() => bytes[range.start.min(range.end.saturating_sub(1))] ^= 1 << below(driver, 8)?,
        1 if !bytes.is_empty() => bytes[range.start.min(range.end.saturating_sub(1))] = byte(driver)?,
        2 => {
            let number = NUMBERS.get(below(driver, NUMBERS.len())?)?;
            let number = if below(driver, 2)? == 0 { number.to_be_bytes() } else { number.to_le_bytes() };
            let end = bytes.len().min(range.start + number.len());
            bytes.splice(range.start..end, number);
        }
        3 => bytes.truncate(range.start),
        4 => drop(bytes.drain(range)),
        5 => {
            let copy = bytes[range.clone()].to_vec();
            bytes.splice(range.end..range.end, copy);
        }
        6 => {
            let inserted = (0..=below(driver, 4)?).map(|_| byte(driver)).collect::<Option<Vec<u8>>>()?;
            bytes.splice(range.start..range.start, inserted);
        }
        _ => bytes[range].fill(0),
    }
    Some(())
}

/// A part of `length` bytes, a short one more often than a long one.
fn place<D: Driver>(driver: &mut D, length: usize) -> Option<std::ops::Range<usize>> {
    let start = below(driver, length + 1)?;
    let longest = if below(driver, 4)? == 0 { length - start } else { (length - start).min(8) };
    Some(start..start + below(driver, longest + 1)?)
}

fn below<D: Driver>(driver: &mut D, limit: usize) -> Option<usize> {
    driver.gen_usize(std::ops::Bound::Included(&0), std::ops::Bound::Excluded(&limit))
}

fn byte<D: Driver>(driver: &mut D) -> Option<u8> {
    driver.produce()
}
