//! Which ports and MSRs exit.

use alloc::boxed::Box;

use crate::processor::msr::Msr;

/// Bitmaps that all virtual processors share: every port exits, and every MSR but those that a
/// guest may have to itself.
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

impl Bitmaps {
    /// Makes them; they are never freed.
    pub fn new() -> Self {
        let io = Box::leak(Box::new([Page([0xFF; 4096]), Page([0xFF; 4096])]));
        let msr = Box::leak(Box::new(Page([0xFF; 4096])));
        for Msr(number) in PASSED_THROUGH {
            // SDM Vol. 3C, "MSR-Bitmap Address": read low, read high, write low, write high.
            let (half, bit) = if number < 0x2000 { (0, number) } else { (1, number - 0xC000_0000) };
            let byte = (half * 1024 + bit / 8) as usize;
            let mask = !(1 << (bit % 8));
            msr.0[byte] &= mask;
            if Msr(number) != Msr::TIME_STAMP_COUNTER {
                msr.0[byte + 2048] &= mask;
            }
        }
        Self { io, msr }
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
