//! An event as guests read it.

use subpage_trap::{Event, Response, Verdict, When};
use zerocopy::FromZeros as _;

use super::DATA_BYTES;
use crate::abi::{EventRecord, event_flag};

/// What became of a write. The numbers are those of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum EventOutcome {
    /// It took effect and is reported because a rule wants that.
    LetThrough = 0,
    /// It had no effect, and the guest went on after the instruction.
    Skipped = 1,
    /// It had no effect, and the guest got a general-protection exception; a double fault, if the
    /// write was part of delivering an event.
    GeneralProtection = 2,
    /// It had no effect, and the guest was stopped.
    Stopped = 3,
}

impl EventOutcome {
    /// What became of the write of an event.
    pub const fn of<B>(event: &Event<B>) -> Self {
        match (event.verdict, event.response) {
            (Verdict::Logged | Verdict::AllowedOnce, _) => Self::LetThrough,
            (Verdict::Denied, Response::Skip) => Self::Skipped,
            (Verdict::Denied, Response::Fault) => Self::GeneralProtection,
            (Verdict::Stopped, _) => Self::Stopped,
        }
    }
}

/// The record of the event with number `sequence`. A length beyond 32 bits becomes the highest; of
/// the bytes the first 64 are kept.
pub fn record<B: AsRef<[u8]>>(event: &Event<B>, sequence: u64) -> EventRecord {
    let mut record = EventRecord::new_zeroed();
    fill(&mut record, event, sequence);
    record
}

/// Makes a record that of an event, whatever it was, as [`record`] does.
pub(super) fn fill<B: AsRef<[u8]>>(record: &mut EventRecord, event: &Event<B>, sequence: u64) {
    let mut flags = 0;
    for (condition, flag) in [
        (event.gla.is_some(), event_flag::LINEAR),
        (event.during_delivery, event_flag::DELIVERY),
        (event.in_software, event_flag::SOFTWARE),
    ] {
        flags |= if condition { flag } else { 0 };
    }
    let length = event.length.map_or(0, |length| u32::try_from(length).unwrap_or(u32::MAX));
    let bytes = event.bytes.as_ref();
    let bytes = &bytes[..bytes.len().min(DATA_BYTES)];
    record.sequence.set(sequence);
    record.rule.set(event.rule.map_or(0, |rule| rule.0));
    record.gpa.set(event.gpa.as_u64());
    record.gla.set(event.gla.unwrap_or(0));
    record.at.set(event.at.as_u64());
    record.rip.set(event.origin.rip.unwrap_or(0));
    record.cr3.set(event.origin.cr3.unwrap_or(0));
    record.qualification.set(event.qualification.unwrap_or(0));
    record.length.set(length);
    record.cpu.set(event.origin.vcpu);
    record.outcome.set(EventOutcome::of(event) as u16);
    record.flags.set(flags);
    record.instruction_length = count(&event.instruction);
    record.cpl = event.origin.cpl.unwrap_or(0);
    record.data_length = count(bytes);
    record.reserved = 0;
    pad(&mut record.data, bytes);
    pad(&mut record.instruction, &event.instruction);
    record.time.set(match event.when {
        When::Counter(counter) => counter,
        When::Unknown | When::Clock { .. } => 0,
    });
}

/// How many bytes there are; both lists hold at most 64.
fn count(bytes: &[u8]) -> u8 {
    u8::try_from(bytes.len()).expect("an event keeps at most 64 bytes")
}

/// The bytes with zeros after them.
fn pad<const N: usize>(to: &mut [u8; N], bytes: &[u8]) {
    *to = [0; N];
    to[..bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, IntoBytes};

    use super::super::samples;
    use super::*;

    /// Every byte of a record stands where the interface says.
    #[test]
    fn layout() {
        let mut expected = [0; 168];
        for (at, value) in [
            (0, 5_u64),
            (8, 3),
            (16, 0x80_01FC),
            (24, 0xFFFF_8000_0080_01FC),
            (32, 0x80_0200),
            (40, 0x20_1234),
            (48, 0x30_0000),
            (56, 0x5AA),
        ] {
            expected[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        expected[64] = 8; // length
        expected[68] = 2; // cpu
        expected[72] = 2; // outcome
        expected[74] = 0b011; // linear, delivery
        expected[76..80].copy_from_slice(&[3, 3, 8, 0]);
        expected[80..88].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0xF8]);
        expected[144..147].copy_from_slice(&[0x48, 0x89, 0x18]);
        expected[160..168].copy_from_slice(&0x1122_3344_5566_u64.to_le_bytes());
        assert_eq!(record(&samples::full(), 5).as_bytes(), expected);
    }

    #[test]
    fn what_is_unknown_is_zero() {
        let told = record(&samples::sparse(), u64::MAX);
        let mut expected = [0; 168];
        expected[..8].fill(0xFF);
        expected[8] = 7;
        expected[17] = 0x10;
        expected[33] = 0x10;
        expected[74] = 0b100; // software
        assert_eq!(told.as_bytes(), expected);
        let mut map = samples::full();
        map.rule = None;
        map.length = Some(1 << 40);
        let record = EventRecord::read_from_bytes(record(&map, 1).as_bytes()).expect("168 bytes");
        assert_eq!((record.rule.get(), record.length.get()), (0, u32::MAX));
    }

    #[test]
    fn long_texts_are_cut() {
        let mut event = samples::sparse();
        event.bytes = &[7; 100];
        event.instruction = [9; 15].into();
        let record = super::record(&event, 1);
        assert_eq!((record.data_length, record.instruction_length), (64, 15));
        assert_eq!(record.data, [7; 64]);
        assert_eq!(record.instruction[..15], [9; 15]);
        assert_eq!(record.instruction[15], 0);
    }
}
