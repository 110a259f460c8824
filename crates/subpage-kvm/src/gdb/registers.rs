//! A processor's registers in gdb's form.

use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::vcpu::{Processor, ProcessorError};

/// Where the legacy region of XSAVE has what (SDM Vol. 1, "Legacy Region of an XSAVE Area").
mod region {
    pub(super) const CONTROL: usize = 0;
    pub(super) const STATUS: usize = 2;
    pub(super) const TAGS: usize = 4;
    pub(super) const OPCODE: usize = 6;
    pub(super) const INSTRUCTION: usize = 8;
    pub(super) const OPERAND: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const STACK: usize = 32;
    pub(super) const XMM: usize = 160;
    /// Which components are in use: x87 is bit 0, SSE bit 1.
    pub(super) const IN_USE: usize = 512;
}

/// Reads them.
pub(super) fn read(processor: &Processor) -> Result<X86_64CoreRegs, ProcessorError> {
    let (general, special) = all(processor)?;
    let area = processor.extended()?;
    let part = |at: usize, bytes: usize| {
        area.0[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let mut registers = X86_64CoreRegs {
        regs: general_of(&general),
        rip: general.rip,
        eflags: low(general.rflags),
        segments: X86SegmentRegs {
            cs: special.cs.selector.into(),
            ss: special.ss.selector.into(),
            ds: special.ds.selector.into(),
            es: special.es.selector.into(),
            fs: special.fs.selector.into(),
            gs: special.gs.selector.into(),
        },
        fpu: X87FpuInternalRegs {
            fctrl: low(part(region::CONTROL, 2)),
            fstat: low(part(region::STATUS, 2)),
            ftag: full_tags(area.0[region::TAGS]),
            fiseg: low(part(region::INSTRUCTION + 4, 4)),
            fioff: low(part(region::INSTRUCTION, 4)),
            foseg: low(part(region::OPERAND + 4, 4)),
            fooff: low(part(region::OPERAND, 4)),
            fop: low(part(region::OPCODE, 2)),
        },
        mxcsr: low(part(region::MXCSR, 4)),
        ..X86_64CoreRegs::default()
    };
    for (to, from) in registers.st.iter_mut().zip(area.0[region::STACK..].chunks_exact(16)) {
        to.copy_from_slice(&from[..10]);
    }
    for (to, from) in registers.xmm.iter_mut().zip(area.0[region::XMM..].chunks_exact(16)) {
        *to = u128::from_le_bytes(from.try_into().expect("16 bytes"));
    }
    Ok(registers)
}

/// Sets them, but segment registers, whose selectors alone mean nothing; false if one of those differs.
pub(super) fn write(
    processor: &mut Processor,
    to: &X86_64CoreRegs,
) -> Result<bool, ProcessorError> {
    let before = read(processor)?;
    if before.segments != to.segments {
        return Ok(false);
    }
    let (mut general, _) = all(processor)?;
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] = to.regs;
    general = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: to.rip,
        rflags: general.rflags & !0xffff_ffff | u64::from(to.eflags),
    };
    let number = processor.number;
    processor.fd.set_regs(&general).map_err(|error| ProcessorError {
        what: "set the registers",
        number,
        error,
    })?;
    let floating = |registers: &X86_64CoreRegs| {
        (registers.st, registers.fpu.clone(), registers.xmm, registers.mxcsr)
    };
    if floating(&before) != floating(to) {
        write_floating(processor, to)?;
    }
    Ok(true)
}

fn write_floating(processor: &Processor, to: &X86_64CoreRegs) -> Result<(), ProcessorError> {
    let mut area = processor.extended()?;
    let mut put = |at: usize, bytes: &[u8]| area.0[at..at + bytes.len()].copy_from_slice(bytes);
    put(region::CONTROL, &to.fpu.fctrl.to_le_bytes()[..2]);
    put(region::STATUS, &to.fpu.fstat.to_le_bytes()[..2]);
    put(region::TAGS, &[short_tags(to.fpu.ftag)]);
    put(region::OPCODE, &to.fpu.fop.to_le_bytes()[..2]);
    put(region::INSTRUCTION, &to.fpu.fioff.to_le_bytes());
    put(region::INSTRUCTION + 4, &to.fpu.fiseg.to_le_bytes());
    put(region::OPERAND, &to.fpu.fooff.to_le_bytes());
    put(region::OPERAND + 4, &to.fpu.foseg.to_le_bytes());
    // KVM refuses bits that are reserved, and sets nothing then.
    put(region::MXCSR, &to.mxcsr.to_le_bytes());
    for (number, register) in to.st.iter().enumerate() {
        put(region::STACK + 16 * number, register);
    }
    for (number, register) in to.xmm.iter().enumerate() {
        put(region::XMM + 16 * number, &register.to_le_bytes());
    }
    let in_use = area.0[region::IN_USE] | 3;
    area.0[region::IN_USE] = in_use;
    processor.set_extended(&area)
}

fn all(processor: &Processor) -> Result<(kvm_regs, kvm_sregs), ProcessorError> {
    let failed = |what| {
        let number = processor.number;
        move |error| ProcessorError { what, number, error }
    };
    let general = processor.fd.get_regs().map_err(failed("read the registers"))?;
    let special = processor.fd.get_sregs().map_err(failed("read the system registers"))?;
    Ok((general, special))
}

/// In gdb's order.
const fn general_of(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

/// Two bits a register, as FSTENV has them, from one: registers in use count as valid.
fn full_tags(short: u8) -> u32 {
    (0..8).filter(|at| short >> at & 1 == 0).map(|at| 3 << (2 * at)).sum()
}

/// The same back.
fn short_tags(full: u32) -> u8 {
    (0..8).filter(|at| full >> (2 * at) & 3 != 3).map(|at| 1 << at).sum()
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low(value: u64) -> u32 {
    value as u32
}
