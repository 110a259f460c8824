//! What the processor says it is.

pub use core::arch::x86_64::CpuidResult;

/// CPUID with a leaf and a subleaf.
pub fn leaf(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Width of physical addresses in bits (leaf 80000008H; 36 where there is none).
pub fn physical_width() -> u32 {
    if leaf(0x8000_0000, 0).eax < 0x8000_0008 { 36 } else { leaf(0x8000_0008, 0).eax & 0xFF }
}

/// Whether the processor has VMX (leaf 1, ECX bit 5).
pub fn has_vmx() -> bool {
    leaf(1, 0).ecx & 1 << 5 != 0
}

/// Whether the processor has XSAVE (leaf 1, ECX bit 26).
pub fn has_xsave() -> bool {
    leaf(1, 0).ecx & 1 << 26 != 0
}

/// The state components that XCR0 may enable (leaf 0DH).
pub fn xcr0_mask() -> u64 {
    let components = leaf(0xD, 0);
    u64::from(components.edx) << 32 | u64::from(components.eax)
}
