//! The rate of the time-stamp counter, by which a guest measures time.

use super::SnapshotError;
use crate::vcpu::Processor;

/// Parts per million by which two rates may differ and count as the same: KVM's own default tolerance
/// (`tsc_tolerance_ppm`), within which it does not scale.
const TOLERANCE_PPM: u64 = 250;

/// The rate in kHz; `None` if KVM does not tell it.
pub(super) fn rate(processor: &Processor) -> Option<u32> {
    processor.fd.get_tsc_khz().ok().filter(|rate| *rate != 0)
}

/// Whether a guest does not tell one rate from the other.
fn is_same(saved: u32, here: u32) -> bool {
    let (saved, here) = (u64::from(saved), u64::from(here));
    saved.abs_diff(here) * 1_000_000 <= here * TOLERANCE_PPM
}

/// Makes the counter run at the rate that it was saved with.
///
/// Without hardware that scales, KVM takes a higher rate and moves the counter forward at exits: that
/// is no rate, so it is read back what the processor has.
pub(super) fn restore(processor: &Processor, saved: u32) -> Result<(), SnapshotError> {
    let here = rate(processor).unwrap_or(0);
    if is_same(saved, here) {
        return Ok(());
    }
    let set = processor.scales_time && processor.fd.set_tsc_khz(saved).is_ok();
    if set && rate(processor).is_some_and(|now| is_same(saved, now)) {
        return Ok(());
    }
    Err(SnapshotError::OtherRate { saved, here })
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn rates_are_the_same_within_what_kvm_tolerates() {
        assert!(is_same(2_400_000, 2_400_000));
        assert!(is_same(2_400_600, 2_400_000) && is_same(2_399_400, 2_400_000));
        assert!(!is_same(2_400_601, 2_400_000) && !is_same(2_399_399, 2_400_000));
        assert!(!is_same(1, 0) && !is_same(u32::MAX, 1));
    }
}
