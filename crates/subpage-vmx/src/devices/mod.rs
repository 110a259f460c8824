//! A guest that has the machine's devices: what it may reach and what stays the hypervisor's.

mod memory_types;
mod ports;
mod registers;

use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
use spin::mutex::TicketMutex;
use subpage::address::{Gfn, Gpa, PAGE_BYTES};
use subpage::ept::MemoryType;
use subpage::level::PageSize;
use subpage_linux::names::KernelNames;

pub use memory_types::{FIXED, MAX_VARIABLE, MemoryTypes};
pub use ports::{MOST_SLEEP, Own, PortAccess, SleepControl, Verdict, Width, own_ports};
pub use registers::{Kept, kept};

/// The machine as its one guest sees it: every address is itself.
#[derive(Debug)]
pub struct Devices {
    /// The hypervisor's memory, by whole pages: no guest reaches it.
    own: ArrayVec<Range<u64>, 4>,
    types: MemoryTypes,
    /// Guest-physical addresses end here.
    end: Gfn,
    /// Leaves of 2 MiB may be used.
    large: bool,
    /// What happens when the guest's kernel is entered, until then.
    pub awaited: TicketMutex<Option<Awaited>>,
    /// Ports that are kept and depend on the machine.
    pub ports: Own,
    /// Names of the guest's kernel, if there are any.
    pub names: Option<KernelNames<'static>>,
}

/// A kernel that unpacks itself before it begins: the policy holds from its first instruction on.
#[derive(Debug)]
pub struct Awaited {
    /// The page that it begins in.
    pub page: Gfn,
    /// The policy module, already tried; empty without one.
    pub policy: Vec<u8>,
}

impl Devices {
    /// A machine in which `own` is the hypervisor's; `end` is a multiple of 2 MiB.
    pub fn new(own: ArrayVec<Range<u64>, 4>, types: MemoryTypes, end: Gfn, large: bool) -> Self {
        Self {
            own,
            types,
            end,
            large,
            awaited: TicketMutex::new(None),
            ports: Own::default(),
            names: None,
        }
    }

    /// Where guest-physical addresses end.
    pub const fn end(&self) -> Gfn {
        self.end
    }

    /// Whether a page holds something of the hypervisor.
    pub fn is_own(&self, gfn: Gfn) -> bool {
        self.touches_own(gfn.as_u64() * PAGE_BYTES, PAGE_BYTES)
    }

    fn touches_own(&self, first: u64, bytes: u64) -> bool {
        self.own.iter().any(|own| own.start < first + bytes && first < own.end)
    }

    /// The largest page around an address that one leaf can map, and how it is cached; `None` if it is
    /// the hypervisor's, or too high.
    pub fn page_around(&self, gpa: Gpa) -> Option<(Gfn, PageSize, MemoryType)> {
        let gfn = gpa.gfn();
        if gfn >= self.end || self.is_own(gfn) {
            return None;
        }
        let size = PageSize::Size2M;
        let first = Gfn::new(gfn.as_u64() & !(size.frames() - 1));
        if self.large
            && !self.touches_own(first.as_u64() * PAGE_BYTES, size.bytes())
            && let Some(kind) = self.types.of_all(first, size.frames())
        {
            return Some((first, size, kind));
        }
        Some((gfn, PageSize::Size4K, self.types.of(gfn)))
    }

    /// How a page is cached.
    pub fn memory_type(&self, gfn: Gfn) -> MemoryType {
        self.types.of(gfn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(large: bool) -> Devices {
        let own = [0x10_0000..0x34_5000, 0x4000_0000..0x4100_0000];
        let types =
            MemoryTypes { default: None, fixed: [0; FIXED.len()], variable: ArrayVec::new() };
        Devices::new(own.into_iter().collect(), types, Gfn::new(1 << 28), large)
    }

    #[test]
    fn no_page_reaches_what_is_the_hypervisors() {
        let devices = devices(true);
        for address in [0x10_0000, 0x34_4FFF, 0x4000_0000, 0x40FF_F123, 1 << 40] {
            assert_eq!(devices.page_around(Gpa::new(address)), None, "{address:#x}");
        }
        let kind = MemoryType::WriteBack;
        for (address, first, size) in [
            (0xF_FFFF, 0xFF, PageSize::Size4K),
            (0x34_5000, 0x345, PageSize::Size4K),
            (0x40_0000, 0x400, PageSize::Size2M),
            (0x3FFF_FFFF, 0x3_FE00, PageSize::Size2M),
            (0xFEE0_0000, 0xF_EE00, PageSize::Size2M),
            (0x1_2345_6789, 0x12_3400, PageSize::Size2M),
        ] {
            let found = devices.page_around(Gpa::new(address));
            assert_eq!(found, Some((Gfn::new(first), size, kind)), "{address:#x}");
        }
    }

    #[test]
    fn without_large_leaves_every_page_is_small() {
        let found = devices(false).page_around(Gpa::new(0x40_1234));
        assert_eq!(found, Some((Gfn::new(0x401), PageSize::Size4K, MemoryType::WriteBack)));
    }
}
