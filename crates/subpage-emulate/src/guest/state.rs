//! The registers of a virtual processor that handling an exit needs.

use crate::bits::SEGMENT_LONG;

/// Number of a general register, as instructions encode it: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI,
/// R8 to R15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Register {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// The sixteen general registers, in the order in which instructions encode them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct GeneralRegisters(pub [u64; 16]);

impl core::ops::Index<Register> for GeneralRegisters {
    type Output = u64;

    fn index(&self, register: Register) -> &u64 {
        &self.0[register as usize]
    }
}

impl core::ops::IndexMut<Register> for GeneralRegisters {
    fn index_mut(&mut self, register: Register) -> &mut u64 {
        &mut self.0[register as usize]
    }
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights as the VMCS holds them: bits 3:0 type, 4 S, 6:5 DPL, 7 P, 13 L, 14 D/B, 15 G,
    /// 16 unusable (SDM Vol. 3C, "Guest Register State").
    pub access: u32,
}

impl Segment {
    /// Bit 13: 64-bit code.
    pub const fn is_long(self) -> bool {
        self.access & SEGMENT_LONG != 0
    }

    /// Bit 14: 32-bit operands and addresses by default.
    pub const fn is_big(self) -> bool {
        self.access & 1 << 14 != 0
    }
}

/// The six segment registers that instructions name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
}

/// Whose rules a processor follows where Intel's and AMD's manuals differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vendor {
    /// 64-bit code: an operand-size prefix before a near branch means nothing. An event after an
    /// element of a repeated string instruction saves RFLAGS.RF as 1 (SDM Vol. 3B,
    /// "Instruction-Breakpoint Exception Condition").
    #[default]
    Intel,
    /// The prefix makes the branch one of 16 bits (AMD64 APM Vol. 3, "Near Branches in 64-Bit Mode"),
    /// and RFLAGS.RF is saved as 0 (measured). Hygon's follow AMD.
    Amd,
}

impl Vendor {
    /// By the vendor string of CPUID leaf 0.
    pub const fn from_cpuid(vendor: &[u8; 12]) -> Self {
        match vendor {
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// A virtual processor between two entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct State {
    pub registers: GeneralRegisters,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// Current privilege level, 0..=3 (the DPL of SS).
    pub cpl: u8,
    pub vendor: Vendor,
    pub segments: Segments,
}

impl State {
    /// Whether instructions are decoded as 64-bit code.
    pub const fn is_64_bit(&self) -> bool {
        self.efer & 1 << 10 != 0 && self.segments.cs.is_long()
    }

    /// Bits of operands and addresses of the code: 16, 32 or 64.
    pub const fn bitness(&self) -> u32 {
        if self.is_64_bit() {
            64
        } else if self.cr0 & 1 != 0 && self.rflags & 1 << 17 == 0 && self.segments.cs.is_big() {
            32
        } else {
            16
        }
    }
}
