//! What our own Valgrind tool sends: packets of stores, and what else it tells.
//!
//! `recorder/README.md` describes them. They come from a process that the recorded program may have
//! taken over, so any bytes are possible.

use crate::write::{ADDRESS_LIMIT, Write};

/// First bytes of every packet. Valgrind's text holds no zero byte.
const MAGIC: [u8; 4] = *b"\0SST";
const STORES: u32 = 1;
const MAPS: u32 = 2;
const END: u32 = 3;
const HEAD: usize = 16;
const RECORD: usize = 16;
/// The most bytes of a packet: 4,064 stores.
pub(crate) const MAX_PACKET: usize = HEAD + 4064 * RECORD;

/// A message on the recorder's socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// Stores, 16 bytes each, and how many the program has done with these.
    Stores { records: &'a [u8], total: u64 },
    /// What `/proc/self/maps` held before the first instruction.
    Maps(&'a [u8]),
    /// The program has ended, after that many stores.
    End { total: u64 },
    /// A packet that breaks the rules.
    Malformed,
    /// Something that Valgrind says.
    Text(&'a [u8]),
}

impl<'a> Packet<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Self {
        if !bytes.starts_with(&MAGIC) {
            return Self::Text(bytes);
        }
        let Some((head, content)) = bytes.split_first_chunk::<HEAD>() else {
            return Self::Malformed;
        };
        let total = number(&head[8..]);
        match u32::from_le_bytes([head[4], head[5], head[6], head[7]]) {
            STORES if content.len() % RECORD == 0 => Self::Stores { records: content, total },
            MAPS => Self::Maps(content),
            END if content.is_empty() => Self::End { total },
            _ => Self::Malformed,
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// How many records these are.
pub(crate) fn count(records: &[u8]) -> u64 {
    (records.len() / RECORD) as u64
}

/// Appends the writes of some records; gives how many records are none.
pub(crate) fn writes(records: &[u8], out: &mut Vec<Write>) -> u64 {
    let mut malformed = 0;
    out.reserve(records.len() / RECORD);
    let (records, _) = records.as_chunks::<RECORD>();
    for record in records {
        let (what, address) = record.split_at(8);
        let (what, address) = (number(what), number(address));
        // The address of an instruction is one of 48 bits, sign-extended.
        let pc = ((what << 16).cast_signed() >> 16).cast_unsigned();
        let length = what >> 48;
        let size = u8::try_from(length).unwrap_or(u8::MAX);
        let write = Write { pc, address, size };
        if write.is_valid() {
            out.push(write);
        } else if let Ok(pieces) = Write::split(pc, address, length) {
            out.extend(pieces);
        } else {
            malformed += 1;
        }
    }
    debug_assert!(out.iter().all(|write| write.address < ADDRESS_LIMIT));
    malformed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, total: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(total.to_le_bytes());
        bytes.extend(content);
        bytes
    }

    fn record(pc: u64, size: u64, address: u64) -> Vec<u8> {
        let what = pc & 0xffff_ffff_ffff | size << 48;
        [what.to_le_bytes(), address.to_le_bytes()].concat()
    }

    #[test]
    fn each_kind_is_told_from_text_and_from_damage() {
        let text = b"==7== Command: /bin/true\n";
        assert_eq!(Packet::parse(text), Packet::Text(text));
        assert_eq!(Packet::parse(b""), Packet::Text(b""));
        let bytes = packet(MAPS, 0, b"00400000-");
        assert_eq!(Packet::parse(&bytes), Packet::Maps(b"00400000-"));
        assert_eq!(Packet::parse(&packet(END, 1 << 40, b"")), Packet::End { total: 1 << 40 });
        let records = record(0x40_1000, 8, 0x60_0000);
        let bytes = packet(STORES, 5, &records);
        assert_eq!(Packet::parse(&bytes), Packet::Stores { records: &records, total: 5 });
        for bad in [
            packet(STORES, 5, &records[1..]),
            packet(END, 5, b"x"),
            packet(0, 0, b""),
            packet(4, 0, b""),
            MAGIC.to_vec(),
            bytes[..15].to_vec(),
        ] {
            assert_eq!(Packet::parse(&bad), Packet::Malformed, "{bad:x?}");
        }
    }

    #[test]
    fn long_stores_are_cut_and_impossible_ones_counted() {
        let records = [
            record(0x40_1000, 8, 0x60_0000),
            record(0xffff_ffff_ff60_0000, 130, 0x70_0000),
            record(1, 0, 0x10),
            record(2, 8, ADDRESS_LIMIT - 7),
            record(3, 0xffff, u64::MAX - 2),
            record(4, 1, ADDRESS_LIMIT - 1),
        ]
        .concat();
        let mut out = Vec::new();
        assert_eq!(writes(&records, &mut out), 3);
        let high = 0xffff_ffff_ff60_0000;
        let expected = [
            (0x40_1000, 0x60_0000, 8),
            (high, 0x70_0000, 64),
            (high, 0x70_0040, 64),
            (high, 0x70_0080, 2),
            (4, ADDRESS_LIMIT - 1, 1),
        ];
        assert_eq!(out, expected.map(|(pc, address, size)| Write { pc, address, size }));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            is_packet in proptest::bool::ANY,
        ) {
            if is_packet {
                bytes.splice(..0, packet(STORES, 0, b""));
            }
            if let Packet::Stores { records, .. } = Packet::parse(&bytes) {
                let mut out = Vec::new();
                writes(records, &mut out);
                proptest::prop_assert!(out.iter().all(Write::is_valid));
            }
        }
    }
}
