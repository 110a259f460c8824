//! A processor's registers in gdb's form.

use gdbstub_arch::x86::reg::{X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use kvm_bindings::{kvm_fpu, kvm_regs};

use crate::vcpu::{Processor, ProcessorError};

/// Reads them.
pub(super) fn read(processor: &Processor) -> Result<X86_64CoreRegs, ProcessorError> {
    let (general, special, fpu) = all(processor)?;
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
            fctrl: fpu.fcw.into(),
            fstat: fpu.fsw.into(),
            ftag: full_tags(&fpu),
            fiseg: low(fpu.last_ip >> 32),
            fioff: low(fpu.last_ip),
            foseg: low(fpu.last_dp >> 32),
            fooff: low(fpu.last_dp),
            fop: fpu.last_opcode.into(),
        },
        mxcsr: fpu.mxcsr,
        ..X86_64CoreRegs::default()
    };
    for (to, from) in registers.st.iter_mut().zip(&fpu.fpr) {
        to.copy_from_slice(&from[..10]);
    }
    for (to, from) in registers.xmm.iter_mut().zip(&fpu.xmm) {
        *to = u128::from_le_bytes(*from);
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
    let (mut general, _, mut fpu) = all(processor)?;
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
    let failed = |what| {
        let number = processor.number;
        move |error| ProcessorError { what, number, error }
    };
    processor.fd.set_regs(&general).map_err(failed("set the registers"))?;
    let floating = |registers: &X86_64CoreRegs| {
        (registers.st, registers.fpu.clone(), registers.xmm, registers.mxcsr)
    };
    if floating(&before) != floating(to) {
        for (to, from) in fpu.fpr.iter_mut().zip(&to.st) {
            to[..10].copy_from_slice(from);
        }
        for (to, from) in fpu.xmm.iter_mut().zip(&to.xmm) {
            *to = from.to_le_bytes();
        }
        fpu.mxcsr = to.mxcsr;
        fpu.fcw = word(to.fpu.fctrl);
        fpu.fsw = word(to.fpu.fstat);
        processor.fd.set_fpu(&fpu).map_err(failed("set the floating-point registers"))?;
    }
    Ok(true)
}

fn all(
    processor: &Processor,
) -> Result<(kvm_regs, kvm_bindings::kvm_sregs, kvm_fpu), ProcessorError> {
    let failed = |what| {
        let number = processor.number;
        move |error| ProcessorError { what, number, error }
    };
    let general = processor.fd.get_regs().map_err(failed("read the registers"))?;
    let special = processor.fd.get_sregs().map_err(failed("read the system registers"))?;
    let fpu = processor.fd.get_fpu().map_err(failed("read the floating-point registers"))?;
    Ok((general, special, fpu))
}

/// In gdb's order.
const fn general_of(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

/// Two bits a register, as FSTENV has them, from one: registers in use count as valid.
fn full_tags(fpu: &kvm_fpu) -> u32 {
    (0..8).filter(|at| fpu.ftwx >> at & 1 == 0).map(|at| 3 << (2 * at)).sum()
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low(value: u64) -> u32 {
    value as u32
}

#[allow(clippy::cast_possible_truncation, reason = "the register has 16 bits")]
const fn word(value: u32) -> u16 {
    value as u16
}
