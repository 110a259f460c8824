//! Where everything goes in a machine that is a Linux kernel's: the kernel runs where it was linked
//! for, and the hypervisor stays out of the way.

use core::ops::Range;

use arrayvec::ArrayVec;
use thiserror::Error;

use super::first_memory;
use crate::boot::information::MOST;
use crate::boot::layout::{self, OWN_BYTES, TooLittle};

const PAGE: u64 = 4096;

/// What has to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the kernel writes before it looks at the memory map.
    pub run: Range<u64>,
    /// What a kernel that can be loaded anywhere has as its multiple.
    pub alignment: Option<u64>,
    /// Bytes of the part of the bzImage that is loaded.
    pub image_bytes: u64,
    /// Where the boot loader has put the initrd.
    pub initrd: Option<Range<u64>>,
    /// Before which the initrd has to end.
    pub initrd_end: u64,
}

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Heap and tables of the hypervisor, which the guest does not see.
    pub own: Range<u64>,
    /// Where the part of the bzImage goes that is loaded.
    pub image: Range<u64>,
    /// Where the initrd goes, perhaps where it is.
    pub initrd: Option<Range<u64>>,
    /// Page tables and parameters that the guest begins with.
    pub first_memory: Range<u64>,
}

/// Why a kernel cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// Where the kernel runs is no memory, or something of the hypervisor.
    #[error(
        "the kernel runs at {start:#x} to {end:#x}, which is not all memory; the machine has too little \
         of it, or the kernel was linked for another address"
    )]
    Run {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
    },
    /// There is no room to load it into.
    #[error(
        "no room for the {bytes:#x} bytes of the bzImage behind the hypervisor, which ends at {from:#x}, \
         and below the place where the kernel runs"
    )]
    Image {
        /// How much is loaded.
        bytes: u64,
        /// Where room was looked for.
        from: u64,
    },
    /// There is no room for the initrd.
    #[error("the initrd has {kib} KiB, for which no room is below {end:#x}; give a smaller one")]
    Initrd {
        /// Its length in KiB.
        kib: u64,
        /// Before which it has to end.
        end: u64,
    },
    /// There is no room below 640 KiB.
    #[error("no {} KiB are free below 640 KiB, for what the kernel is told", first_memory::BYTES >> 10)]
    FirstMemory,
    /// There is no room for the hypervisor.
    #[error("{0}")]
    TooLittle(#[from] TooLittle),
}

/// Places a kernel and the hypervisor in `usable` memory; `program` is the hypervisor's image, `lying`
/// is what the boot loader has put somewhere and is still needed.
pub fn place(
    usable: &[Range<u64>],
    program: &Range<u64>,
    lying: &[Range<u64>],
    wanted: &Wanted,
) -> Result<Places, PlaceError> {
    let Range { start, end } = wanted.run;
    if !holds(usable, &wanted.run) || overlap(&wanted.run, program) {
        return Err(PlaceError::Run { start, end });
    }
    let image = image(usable, program, wanted)?;
    let mut taken: ArrayVec<Range<u64>, { MOST + 8 }> = lying.iter().cloned().collect();
    taken.extend([program.clone(), wanted.run.clone(), image.clone()]);
    let own = layout::largest_free(usable, &taken, PAGE);
    if own.end - own.start < OWN_BYTES {
        return Err(layout::too_little("the hypervisor", OWN_BYTES, &own).into());
    }
    // At the end of the area: less of the memory is in pieces.
    let own = own.end - OWN_BYTES..own.end;
    let first_memory = first_memory(usable, lying).ok_or(PlaceError::FirstMemory)?;
    taken.extend([own.clone(), first_memory.clone()]);
    let initrd = wanted.initrd.as_ref().map(|lies| {
        let fixed = [program.clone(), wanted.run.clone(), image.clone(), own.clone()];
        initrd(usable, lies, &fixed, &taken, wanted.initrd_end)
    });
    Ok(Places { own, image, initrd: initrd.transpose()?, first_memory })
}

/// Below the place where the kernel runs, so that it moves itself there: what unpacks it is then another
/// place than where it begins. May reach into it.
fn image(
    usable: &[Range<u64>],
    program: &Range<u64>,
    wanted: &Wanted,
) -> Result<Range<u64>, PlaceError> {
    let from = program.end.next_multiple_of(PAGE);
    let bytes = wanted.image_bytes;
    let error = PlaceError::Image { bytes, from };
    let image = from..from.checked_add(bytes).ok_or(error)?;
    let latest = wanted.run.start.checked_sub(wanted.alignment.unwrap_or(PAGE)).ok_or(error)?;
    if image.start > latest || image.end > wanted.run.end || !holds(usable, &image) {
        return Err(error);
    }
    Ok(image)
}

/// Where it lies, if that can stay; else the highest place.
fn initrd(
    usable: &[Range<u64>],
    lies: &Range<u64>,
    fixed: &[Range<u64>],
    taken: &[Range<u64>],
    end: u64,
) -> Result<Range<u64>, PlaceError> {
    let bytes = lies.end - lies.start;
    let can_stay = lies.end <= end
        && lies.start.is_multiple_of(PAGE)
        && holds(usable, lies)
        && !fixed.iter().any(|range| overlap(range, lies));
    if can_stay {
        return Ok(lies.clone());
    }
    let below: ArrayVec<Range<u64>, MOST> =
        usable.iter().take(MOST).map(|area| area.start.min(end)..area.end.min(end)).collect();
    let free = layout::largest_free(&below, taken, PAGE);
    let start = free.end.checked_sub(bytes.next_multiple_of(PAGE));
    match start.filter(|&start| start >= free.start && bytes > 0) {
        Some(start) => Ok(start..start + bytes),
        None => Err(PlaceError::Initrd { kib: bytes.div_ceil(1 << 10), end }),
    }
}

fn first_memory(usable: &[Range<u64>], lying: &[Range<u64>]) -> Option<Range<u64>> {
    const LOWEST: u64 = 0x1_0000;
    const CONVENTIONAL_END: u64 = 0xA_0000;
    (LOWEST..CONVENTIONAL_END).step_by(0x1000).find_map(|start| {
        let range = start..start + first_memory::BYTES;
        let free = holds(usable, &range) && !lying.iter().any(|taken| overlap(taken, &range));
        free.then_some(range)
    })
}

fn holds(usable: &[Range<u64>], range: &Range<u64>) -> bool {
    range.end <= layout::REACH
        && usable.iter().any(|area| area.start <= range.start && range.end <= area.end)
}

const fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use core::slice;

    use super::*;

    const MIB: u64 = 1 << 20;
    const USABLE: [Range<u64>; 2] = [0..0x9_F000, MIB..512 * MIB];
    const PROGRAM: Range<u64> = MIB..3 * MIB + 0x1800;

    fn wanted(initrd: Option<Range<u64>>) -> Wanted {
        Wanted {
            run: 16 * MIB..61 * MIB,
            alignment: Some(2 * MIB),
            image_bytes: 13 * MIB,
            initrd,
            initrd_end: 2048 * MIB,
        }
    }

    #[test]
    fn everything_has_its_own_place() {
        // As a boot loader does it: close behind the program.
        let kernel = 4 * MIB..17 * MIB;
        let initrd = 17 * MIB..20 * MIB + 5;
        let lying = [kernel, initrd.clone(), 16 * MIB..16 * MIB + 0x2000];
        let places = place(&USABLE, &PROGRAM, &lying, &wanted(Some(initrd))).expect("room");
        assert_eq!(places.own, 496 * MIB..512 * MIB);
        assert_eq!(places.image, 3 * MIB + 0x2000..16 * MIB + 0x2000);
        assert_eq!(places.initrd, Some(493 * MIB - 0x1000..496 * MIB - 0x1000 + 5));
        assert_eq!(places.first_memory.start, 0x1_0000);
    }

    #[test]
    fn an_initrd_stays_where_nothing_else_goes() {
        let initrd = 300 * MIB..301 * MIB;
        let places =
            place(&USABLE, &PROGRAM, slice::from_ref(&initrd), &wanted(Some(initrd.clone())))
                .expect("room");
        assert_eq!(places.initrd, Some(initrd));
        let crooked = 300 * MIB + 1..301 * MIB;
        let places =
            place(&USABLE, &PROGRAM, slice::from_ref(&crooked), &wanted(Some(crooked.clone())))
                .expect("room");
        assert!(places.initrd.expect("one").start.is_multiple_of(PAGE));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let lies = 100 * MIB..600 * MIB;
        let error = place(&USABLE, &PROGRAM, slice::from_ref(&lies), &wanted(Some(lies.clone())));
        assert_eq!(error, Err(PlaceError::Initrd { kib: 500 << 10, end: 2048 * MIB }));
        let small = [0..0x9_F000, MIB..32 * MIB];
        let run = PlaceError::Run { start: 16 * MIB, end: 61 * MIB };
        assert_eq!(place(&small, &PROGRAM, &[], &wanted(None)), Err(run));
        let large = MIB..17 * MIB;
        assert_eq!(place(&USABLE, &large, &[], &wanted(None)), Err(run));
        let image = place(&USABLE, &(MIB..15 * MIB), &[], &wanted(None));
        assert!(matches!(image, Err(PlaceError::Image { from, .. }) if from == 15 * MIB));
        let high = MIB..512 * MIB;
        assert_eq!(
            place(slice::from_ref(&high), &PROGRAM, &[], &wanted(None)),
            Err(PlaceError::FirstMemory)
        );
        let tight = [0..0x9_F000, MIB..70 * MIB];
        let error = place(&tight, &PROGRAM, &[], &wanted(None));
        assert!(matches!(error, Err(PlaceError::TooLittle(_))), "{error:?}");
    }
}
