//! A store form, and registers that bring its store to a place.

use iced_x86::IcedError;
use iced_x86::code_asm::{AsmMemoryOperand, CodeAssembler, rbx, rcx, rdx};
use kvm_bindings::kvm_regs;
use subpage_emulate::XsaveArea;

use crate::privilege::STACK;
use crate::random::Random;
use crate::stepper::Registers;

/// A plain page that string instructions and pushes read.
pub(super) const SOURCE: u64 = 0x62_0000;

/// How a form names its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// [`m`].
    Operand,
    /// [`by_dx`], for what needs CL.
    ByDx,
    /// R10, for what needs most other registers; aligned to so many bytes.
    R10(u64),
    /// [`m`], and a bit offset in R9.
    Bits,
    /// Its address in the code.
    Absolute,
    /// Below RSP; [`m`] is a source.
    Push,
    /// 0x10 above RSP as it is after the pop.
    Popped,
    /// RDI, from RSI.
    String,
    /// RAX; aligned to so many bytes.
    Rax(u64),
}

/// How a form differs from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quirk {
    /// Not at all.
    None,
    /// It compares RAX, or RDX:RAX, with its destination: to be equal.
    Equal,
    /// KVM tries it over and over until it is caught at it: only a few spots.
    Slow,
    /// It changes a register of its address, so it cannot be found afterwards.
    Lost,
    /// It stores what a KVM that runs CPL 3 without the processor's help hides from it: its selectors
    /// and the interrupt flag. CPL 0 is the judge.
    Hidden,
    /// KVM's emulator may not have it: only where the processor executes it.
    Native,
    /// KVM's emulator stores the part in a page that does not trap before it fails at the other.
    Early,
    /// It is several stores, of which the processor makes those to a page that does not trap before it
    /// comes to the others.
    Pieces,
    /// It stores the elements whose sign is set in vector register 8 (of 8 bytes) or 9.
    Masked,
    /// It saves the components in EAX.
    Saves,
}

/// A store form.
pub(super) struct Form {
    pub(super) name: &'static str,
    /// How many bytes it stores.
    pub(super) bytes: u64,
    pub(super) place: Place,
    pub(super) quirk: Quirk,
    /// Given the destination.
    pub(super) assemble: Assemble,
}

type Assemble = fn(&mut CodeAssembler, u64) -> Result<(), IcedError>;

/// A form like most.
pub(super) const fn form(name: &'static str, bytes: u64, place: Place, assemble: Assemble) -> Form {
    Form { name, bytes, place, quirk: Quirk::None, assemble }
}

impl Form {
    pub(super) const fn but(self, quirk: Quirk) -> Self {
        Self { quirk, ..self }
    }
}

/// The destination that most forms name.
pub(super) fn m() -> AsmMemoryOperand {
    rbx + rcx * 2 + 0x15
}

/// Another.
pub(super) fn by_dx() -> AsmMemoryOperand {
    rbx + rdx * 1
}

impl Form {
    pub(super) fn alignment(&self) -> u64 {
        match self.place {
            Place::R10(alignment) | Place::Rax(alignment) => alignment,
            _ => 1,
        }
    }

    /// Random registers with which the code from `rip` to `next` stores at `linear`, whose bytes are
    /// `current`.
    pub(super) fn registers(
        &self,
        random: &mut Random,
        rip: u64,
        next: u64,
        linear: u64,
        current: &[u8],
    ) -> Registers {
        const STATUS: u64 = 0x8d5;
        let mut any = || random.next();
        let mut general = kvm_regs {
            rax: any(),
            rbx: any(),
            rdx: any() % 300,
            rbp: any(),
            r8: any(),
            r9: any(),
            r11: any(),
            r12: any(),
            r13: any(),
            r14: any(),
            r15: any(),
            ..kvm_regs::default()
        };
        general.rip = rip;
        general.rflags = 2 | any() & STATUS;
        general.rcx = random.below(128).wrapping_sub(64);
        general.rsp = STACK - 0x800 - random.below(0x100) * 8;
        general.rsi = SOURCE + random.below(0x400);
        general.rdi = linear;
        general.r10 = linear;
        let index = general.rcx.wrapping_mul(2).wrapping_add(0x15);
        let mut target = linear;
        match self.place {
            Place::ByDx => {
                general.rbx = linear.wrapping_sub(general.rdx);
                return Registers { general, extended: extended(random) };
            }
            Place::Bits => {
                let width = 8 * self.bytes;
                let bits = random.below(8192).wrapping_sub(4096);
                // Parts that do not count are anything.
                let mask = u64::MAX >> (64 - width);
                general.r9 = general.r9 & !mask | bits & mask;
                let whole = bits.cast_signed().div_euclid(width.cast_signed());
                target = linear.wrapping_sub((whole * self.bytes.cast_signed()).cast_unsigned());
            }
            Place::Push => {
                general.rsp = linear + self.bytes;
                // ENTER reads frame pointers below it.
                general.rbp = SOURCE + 0x900 + random.below(0x80) * 8;
                general.r9 = next;
                target = SOURCE + 0x800;
            }
            Place::Rax(_) => general.rax = linear,
            Place::Popped => general.rsp = linear - 0x10 - self.bytes,
            _ => {}
        }
        general.rbx = target.wrapping_sub(index);
        if self.quirk == Quirk::Equal {
            let mut bytes = [0; 16];
            bytes[..current.len()].copy_from_slice(current);
            let value = u128::from_le_bytes(bytes);
            let part = |bits: u32| u64::try_from(value >> bits & u128::from(u64::MAX)).unwrap();
            match (self.place, self.bytes) {
                (Place::R10(_), 8) => {
                    (general.rax, general.rdx) = (part(0) & 0xffff_ffff, part(32));
                }
                (Place::R10(_), _) => (general.rax, general.rdx) = (part(0), part(64)),
                (_, 8) => general.rax = part(0),
                (_, bytes) => {
                    let mask = (1 << (8 * bytes)) - 1;
                    general.rax = general.rax & !mask | part(0) & mask;
                }
            }
        }
        let mut extended = extended(random);
        match self.quirk {
            Quirk::Masked => mask(&mut extended),
            Quirk::Saves => {
                // x87, SSE and AVX; none is in its initial state. No others: a KVM that runs CPL 3
                // without the processor's help may leave the host's XCR0 in force there.
                general.rax = general.rax & !0xffff_ffff | 7;
                general.rdx &= !0xffff_ffff;
                extended.0[160..416].fill(0x5a);
                extended.0[576..832].fill(0xa5);
            }
            _ => {}
        }
        Registers { general, extended }
    }
}

/// Sets the masks: the ends of the operand are stored, and not all that lies between.
fn mask(area: &mut XsaveArea) {
    let bytes = &mut area.0;
    for register in [8, 9] {
        let (low, high) = (160 + 16 * register, 576 + 16 * register);
        bytes[low..low + 16].fill(0xff);
        bytes[high..high + 16].fill(0xff);
    }
    // Of elements of 8 bytes the second; of those of 4 bytes, and of bytes, those from 4 on.
    let low = 160 + 16 * 8;
    bytes[low + 8..low + 16].fill(0);
    let (low, high) = (160 + 16 * 9, 576 + 16 * 9);
    bytes[low + 4..low + 8].fill(0);
    bytes[high + 4..high + 8].fill(0);
}

/// Random x87, SSE and AVX registers; no exception is unmasked.
#[allow(clippy::cast_possible_truncation)] // Random bits.
fn extended(random: &mut Random) -> Box<XsaveArea> {
    let mut area = Box::new(XsaveArea::INITIAL);
    let bytes = &mut area.0;
    bytes[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    bytes[3] = (random.below(8) << 3).to_le_bytes()[0];
    bytes[4] = 0xff;
    for register in 0..8 {
        let at = 32 + 16 * register;
        bytes[at..at + 10].copy_from_slice(&random.bytes(10));
        // Some are numbers of a size that integers have.
        if random.below(2) == 0 {
            let exponent = 0x3fff_u16 + u16::try_from(random.below(30)).unwrap();
            bytes[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
            bytes[at + 7] |= 0x80;
        }
    }
    // All masked; rounding, denormals and flags are anything.
    let mxcsr = 0x1f80 | random.next() as u32 & 0xe07f;
    bytes[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    // Components that follow: x87, SSE, AVX.
    bytes[512..520].copy_from_slice(&7_u64.to_le_bytes());
    // Zeros are the initial state, which processors and KVM treat in a way of its own.
    if random.below(4) != 0 {
        bytes[160..416].copy_from_slice(&random.bytes(256));
        bytes[576..832].copy_from_slice(&random.bytes(256));
    }
    area
}
