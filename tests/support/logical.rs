//! Messages of logical replication as text, in which only those numbers are left out that every server chooses itself:
//! positions in the WAL, transactions, times, and object identifiers, in whose place are names.
//!
//! The format is that of "Logical Replication Message Formats" in PostgreSQL's manual.

use std::collections::HashMap;

/// Object identifiers from here on are those of users' objects.
const FIRST_OF_USERS: u32 = 16384;

/// Reads the messages of one subscription in their order.
#[derive(Default)]
pub struct Decoder {
    relations: HashMap<u32, String>,
    types: HashMap<u32, String>,
    /// The transaction a part of which is sent while it runs.
    streaming: Option<u32>,
    /// The messages of such transactions so far, each with the number of its subtransaction. How long the parts are is a
    /// matter of the server's memory, so that they are told apart no more when the transaction is complete.
    streamed: HashMap<u32, Vec<(u32, String)>>,
}

/// What is left of a message.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().expect("the message goes on");
        self.0 = rest;
        *first
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn character(&mut self) -> char {
        char::from(self.byte())
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    /// A number that is not compared, and must not be 0.
    fn some_u64(&mut self) {
        assert_ne!(u64::from_be_bytes(self.take()), 0);
    }

    fn some_u32(&mut self) {
        assert_ne!(self.u32(), 0);
    }

    fn string(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).expect("a string ends");
        let text = String::from_utf8(self.0[..end].to_vec()).expect("UTF-8");
        self.0 = &self.0[end + 1..];
        text
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.u32() as usize;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn row(&mut self) -> String {
        let columns = (0..self.u16()).map(|_| match self.character() {
            't' => format!("{:?}", String::from_utf8(self.bytes()).expect("UTF-8")),
            'b' => format!("{:02x?}", self.bytes()),
            kind @ ('n' | 'u') => kind.to_string(),
            kind => panic!("a value of the kind {kind:?}"),
        });
        format!("({})", columns.collect::<Vec<_>>().join(", "))
    }
}

impl Decoder {
    /// The message as text; none for one about the parts of a transaction that is sent while it runs, and all that is
    /// left of that one at its end.
    ///
    /// # Panics
    /// When it has another format.
    pub fn read(&mut self, message: &[u8]) -> Vec<String> {
        let mut rest = Rest(message);
        let kind = rest.character();
        match kind {
            'S' => {
                let id = rest.u32();
                assert_eq!(rest.byte() == 1, !self.streamed.contains_key(&id), "the first part says so");
                self.streamed.entry(id).or_default();
                assert_eq!(self.streaming.replace(id), None, "a part ends before the next one");
            }
            'E' => assert!(self.streaming.take().is_some(), "the end of no part"),
            'A' => {
                let (id, sub) = (rest.u32(), rest.u32());
                if id == sub {
                    self.streamed.remove(&id);
                } else {
                    self.streamed.get_mut(&id).expect("a transaction").retain(|(of, _)| *of != sub);
                }
            }
            _ => {
                let sub = (self.streaming.is_some() && "IUDTMRY".contains(kind)).then(|| rest.u32());
                let ended = match kind {
                    'c' => Some(rest.u32()),
                    'p' => Some(u32::from_be_bytes(*message[26..].first_chunk().expect("a number"))),
                    _ => None,
                };
                let text = format!("{kind} {}", self.body(kind, &mut rest));
                assert!(rest.0.is_empty(), "{text}: {} bytes are left", rest.0.len());
                if let (Some(id), Some(sub)) = (self.streaming, sub) {
                    self.streamed.get_mut(&id).expect("a transaction").push((sub, text));
                    return Vec::new();
                }
                let streamed = ended.map(|id| self.streamed.remove(&id).expect("a transaction")).unwrap_or_default();
                return streamed.into_iter().map(|(_, text)| text).chain([text]).collect();
            }
        }
        assert!(rest.0.is_empty(), "{kind}: {} bytes are left", rest.0.len());
        Vec::new()
    }

    fn body(&mut self, kind: char, rest: &mut Rest<'_>) -> String {
        match kind {
            'B' => {
                rest.some_u64();
                rest.some_u64();
                rest.some_u32();
                String::new()
            }
            'C' | 'c' => {
                let flags = rest.byte();
                (0..3).for_each(|_| rest.some_u64());
                format!("flags {flags}")
            }
            'b' => {
                (0..3).for_each(|_| rest.some_u64());
                rest.some_u32();
                rest.string()
            }
            'P' | 'K' | 'p' | 'r' => {
                let flags = rest.byte();
                (0..if kind == 'r' { 4 } else { 3 }).for_each(|_| rest.some_u64());
                rest.some_u32();
                format!("flags {flags} {}", rest.string())
            }
            'O' => {
                let lsn = u64::from_be_bytes(rest.take());
                format!("{lsn} {}", rest.string())
            }
            'M' => {
                let flags = rest.byte();
                rest.some_u64();
                let prefix = rest.string();
                format!("flags {flags} {prefix:?} {:02x?}", rest.bytes())
            }
            'R' => {
                let id = rest.u32();
                let name = format!("{:?}.{:?}", rest.string(), rest.string());
                self.relations.insert(id, name.clone());
                let identity = rest.character();
                let columns = (0..rest.u16()).map(|_| {
                    let (flags, name, data_type, modifier) = (rest.byte(), rest.string(), rest.u32(), rest.u32());
                    let data_type = self.types.get(&data_type).cloned().unwrap_or_else(|| {
                        assert!(data_type < FIRST_OF_USERS, "a type of which nothing was said");
                        data_type.to_string()
                    });
                    format!("{name:?} {data_type} {} flags {flags}", modifier.cast_signed())
                });
                format!("{name} {identity} {:?}", columns.collect::<Vec<_>>())
            }
            'Y' => {
                let id = rest.u32();
                let name = format!("{:?}.{:?}", rest.string(), rest.string());
                self.types.insert(id, name.clone());
                name
            }
            'I' | 'U' | 'D' => {
                let mut text = self.relation(rest.u32());
                while !rest.0.is_empty() {
                    text.extend([" ", &rest.character().to_string(), " ", &rest.row()]);
                }
                text
            }
            'T' => {
                let (count, flags) = (rest.u32(), rest.byte());
                let relations: Vec<String> = (0..count).map(|_| self.relation(rest.u32())).collect();
                format!("flags {flags} {relations:?}")
            }
            _ => panic!("a message of the kind {kind:?}"),
        }
    }

    fn relation(&self, id: u32) -> String {
        self.relations.get(&id).cloned().expect("a message about it came before")
    }
}
