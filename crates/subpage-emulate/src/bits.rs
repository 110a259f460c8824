//! Bits of control registers, RFLAGS, EFER, DR6 and segments (SDM Vol. 3A, "Control Registers", Vol. 1,
//! "EFLAGS Register", Vol. 3A, "Extended Feature Enable Register", Vol. 3B, "Debug Status Register
//! (DR6)", Vol. 3C, "Guest Register State").

/// Protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// No x87.
pub const CR0_EM: u64 = 1 << 2;
/// A task switch happened: x87 and SSE fault.
pub const CR0_TS: u64 = 1 << 3;
/// Supervisor writes heed read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// Paging.
pub const CR0_PG: u64 = 1 << 31;
/// Pages of 4 MiB in 32-bit paging.
pub const CR4_PSE: u64 = 1 << 4;
/// Physical-address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// The kernel saves SSE registers.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// SIMD exceptions are #XM.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// SGDT and the like fault in programs.
pub const CR4_UMIP: u64 = 1 << 11;
/// The kernel uses XSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// The kernel executes no user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// The kernel reaches no user pages.
pub const CR4_SMAP: u64 = 1 << 21;
/// IA-32e mode is active once paging is.
pub const EFER_LME: u64 = 1 << 8;
/// IA-32e mode is active.
pub const EFER_LMA: u64 = 1 << 10;
/// No-execute pages.
pub const EFER_NXE: u64 = 1 << 11;
/// FXSAVE leaves XMM out (AMD).
pub const EFER_FFXSR: u64 = 1 << 14;
/// A single-step trap; the same bit of the VMCS's pending debug exceptions.
pub const DR6_BS: u64 = 1 << 14;
/// 64-bit code, in a segment's access rights.
pub const SEGMENT_LONG: u32 = 1 << 13;
/// CF, PF, AF, ZF, SF and OF.
pub const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// A trap after each instruction.
pub const RFLAGS_TF: u64 = 1 << 8;
/// Interrupts are let in.
pub const RFLAGS_IF: u64 = 1 << 9;
/// String instructions go downwards.
pub const RFLAGS_DF: u64 = 1 << 10;
/// Nested task.
pub const RFLAGS_NT: u64 = 1 << 14;
/// Instruction breakpoints are passed over once.
pub const RFLAGS_RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const RFLAGS_VM: u64 = 1 << 17;
/// Alignment checks; access to user pages under SMAP.
pub const RFLAGS_AC: u64 = 1 << 18;
