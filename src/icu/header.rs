//! The header of every ICU data file: `UDataInfo` in `icu4c/source/common/unicode/udata.h`.

/// `MappedData`: the length of the whole header and two magic bytes.
const MAGIC: [u8; 2] = [0xda, 0x27];
/// The length of a header without a copyright text.
const LENGTH: u16 = 32;
/// `sizeof(UDataInfo)`.
const INFO: u16 = 20;

/// The fields of a file's header that are needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The number of bytes before the content.
    pub(super) length: usize,
    pub(super) is_big_endian: bool,
    pub(super) format: [u8; 4],
}

impl Header {
    /// Reads the header of a file; `None` if it has none.
    pub(super) fn read(file: &[u8]) -> Option<Self> {
        let info = file.get(..24)?;
        let is_big_endian = info[8] != 0;
        let length = [info[0], info[1]];
        let length = if is_big_endian { u16::from_be_bytes(length) } else { u16::from_le_bytes(length) };
        let format = [info[12], info[13], info[14], info[15]];
        (info[2..4] == MAGIC).then_some(Self { length: length.into(), is_big_endian, format })
    }
}

/// A file with a header of that format and format version, little-endian and in ASCII.
pub(super) fn file_with_header(format: [u8; 4], version: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut file = LENGTH.to_le_bytes().to_vec();
    file.extend(MAGIC);
    file.extend(INFO.to_le_bytes());
    // Reserved; little-endian; ASCII; two bytes a UChar; reserved.
    file.extend([0, 0, 0, 0, 2, 0]);
    file.extend(format);
    file.extend(version);
    // The version of the data, which is not checked.
    file.extend([0; 4]);
    file.resize(LENGTH.into(), 0);
    file.extend(content);
    file
}
