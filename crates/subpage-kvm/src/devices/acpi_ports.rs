//! The registers that ACPI's fixed description table names: events, control, the power-management
//! timer (ACPI 6.5, 4.8.3).

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The system-control interrupt, which nothing here raises.
pub(crate) const INTERRUPT: u16 = 9;
/// PM1 events: status, then enable, a word each.
pub(crate) const EVENTS: u16 = 0x600;
const EVENTS_LAST: u16 = 0x603;
/// PM1 control, a word.
pub(crate) const CONTROL: u16 = 0x604;
const CONTROL_LAST: u16 = 0x605;
/// The timer, 32 bits.
pub(crate) const TIMER: u16 = 0x608;
const TIMER_LAST: u16 = 0x60b;
/// Where a byte with bit 2 set resets.
pub(crate) const RESET: u16 = 0xcf9;
/// A reset of all, as chipsets want it.
pub(crate) const RESET_VALUE: u8 = 6;
/// The type of sleep that is off, as the DSDT tells it.
pub(crate) const SLEEP_TYPE_OFF: u8 = 0;

/// ACPI is on, always.
const SCI_ENABLE: u16 = 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE_MASK: u16 = 7 << SLEEP_TYPE_SHIFT;
/// Sleep now; reads as 0.
const SLEEP_ENABLE: u16 = 1 << 13;
/// What a guest may leave in the control register: bus-master reload, the type of sleep.
const CONTROL_KEPT: u16 = 1 << 1 | SLEEP_TYPE_MASK;
/// Events that can be enabled; none ever occurs.
const EVENTS_KEPT: u16 = 1 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14;

/// Ticks of the timer in a second.
const TIMER_HERTZ: u128 = 3_579_545;
const NANOSECONDS: u128 = 1_000_000_000;

/// What a guest has written, and the timer's count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiState {
    enabled: u16,
    control: u16,
    timer: u32,
}

#[cfg(test)]
impl AcpiState {
    /// For comparisons: the timer counts on.
    pub(super) fn forget_time(&mut self) {
        self.timer = 0;
    }
}

/// The registers.
#[derive(Debug)]
pub(super) struct AcpiRegisters {
    enabled: u16,
    control: u16,
    /// The timer at `since`.
    timer: u32,
    since: Instant,
}

impl AcpiRegisters {
    pub(super) fn new() -> Self {
        Self { enabled: 0, control: 0, timer: 0, since: Instant::now() }
    }

    /// Whether a port is one of the registers'.
    pub(super) const fn has(port: u16) -> bool {
        matches!(port, EVENTS..=EVENTS_LAST | CONTROL..=CONTROL_LAST | TIMER..=TIMER_LAST)
    }

    /// Writes a register, whole or a byte of it; true if the guest switches itself off.
    pub(super) fn write(&mut self, port: u16, data: &[u8]) -> bool {
        let mut control = None;
        for (port, &value) in (port..=u16::MAX).zip(data) {
            match port {
                // Status bits are cleared by writing them, and none is set.
                0x602 | EVENTS_LAST => put(&mut self.enabled, port & 1, value),
                CONTROL | CONTROL_LAST => {
                    put(control.get_or_insert(self.control), port & 1, value);
                }
                _ => {}
            }
        }
        self.enabled &= EVENTS_KEPT;
        let Some(control) = control else { return false };
        self.control = control & CONTROL_KEPT;
        let off = u16::from(SLEEP_TYPE_OFF) << SLEEP_TYPE_SHIFT;
        control & SLEEP_ENABLE != 0 && control & SLEEP_TYPE_MASK == off
    }

    /// Reads as many bytes as `data` has; those beyond the registers stay.
    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        // One time for all bytes.
        let timer = self.count().to_le_bytes();
        for (port, value) in (port..=u16::MAX).zip(data) {
            *value = match port {
                0x600 | 0x601 => 0,
                0x602 | EVENTS_LAST => self.enabled.to_le_bytes()[usize::from(port & 1)],
                CONTROL | CONTROL_LAST => {
                    (self.control | SCI_ENABLE).to_le_bytes()[usize::from(port & 1)]
                }
                TIMER..=TIMER_LAST => timer[usize::from(port - TIMER)],
                _ => continue,
            };
        }
    }

    /// What the timer has counted.
    fn count(&self) -> u32 {
        let ticks = self.since.elapsed().as_nanos() * TIMER_HERTZ / NANOSECONDS;
        // It wraps.
        let low = u32::try_from(ticks & u128::from(u32::MAX)).expect("32 bits");
        self.timer.wrapping_add(low)
    }

    /// As after power-on; the timer goes on.
    pub(super) fn reset(&mut self) {
        (self.enabled, self.control) = (0, 0);
    }

    pub(super) fn save(&self) -> AcpiState {
        AcpiState { enabled: self.enabled, control: self.control, timer: self.count() }
    }

    pub(super) fn restore(&mut self, state: &AcpiState) {
        self.enabled = state.enabled & EVENTS_KEPT;
        self.control = state.control & CONTROL_KEPT;
        (self.timer, self.since) = (state.timer, Instant::now());
    }
}

/// Sets a byte of a word: the low one, or the high one if `at` is odd.
fn put(word: &mut u16, at: u16, value: u8) {
    let mut bytes = word.to_le_bytes();
    bytes[usize::from(at & 1)] = value;
    *word = u16::from_le_bytes(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(registers: &AcpiRegisters, port: u16) -> u16 {
        let mut data = [0xff; 2];
        registers.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn acpi_is_on_and_stays_on() {
        let mut registers = AcpiRegisters::new();
        assert_eq!(word(&registers, CONTROL), 1);
        assert!(!registers.write(CONTROL, &0_u16.to_le_bytes()));
        assert_eq!(word(&registers, CONTROL), 1);
    }

    /// A kernel writes what it has read, the type of sleep, and at last the bit that does it.
    #[test]
    fn sleep_of_the_type_that_is_off_switches_off() {
        let mut registers = AcpiRegisters::new();
        for (value, off) in [
            (0x0001, false),
            (0x2001, true),
            (0x2000, true),
            (0x3401, false),
            (0x1401, false),
            (0x2400, false),
        ] {
            assert_eq!(registers.write(CONTROL, &u16::to_le_bytes(value)), off, "{value:#x}");
        }
        assert_eq!(word(&registers, CONTROL), 0x0401, "bit 13 reads as 0");
    }

    #[test]
    fn a_register_can_be_written_byte_by_byte() {
        let mut registers = AcpiRegisters::new();
        assert!(!registers.write(CONTROL, &[0]));
        assert!(registers.write(CONTROL_LAST, &[0x20]));
    }

    #[test]
    fn no_event_occurs_and_enabling_is_remembered() {
        let mut registers = AcpiRegisters::new();
        registers.write(EVENTS, &[0xff; 4]);
        assert_eq!((word(&registers, EVENTS), word(&registers, EVENTS + 2)), (0, EVENTS_KEPT));
        registers.reset();
        assert_eq!(word(&registers, EVENTS + 2), 0);
    }

    #[test]
    fn the_timer_counts_on_over_save_and_restore() {
        let mut registers = AcpiRegisters::new();
        registers.timer = u32::MAX;
        std::thread::sleep(std::time::Duration::from_millis(2));
        let saved = registers.save();
        assert!(saved.timer > 7_000 && saved.timer < u32::MAX / 2, "{saved:?}: it wraps");
        let mut other = AcpiRegisters::new();
        other.restore(&saved);
        assert!(other.count() >= saved.timer);
    }

    #[test]
    fn a_forged_state_sets_nothing_that_a_guest_cannot() {
        let mut registers = AcpiRegisters::new();
        registers.restore(&AcpiState { enabled: u16::MAX, control: u16::MAX, timer: 0 });
        assert_eq!(word(&registers, CONTROL), CONTROL_KEPT | SCI_ENABLE);
        assert_eq!(word(&registers, EVENTS + 2), EVENTS_KEPT);
    }
}
