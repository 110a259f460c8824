//! How the processor caches physical memory: what the memory-type range registers say.
//!
//! With EPT the processor does not look at them for a guest's accesses (SDM Vol. 3C, "Memory Type Used
//! for Translated Guest-Physical Addresses"), so each EPT leaf repeats what they say of its page.

use arrayvec::ArrayVec;
use subpage::address::{Gfn, PAGE_BYTES};
use subpage::ept::MemoryType;

/// Most variable ranges (IA32_MTRRCAP.VCNT has 8 bits; no processor has more than ten).
pub const MAX_VARIABLE: usize = 32;

/// The fixed-range registers: first address, and bytes of each of its eight ranges.
pub const FIXED: [(u32, u64, u64); 11] = [
    (0x250, 0, 0x1_0000),
    (0x258, 0x8_0000, 0x4000),
    (0x259, 0xA_0000, 0x4000),
    (0x268, 0xC_0000, 0x1000),
    (0x269, 0xC_8000, 0x1000),
    (0x26A, 0xD_0000, 0x1000),
    (0x26B, 0xD_8000, 0x1000),
    (0x26C, 0xE_0000, 0x1000),
    (0x26D, 0xE_8000, 0x1000),
    (0x26E, 0xF_0000, 0x1000),
    (0x26F, 0xF_8000, 0x1000),
];

/// What fixed ranges are about ends here.
const FIXED_END: u64 = 1 << 20;

/// What the registers hold (SDM Vol. 3A, "Memory Type Range Registers").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryTypes {
    /// IA32_MTRR_DEF_TYPE; `None` without the registers.
    pub default: Option<u64>,
    /// The values of [`FIXED`], in that order.
    pub fixed: [u64; FIXED.len()],
    /// IA32_MTRR_PHYSBASEn and IA32_MTRR_PHYSMASKn.
    pub variable: ArrayVec<(u64, u64), MAX_VARIABLE>,
}

const ENABLED: u64 = 1 << 11;
const FIXED_ENABLED: u64 = 1 << 10;
const VALID: u64 = 1 << 11;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

impl MemoryTypes {
    /// How a page is cached.
    pub fn of(&self, gfn: Gfn) -> MemoryType {
        // A processor without the registers caches as page tables say.
        let Some(default) = self.default else { return MemoryType::WriteBack };
        if default & ENABLED == 0 {
            return MemoryType::Uncacheable;
        }
        let address = gfn.as_u64() * PAGE_BYTES;
        if address < FIXED_END && default & FIXED_ENABLED != 0 {
            return self.fixed_type(address);
        }
        let mut found: Option<MemoryType> = None;
        for &(base, mask) in &self.variable {
            if mask & VALID == 0 || (address ^ base) & mask & ADDRESS != 0 {
                continue;
            }
            let kind = memory_type(base);
            found = Some(found.map_or(kind, |other| stricter(kind, other)));
        }
        found.unwrap_or_else(|| memory_type(default))
    }

    fn fixed_type(&self, address: u64) -> MemoryType {
        let place = FIXED.iter().rposition(|&(_, first, _)| first <= address);
        let place = place.expect("the first of them begins at 0");
        let (_, first, bytes) = FIXED[place];
        let number = usize::try_from((address - first) / bytes).expect("eight at most");
        memory_type(self.fixed[place].to_le_bytes()[number].into())
    }

    /// The one way in which all `pages` from `first` on are cached, if there is one. `pages` is a power
    /// of two, and `first` a multiple of it.
    pub fn of_all(&self, first: Gfn, pages: u64) -> Option<MemoryType> {
        let kind = self.of(first);
        let within = (pages - 1) * PAGE_BYTES;
        let is_fine = |mask: u64| mask & VALID != 0 && mask & within != 0;
        let fixed = first.as_u64() * PAGE_BYTES < FIXED_END;
        if !fixed && !self.variable.iter().any(|&(_, mask)| is_fine(mask)) {
            return Some(kind);
        }
        let all = first.as_u64()..first.as_u64() + pages;
        all.into_iter().all(|gfn| self.of(Gfn::new(gfn)) == kind).then_some(kind)
    }
}

/// The type in the low byte of a register; what is reserved is the safest.
const fn memory_type(value: u64) -> MemoryType {
    match value & 0xFF {
        1 => MemoryType::WriteCombining,
        4 => MemoryType::WriteThrough,
        5 => MemoryType::WriteProtected,
        6 => MemoryType::WriteBack,
        _ => MemoryType::Uncacheable,
    }
}

/// Where two ranges overlap (SDM Vol. 3A, "MTRR Precedences"); what it leaves undefined is uncacheable.
fn stricter(one: MemoryType, other: MemoryType) -> MemoryType {
    use MemoryType::{Uncacheable, WriteBack, WriteThrough};
    match (one, other) {
        _ if one == other => one,
        (WriteBack, WriteThrough) | (WriteThrough, WriteBack) => WriteThrough,
        _ => Uncacheable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gfn(address: u64) -> Gfn {
        Gfn::new(address / PAGE_BYTES)
    }

    /// 3 GiB and what is above 4 GiB are cached, with a hole for a frame buffer, as firmware has it.
    fn machine() -> MemoryTypes {
        let mask = |bytes: u64| ((1 << 39) - bytes) | VALID;
        let mut fixed = [0x0606_0606_0606_0606; FIXED.len()];
        // A0000H to BFFFFH.
        fixed[2] = 0;
        // The second page of C0000H.
        fixed[3] = 0x0505_0505_0505_0605;
        MemoryTypes {
            default: Some(ENABLED | FIXED_ENABLED | 6),
            fixed,
            variable: [
                (0xC000_0000, mask(1 << 30)),
                (0xBFC0_0000, mask(4 << 20)),
                (0xD000_0001, mask(256 << 20)),
                (0x4000_0004, mask(0x1000)),
                (0x5000_0000, 0),
            ]
            .into_iter()
            .collect(),
        }
    }

    #[test]
    fn each_page_has_its_type() {
        let types = machine();
        for (address, kind) in [
            (0, MemoryType::WriteBack),
            (0x9_F000, MemoryType::WriteBack),
            (0xA_0000, MemoryType::Uncacheable),
            (0xC_0000, MemoryType::WriteProtected),
            (0xC_1000, MemoryType::WriteBack),
            (0x10_0000, MemoryType::WriteBack),
            (0x4000_0000, MemoryType::WriteThrough),
            (0x4000_1000, MemoryType::WriteBack),
            (0x5000_0000, MemoryType::WriteBack),
            (0xBFBF_F000, MemoryType::WriteBack),
            (0xBFC0_0000, MemoryType::Uncacheable),
            (0xD000_0000, MemoryType::Uncacheable),
            (0x1_0000_0000, MemoryType::WriteBack),
        ] {
            assert_eq!(types.of(gfn(address)), kind, "{address:#x}");
        }
    }

    #[test]
    fn a_large_page_has_one_type_or_none() {
        let types = machine();
        assert_eq!(types.of_all(gfn(0), 512), None);
        assert_eq!(types.of_all(gfn(0x20_0000), 512), Some(MemoryType::WriteBack));
        assert_eq!(types.of_all(gfn(0x4000_0000), 512), None);
        assert_eq!(types.of_all(gfn(0xBFC0_0000), 512), Some(MemoryType::Uncacheable));
        assert_eq!(types.of_all(gfn(0xBFBF_F000), 1), Some(MemoryType::WriteBack));
    }

    #[test]
    fn off_means_uncacheable_and_without_them_all_is_cached() {
        let off = MemoryTypes { default: Some(6), ..machine() };
        assert_eq!(off.of(gfn(0x20_0000)), MemoryType::Uncacheable);
        let without = MemoryTypes { default: None, ..machine() };
        assert_eq!(without.of(gfn(0xA_0000)), MemoryType::WriteBack);
        let not_fixed = MemoryTypes { default: Some(ENABLED | 6), ..machine() };
        assert_eq!(not_fixed.of(gfn(0xA_0000)), MemoryType::WriteBack);
        assert_eq!(
            stricter(MemoryType::WriteBack, MemoryType::WriteThrough),
            MemoryType::WriteThrough
        );
    }
}
