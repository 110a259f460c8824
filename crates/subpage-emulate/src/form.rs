//! Which instructions can be completed in software: the allow list.
//!
//! An instruction that is not listed here is never executed or computed. None of those listed is
//! privileged, and none of those that are executed transfers control or has a second access to
//! memory.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use thiserror::Error;

use super::bits::{CR0_EM, CR0_PE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, CR4_UMIP, RFLAGS_VM};
use crate::guest::State;

/// Why an instruction is not completed in software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unsupported {
    /// Nothing that the instruction names or implies is written: its bytes must have changed since
    /// the processor trapped, or the processor wrote on its own account (a walk, a delivery).
    #[error("the instruction writes no memory")]
    NoStore,
    /// A far call, which pushes two values and may change the privilege level.
    #[error("a far call")]
    FarCall,
    /// INT n, INT3, INTO, INT1: see [`deliver`](super::deliver()).
    #[error("a software interrupt")]
    SoftwareInterrupt,
    /// VMASKMOV, MASKMOVQ, an opmask: which bytes are written depends on data.
    #[error("a store under a mask")]
    Masked,
    /// AVX-512 scatter: many destinations.
    #[error("a scattering store")]
    Scatter,
    /// XSAVE and its kin, FNSAVE, FNSTENV: extent or format depends on the processor's mode.
    #[error("a store of extended processor state")]
    ExtendedState,
    /// FXSAVE outside of 64-bit mode, whose format is not that of the hypervisor's own mode.
    #[error("FXSAVE outside of 64-bit mode")]
    FxsaveFormat,
    /// A segment or task register is loaded, which sets a flag in a descriptor.
    #[error("a load of a segment or task register")]
    DescriptorMark,
    /// INS, whose bytes come from a port.
    #[error("input from a port to memory")]
    PortInput,
    /// ENTER with a nesting level other than 0.
    #[error("ENTER with nesting")]
    NestedEnter,
    /// The state says that the processor would refuse it (CR0.EM, CR0.TS, CR4.OSFXSR,
    /// CR4.OSXSAVE, CR4.UMIP).
    #[error("an instruction that the guest's control registers disable")]
    Disabled,
    /// On no list.
    #[error("an instruction that software does not complete")]
    Unlisted,
}

/// How an instruction's store is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The instruction names its destination as operand 0, and is executed.
    Operand {
        /// It uses x87, MMX or SSE registers.
        extended: bool,
    },
    /// The same, and the address depends on a bit offset in a register.
    BitString,
    Push,
    PushAll,
    PushFlags,
    PopMemory,
    Call,
    Enter,
    StoreString,
    MoveString,
    StoreSelector,
    StoreTableRegister,
    StoreMachineStatus,
}

impl Form {
    pub(super) fn of(instruction: &Instruction, state: &State) -> Result<Self, Unsupported> {
        if let Some(form) = implied(instruction, state)? {
            return Ok(form);
        }
        if let Some(refusal) = refused(instruction.mnemonic()) {
            return Err(refusal);
        }
        if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Memory {
            return Err(without_form(instruction));
        }
        if is_general(instruction.mnemonic()) && instruction.encoding() == EncodingKind::Legacy {
            let by_register = matches!(
                instruction.code(),
                Code::Bts_rm16_r16
                    | Code::Bts_rm32_r32
                    | Code::Bts_rm64_r64
                    | Code::Btr_rm16_r16
                    | Code::Btr_rm32_r32
                    | Code::Btr_rm64_r64
                    | Code::Btc_rm16_r16
                    | Code::Btc_rm32_r32
                    | Code::Btc_rm64_r64
            );
            return Ok(if by_register {
                Self::BitString
            } else {
                Self::Operand { extended: false }
            });
        }
        if instruction.op_mask() != Register::None {
            return Err(Unsupported::Masked);
        }
        if is_vector(instruction) || is_x87(instruction.mnemonic()) {
            enabled(instruction, state)?;
            return Ok(Self::Operand { extended: true });
        }
        Err(without_form(instruction))
    }
}

/// The forms that are computed, not executed.
fn implied(instruction: &Instruction, state: &State) -> Result<Option<Form>, Unsupported> {
    let to_memory = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
    Ok(Some(match instruction.mnemonic() {
        Mnemonic::Push => Form::Push,
        Mnemonic::Pusha | Mnemonic::Pushad => Form::PushAll,
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            // In virtual-8086 mode it depends on IOPL whether this is #GP.
            if state.rflags & RFLAGS_VM != 0 {
                return Err(Unsupported::Unlisted);
            }
            Form::PushFlags
        }
        Mnemonic::Pop if to_memory => Form::PopMemory,
        Mnemonic::Call => match instruction.code() {
            Code::Call_rel16
            | Code::Call_rel32_32
            | Code::Call_rel32_64
            | Code::Call_rm16
            | Code::Call_rm32
            | Code::Call_rm64 => Form::Call,
            _ => return Err(Unsupported::FarCall),
        },
        Mnemonic::Enter if instruction.immediate8_2nd().is_multiple_of(32) => Form::Enter,
        Mnemonic::Enter => return Err(Unsupported::NestedEnter),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Form::StoreString,
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => Form::MoveString,
        // The mnemonic is also that of an SSE2 instruction.
        Mnemonic::Movsd if instruction.code() == Code::Movsd_m32_m32 => Form::MoveString,
        Mnemonic::Mov
            if to_memory
                && instruction.op1_kind() == OpKind::Register
                && instruction.op1_register().is_segment_register() =>
        {
            Form::StoreSelector
        }
        Mnemonic::Sldt | Mnemonic::Str if to_memory => {
            if state.cr0 & CR0_PE == 0 || state.rflags & RFLAGS_VM != 0 {
                return Err(Unsupported::Disabled);
            }
            forbidden_to_users(state)?;
            Form::StoreSelector
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            forbidden_to_users(state)?;
            Form::StoreTableRegister
        }
        Mnemonic::Smsw if to_memory => {
            forbidden_to_users(state)?;
            Form::StoreMachineStatus
        }
        _ => return Ok(None),
    }))
}

const fn forbidden_to_users(state: &State) -> Result<(), Unsupported> {
    if state.cr4 & CR4_UMIP != 0 && state.cpl > 0 { Err(Unsupported::Disabled) } else { Ok(()) }
}

/// Stores that are known and refused for a reason of their own.
const fn refused(mnemonic: Mnemonic) -> Option<Unsupported> {
    Some(match mnemonic {
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => {
            Unsupported::SoftwareInterrupt
        }
        Mnemonic::Maskmovq
        | Mnemonic::Maskmovdqu
        | Mnemonic::Vmaskmovdqu
        | Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq
        | Mnemonic::Vpcompressb
        | Mnemonic::Vpcompressw
        | Mnemonic::Vpcompressd
        | Mnemonic::Vpcompressq
        | Mnemonic::Vcompressps
        | Mnemonic::Vcompresspd => Unsupported::Masked,
        Mnemonic::Vpscatterdd
        | Mnemonic::Vpscatterdq
        | Mnemonic::Vpscatterqd
        | Mnemonic::Vpscatterqq
        | Mnemonic::Vscatterdps
        | Mnemonic::Vscatterdpd
        | Mnemonic::Vscatterqps
        | Mnemonic::Vscatterqpd => Unsupported::Scatter,
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64
        | Mnemonic::Xsaves
        | Mnemonic::Xsaves64
        | Mnemonic::Fnsave
        | Mnemonic::Fnstenv
        | Mnemonic::Tilestored
        | Mnemonic::Sttilecfg => Unsupported::ExtendedState,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Unsupported::PortInput,
        _ => return None,
    })
}

/// Why an instruction has no form: it writes no memory, or it is not on the list.
fn without_form(instruction: &Instruction) -> Unsupported {
    let loads_task_register_or_code_segment = matches!(
        instruction.mnemonic(),
        Mnemonic::Ltr | Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    ) || matches!(
        instruction.code(),
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664
    );
    let writes = |access: OpAccess| {
        !matches!(
            access,
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        )
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let loads_segment = info
        .used_registers()
        .iter()
        .any(|used| used.register().is_segment_register() && writes(used.access()));
    if loads_task_register_or_code_segment || loads_segment {
        Unsupported::DescriptorMark
    } else if info.used_memory().iter().any(|used| writes(used.access())) {
        Unsupported::Unlisted
    } else {
        Unsupported::NoStore
    }
}

/// Writes of operand 0 that use general registers only.
const fn is_general(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Mov
            | Mnemonic::Movnti
            | Mnemonic::Movbe
            | Mnemonic::Movdiri
            | Mnemonic::Add
            | Mnemonic::Or
            | Mnemonic::Adc
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Neg
            | Mnemonic::Not
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Shld
            | Mnemonic::Shrd
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
            | Mnemonic::Xchg
            | Mnemonic::Xadd
            | Mnemonic::Cmpxchg
            | Mnemonic::Cmpxchg8b
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Seta
            | Mnemonic::Setae
            | Mnemonic::Setb
            | Mnemonic::Setbe
            | Mnemonic::Sete
            | Mnemonic::Setg
            | Mnemonic::Setge
            | Mnemonic::Setl
            | Mnemonic::Setle
            | Mnemonic::Setne
            | Mnemonic::Setno
            | Mnemonic::Setnp
            | Mnemonic::Setns
            | Mnemonic::Seto
            | Mnemonic::Setp
            | Mnemonic::Sets
    )
}

/// x87 stores of a value or of a control or status word.
pub(super) const fn is_x87(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
    )
}

/// MMX, SSE, AVX and AVX-512 stores, and FXSAVE.
fn is_vector(instruction: &Instruction) -> bool {
    // A named operand 0 in memory with the data in a register: none of these has an immediate source
    // or reads memory.
    matches!(
        instruction.mnemonic(),
        Mnemonic::Movd
            | Mnemonic::Movq
            | Mnemonic::Movntq
            | Mnemonic::Movss
            | Mnemonic::Movsd
            | Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movdqa
            | Mnemonic::Movdqu
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Movntdq
            | Mnemonic::Movlps
            | Mnemonic::Movlpd
            | Mnemonic::Movhps
            | Mnemonic::Movhpd
            | Mnemonic::Extractps
            | Mnemonic::Pextrb
            | Mnemonic::Pextrw
            | Mnemonic::Pextrd
            | Mnemonic::Pextrq
            | Mnemonic::Stmxcsr
            | Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Vmovd
            | Mnemonic::Vmovq
            | Mnemonic::Vmovw
            | Mnemonic::Vmovsh
            | Mnemonic::Vmovss
            | Mnemonic::Vmovsd
            | Mnemonic::Vmovups
            | Mnemonic::Vmovupd
            | Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovdqu
            | Mnemonic::Vmovdqa32
            | Mnemonic::Vmovdqa64
            | Mnemonic::Vmovdqu8
            | Mnemonic::Vmovdqu16
            | Mnemonic::Vmovdqu32
            | Mnemonic::Vmovdqu64
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovlps
            | Mnemonic::Vmovlpd
            | Mnemonic::Vmovhps
            | Mnemonic::Vmovhpd
            | Mnemonic::Vextractf128
            | Mnemonic::Vextracti128
            | Mnemonic::Vextractf32x4
            | Mnemonic::Vextractf32x8
            | Mnemonic::Vextractf64x2
            | Mnemonic::Vextractf64x4
            | Mnemonic::Vextracti32x4
            | Mnemonic::Vextracti32x8
            | Mnemonic::Vextracti64x2
            | Mnemonic::Vextracti64x4
            | Mnemonic::Vextractps
            | Mnemonic::Vpextrb
            | Mnemonic::Vpextrw
            | Mnemonic::Vpextrd
            | Mnemonic::Vpextrq
            | Mnemonic::Vcvtps2ph
            | Mnemonic::Vstmxcsr
    )
}

/// Whether the guest's control registers let the instruction use its registers.
fn enabled(instruction: &Instruction, state: &State) -> Result<(), Unsupported> {
    let fxsave = matches!(instruction.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64);
    if fxsave && !state.is_64_bit() {
        return Err(Unsupported::FxsaveFormat);
    }
    let on = match instruction.encoding() {
        EncodingKind::Legacy => {
            let mmx = instruction.op_count() > 1 && instruction.op1_register().is_mm();
            let needs_osfxsr = !(is_x87(instruction.mnemonic()) || fxsave || mmx);
            state.cr0 & (CR0_EM | CR0_TS) == 0 && (!needs_osfxsr || state.cr4 & CR4_OSFXSR != 0)
        }
        EncodingKind::VEX | EncodingKind::EVEX => {
            state.cr0 & CR0_TS == 0
                && state.cr4 & CR4_OSXSAVE != 0
                && state.cr0 & CR0_PE != 0
                && state.rflags & RFLAGS_VM == 0
        }
        _ => false,
    };
    if on { Ok(()) } else { Err(Unsupported::Disabled) }
}
