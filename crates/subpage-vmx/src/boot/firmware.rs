//! The firmware's tables and the registers that they lead to, as far as both are mapped.
//!
//! Unsafe because memory is read where the tables say.
#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;

use super::acpi::Iommu;
use super::layout;

/// What is known of the machine's IOMMUs.
pub(super) struct Remapping(pub(super) Option<Vec<Iommu>>);

impl fmt::Display for Remapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(iommus) = &self.0 else { return f.write_str("the firmware lists no IOMMU") };
        let on = iommus.iter().filter(|iommu| translates(iommu) == Some(true)).count();
        write!(f, "the firmware lists {} IOMMUs, {on} of them translate", iommus.len())
    }
}

/// Whether an IOMMU translates (Intel VT-d, "Global Status Register"); `None` if its registers are not
/// mapped here.
fn translates(iommu: &Iommu) -> Option<bool> {
    const GLOBAL_STATUS: u64 = 0x1C;
    const TRANSLATION: u32 = 1 << 31;
    let address = iommu.base.checked_add(GLOBAL_STATUS)?;
    if iommu.base == 0 || !iommu.base.is_multiple_of(4096) || address >= layout::REACH {
        return None;
    }
    let register = usize::try_from(address).ok()? as *const u32;
    // SAFETY: mapped, aligned, and by the firmware's tables a status register.
    let status = unsafe { register.read_volatile() };
    Some(status & TRANSLATION != 0)
}

/// Bytes of the firmware's tables; `None` where nothing is mapped.
pub(super) fn memory(address: u64, bytes: usize) -> Option<&'static [u8]> {
    let end = address.checked_add(bytes as u64)?;
    if address == 0 || end > layout::REACH {
        return None;
    }
    let start = usize::try_from(address).ok()? as *const u8;
    // SAFETY: mapped to itself, and nobody writes the firmware's tables before a guest runs.
    Some(unsafe { core::slice::from_raw_parts(start, bytes) })
}
