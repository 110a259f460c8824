//! The clock that KVM guests know, kept by this program.
//!
//! A guest names a place by an MSR, and finds there by what to multiply its time-stamp counter
//! (`Documentation/virt/kvm/x86/msr.rst` of the kernel). KVM would write the place itself and ask nobody,
//! so it is told to leave both MSRs to us, and what is written is decided about as every write.
//!
//! The counter runs alike on all processors from the machine's first moment on, and a snapshot keeps it.
//! So the time is the counter in other units, the same on each processor, and what is at the place never
//! has to be written again.

use std::time::Duration;

use kvm_bindings::{KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use serde::{Deserialize, Serialize};

/// `MSR_KVM_WALL_CLOCK_NEW`: where the guest wants the time of day at which its clock was 0.
const WALL_CLOCK: u32 = 0x4b56_4d00;
/// `MSR_KVM_SYSTEM_TIME_NEW`: where a processor wants its rate; bit 0 switches it on.
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ENABLED: u64 = 1;

/// Flag of `pvclock_vcpu_time_info`: all processors have the same time.
const STABLE: u8 = 1;

/// Lets KVM hand the clock's MSRs to us; false if it cannot (before Linux 5.10).
pub fn take_over(vm: &VmFd) -> bool {
    if !vm.check_extension(Cap::X86UserSpaceMsr) || !vm.check_extension(Cap::X86MsrFilter) {
        return false;
    }
    let hand_over = kvm_enable_cap {
        cap: Cap::X86UserSpaceMsr as u32,
        args: [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    let clock = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: WALL_CLOCK,
        msr_count: 2,
        bitmap: &[0],
    };
    vm.enable_cap(&hand_over).is_ok()
        && vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[clock]).is_ok()
}

/// What a processor has written to the clock's MSRs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRegisters {
    wall_clock: u64,
    system_time: u64,
}

/// What a guest wants to have written by a write to an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockRequest {
    /// The rate, for this processor, to this guest-physical address.
    Rate(u64),
    /// The time of day, to this guest-physical address.
    TimeOfDay(u64),
}

impl ClockRegisters {
    /// The value of one of the registers; 0 for any other.
    pub fn read(&self, register: u32) -> u64 {
        match register {
            WALL_CLOCK => self.wall_clock,
            SYSTEM_TIME => self.system_time,
            _ => 0,
        }
    }

    /// Writes one of the registers; what then is to be written to memory.
    pub fn write(&mut self, register: u32, value: u64) -> Option<ClockRequest> {
        match register {
            WALL_CLOCK => {
                self.wall_clock = value;
                Some(ClockRequest::TimeOfDay(value))
            }
            SYSTEM_TIME => {
                self.system_time = value;
                (value & ENABLED != 0).then_some(ClockRequest::Rate(value & !ENABLED))
            }
            _ => None,
        }
    }
}

/// `tsc_to_system_mul` and `tsc_shift` for a counter that runs at `khz`, which is not 0: nanoseconds are
/// the counter, shifted left by the second (right if it is negative), times the first over 2^32.
fn scale(khz: u32) -> (u32, i8) {
    // Per tick in units of 2^-64 ns: below 2^84 for 1 kHz and above 2^51 for the fastest counter.
    let per_tick = (1_000_000_u128 << 64) / u128::from(khz);
    // As many bits as the multiplier has.
    let top = u128::BITS - per_tick.leading_zeros();
    let multiplier = per_tick >> (top - u32::BITS);
    let shift = i32::try_from(top).expect("at most 128") - 64;
    (u32::try_from(multiplier).expect("32 bits are left"), i8::try_from(shift).expect("-12 to 20"))
}

/// The bytes of `pvclock_vcpu_time_info`; none for a rate of 0.
pub fn rate(khz: u32, stable: bool) -> Option<[u8; 32]> {
    if khz == 0 {
        return None;
    }
    let (multiplier, shift) = scale(khz);
    let mut bytes = [0; 32];
    // An even version: nothing is under way. Time and counter begin together, at 0.
    bytes[0] = 2;
    bytes[24..28].copy_from_slice(&multiplier.to_le_bytes());
    bytes[28] = shift.to_le_bytes()[0];
    bytes[29] = if stable { STABLE } else { 0 };
    Some(bytes)
}

/// The bytes of `pvclock_wall_clock`: `now`, since 1970, is when the counter has the value `counter`.
pub fn time_of_day(now: Duration, counter: u64, khz: u32) -> Option<[u8; 12]> {
    let since = u128::from(counter) * 1_000_000 / u128::from((khz != 0).then_some(khz)?);
    let since = Duration::from_nanos(u64::try_from(since).ok()?);
    let began = now.checked_sub(since).unwrap_or_default();
    let mut bytes = [0; 12];
    bytes[0] = 2;
    // The format has 32 bits for it: the time of day wraps in 2106, as KVM's own does.
    let seconds = u32::try_from(began.as_secs() & u64::from(u32::MAX)).expect("32 bits");
    bytes[4..8].copy_from_slice(&seconds.to_le_bytes());
    bytes[8..].copy_from_slice(&began.subsec_nanos().to_le_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a guest reads it.
    fn nanoseconds(info: &[u8; 32], counter: u64) -> u64 {
        let multiplier = u32::from_le_bytes(info[24..28].try_into().expect("four bytes"));
        let shift = i8::from_le_bytes([info[28]]);
        let shifted = if shift < 0 { counter >> -shift } else { counter << shift };
        u64::try_from((u128::from(shifted) * u128::from(multiplier)) >> 32).expect("in range")
    }

    #[test]
    fn a_guest_reads_the_time_to_a_millionth() {
        for khz in [1, 19_200, 999_999, 1_000_000, 1_000_001, 2_445_410, 4_000_000, u32::MAX] {
            let info = rate(khz, true).expect("a rate");
            for seconds in [1, 60, 86_400] {
                let right = seconds * 1_000_000_000;
                let read = nanoseconds(&info, u64::from(khz) * 1000 * seconds);
                assert!(read.abs_diff(right) <= right / 1_000_000, "{khz} kHz: {read} for {right}");
            }
            assert_eq!((info[0] & 1, info[29]), (0, 1), "nothing is under way, and it is stable");
        }
        assert_eq!(rate(2_000_000, false).expect("a rate")[29], 0);
        assert_eq!(rate(0, true), None);
    }

    #[test]
    fn the_time_of_day_is_that_of_the_counters_beginning() {
        let now = Duration::new(1_800_000_000, 250_000_000);
        let bytes = time_of_day(now, 2_000_000_000, 2_000_000).expect("a rate");
        assert_eq!(bytes[4..8], 1_799_999_999_u32.to_le_bytes());
        assert_eq!(bytes[8..], 250_000_000_u32.to_le_bytes());
        assert_eq!(time_of_day(now, 1, 0), None);
        let early = time_of_day(Duration::from_secs(1), u64::MAX, u32::MAX).expect("a rate");
        assert_eq!(early[4..], [0; 8], "a counter from before 1970");
        assert_eq!(time_of_day(now, u64::MAX, 1), None, "longer than anything runs");
    }

    #[test]
    fn registers_keep_what_is_written_and_ask_for_it_where_they_are_on() {
        let mut registers = ClockRegisters::default();
        assert_eq!(registers.write(SYSTEM_TIME, 0x1041), Some(ClockRequest::Rate(0x1040)));
        assert_eq!(registers.write(WALL_CLOCK, 0x2000), Some(ClockRequest::TimeOfDay(0x2000)));
        assert_eq!((registers.read(SYSTEM_TIME), registers.read(WALL_CLOCK)), (0x1041, 0x2000));
        assert_eq!(registers.write(SYSTEM_TIME, 0x1040), None, "it is switched off");
        assert_eq!(registers.write(0x10, 1), None);
        assert_eq!(registers.read(0x10), 0);
    }
}
