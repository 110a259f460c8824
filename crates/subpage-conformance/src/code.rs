//! Machine code of a step: each instruction loads its own operands, VMCALL ends the step.

use subpage_vmx::conformance::format::guest;

use crate::case::{Step, Word};
use crate::instruction::{Instruction, Modify, Size, Wide};
use crate::layout::{self, FXSAVE_IMAGE, VECTOR, frame, harness, word};

/// The bytes of VMCALL.
pub(crate) const VMCALL: [u8; 3] = [0x0F, 0x01, 0xC1];

/// Numbers of registers in instructions.
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// A step's code and where in it each access begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Code {
    /// The bytes from [`guest::RIP`] on.
    pub(crate) bytes: Vec<u8>,
    /// Per instruction the linear address and the length of the one that makes the access.
    pub(crate) accesses: Vec<(u64, u8)>,
}

impl Code {
    /// Assembles a step.
    pub(crate) fn of(instructions: &[Instruction]) -> Self {
        let mut code = Self::default();
        for instruction in instructions {
            code.add(instruction);
        }
        code.bytes.extend(VMCALL);
        code
    }

    /// Linear address of what comes next.
    fn here(&self) -> u64 {
        guest::RIP + self.bytes.len() as u64
    }

    /// MOV of a 64-bit immediate value.
    fn set(&mut self, register: u8, value: u64) {
        self.bytes.extend([0x48, 0xB8 + register]);
        self.bytes.extend(value.to_le_bytes());
    }

    /// The instruction that makes the access.
    #[allow(clippy::cast_possible_truncation)]
    fn access(&mut self, bytes: &[u8]) {
        self.accesses.push((self.here(), bytes.len() as u8));
        self.bytes.extend(bytes);
    }

    fn add(&mut self, instruction: &Instruction) {
        match *instruction {
            Instruction::Load { at, size } => {
                self.set(RDI, at);
                // MOV r, r/m with [RDI] and RAX.
                self.access(&sized(size, &[], 0x8A));
            }
            Instruction::Store { at, size, value } => {
                self.set(RDI, at);
                self.set(RAX, value);
                // MOV r/m, r.
                self.access(&sized(size, &[], 0x88));
            }
            Instruction::Modify { at, size, kind, value, compare } => {
                self.set(RDI, at);
                self.set(RCX, value);
                self.set(RAX, compare);
                // With [RDI] and RCX.
                let with_rcx = |mut bytes: Vec<u8>| {
                    *bytes.last_mut().expect("an instruction has bytes") |= RCX << 3;
                    bytes
                };
                let bytes = match kind {
                    Modify::Add => sized(size, &[], 0x00),
                    Modify::LockAdd => sized(size, &[0xF0], 0x00),
                    Modify::Exchange => sized(size, &[], 0x86),
                    Modify::CompareExchange => {
                        let mut bytes = sized(size, &[0xF0], 0xB0);
                        bytes.insert(bytes.len() - 2, 0x0F);
                        bytes
                    }
                };
                self.access(&with_rcx(bytes));
            }
            Instruction::CompareExchange16 { at, value } => {
                self.set(RDI, at);
                self.set(RAX, 0);
                self.set(RDX, 0);
                self.set(RBX, value);
                self.set(RCX, value);
                self.access(&[0xF0, 0x48, 0x0F, 0xC7, 0x0F]);
            }
            Instruction::LoadWide { at, size } => {
                self.set(RDI, at);
                self.access(&wide(size, 0x10));
                self.set(RDI, harness(frame::SCRATCH));
                self.bytes.extend(wide(size, 0x11));
            }
            Instruction::StoreWide { at, size, source } => {
                self.set(RDI, harness(frame::SOURCE) + u64::from(source));
                self.bytes.extend(wide(size, 0x10));
                self.set(RDI, at);
                self.access(&wide(size, 0x11));
            }
            Instruction::SaveState { at } => {
                self.set(RDI, FXSAVE_IMAGE);
                // FXRSTOR64 [RDI], FXSAVE64 [RDI].
                self.bytes.extend([0x48, 0x0F, 0xAE, 0x0F]);
                self.set(RDI, at);
                self.access(&[0x48, 0x0F, 0xAE, 0x07]);
            }
            Instruction::Push { stack, value } => {
                self.set(RSP, stack);
                self.set(RAX, value);
                self.access(&[0x50]);
            }
            Instruction::Call { stack } => {
                self.set(RSP, stack);
                // The address behind this MOV of 10 bytes and the CALL of 2.
                self.set(RAX, self.here() + 12);
                self.access(&[0xFF, 0xD0]);
            }
            Instruction::Interrupt { stack } => {
                self.set(RSP, stack);
                self.access(&[0xCD, VECTOR]);
            }
            Instruction::Fill { at, size, count, value, backward } => {
                self.set(RDI, at);
                self.set(RCX, count.into());
                self.set(RAX, value);
                self.string(size, 0xAA, backward);
            }
            Instruction::Copy { from, to, size, count, backward } => {
                self.set(RSI, from);
                self.set(RDI, to);
                self.set(RCX, count.into());
                self.string(size, 0xA4, backward);
            }
            Instruction::Invalidate { at } => {
                self.set(RDI, at);
                // INVLPG [RDI].
                self.access(&[0x0F, 0x01, 0x3F]);
            }
            Instruction::Jump { to } => {
                self.set(RDI, to);
                self.access(&[0xFF, 0xE7]);
            }
        }
    }

    /// STD or CLD, and a string instruction with REP.
    fn string(&mut self, size: Size, opcode: u8, backward: bool) {
        self.bytes.push(if backward { 0xFD } else { 0xFC });
        let mut bytes = sized(size, &[0xF3], opcode);
        bytes.pop();
        self.access(&bytes);
    }
}

/// An instruction with a byte form at `opcode` and other sizes at the next one, on [RDI] and RAX.
fn sized(size: Size, prefix: &[u8], opcode: u8) -> Vec<u8> {
    let mut bytes = prefix.to_vec();
    match size {
        Size::Word => bytes.push(0x66),
        Size::Quad => bytes.push(0x48),
        Size::Byte | Size::Double => {}
    }
    bytes.push(if size == Size::Byte { opcode } else { opcode + 1 });
    bytes.push(RDI);
    bytes
}

/// MOVUPS or VMOVUPS with [RDI] and register 0.
fn wide(size: Wide, opcode: u8) -> Vec<u8> {
    match size {
        Wide::Xmm => vec![0x0F, opcode, RDI],
        Wide::Ymm => vec![0xC5, 0xFC, opcode, RDI],
    }
}

/// The words that a step needs besides its own: its code, and harness and task state as its mode
/// wants them.
pub(crate) fn words(step: &Step) -> Vec<Word> {
    let code = Code::of(&step.instructions);
    assert!(code.bytes.len() <= 0x1000, "the code of a step has one page");
    let padded = code.bytes.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    });
    let code = (0..).zip(padded).map(|(index, value)| (word(frame::CODE, index), value));
    let mut words: Vec<_> = code.collect();
    words.extend(layout::harness_leaves(step.mode.user));
    // An interrupt at CPL 3 takes its stack from the task state; it is a step's first instruction.
    if let Some(Instruction::Interrupt { stack }) = step.instructions.first() {
        words.extend(layout::stack_of_level_0(*stack));
    }
    words
}
