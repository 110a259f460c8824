//! Stores whose bytes depend on more than general registers: on a mask, on an index, on XCR0, on a
//! descriptor.
//!
//! [`Store::of`] tells no more than the operand of such a store. [`Executor::settle`] reads the mask, the
//! index, XCR0 or the descriptor, and tells which bytes are written: only those are decided about, and only their pages
//! have to be there.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, Register as Name};

use super::extended::Addresses;
use super::form::{Form, MaskKind};
use super::store::{Refusal, Store, address_mask, register};
use super::substitute::Substitute;
use super::trampoline::GuestRegisters;
use super::{Executor, Scratch, TrampolineFault, Unsupported, segment, xsave};
use crate::guest::{PhysicalMemory, State};

/// Which bytes of a store's operand are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All.
    Whole,
    /// It takes registers to know.
    Open,
    /// Elements of `unit` bytes: those whose bit in `which` is set, the lowest bit for the store's
    /// first byte. `skipped` elements of the operand come before it.
    Elements { unit: usize, which: u64, skipped: u32 },
    /// One element of a scatter, and the elements that are to be stored, this one included.
    Scattered { element: u32, mask: u64 },
    /// State components that XSAVE or its kin was asked for and that XCR0 enables.
    Components(u64),
}

impl Store {
    /// Whether [`Executor::settle`] has to tell its bytes.
    pub const fn is_open(&self) -> bool {
        matches!(self.extent(), Extent::Open)
    }

    /// Whether nothing may be left to write, and then the instruction changes nothing at all: its mask is
    /// zero. Processors may ask for the page all the same.
    pub const fn may_be_nothing(&self) -> bool {
        matches!(self.form(), Form::Masked(_) | Form::Compress)
    }

    /// Whether it takes XCR0 to know.
    pub const fn needs_xcr0(&self) -> bool {
        matches!(self.form(), Form::SaveState)
    }

    /// Whether it is one element of a scatter.
    pub const fn is_element(&self) -> bool {
        matches!(self.extent(), Extent::Scattered { .. })
    }

    /// The bytes of the store that are written, relative to the first; one bit a byte. `None` if all
    /// are.
    ///
    /// A store with bytes that are not written has at most 64, and its first and last are written.
    pub fn written(&self) -> Option<u64> {
        let Extent::Elements { unit, which, .. } = self.extent() else { return None };
        let ones = (1 << unit) - 1;
        let elements = (0..self.length() / unit).filter(|element| which >> element & 1 != 0);
        let written = elements.fold(0, |bytes, element| bytes | ones << (element * unit));
        let all = u64::MAX >> (64 - self.length().min(64));
        (written != all).then_some(written)
    }
}

/// The elements of an operand.
#[derive(Debug, Clone, Copy)]
struct Elements {
    unit: usize,
    count: usize,
}

impl Elements {
    fn of(instruction: &Instruction, operand_bytes: usize) -> Self {
        let unit = match instruction.mnemonic() {
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => 1,
            _ => instruction.memory_size().element_size().max(1),
        };
        Self { unit, count: operand_bytes / unit }
    }

    const fn all(self) -> u64 {
        u64::MAX >> (64 - self.count)
    }
}

impl<M: PhysicalMemory> Executor<'_, M> {
    /// Tells which bytes a store [writes](Store::written) whose operand alone is known; any other store
    /// as it is.
    ///
    /// `state` must be that for which the store was found. `xcr0` tells the guest's XCR0, and is asked
    /// for XSAVE and its kin only. Of a scatter the result is its next element.
    ///
    /// Errors: [`Unsupported::NoStore`] if nothing is written; exceptions that come before the store.
    pub fn settle(
        &mut self,
        store: &Store,
        state: &State,
        xcr0: impl FnOnce() -> u64,
    ) -> Result<Store, Refusal> {
        if !store.is_open() {
            return Ok(store.clone());
        }
        match store.form() {
            Form::Masked(kind) => self.masked(store, state, kind),
            Form::Compress => self.compressed(store, state),
            Form::Scatter => self.scattered(store, state),
            Form::SaveState => xsave::settle(store, state, xcr0()),
            Form::FarCall => self.settle_far_call(store, state),
            form => unreachable!("{form:?} is never open"),
        }
    }

    fn masked(&mut self, store: &Store, state: &State, kind: MaskKind) -> Result<Store, Refusal> {
        let instruction = store.instruction();
        let elements = Elements::of(instruction, store.length());
        let mask = match kind {
            MaskKind::Opmask => self.opmask(instruction.op_mask(), elements.count, state)?,
            MaskKind::Signs { operand } => {
                self.signs(instruction.op_register(operand), elements, state)?
            }
        };
        let mask = mask & elements.all();
        if mask == 0 {
            return Err(Unsupported::NoStore.into());
        }
        let skipped = mask.trailing_zeros();
        let which = mask >> skipped;
        let start = skipped as usize * elements.unit;
        let end = start + (64 - which.leading_zeros()) as usize * elements.unit;
        let extent = Extent::Elements { unit: elements.unit, which, skipped };
        store.narrowed(state, start, end, extent)
    }

    fn compressed(&mut self, store: &Store, state: &State) -> Result<Store, Refusal> {
        let instruction = store.instruction();
        let elements = Elements::of(instruction, store.length());
        let mask = match instruction.op_mask() {
            Name::None | Name::K0 => elements.all(),
            name => self.opmask(name, elements.count, state)? & elements.all(),
        };
        if mask == 0 {
            return Err(Unsupported::NoStore.into());
        }
        let count = mask.count_ones() as usize;
        let which = u64::MAX >> (64 - count);
        let extent = Extent::Elements { unit: elements.unit, which, skipped: 0 };
        store.narrowed(state, 0, count * elements.unit, extent)
    }

    fn scattered(&mut self, store: &Store, state: &State) -> Result<Store, Refusal> {
        let instruction = store.instruction();
        let index_unit = if instruction.is_vsib64() { 8 } else { 4 };
        let (index, data) = (instruction.memory_index(), instruction.op1_register());
        let count = (index.size() / index_unit).min(data.size() / store.length());
        let all = u64::MAX >> (64 - count);
        let mask = self.opmask(instruction.op_mask(), count, state)? & all;
        if mask == 0 {
            return Err(Unsupported::NoStore.into());
        }
        let element = mask.trailing_zeros();
        let at = element as usize * index_unit;
        let indices = self.vector(index, state)?;
        let value = match indices[at..at + index_unit] {
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => i64::from_le_bytes(indices[at..at + 8].try_into().expect("eight bytes")),
        };
        let base = instruction.memory_base();
        let base = if base == Name::None { 0 } else { register(state, base) };
        let scale = u64::from(instruction.memory_index_scale());
        let mask_of_address = if instruction.memory_base() == Name::None {
            if instruction.memory_displ_size() == 8 || state.is_64_bit() {
                u64::MAX
            } else {
                0xffff_ffff
            }
        } else {
            address_mask(instruction)
        };
        let offset = base
            .wrapping_add(value.cast_unsigned().wrapping_mul(scale))
            .wrapping_add(instruction.memory_displacement64())
            & mask_of_address;
        let length = store.length() as u64;
        let linear = segment::linear(state, instruction.memory_segment(), offset, length, true)?;
        let extent = Extent::Scattered { element, mask };
        Ok(store.clone().moved_to(linear, offset).with_extent(extent))
    }

    /// The first `count` bits of an opmask register. K0 as a mask is all ones.
    fn opmask(&mut self, name: Name, count: usize, state: &State) -> Result<u64, Refusal> {
        if matches!(name, Name::None | Name::K0) {
            return Ok(u64::MAX);
        }
        // The wider form needs AVX512BW, which elements of that number have anyway.
        let (code, bytes) =
            if count <= 16 { (Code::VEX_Kmovw_m16_kr, 2) } else { (Code::VEX_Kmovq_m64_kr, 8) };
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.stored(code, name, state)?[..bytes]);
        Ok(u64::from_le_bytes(value))
    }

    /// One bit for each element of a register whose highest bit is set.
    fn signs(&mut self, name: Name, elements: Elements, state: &State) -> Result<u64, Refusal> {
        let value = self.vector(name, state)?;
        let signs = value.chunks_exact(elements.unit).take(elements.count);
        Ok(signs.enumerate().fold(0, |mask, (number, element)| {
            mask | u64::from(element[elements.unit - 1] >> 7) << number
        }))
    }

    /// The value of an MMX or vector register; what it is shorter than 64 bytes is 0.
    pub(super) fn vector(&mut self, name: Name, state: &State) -> Result<[u8; 64], Refusal> {
        if name.is_mm() {
            let mut value = [0; 64];
            value[..8].copy_from_slice(&self.extended.mmx(name.number()));
            return Ok(value);
        }
        let code = match name {
            name if name.is_zmm() || name.number() >= 16 => {
                let number = u32::try_from(name.number()).expect("less than 32");
                let wide = Name::ZMM0 + number;
                return self.stored(Code::EVEX_Vmovups_zmmm512_k1z_zmm, wide, state);
            }
            name if name.is_ymm() => Code::VEX_Vmovups_ymmm256_ymm,
            _ => Code::Movups_xmmm128_xmm,
        };
        self.stored(code, name, state)
    }

    /// What an instruction with a register as its only source stores.
    fn stored(&mut self, code: Code, name: Name, state: &State) -> Result<[u8; 64], Refusal> {
        let to = MemoryOperand::with_base(Name::RBX);
        let instruction = Instruction::with2(code, to, name).map_err(|_| Unsupported::Unlisted)?;
        let mut value = [0; 64];
        let length = instruction.memory_size().size();
        let mut scratch = Scratch::new(0, &value[..length]);
        let substitute = Substitute::for_operand(&instruction, true)?;
        self.run_on(&substitute, &mut scratch, state).map_err(Refusal::by)?;
        value[..length].copy_from_slice(scratch.bytes());
        Ok(value)
    }

    /// Loads an opmask register.
    pub(super) fn set_opmask(
        &mut self,
        name: Name,
        value: u64,
        state: &State,
    ) -> Result<(), TrampolineFault> {
        let from = MemoryOperand::with_base(Name::RBX);
        let instruction = Instruction::with2(Code::VEX_Kmovw_kr_km16, name, from)
            .expect("an instruction that exists");
        let substitute =
            Substitute::for_operand(&instruction, true).expect("an instruction that is encoded");
        let mut scratch = Scratch::new(0, &value.to_le_bytes()[..2]);
        self.run_on(&substitute, &mut scratch, state)
    }

    /// Runs an instruction on bytes of our own. Of the guest's registers only extended ones change.
    pub(super) fn run_on(
        &mut self,
        substitute: &Substitute,
        scratch: &mut Scratch,
        state: &State,
    ) -> Result<(), TrampolineFault> {
        let (mut registers, mut rflags) = (state.registers, state.rflags);
        let mut guest = GuestRegisters {
            addresses: Addresses { rip: state.rip, offset: 0, x87_opcode: None },
            registers: &mut registers,
            rflags: &mut rflags,
            extended: self.extended.reborrow(),
        };
        self.trampoline.run(substitute, &mut scratch.window(), &mut guest)
    }
}
