//! `word.brk`: the rules for word boundaries, which ICU's `initcap` needs.
//!
//! ICU compiles such a file from rules; here the same automaton is written by hand. Its rules are those of Unicode's
//! text segmentation (UAX #29, "Word Boundary Rules") as ICU 76 has them in `word.txt`: a colon is not part of a word,
//! and letters of South East Asia are treated like other letters. ICU's dictionaries for scripts without capital
//! letters are left out, because they make no difference to `initcap`. The format is that of
//! `icu4c/source/common/rbbidata.h`, version 6.

use std::ops::RangeInclusive;

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{ExtendedPictographic, LineBreak, Script, WordBreak},
};

use super::{code_points::trie, header::file_with_header};

const MAGIC: u32 = 0xb1a0;
const VERSION: [u8; 4] = [6, 0, 0, 0];
/// `RBBI_8BITS_ROWS`.
const BYTE_ROWS: u32 = 4;
/// `sizeof(RBBIDataHeader)` and `sizeof(RBBIStateTable)` without rows.
const HEADER: u32 = 80;
const TABLE_HEADER: u32 = 20;

/// The categories of characters that the rules distinguish. ICU reserves the first three numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Category {
    Other = 3,
    Cr,
    Lf,
    Newline,
    /// A character that extends the previous one: `Extend` or `Format`.
    Extend,
    Joiner,
    Space,
    Letter,
    /// A letter that is also a pictograph.
    PictographLetter,
    HebrewLetter,
    Katakana,
    Numeric,
    ExtendNumLet,
    MidLetter,
    MidNum,
    MidNumLet,
    SingleQuote,
    DoubleQuote,
    RegionalIndicator,
    Pictograph,
}

use Category as C;

const CATEGORIES: [Category; 20] = [
    C::Other,
    C::Cr,
    C::Lf,
    C::Newline,
    C::Extend,
    C::Joiner,
    C::Space,
    C::Letter,
    C::PictographLetter,
    C::HebrewLetter,
    C::Katakana,
    C::Numeric,
    C::ExtendNumLet,
    C::MidLetter,
    C::MidNum,
    C::MidNumLet,
    C::SingleQuote,
    C::DoubleQuote,
    C::RegionalIndicator,
    C::Pictograph,
];

/// Code points from this one on have the category `Other`.
const END: u32 = 0xe_0200;
const HANGUL_SYLLABLES: RangeInclusive<u32> = 0xac00..=0xd7a3;

impl Category {
    /// The category of characters with that property, if no other property matters.
    fn of(word_break: WordBreak) -> Self {
        match word_break {
            WordBreak::CR => C::Cr,
            WordBreak::LF => C::Lf,
            WordBreak::Newline => C::Newline,
            WordBreak::Extend | WordBreak::Format => C::Extend,
            WordBreak::ZWJ => C::Joiner,
            WordBreak::WSegSpace => C::Space,
            WordBreak::ALetter => C::Letter,
            WordBreak::HebrewLetter => C::HebrewLetter,
            WordBreak::Katakana => C::Katakana,
            WordBreak::Numeric => C::Numeric,
            WordBreak::ExtendNumLet => C::ExtendNumLet,
            WordBreak::MidLetter => C::MidLetter,
            WordBreak::MidNum => C::MidNum,
            WordBreak::MidNumLet => C::MidNumLet,
            WordBreak::SingleQuote => C::SingleQuote,
            WordBreak::DoubleQuote => C::DoubleQuote,
            WordBreak::RegionalIndicator => C::RegionalIndicator,
            _ => C::Other,
        }
    }
}

/// The category of each code point before [`END`].
struct Categories(Vec<Category>);

impl Categories {
    /// Works by ranges of code points, because looking up the properties of each would take a tenth of a start of the
    /// program.
    fn new() -> Self {
        let mut categories = Self(vec![C::Other; END as usize]);
        for range in CodePointMapData::<WordBreak>::new().iter_ranges() {
            categories.within(&range.range).fill(Category::of(range.value));
        }
        for range in CodePointSetData::new::<ExtendedPictographic>().iter_ranges() {
            categories.replace(&range, &[(C::Letter, C::PictographLetter), (C::Other, C::Pictograph)]);
        }
        // Letters that form words only with each other.
        let scripts = CodePointMapData::<Script>::new().iter_ranges();
        let scripts = scripts.filter(|range| [Script::Han, Script::Hiragana, Script::Katakana].contains(&range.value));
        for range in scripts.map(|range| range.range).chain([HANGUL_SYLLABLES]) {
            categories.replace(&range, &[(C::Letter, C::Other), (C::PictographLetter, C::Other)]);
        }
        let complex = CodePointMapData::<LineBreak>::new().iter_ranges_for_value(LineBreak::ComplexContext);
        for range in complex {
            categories.replace(&range, &[(C::Other, C::Letter), (C::Pictograph, C::Letter)]);
        }
        // ICU's rules exclude colons.
        for colon in [0x3a, 0xfe55, 0xff1a] {
            categories.replace(&(colon..=colon), &[(C::MidLetter, C::Other)]);
        }
        categories
    }

    /// The categories of the code points in `range`.
    fn within(&mut self, range: &RangeInclusive<u32>) -> &mut [Category] {
        let end = (*range.end()).min(END - 1) as usize + 1;
        &mut self.0[(*range.start() as usize).min(end)..end]
    }

    /// Replaces the first category of a pair by the second in `range`.
    fn replace(&mut self, range: &RangeInclusive<u32>, pairs: &[(Category, Category)]) {
        for category in self.within(range) {
            if let Some((_, new)) = pairs.iter().find(|(old, _)| old == category) {
                *category = *new;
            }
        }
    }
}

/// The part of a word that has been read, without the characters that only extend the last one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Nothing,
    Cr,
    Newline,
    Space,
    Other,
    Letter,
    HebrewLetter,
    Katakana,
    Numeric,
    ExtendNumLet,
    RegionalIndicator,
    /// A letter and a character that joins it to another letter.
    LetterMid,
    /// A Hebrew letter and a single quote, which may end the word.
    HebrewQuote,
    /// A Hebrew letter and a double quote.
    HebrewDoubleQuote,
    /// A digit and a character that joins it to another digit.
    NumericMid,
}

const READ: [Read; 15] = [
    Read::Nothing,
    Read::Cr,
    Read::Newline,
    Read::Space,
    Read::Other,
    Read::Letter,
    Read::HebrewLetter,
    Read::Katakana,
    Read::Numeric,
    Read::ExtendNumLet,
    Read::RegionalIndicator,
    Read::LetterMid,
    Read::HebrewQuote,
    Read::HebrewDoubleQuote,
    Read::NumericMid,
];

impl Read {
    /// Whether the word may end here.
    fn is_word(self) -> bool {
        !matches!(self, Self::Nothing | Self::LetterMid | Self::HebrewDoubleQuote | Self::NumericMid)
    }

    /// The state after one more character; `None` if the character begins the next word. The comments name the rules
    /// of UAX #29.
    fn then(self, next: Category, after_joiner: bool) -> Option<Self> {
        let alone = Self::of_one(next);
        if self == Self::Nothing {
            return Some(alone);
        }
        match (self, next) {
            // WB3
            (Self::Cr, C::Lf) => Some(Self::Newline),
            // WB3a, WB3b
            (Self::Cr | Self::Newline, _) | (_, C::Cr | C::Lf | C::Newline) => None,
            // WB3d
            (Self::Space, C::Space) => Some(Self::Space),
            // WB4; WB15, WB16
            (Self::Space, C::Extend | C::Joiner) | (Self::RegionalIndicator, C::RegionalIndicator) => Some(Self::Other),
            (_, C::Extend | C::Joiner) => Some(self),
            // WB3c
            (_, C::Pictograph | C::PictographLetter) if after_joiner => Some(alone),
            // WB5, WB7, WB7c, WB9, WB10, WB13b
            (
                Self::Letter
                | Self::HebrewLetter
                | Self::LetterMid
                | Self::HebrewQuote
                | Self::Numeric
                | Self::ExtendNumLet,
                C::Letter | C::PictographLetter | C::HebrewLetter,
            )
            | (Self::HebrewDoubleQuote, C::HebrewLetter)
            // WB8, WB9, WB12, WB13b
            | (
                Self::Letter | Self::HebrewLetter | Self::Numeric | Self::NumericMid | Self::ExtendNumLet,
                C::Numeric,
            )
            // WB13, WB13b
            | (Self::Katakana | Self::ExtendNumLet, C::Katakana)
            // WB13a
            | (
                Self::Letter | Self::HebrewLetter | Self::Numeric | Self::Katakana | Self::ExtendNumLet,
                C::ExtendNumLet,
            ) => Some(alone),
            // WB7a, WB7b
            (Self::HebrewLetter, C::SingleQuote) => Some(Self::HebrewQuote),
            (Self::HebrewLetter, C::DoubleQuote) => Some(Self::HebrewDoubleQuote),
            // WB6
            (Self::Letter | Self::HebrewLetter, C::MidLetter | C::MidNumLet | C::SingleQuote) => Some(Self::LetterMid),
            // WB11
            (Self::Numeric, C::MidNum | C::MidNumLet | C::SingleQuote) => Some(Self::NumericMid),
            // WB999
            _ => None,
        }
    }

    fn of_one(category: Category) -> Self {
        match category {
            C::Cr => Self::Cr,
            C::Lf | C::Newline => Self::Newline,
            C::Space => Self::Space,
            C::Letter | C::PictographLetter => Self::Letter,
            C::HebrewLetter => Self::HebrewLetter,
            C::Katakana => Self::Katakana,
            C::Numeric => Self::Numeric,
            C::ExtendNumLet => Self::ExtendNumLet,
            C::RegionalIndicator => Self::RegionalIndicator,
            _ => Self::Other,
        }
    }
}

/// State 0 stops, state 1 starts. The others are those of [`READ`], each not after a joiner, then after one.
fn state(read: Read, after_joiner: bool) -> u8 {
    let place = READ.iter().position(|other| *other == read).unwrap_or(0);
    u8::try_from(1 + 2 * place + usize::from(after_joiner)).unwrap_or(0)
}

/// The number of categories, with the three that ICU reserves.
fn category_count() -> usize {
    3 + CATEGORIES.len()
}

/// The table for iterating forward: for each state whether a word may end, no look-ahead, the status (unused), and the
/// next state for each category.
fn forward() -> Vec<Vec<u8>> {
    let row = |read: Read, after_joiner: bool| {
        let mut row = vec![u8::from(read.is_word()), 0, 0, 0, 0, 0];
        row.extend(
            CATEGORIES
                .iter()
                .map(|&next| read.then(next, after_joiner).map_or(0, |read| state(read, next == C::Joiner))),
        );
        row
    };
    let mut rows = vec![vec![0; 3 + category_count()]];
    for read in READ {
        rows.extend([row(read, false), row(read, true)]);
    }
    rows
}

/// The table for finding a safe position further back: it always goes back to the start of the text.
fn backward() -> Vec<Vec<u8>> {
    let mut row = vec![0; 3];
    row.resize(3 + category_count(), 1);
    vec![vec![0; 3 + category_count()], row]
}

fn table(rows: &[Vec<u8>]) -> Vec<u8> {
    let row = rows.first().map_or(0, Vec::len);
    let numbers = [rows.len(), row, category_count(), 0].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    let mut table: Vec<u8> = numbers.iter().chain(&[BYTE_ROWS]).flat_map(|number| number.to_le_bytes()).collect();
    debug_assert_eq!(table.len(), TABLE_HEADER as usize);
    table.extend(rows.iter().flatten());
    table.resize(table.len().next_multiple_of(8), 0);
    table
}

/// Returns the file.
pub(super) fn file() -> Vec<u8> {
    let categories: Vec<u8> = Categories::new().0.into_iter().map(|category| category as u8).collect();
    // One group of statuses with one status: 0. The source text of the rules is for display only and stays empty.
    let statuses = [1_u32, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
    let sections: [Vec<u8>; 5] =
        [table(&forward()), table(&backward()), trie(&categories, C::Other as u8), vec![0; 8], statuses];
    let mut content = Vec::new();
    let mut places = Vec::new();
    for section in &sections {
        let length = u32::try_from(section.len()).unwrap_or(u32::MAX);
        places.extend([HEADER + u32::try_from(content.len()).unwrap_or(u32::MAX), length]);
        content.extend(section);
        content.resize(content.len().next_multiple_of(8), 0);
    }
    let length = HEADER + u32::try_from(content.len()).unwrap_or(u32::MAX);
    let count = u32::try_from(category_count()).unwrap_or(u32::MAX);
    let header = [MAGIC, u32::from_le_bytes(VERSION), length, count].into_iter().chain(places).chain([0; 6]);
    let mut file: Vec<u8> = header.flat_map(u32::to_le_bytes).collect();
    debug_assert_eq!(file.len(), HEADER as usize);
    file.extend(content);
    file_with_header(*b"Brk ", VERSION, &file)
}
