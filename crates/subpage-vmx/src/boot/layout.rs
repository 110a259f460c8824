//! Who gets which memory: image, modules, the hypervisor's own, the guest's.

use core::ops::Range;

use arrayvec::ArrayVec;
use thiserror::Error;

use super::information::MOST;

/// Memory of the hypervisor: heap, table frames, control structures.
pub const OWN_BYTES: u64 = 16 << 20;

/// Guest memory begins at a multiple of this, and is one: 2 MiB leaves map all of it.
pub const GUEST_ALIGNMENT: u64 = 2 << 20;

/// The hypervisor maps this much of physical memory, so nothing beyond it is used.
pub const REACH: u64 = 4 << 30;

/// What the memory is divided into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// For the hypervisor: [`OWN_BYTES`].
    pub own: Range<u64>,
    /// For the guest, which sees it from address 0 on.
    pub guest: Range<u64>,
}

/// The machine has not enough memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "too little memory: no free area of {wanted} MiB for {purpose} below 4 GiB (the largest has \
     {largest} KiB)"
)]
pub struct TooLittle {
    /// What for.
    pub purpose: &'static str,
    /// How much, in MiB.
    pub wanted: u64,
    /// The largest area, in KiB.
    pub largest: u64,
}

/// Divides the usable areas; `taken` are the image, the modules and what else has to stay.
///
/// With `guest_mib` the guest gets exactly that much (rounded up to 2 MiB), else the largest area
/// that is left. Memory below 1 MiB is left alone: processors start there.
pub fn divide(
    usable: &[Range<u64>],
    taken: &[Range<u64>],
    guest_mib: Option<u64>,
) -> Result<Layout, TooLittle> {
    let mut taken: ArrayVec<Range<u64>, { MOST + 8 }> = taken.iter().cloned().collect();
    let mut largest = largest_free(usable, &taken, 4096);
    if largest.end - largest.start < OWN_BYTES {
        return Err(too_little("the hypervisor", OWN_BYTES, &largest));
    }
    let own = largest.start..largest.start + OWN_BYTES;
    taken.push(own.clone());
    largest = largest_free(usable, &taken, GUEST_ALIGNMENT);
    let room = largest.end - largest.start;
    let wanted = guest_mib
        .map_or(room.max(GUEST_ALIGNMENT), |mib| (mib << 20).next_multiple_of(GUEST_ALIGNMENT));
    if room < wanted {
        return Err(too_little("the guest", wanted, &largest));
    }
    Ok(Layout { own, guest: largest.start..largest.start + wanted })
}

pub(crate) fn too_little(purpose: &'static str, wanted: u64, largest: &Range<u64>) -> TooLittle {
    TooLittle { purpose, wanted: wanted >> 20, largest: (largest.end - largest.start) >> 10 }
}

/// The largest part of a usable area that touches nothing taken, with aligned ends.
pub(crate) fn largest_free(
    usable: &[Range<u64>],
    taken: &[Range<u64>],
    alignment: u64,
) -> Range<u64> {
    let mut best = 0..0;
    for area in usable {
        let (mut start, end) = (area.start.max(1 << 20), area.end.min(REACH));
        while start < end {
            // What is free from here to the next taken byte.
            let blocking = taken.iter().filter(|t| t.start < t.end && t.end > start);
            let next = blocking.min_by_key(|t| t.start);
            let stop = next.map_or(end, |t| t.start.clamp(start, end));
            let piece = start.next_multiple_of(alignment)..stop / alignment * alignment;
            if piece.start < piece.end && piece.end - piece.start > best.end - best.start {
                best = piece;
            }
            start = next.map_or(end, |t| t.end.max(start + 1));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nothing_overlaps_what_is_taken() {
        let usable = [0..0x9F000, MIB..256 * MIB];
        let taken = [MIB..3 * MIB + 0x1234, 16 * MIB..17 * MIB, 24 * MIB + 1..25 * MIB];
        let layout = divide(&usable, &taken, Some(33)).expect("enough");
        assert_eq!(layout.own, 25 * MIB..41 * MIB);
        assert_eq!(layout.guest, 42 * MIB..76 * MIB);
        let all = divide(&usable, &taken, None).expect("enough");
        assert_eq!(all.guest, 42 * MIB..256 * MIB);
    }

    #[test]
    fn too_little_is_said() {
        let error = divide(core::slice::from_ref(&(MIB..9 * MIB)), &[], None).expect_err("8 MiB");
        assert_eq!((error.purpose, error.largest), ("the hypervisor", 8 << 10));
        let error =
            divide(core::slice::from_ref(&(MIB..30 * MIB)), &[], Some(16)).expect_err("13 MiB");
        assert_eq!((error.purpose, error.wanted), ("the guest", 16));
        let one = core::slice::from_ref(&(0..MIB));
        assert!(divide(one, &[], None).is_err(), "nothing above 1 MiB");
        let wild = [0..u64::MAX, u64::MAX - 5..u64::MAX];
        let layout = divide(&wild, &[], None).expect("below 4 GiB");
        assert!(layout.guest.end <= REACH);
    }
}
