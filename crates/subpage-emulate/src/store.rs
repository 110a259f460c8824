//! Where an instruction writes, and how many bytes.

use iced_x86::{Code, Instruction, OpKind, Register as Name};

use super::allow_list::is_not_offered;
use super::extent::Extent;
use super::form::{Form, MaskKind};
use super::moved::Source;
use super::segment;
use super::substitute::Substitute;
use super::{Exception, GuestInstruction, TrampolineFault, Unsupported};
use crate::guest::State;

/// Longest store that an instruction of the allow list makes, in bytes: XSAVE of what software knows needs
/// less than a page.
pub const MAX_STORE_BYTES: usize = 4096;

/// What CLZERO, MOVDIR64B and the alignment of XSAVE go by.
const LINE_BYTES: usize = 64;

/// Why there is no store to be decided about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Software does not complete this instruction.
    Unsupported(Unsupported),
    /// The instruction causes this exception before it writes.
    Exception(Exception),
}

impl Refusal {
    /// An instruction that reads a register for the store has faulted.
    pub(super) const fn by(fault: TrampolineFault) -> Self {
        match fault.vector {
            // The processor lacks it, and so it lacks the store.
            6 => Self::Exception(Exception::INVALID_OPCODE),
            _ => Self::Unsupported(Unsupported::Unlisted),
        }
    }
}

impl From<Unsupported> for Refusal {
    fn from(unsupported: Unsupported) -> Self {
        Self::Unsupported(unsupported)
    }
}

impl From<Exception> for Refusal {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// The store of one instruction, or of one element of a repeated string instruction.
#[derive(Debug, Clone)]
pub struct Store {
    linear: u64,
    length: usize,
    /// Offset of the destination in its segment.
    offset: u64,
    form: Form,
    substitute: Option<Substitute>,
    instruction: Instruction,
    x87_opcode: Option<u16>,
    extent: Extent,
    /// Bytes of the operand of which the store is a part.
    operand_bytes: usize,
    source: Option<Source>,
}

impl Store {
    /// The store that the instruction at RIP makes in `state`.
    ///
    /// Segmentation has been checked as the processor does; paging has not, that is
    /// [`translate`](super::translate)'s.
    pub fn of(instruction: &GuestInstruction, state: &State) -> Result<Self, Refusal> {
        Self::with_substitute(instruction, state, None)
    }

    /// The same; `known` is what executed in the place of the same instruction before, if that depends
    /// on nothing but the instruction.
    pub(super) fn with_substitute(
        instruction: &GuestInstruction,
        state: &State,
        known: Option<&Substitute>,
    ) -> Result<Self, Refusal> {
        let x87_opcode = x87_opcode(instruction.bytes());
        let instruction = *instruction.instruction();
        if is_not_offered(instruction.mnemonic()) {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let form = Form::of(&instruction, state)?;
        let (name, offset, length) = destination(&instruction, form, state)?;
        let (linear, extent) = match form {
            // Which bytes of the operand have to be there is not known yet; or where a call goes, which
            // may have another stack.
            Form::Masked(_) | Form::Compress | Form::Scatter | Form::SaveState | Form::FarCall => {
                (segment::unchecked(state, name, offset), Extent::Open)
            }
            _ => (segment::linear(state, name, offset, length as u64, true)?, Extent::Whole),
        };
        let substitute = match form {
            Form::Operand { extended } => {
                match known.filter(|known| known.is_extended() == extended) {
                    Some(known) => Some(known.clone()),
                    None => Some(Substitute::for_operand(&instruction, extended)?),
                }
            }
            Form::BitString => Some(Substitute::for_bit_string(&instruction, state)?),
            Form::Masked(MaskKind::Signs { operand: 2 }) => {
                Some(Substitute::for_register(instruction.op1_register())?)
            }
            Form::Masked(_)
            | Form::Compress
            | Form::SaveState
            | Form::SaveFirst(_)
            | Form::RealEnvironment => Some(Substitute::for_operand(&instruction, true)?),
            _ => None,
        };
        let operand_bytes = length;
        let source = match form {
            Form::Operand { extended: false } => Source::of(&instruction),
            _ => None,
        };
        Ok(Self {
            linear,
            length,
            offset,
            form,
            substitute,
            instruction,
            x87_opcode,
            extent,
            operand_bytes,
            source,
        })
    }

    /// Linear address of the first byte.
    pub const fn linear(&self) -> u64 {
        self.linear
    }

    /// How many bytes: 1 to [`MAX_STORE_BYTES`].
    ///
    /// FXSAVE counts all 512 of its operand, although it leaves some of them as they are; where it leaves
    /// registers out, 288 or 160. Of an [open](Self::is_open) store it is the operand's.
    #[allow(clippy::len_without_is_empty)]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Where the bytes of a MOV come from.
    pub(super) const fn source(&self) -> Option<Source> {
        self.source
    }

    pub(super) const fn extent(&self) -> Extent {
        self.extent
    }

    /// Bytes of the operand of which the store is a part.
    pub(super) const fn operand_bytes(&self) -> usize {
        self.operand_bytes
    }

    pub(super) const fn with_extent(mut self, extent: Extent) -> Self {
        self.extent = extent;
        self
    }

    /// The part of the operand from byte `start` to byte `end`, which the segment has to permit.
    pub(super) fn narrowed(
        &self,
        state: &State,
        start: usize,
        end: usize,
        extent: Extent,
    ) -> Result<Self, Refusal> {
        let offset = self.offset.wrapping_add(start as u64) & address_mask(&self.instruction);
        let (name, length) = (self.instruction.memory_segment(), end - start);
        let linear = segment::linear(state, name, offset, length as u64, true)?;
        let part = Self { length, ..self.clone() };
        Ok(part.moved_to(linear, offset).with_extent(extent))
    }

    /// Whether the guest's extended registers take part.
    pub const fn uses_extended(&self) -> bool {
        match &self.substitute {
            Some(substitute) => substitute.is_extended(),
            None => matches!(self.form, Form::Scatter),
        }
    }

    /// Offset of the first byte in its segment.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// What the x87 notes as the opcode of an instruction of its own.
    pub(super) const fn x87_opcode(&self) -> Option<u16> {
        self.x87_opcode
    }

    pub(super) const fn form(&self) -> Form {
        self.form
    }

    pub(super) const fn instruction(&self) -> &Instruction {
        &self.instruction
    }

    /// Whether what is stored comes from a descriptor-table, segment or task register, or what is done
    /// from a descriptor.
    pub const fn needs_system_tables(&self) -> bool {
        matches!(self.form, Form::StoreTableRegister | Form::StoreSelector | Form::FarCall)
    }

    /// Whether the processor also asks for the right to write where the stack pointer then is, and writes
    /// nothing there: ENTER (SDM Vol. 2, "ENTER", exceptions).
    pub const fn probes_stack(&self) -> bool {
        matches!(self.form, Form::Enter)
    }

    /// Whether a repeat prefix means something.
    pub(super) const fn is_string(&self) -> bool {
        matches!(self.form, Form::StoreString | Form::MoveString)
    }

    /// The same store at another place.
    pub(super) const fn moved_to(mut self, linear: u64, offset: u64) -> Self {
        self.move_to(linear, offset);
        self
    }

    /// Moves it to another place.
    pub(super) const fn move_to(&mut self, linear: u64, offset: u64) {
        self.linear = linear;
        self.offset = offset;
    }

    /// What is executed in the instruction's place; `None` if its store is computed.
    pub const fn substitute(&self) -> Option<&Substitute> {
        self.substitute.as_ref()
    }
}

/// The last-instruction opcode of an x87 instruction: the low three bits of its first opcode byte,
/// and its ModRM byte (SDM Vol. 1, "Last Instruction Opcode").
///
/// None for other instructions, and for control instructions, which leave it alone: FNSTENV, FNSTCW,
/// FNSAVE and FNSTSW.
fn x87_opcode(bytes: &[u8]) -> Option<u16> {
    let is_prefix =
        |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67);
    let first = bytes.iter().position(|byte| !is_prefix(*byte))?;
    let (first, modrm) = (bytes[first], *bytes.get(first + 1)?);
    let is_control = matches!((first, modrm >> 3 & 7), (0xd9 | 0xdd, 6 | 7));
    let is_x87 = matches!(first, 0xd8..=0xdf) && !(is_control && modrm < 0xc0);
    is_x87.then(|| u16::from(first & 7) << 8 | u16::from(modrm))
}

/// Segment, offset and length of the destination.
fn destination(
    instruction: &Instruction,
    form: Form,
    state: &State,
) -> Result<(Name, u64, usize), Unsupported> {
    let operand = |state: &State| effective_address(instruction, 0, state);
    let named = instruction.memory_size().size();
    Ok(match form {
        Form::Operand { .. } | Form::Masked(_) | Form::Compress | Form::RealEnvironment => {
            (instruction.memory_segment(), operand(state), sized(named)?)
        }
        // The address is that of an element.
        Form::Scatter => (instruction.memory_segment(), 0, sized(named)?),
        Form::SaveState => (instruction.memory_segment(), operand(state), LINE_BYTES),
        Form::SaveFirst(bytes) => (instruction.memory_segment(), operand(state), bytes),
        Form::ZeroLine => {
            let name = match instruction.segment_prefix() {
                Name::None => Name::DS,
                name => name,
            };
            let mask = match instruction.code() {
                Code::Clzerow => 0xffff,
                Code::Clzerod => 0xffff_ffff,
                _ => u64::MAX,
            };
            let offset = register(state, Name::RAX) & mask & !(LINE_BYTES as u64 - 1);
            (name, offset, LINE_BYTES)
        }
        Form::CopyLine => (Name::ES, register(state, instruction.op0_register()), LINE_BYTES),
        Form::BitString => {
            let (displacement, bytes) = bit_string(instruction, state);
            let mask = address_mask(instruction);
            let offset = operand(state).wrapping_add(displacement) & mask;
            (instruction.memory_segment(), offset, bytes)
        }
        Form::PopMemory => {
            // The address is computed after RSP has moved.
            let mut popped = *state;
            let by = instruction.stack_pointer_increment();
            set_stack_pointer(&mut popped, stack_pointer(state).wrapping_add_signed(by.into()));
            (instruction.memory_segment(), operand(&popped), sized(named)?)
        }
        Form::StoreSelector | Form::StoreMachineStatus => {
            (instruction.memory_segment(), operand(state), 2)
        }
        Form::StoreTableRegister => {
            let bytes = if state.is_64_bit() { 10 } else { 6 };
            (instruction.memory_segment(), operand(state), bytes)
        }
        Form::StoreString | Form::MoveString => {
            if repeats(instruction) && count(instruction, state) == 0 {
                return Err(Unsupported::NoStore);
            }
            (Name::ES, effective_address(instruction, 0, state), sized(named)?)
        }
        Form::Push if is_narrow_push(instruction) => {
            let (name, pointer, _) = pushed(state, slot(instruction))?;
            (name, pointer, 2)
        }
        Form::Push | Form::PushAll | Form::PushFlags | Form::Call | Form::FarCall => {
            pushed(state, slot(instruction))?
        }
        Form::Enter => {
            let slots = match levels(instruction) {
                0 => 1,
                levels => levels + 1,
            };
            pushed(state, enter_slot(instruction) * slots)?
        }
    })
}

/// By how many bytes a push moves the stack pointer.
pub(super) fn slot(instruction: &Instruction) -> u32 {
    instruction.stack_pointer_increment().unsigned_abs()
}

/// By how many bytes ENTER moves the stack pointer for each register.
pub(super) const fn enter_slot(instruction: &Instruction) -> u32 {
    match instruction.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    }
}

/// The nesting level of ENTER.
pub(super) fn levels(instruction: &Instruction) -> u32 {
    u32::from(instruction.immediate8_2nd()) % 32
}

/// A push of a segment register with a slot of 4 bytes writes the selector only: recent processors
/// leave the rest of the slot as it is (SDM Vol. 2, "PUSH").
fn is_narrow_push(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register()
        && slot(instruction) == 4
}

fn pushed(state: &State, bytes: u32) -> Result<(Name, u64, usize), Unsupported> {
    let pointer = stack_pointer(state).wrapping_sub(bytes.into()) & stack_mask(state);
    let length = usize::try_from(bytes).map_err(|_| Unsupported::Unlisted)?;
    Ok((Name::SS, pointer, sized(length)?))
}

const fn sized(bytes: usize) -> Result<usize, Unsupported> {
    if 0 < bytes && bytes <= MAX_STORE_BYTES { Ok(bytes) } else { Err(Unsupported::Unlisted) }
}

/// The offset in its segment of memory operand `operand`, cut to the address size.
pub(super) fn effective_address(instruction: &Instruction, operand: u32, state: &State) -> u64 {
    let offset = instruction
        .virtual_address(operand, 0, |name, _, _| {
            Some(if name.is_segment_register() { 0 } else { register(state, name) })
        })
        .expect("every register has a value");
    offset
        & if operand_is_string(instruction.op_kind(operand)) {
            u64::MAX
        } else {
            address_mask(instruction)
        }
}

const fn operand_is_string(kind: OpKind) -> bool {
    !matches!(kind, OpKind::Memory)
}

/// The value of a general register, or of a part of one.
pub(super) fn register(state: &State, name: Name) -> u64 {
    let full = name.full_register();
    if !full.is_gpr64() {
        return 0;
    }
    let value = state.registers.0[full.number()];
    match name {
        Name::AH | Name::CH | Name::DH | Name::BH => value >> 8 & 0xff,
        _ => match name.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        },
    }
}

/// All ones as wide as the instruction's addresses.
pub(super) fn address_mask(instruction: &Instruction) -> u64 {
    let bytes = match instruction.op0_kind() {
        OpKind::MemoryESDI => 2,
        OpKind::MemoryESEDI => 4,
        OpKind::MemoryESRDI => 8,
        _ => {
            let (base, index) = (instruction.memory_base(), instruction.memory_index());
            match (base, index) {
                (Name::None, Name::None) => instruction.memory_displ_size(),
                (Name::None, index) => size_of_register(index),
                (base, _) => size_of_register(base),
            }
        }
    };
    match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn size_of_register(name: Name) -> u32 {
    match name.size() {
        2 => 2,
        4 => 4,
        _ => 8,
    }
}

/// Whether a string instruction has a repeat prefix; both have the same meaning for those that do
/// not compare.
pub(super) fn repeats(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// What is left of a repeated string instruction.
pub(super) fn count(instruction: &Instruction, state: &State) -> u64 {
    register(state, Name::RCX) & address_mask(instruction)
}

/// By how many bytes BTS, BTR or BTC with a register moves its operand, and the operand's size (SDM
/// Vol. 1, "Bit and Byte Instructions"; Vol. 2, "BTS").
fn bit_string(instruction: &Instruction, state: &State) -> (u64, usize) {
    let bytes = instruction.op1_register().size();
    // Sign-extended from the width of the operand, and rounded down to whole operands.
    let unused = 64 - 8 * bytes;
    let offset = (register(state, instruction.op1_register()) << unused).cast_signed() >> unused;
    let whole = offset >> (8 * bytes).trailing_zeros() << bytes.trailing_zeros();
    (whole.cast_unsigned(), bytes)
}

/// All ones as wide as the stack pointer.
pub(super) const fn stack_mask(state: &State) -> u64 {
    if state.is_64_bit() {
        u64::MAX
    } else if state.segments.ss.is_big() {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// The stack pointer, as wide as it is.
pub(super) fn stack_pointer(state: &State) -> u64 {
    state.registers[crate::guest::Register::Rsp] & stack_mask(state)
}

/// Sets the stack pointer, as wide as it is.
pub(super) fn set_stack_pointer(state: &mut State, to: u64) {
    let mask = stack_mask(state);
    let pointer = &mut state.registers[crate::guest::Register::Rsp];
    *pointer = *pointer & !mask | to & mask;
}
