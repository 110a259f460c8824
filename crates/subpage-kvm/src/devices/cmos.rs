//! The real-time clock and the memory next to it (MC146818): the time, and how much memory there is.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub(super) const REGISTERS: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const BASE_MEMORY: [u8; 2] = [0x15, 0x16];
const EXTENDED_MEMORY: [[u8; 2]; 2] = [[0x17, 0x18], [0x30, 0x31]];
const CENTURY: u8 = 0x32;
const MEMORY_ABOVE_16_MIB: [u8; 2] = [0x34, 0x35];
const MEMORY_ABOVE_4_GIB: [u8; 3] = [0x5b, 0x5c, 0x5d];

/// The usual rate; no update in progress.
const RATE: u8 = 0x26;
/// 24 hours, binary-coded decimals, no interrupts. It cannot be changed.
const MODE: u8 = 0x02;
/// Time and memory are valid.
const VALID: u8 = 0x80;
const BASE_KIB: u64 = 640;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The selected register and all that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    index: u8,
    registers: Vec<u8>,
}

impl CmosState {
    /// How many registers it has.
    pub(super) const fn registers(&self) -> usize {
        self.registers.len()
    }
}

/// Clock and memory.
#[derive(Debug)]
pub(super) struct Cmos {
    index: u8,
    registers: [u8; REGISTERS],
    low: u64,
    high: u64,
}

impl Cmos {
    /// Tells of `low` bytes of memory below 4 GiB and `high` above.
    pub(super) fn new(low: u64, high: u64) -> Self {
        let mut cmos = Self { index: 0, registers: [0; REGISTERS], low, high };
        cmos.fill_memory();
        cmos
    }

    fn fill_memory(&mut self) {
        let above = |from: u64, unit: u64| self.low.saturating_sub(from) / unit;
        let extended = above(MIB, KIB).min(0xffff);
        let above_16_mib = above(16 * MIB, 64 * KIB).min(0xffff);
        let above_4_gib = (self.high / (64 * KIB)).min(0xff_ffff);
        self.put(&BASE_MEMORY, BASE_KIB);
        for registers in &EXTENDED_MEMORY {
            self.put(registers, extended);
        }
        self.put(&MEMORY_ABOVE_16_MIB, above_16_mib);
        self.put(&MEMORY_ABOVE_4_GIB, above_4_gib);
    }

    fn put(&mut self, registers: &[u8], value: u64) {
        for (&register, byte) in registers.iter().zip(value.to_le_bytes()) {
            self.registers[usize::from(register)] = byte;
        }
    }

    /// Selects a register; bit 7 would block NMIs and is not one of its.
    pub(super) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Writes the selected register. The clock is the host's: what would set it has no effect.
    pub(super) fn write(&mut self, value: u8) {
        let fixed = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
        let status = [STATUS_A, STATUS_B, STATUS_C, STATUS_D];
        if !fixed.contains(&self.index) && !status.contains(&self.index) {
            self.registers[usize::from(self.index)] = value;
        }
    }

    /// Reads the selected register.
    pub(super) fn read(&self) -> u8 {
        self.read_at(SystemTime::now())
    }

    fn read_at(&self, now: SystemTime) -> u8 {
        match self.index {
            STATUS_A => RATE,
            STATUS_B => MODE,
            STATUS_C => 0,
            STATUS_D => VALID,
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                bcd(field(self.index, utc(now)))
            }
            other => self.registers[usize::from(other)],
        }
    }

    pub(super) fn save(&self) -> CmosState {
        CmosState { index: self.index, registers: self.registers.to_vec() }
    }

    /// Takes the state, but for the memory's size, which is this machine's.
    ///
    /// # Panics
    /// If it has not [`REGISTERS`] registers.
    pub(super) fn restore(&mut self, state: &CmosState) {
        self.select(state.index);
        self.registers.copy_from_slice(&state.registers);
        self.fill_memory();
    }
}

/// The host's clock; one before 1970 or after 9999 reads as 1970.
fn utc(now: SystemTime) -> OffsetDateTime {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let since = i64::try_from(since).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(since).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A field of the time: 0..=99.
fn field(register: u8, time: OffsetDateTime) -> u8 {
    let year = time.year().unsigned_abs();
    let of_year = |number: u32| u8::try_from(number % 100).expect("below 100");
    match register {
        SECONDS => time.second(),
        MINUTES => time.minute(),
        HOURS => time.hour(),
        WEEKDAY => time.weekday().number_from_sunday(),
        DAY => time.day(),
        MONTH => time.month().into(),
        YEAR => of_year(year),
        _ => of_year(year / 100),
    }
}

const fn bcd(number: u8) -> u8 {
    (number / 10) * 16 + number % 10
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn time(cmos: &mut Cmos, seconds: u64) -> Vec<u8> {
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        let registers = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
        let mut read = |register| {
            cmos.select(register);
            cmos.read_at(now)
        };
        registers.iter().map(|&register| read(register)).collect()
    }

    #[test]
    fn the_time_is_read_in_decimals() {
        let mut cmos = Cmos::new(2 * MIB, 0);
        // Wednesday, 2026-11-25 13:59:58 UTC.
        let expected = [0x20, 0x26, 0x11, 0x25, 0x04, 0x13, 0x59, 0x58];
        assert_eq!(time(&mut cmos, 1_795_615_198), expected);
        // Tuesday, 2000-02-29 00:00:00, and Saturday, 2099-12-31 23:59:59.
        assert_eq!(time(&mut cmos, 951_782_400), [0x20, 0x00, 0x02, 0x29, 0x03, 0, 0, 0]);
        let last = [0x20, 0x99, 0x12, 0x31, 0x05, 0x23, 0x59, 0x59];
        assert_eq!(time(&mut cmos, 4_102_444_799), last);
    }

    #[test]
    fn times_out_of_range_read_as_1970() {
        let mut cmos = Cmos::new(2 * MIB, 0);
        let start = time(&mut cmos, 0);
        assert_eq!(start, [0x19, 0x70, 0x01, 0x01, 0x05, 0, 0, 0]);
        assert_eq!(time(&mut cmos, i64::MAX as u64), start);
        cmos.select(SECONDS);
        assert_eq!(cmos.read_at(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }

    #[test]
    fn the_clock_and_its_mode_cannot_be_set() {
        let mut cmos = Cmos::new(2 * MIB, 0);
        let before = time(&mut cmos, 951_782_400);
        for register in [SECONDS, HOURS, YEAR, CENTURY, STATUS_A, STATUS_B, STATUS_D] {
            cmos.select(register);
            cmos.write(0x55);
        }
        assert_eq!(time(&mut cmos, 951_782_400), before);
        for (register, value) in [(STATUS_A, RATE), (STATUS_B, MODE), (STATUS_D, VALID)] {
            cmos.select(register | 0x80);
            assert_eq!(cmos.read(), value);
        }
    }

    #[test]
    fn memory_sizes_are_told_in_their_units() {
        let read = |cmos: &mut Cmos, registers: &[u8]| {
            registers.iter().rev().fold(0_u64, |value, &register| {
                cmos.select(register);
                value << 8 | u64::from(cmos.read())
            })
        };
        let mut small = Cmos::new(32 * MIB, 0);
        assert_eq!(read(&mut small, &BASE_MEMORY), 640);
        assert_eq!(read(&mut small, &EXTENDED_MEMORY[0]), 31 * 1024);
        assert_eq!(read(&mut small, &EXTENDED_MEMORY[1]), 31 * 1024);
        assert_eq!(read(&mut small, &MEMORY_ABOVE_16_MIB), 256);
        assert_eq!(read(&mut small, &MEMORY_ABOVE_4_GIB), 0);
        let mut large = Cmos::new(3 << 30, 252 << 30);
        assert_eq!(read(&mut large, &EXTENDED_MEMORY[0]), 0xffff);
        assert_eq!(read(&mut large, &MEMORY_ABOVE_16_MIB), (3 << 14) - 256);
        assert_eq!(read(&mut large, &MEMORY_ABOVE_4_GIB), 252 << 14);
    }

    #[test]
    fn a_restored_state_keeps_what_was_written_but_not_the_memory() {
        let mut cmos = Cmos::new(32 * MIB, 0);
        cmos.select(0x0f);
        cmos.write(0x0a);
        let mut other = Cmos::new(64 * MIB, 0);
        let memory = other.registers[usize::from(MEMORY_ABOVE_16_MIB[1])];
        other.restore(&cmos.save());
        assert_eq!(other.read(), 0x0a);
        assert_eq!(other.registers[usize::from(MEMORY_ABOVE_16_MIB[1])], memory);
    }
}
