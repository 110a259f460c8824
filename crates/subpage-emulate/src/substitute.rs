//! An instruction that does to a window what the guest's does to memory.
//!
//! Memory operand 0 becomes `[pointer]`, where `pointer` is a general register that the instruction
//! does not use otherwise. RSP as a register operand becomes another free register, for RSP is the
//! hypervisor's own while the instruction runs.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpKind, Register as Name};

use super::allow_list::is_xsave;
use super::store::register;
use super::{MAX_INSTRUCTION_BYTES, Unsupported};
use crate::guest::{Register, State};

/// An encoded instruction of the allow list, whose only access to memory is at the address in one
/// register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Substitute {
    bytes: [u8; MAX_INSTRUCTION_BYTES],
    length: u8,
    pointer: Register,
    /// Stands for RSP.
    stack_pointer: Option<Register>,
    extended: bool,
    /// Whether x87 notes the instruction, and where it goes.
    x87: bool,
}

/// Registers that can take the place of another, with their parts of 1, 2, 4 and 8 bytes. Those
/// that need no REX prefix, which AH, CH, DH and BH do not go with.
const FREE: [(Register, [Name; 4]); 6] = [
    (Register::Rsi, [Name::SIL, Name::SI, Name::ESI, Name::RSI]),
    (Register::Rdi, [Name::DIL, Name::DI, Name::EDI, Name::RDI]),
    (Register::Rbx, [Name::BL, Name::BX, Name::EBX, Name::RBX]),
    (Register::Rdx, [Name::DL, Name::DX, Name::EDX, Name::RDX]),
    (Register::Rcx, [Name::CL, Name::CX, Name::ECX, Name::RCX]),
    (Register::Rax, [Name::AL, Name::AX, Name::EAX, Name::RAX]),
];

impl Substitute {
    /// For an instruction whose operand 0 is in memory. The caller has checked that it is on the
    /// allow list.
    pub(super) fn for_operand(
        instruction: &Instruction,
        extended: bool,
    ) -> Result<Self, Unsupported> {
        let mut copy = *instruction;
        // MOV with a bare address has no form with a register.
        let (code, source) = match copy.code() {
            Code::Mov_moffs8_AL => (Code::Mov_rm8_r8, Name::AL),
            Code::Mov_moffs16_AX => (Code::Mov_rm16_r16, Name::AX),
            Code::Mov_moffs32_EAX => (Code::Mov_rm32_r32, Name::EAX),
            Code::Mov_moffs64_RAX => (Code::Mov_rm64_r64, Name::RAX),
            // The same without components of IA32_XSS, and not privileged.
            Code::Xsaves_mem => (Code::Xsavec_mem, Name::None),
            Code::Xsaves64_mem => (Code::Xsavec64_mem, Name::None),
            code => (code, Name::None),
        };
        copy.set_code(code);
        if source != Name::None {
            copy.set_op1_register(source);
        }
        Self::encode(copy, extended)
    }

    /// That stores an MMX or SSE register.
    pub(super) fn for_register(name: Name) -> Result<Self, Unsupported> {
        let code = if name.is_mm() { Code::Movq_mmm64_mm } else { Code::Movups_xmmm128_xmm };
        let to = MemoryOperand::with_base(Name::RBX);
        let store = Instruction::with2(code, to, name).map_err(|_| Unsupported::Unlisted)?;
        Self::encode(store, true)
    }

    /// For BTS, BTR and BTC with a bit offset in a register: the bit within the operand becomes an
    /// immediate.
    pub(super) fn for_bit_string(
        instruction: &Instruction,
        state: &State,
    ) -> Result<Self, Unsupported> {
        let mut copy = *instruction;
        let bits = copy.op1_register().size() * 8;
        let bit = register(state, copy.op1_register()) % bits as u64;
        copy.set_code(match copy.code() {
            Code::Bts_rm16_r16 => Code::Bts_rm16_imm8,
            Code::Bts_rm32_r32 => Code::Bts_rm32_imm8,
            Code::Bts_rm64_r64 => Code::Bts_rm64_imm8,
            Code::Btr_rm16_r16 => Code::Btr_rm16_imm8,
            Code::Btr_rm32_r32 => Code::Btr_rm32_imm8,
            Code::Btr_rm64_r64 => Code::Btr_rm64_imm8,
            Code::Btc_rm16_r16 => Code::Btc_rm16_imm8,
            Code::Btc_rm32_r32 => Code::Btc_rm32_imm8,
            Code::Btc_rm64_r64 => Code::Btc_rm64_imm8,
            _ => return Err(Unsupported::Unlisted),
        });
        copy.set_op1_kind(OpKind::Immediate8);
        copy.set_immediate8(u8::try_from(bit).map_err(|_| Unsupported::Unlisted)?);
        Self::encode(copy, false)
    }

    fn encode(mut copy: Instruction, extended: bool) -> Result<Self, Unsupported> {
        let used = used_registers(&copy);
        let mut free = FREE.iter().filter(|(number, _)| used & 1 << *number as u16 == 0);
        let (pointer, parts) = free.next().ok_or(Unsupported::Unlisted)?;
        copy.set_segment_prefix(Name::None);
        copy.set_memory_base(parts[3]);
        copy.set_memory_index(Name::None);
        copy.set_memory_index_scale(1);
        copy.set_memory_displ_size(0);
        copy.set_memory_displacement64(0);
        // Prefixes that mean nothing here, or hints (XACQUIRE, XRELEASE) that may be left out.
        copy.set_has_rep_prefix(false);
        copy.set_has_repne_prefix(false);
        copy.set_has_xacquire_prefix(false);
        copy.set_has_xrelease_prefix(false);
        let mut stack_pointer = None;
        for operand in 1..copy.op_count() {
            let name = copy.op_register(operand);
            if copy.op_kind(operand) != OpKind::Register || name.full_register() != Name::RSP {
                continue;
            }
            let (number, parts) = free.next().ok_or(Unsupported::Unlisted)?;
            copy.set_op_register(operand, parts[name.size().trailing_zeros() as usize]);
            stack_pointer = Some(*number);
        }
        let mut encoder = Encoder::new(64);
        let length = encoder.encode(&copy, 0).map_err(|_| Unsupported::Unlisted)?;
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        bytes
            .get_mut(..length)
            .ok_or(Unsupported::Unlisted)?
            .copy_from_slice(&encoder.take_buffer());
        Ok(Self {
            bytes,
            length: u8::try_from(length).map_err(|_| Unsupported::Unlisted)?,
            pointer: *pointer,
            stack_pointer,
            extended,
            x87: super::allow_list::is_x87(copy.mnemonic()),
        })
    }

    /// The encoded instruction, for 64-bit mode.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The register that holds the address of the window.
    pub const fn pointer(&self) -> Register {
        self.pointer
    }

    /// The register that holds the guest's RSP, if the instruction has it as an operand.
    pub const fn stack_pointer(&self) -> Option<Register> {
        self.stack_pointer
    }

    /// Whether x87, MMX or SSE registers take part.
    pub const fn is_extended(&self) -> bool {
        self.extended
    }

    pub(super) const fn is_x87(&self) -> bool {
        self.x87
    }
}

/// The general registers that an instruction uses but for its memory operand, one bit each.
fn used_registers(instruction: &Instruction) -> u16 {
    // Operands that the encoding does not name.
    let mut used = match instruction.mnemonic() {
        Mnemonic::Cmpxchg => 1 << Register::Rax as u16,
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => 0b1111,
        // EDX:EAX.
        mnemonic if is_xsave(mnemonic) => 0b101,
        _ => 0,
    };
    for operand in 1..instruction.op_count() {
        let full = instruction.op_register(operand).full_register();
        if instruction.op_kind(operand) == OpKind::Register && full.is_gpr64() {
            used |= 1 << full.number();
        }
    }
    used
}
