//! Which ports and MSRs exit.

use alloc::boxed::Box;
use core::ops::Range;

use crate::devices::{Kept, Own, kept, own_ports};
use crate::processor::msr::Msr;

/// Bitmaps that all virtual processors share.
#[derive(Debug, Clone, Copy)]
pub struct Bitmaps {
    io: &'static [Page; 2],
    msr: &'static Page,
}

#[repr(C, align(4096))]
#[derive(Debug)]
struct Page([u8; 4096]);

/// MSRs that only the guest uses while it runs: the hypervisor neither needs nor loads them.
const PASSED_THROUGH: [Msr; 12] = [
    Msr::TIME_STAMP_COUNTER,
    Msr::SYSENTER_CS,
    Msr::SYSENTER_ESP,
    Msr::SYSENTER_EIP,
    Msr::STAR,
    Msr::LSTAR,
    Msr::CSTAR,
    Msr::FMASK,
    Msr::FS_BASE,
    Msr::GS_BASE,
    Msr::KERNEL_GS_BASE,
    Msr::TSC_AUX,
];

/// The registers that the bitmap tells of, in two runs (SDM Vol. 3C, "MSR-Bitmap Address"). Others exit.
const LOW: Range<u32> = 0..0x2000;
const HIGH: Range<u32> = 0xC000_0000..0xC000_2000;

/// Byte and bit of a register for reading; that for writing is 2,048 bytes behind it.
fn place(Msr(number): Msr) -> (usize, u8) {
    let (half, bit) = if LOW.contains(&number) { (0, number) } else { (1, number - HIGH.start) };
    ((half * 1024 + bit / 8) as usize, 1 << (bit % 8))
}

impl Bitmaps {
    /// For a guest without devices: every port exits, and every MSR but those that a guest may have to
    /// itself. They are never freed.
    pub fn new() -> Self {
        let mut msr = [0xFF; 4096];
        for register in PASSED_THROUGH {
            let (byte, bit) = place(register);
            msr[byte] &= !bit;
            if register != Msr::TIME_STAMP_COUNTER {
                msr[byte + 2048] &= !bit;
            }
        }
        Self::of(&[0xFF; 8192], &msr)
    }

    /// For a guest that has the machine's devices: only those exit that are kept from it.
    pub fn of_devices(own: &Own) -> Self {
        let mut io = [0; 8192];
        for port in own_ports(own) {
            io[usize::from(port / 8)] |= 1 << (port % 8);
        }
        let mut msr = [0; 4096];
        for register in LOW.chain(HIGH).map(Msr) {
            let (byte, bit) = place(register);
            match kept(register) {
                None => {}
                Some(Kept::Written | Kept::Constant) => msr[byte + 2048] |= bit,
                Some(Kept::Virtual | Kept::Hidden) => {
                    msr[byte] |= bit;
                    msr[byte + 2048] |= bit;
                }
            }
        }
        Self::of(&io, &msr)
    }

    fn of(io: &[u8; 8192], msr: &[u8; 4096]) -> Self {
        let mut pages = [Page([0; 4096]), Page([0; 4096])];
        pages[0].0.copy_from_slice(&io[..4096]);
        pages[1].0.copy_from_slice(&io[4096..]);
        Self { io: Box::leak(Box::new(pages)), msr: Box::leak(Box::new(Page(*msr))) }
    }

    /// Addresses of the two bitmaps of ports, as the VMCS takes them.
    pub fn io(&self) -> [u64; 2] {
        [&raw const self.io[0] as u64, &raw const self.io[1] as u64]
    }

    /// Address of the bitmap of MSRs.
    pub fn msr(&self) -> u64 {
        &raw const *self.msr as u64
    }
}

impl Default for Bitmaps {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(bitmaps: &Bitmaps, register: Msr) -> (bool, bool) {
        let (byte, bit) = place(register);
        (bitmaps.msr.0[byte] & bit != 0, bitmaps.msr.0[byte + 2048] & bit != 0)
    }

    fn port_exits(bitmaps: &Bitmaps, port: u16) -> bool {
        let page = &bitmaps.io[usize::from(port >> 15)];
        page.0[usize::from(port & 0x7FFF) / 8] & 1 << (port % 8) != 0
    }

    #[test]
    fn without_devices_nearly_everything_exits() {
        let bitmaps = Bitmaps::new();
        assert_eq!(exits(&bitmaps, Msr::LSTAR), (false, false));
        assert_eq!(exits(&bitmaps, Msr::TIME_STAMP_COUNTER), (false, true));
        assert_eq!(exits(&bitmaps, Msr::EFER), (true, true));
        assert_eq!(exits(&bitmaps, Msr::X2APIC_FIRST), (true, true));
        assert!(port_exits(&bitmaps, 0) && port_exits(&bitmaps, 0xFFFF));
    }

    #[test]
    fn with_devices_only_what_is_kept_exits() {
        let bitmaps = Bitmaps::of_devices(&Own::default());
        assert_eq!(exits(&bitmaps, Msr::APIC_BASE), (false, true));
        assert_eq!(exits(&bitmaps, Msr::MTRR_DEF_TYPE), (false, true));
        assert_eq!(exits(&bitmaps, Msr::VMX_BASIC), (true, true));
        assert_eq!(exits(&bitmaps, Msr::EFER), (true, true));
        assert_eq!(exits(&bitmaps, Msr(0x830)), (false, false));
        assert_eq!(exits(&bitmaps, Msr::GS_BASE), (false, false));
        for (port, expected) in [
            (0x64, true),
            (0x60, false),
            (0xE9, true),
            (0xCF8, false),
            (0xCF9, true),
            (0x3F8, false),
        ] {
            assert_eq!(port_exits(&bitmaps, port), expected, "{port:#x}");
        }
        let second = Bitmaps::of_devices(&Own { uart: Some(0x2F8), ..Own::default() });
        assert!(port_exits(&second, 0x2FD) && !port_exits(&second, 0x3FD));
    }
}
