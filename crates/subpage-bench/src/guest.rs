//! The guests that are measured, the same for the engine and for every baseline.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange, Hpa, PhysicalWidth};
use subpage::domain::{Domain, HostPage};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::slots::{AddressSpace, SlotFlags, SlotId};

/// Pages in 1 GiB.
pub(crate) const GIB: u64 = 1 << 18;

/// Pages in 1 TiB.
pub(crate) const TIB: u64 = 1 << 28;

/// Most pages in one call of the KVM interface, and pages in a 2 MiB region.
pub(crate) const CALL: usize = 512;

/// The one processor of a guest, as far as a flush reaches it.
#[derive(Default)]
pub(crate) struct FlushRequests {
    requests: AtomicU64,
}

impl FlushRequests {
    /// Asks it to drop what it has cached: a call that posts the request in a word which both sides
    /// share, the least that a flush can cost. No interrupt, no waiting.
    #[inline(never)]
    pub(crate) fn request_flush(&self) {
        self.requests.fetch_add(1, Ordering::Release);
    }

    /// How often it was asked.
    #[cfg(test)]
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// The slots of a guest of so many pages, as a PC has them: memory up to 3 GiB, and the rest from
/// 4 GiB on.
pub(crate) fn slots(pages: u64) -> Vec<Range<u64>> {
    let low = pages.min(3 * GIB);
    let mut slots = vec![Range { start: 0, end: low }];
    if pages > low {
        slots.push(4 * GIB..4 * GIB + (pages - low));
    }
    slots
}

/// The guest frame of the guest's n-th page.
pub(crate) fn nth_page(n: u64) -> u64 {
    if n < 3 * GIB { n } else { n + GIB }
}

/// An engine with the slots of a guest; permissions are not enabled, nothing is mapped.
pub(crate) fn domain(pages: u64) -> Domain<HeapFrames> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    for (id, slot) in (0..).map(SlotId).zip(slots(pages)) {
        let range = GfnRange::new(Gfn::new(slot.start), slot.end - slot.start);
        let range = range.expect("a slot is a range");
        domain
            .add_slot(AddressSpace::Normal, id, range, SlotFlags::default())
            .expect("slots of a guest do not overlap");
    }
    domain
}

/// Maps every page of the guest by a 4 KiB leaf, writable and executable, to the same frame of the
/// host.
pub(crate) fn map_all(domain: &mut Domain<HeapFrames>, pages: u64) {
    for gfn in (0..pages).map(nth_page).map(Gfn::new) {
        let page = HostPage {
            hpa: Hpa::new(gfn.gpa().as_u64()),
            size: PageSize::Size4K,
            writable: true,
            executable: true,
            memory_type: subpage::ept::MemoryType::WriteBack,
        };
        domain.map(AddressSpace::Normal, gfn, page).expect("an unmapped frame of a slot");
    }
}

/// Maps that restrict every page: most partly, one in sixteen wholly.
pub(crate) fn mixed_maps(random: &mut fastrand::Rng, pages: usize) -> Vec<AccessMap> {
    let restricting = |random: &mut fastrand::Rng| match random.u32(..) {
        bits if random.u8(..16) == 0 || bits == u32::MAX => AccessMap::NONE,
        bits => AccessMap::from_bits(bits),
    };
    (0..pages).map(|_| restricting(random)).collect()
}

/// Maps that permit some sub-pages of every page and deny others.
pub(crate) fn partial_maps(random: &mut fastrand::Rng, pages: usize) -> Vec<AccessMap> {
    (0..pages).map(|_| AccessMap::from_bits(random.u32(1..u32::MAX))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_page_lies_in_a_slot() {
        let pages = 5 * GIB;
        let slots = slots(pages);
        assert_eq!(slots.iter().map(|slot| slot.end - slot.start).sum::<u64>(), pages);
        for n in [0, 3 * GIB - 1, 3 * GIB, pages - 1] {
            assert!(slots.iter().any(|slot| slot.contains(&nth_page(n))), "page {n}");
        }
    }
}
