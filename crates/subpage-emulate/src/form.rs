//! Which instructions can be completed in software: the allow list.
//!
//! An instruction that is not listed here is never executed or computed. None of those listed is
//! privileged, and none of those that are executed transfers control or has a second access to
//! memory.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use thiserror::Error;

use super::allow_list::{
    is_compare_and_add, is_compression, is_general, is_masked_move, is_scatter, is_vector, is_x87,
    is_xsave,
};
use super::bits::{
    CR0_EM, CR0_PE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, CR4_UMIP, EFER_FFXSR, RFLAGS_VM,
};
use crate::guest::State;

/// Why an instruction is not completed in software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unsupported {
    /// Nothing that the instruction names or implies is written: its bytes must have changed since
    /// the processor trapped, or the processor wrote on its own account (a walk, a delivery).
    #[error("the instruction writes no memory")]
    NoStore,
    /// A far call through a gate, which may change the privilege level, or to another task.
    #[error("a far call through a gate")]
    FarCall,
    /// INT n, INT3, INTO, INT1: see [`deliver`](super::deliver()).
    #[error("a software interrupt")]
    SoftwareInterrupt,
    /// XSAVE and its kin of components that software does not know, among them those of AVX-512 outside of
    /// 64-bit mode.
    #[error("a store of extended processor state that it does not know")]
    ExtendedState,
    /// A segment or task register is loaded, which sets a flag in a descriptor.
    #[error("a load of a segment or task register")]
    DescriptorMark,
    /// JMP with a segment, which sets a flag in a descriptor.
    #[error("a far jump (JMP)")]
    FarJump,
    /// RETF, which sets flags in descriptors.
    #[error("a far return (RETF)")]
    FarReturn,
    /// IRET, which sets flags in descriptors, and may write task-state segments.
    #[error("a return from an interrupt (IRET)")]
    InterruptReturn,
    /// INS, whose bytes come from a port.
    #[error("input from a port to memory")]
    PortInput,
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
    FarCall,
    Enter,
    StoreString,
    MoveString,
    StoreSelector,
    StoreTableRegister,
    StoreMachineStatus,
    /// CLZERO.
    ZeroLine,
    /// MOVDIR64B.
    CopyLine,
    /// Of operand 0 only elements under a mask.
    Masked(MaskKind),
    Compress,
    Scatter,
    /// XSAVE and its kin.
    SaveState,
    /// FXSAVE where it leaves registers out: so many bytes.
    SaveFirst(usize),
    /// FNSTENV and FNSAVE outside of protected mode.
    RealEnvironment,
}

/// Where the mask of a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskKind {
    /// In an opmask register, one bit an element.
    Opmask,
    /// In the signs of the elements of a register operand.
    Signs { operand: u32 },
}

/// FXSAVE outside of 64-bit mode: half of the vector registers.
const FXSAVE_NARROW: usize = 288;

/// FXSAVE at CPL 0 with EFER.FFXSR: no vector registers.
const FXSAVE_FAST: usize = 160;

impl Form {
    pub(super) fn of(instruction: &Instruction, state: &State) -> Result<Self, Unsupported> {
        if let Some(form) = implied(instruction, state)? {
            return Ok(form);
        }
        let mnemonic = instruction.mnemonic();
        if let Some(refusal) = refused(mnemonic) {
            return Err(refusal);
        }
        if is_masked_move(mnemonic) && instruction.op0_kind() != OpKind::Register {
            enabled(instruction, state)?;
            let named = instruction.op0_kind() == OpKind::Memory;
            return Ok(Self::Masked(MaskKind::Signs { operand: if named { 1 } else { 2 } }));
        }
        if instruction.op_count() == 0 || instruction.op0_kind() != OpKind::Memory {
            return Err(without_form(instruction));
        }
        if is_compare_and_add(mnemonic) {
            return Ok(Self::Operand { extended: false });
        }
        if is_general(mnemonic) && instruction.encoding() == EncodingKind::Legacy {
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
        if is_compression(mnemonic) {
            enabled(instruction, state)?;
            return Ok(Self::Compress);
        }
        if is_scatter(mnemonic) {
            enabled(instruction, state)?;
            return Ok(Self::Scatter);
        }
        if is_xsave(mnemonic) {
            let on = state.cr0 & CR0_TS == 0 && state.cr4 & CR4_OSXSAVE != 0;
            return if on { Ok(Self::SaveState) } else { Err(Unsupported::Disabled) };
        }
        if matches!(mnemonic, Mnemonic::Fxsave | Mnemonic::Fxsave64) {
            enabled(instruction, state)?;
            return Ok(match state.is_64_bit() {
                false => Self::SaveFirst(FXSAVE_NARROW),
                true if state.efer & EFER_FFXSR != 0 && state.cpl == 0 => {
                    Self::SaveFirst(FXSAVE_FAST)
                }
                true => Self::Operand { extended: true },
            });
        }
        if is_vector(mnemonic) || is_x87(mnemonic) {
            enabled(instruction, state)?;
            if instruction.op_mask() != Register::None {
                return Ok(Self::Masked(MaskKind::Opmask));
            }
            let protected = state.cr0 & CR0_PE != 0 && state.rflags & RFLAGS_VM == 0;
            if matches!(mnemonic, Mnemonic::Fnstenv | Mnemonic::Fnsave) && !protected {
                return Ok(Self::RealEnvironment);
            }
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
            _ => Form::FarCall,
        },
        Mnemonic::Enter => Form::Enter,
        Mnemonic::Clzero => Form::ZeroLine,
        Mnemonic::Movdir64b => Form::CopyLine,
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
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Unsupported::PortInput,
        _ => return None,
    })
}

/// Why an instruction has no form: it writes no memory, or it is not on the list.
fn without_form(instruction: &Instruction) -> Unsupported {
    match instruction.mnemonic() {
        Mnemonic::Ltr => return Unsupported::DescriptorMark,
        Mnemonic::Retf => return Unsupported::FarReturn,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => return Unsupported::InterruptReturn,
        _ => {}
    }
    if matches!(
        instruction.code(),
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664
    ) {
        return Unsupported::FarJump;
    }
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
    if loads_segment {
        Unsupported::DescriptorMark
    } else if info.used_memory().iter().any(|used| writes(used.access())) {
        Unsupported::Unlisted
    } else {
        Unsupported::NoStore
    }
}

/// Whether the guest's control registers let the instruction use its registers.
fn enabled(instruction: &Instruction, state: &State) -> Result<(), Unsupported> {
    let fxsave = matches!(instruction.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64);
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
