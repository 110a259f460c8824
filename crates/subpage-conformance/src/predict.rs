//! The model's prediction of a case: instruction by instruction, until something exits.

use subpage::address::{Hpa, PhysicalWidth};
use subpage::exit::ExitReason;
use subpage::frames::TableFrame;
use subpage_model::{Deviations, Features, Roots, Staleness, Vcpu};
use subpage_vmx::conformance::format::guest;

use crate::arena::Arena;
use crate::case::{Case, Mode, Step};
use crate::code::{self, Code};
use crate::instruction::{Instruction, Modify, Size};
use crate::layout::{self, FXSAVE_BYTES, FXSAVE_IMAGE, HANDLER, VECTOR, frame, harness, host};
use crate::outcome::{EXCEPTION, Observed, VMCALL};
use crate::stepped_cpu::{SteppedCpu, Stop};
use crate::translation::Translations;

/// The case touches memory outside of the arena, or is no sensible guest: nothing is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Useless;

/// What is predicted: a processor and where it departs from the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // what a processor has or has not
pub(crate) struct ModelledProcessor {
    /// Whether it has sub-page write permissions.
    pub(crate) sub_page: bool,
    /// Whether EPT violations tell what the guest's paging structures allow.
    pub(crate) advanced_information: bool,
    /// Whether it has SMAP (all have SMEP).
    pub(crate) smap: bool,
    /// Whether it has shadow stacks.
    pub(crate) shadow_stacks: bool,
    /// How it differs.
    pub(crate) deviations: Deviations,
}

impl ModelledProcessor {
    fn features(self, width: u8) -> Features {
        let width = PhysicalWidth::try_new(width.into()).expect("a legal width");
        Features {
            sub_page_write_permissions: self.sub_page,
            advanced_information: self.advanced_information,
            ..Features::new(width)
        }
    }

    /// Predicts every step of a case, on a processor like those of Bochs.
    pub(crate) fn predict(self, case: &Case) -> Result<Vec<Observed>, Useless> {
        self.predict_on(case, 40, Staleness::UntilExit)
    }

    /// Predicts every step of a case, with physical addresses of so many bits and a cache of that kind.
    pub(crate) fn predict_on(
        self,
        case: &Case,
        width: u8,
        staleness: Staleness,
    ) -> Result<Vec<Observed>, Useless> {
        let features = self.features(width);
        let table = |number| TableFrame::try_new(Hpa::new(host(number))).expect("4 KiB aligned");
        let roots = Roots {
            ept: table(frame::EPT_L4),
            ept_accessed_dirty: case.accessed_dirty,
            sppt: case.sub_page.then(|| table(frame::SPPT_L4)),
        };
        roots.check(&features).map_err(|_| Useless)?;
        let mut arena = Arena::new();
        arena.store_words(layout::template());
        arena.store_words(&case.stores);
        let vcpu = Vcpu::new(features, self.deviations, staleness);
        let guest = SteppedCpu {
            arena,
            vcpu,
            roots,
            cr3: case.cr3,
            mode: Mode::default(),
            user: false,
            shadow_stacks: self.shadow_stacks,
            translations: Translations::default(),
        };
        let mut run = Run { guest, registers: Registers::default(), vectoring: 0, performed: 0 };
        case.steps.iter().map(|step| run.step(step)).collect()
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Registers {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rbx: u64,
    rsp: u64,
    rsi: u64,
    rdi: u64,
}

impl Registers {
    fn in_order(self) -> [u64; 8] {
        [self.rax, self.rcx, self.rdx, self.rbx, self.rsp, 0, self.rsi, self.rdi]
    }
}

struct Run {
    guest: SteppedCpu,
    registers: Registers,
    /// IDT-vectoring information of an exit now.
    vectoring: u32,
    /// Instructions of the step begun so far.
    performed: usize,
}

/// Where a stopped access belongs to.
struct At {
    rip: u64,
    /// Length of the instruction, if it had been fetched.
    length: Option<u32>,
}

impl Run {
    fn step(&mut self, step: &Step) -> Result<Observed, Useless> {
        self.guest.arena.store_words(&step.stores);
        self.guest.arena.store_words(&code::words(step));
        self.guest.arena.begin();
        self.guest.vcpu.invept();
        self.guest.translations.clear();
        (self.guest.mode, self.guest.user) = (step.mode, step.mode.user);
        self.registers = Registers { rsp: guest::RSP, ..Registers::default() };
        (self.vectoring, self.performed) = (0, 0);
        let mut outcome = self.execute(&step.instructions)?;
        if self.guest.arena.was_left() {
            return Err(Useless);
        }
        outcome.changed = self.guest.arena.changes();
        Ok(outcome)
    }

    fn execute(&mut self, instructions: &[Instruction]) -> Result<Observed, Useless> {
        let code = Code::of(instructions);
        if let Err(stop) = self.guest.fetch(guest::RIP, &mut [0]) {
            return self.stopped(stop, &At { rip: guest::RIP, length: None });
        }
        for (instruction, (rip, length)) in instructions.iter().zip(&code.accesses) {
            self.performed += 1;
            if let Err(stop) = self.perform(instruction, *rip + u64::from(*length)) {
                return self.stopped(stop, &At { rip: *rip, length: Some((*length).into()) });
            }
            match *instruction {
                Instruction::Jump { to } => {
                    if let Err(stop) = self.fetch_vmcall(to) {
                        return self.stopped(stop, &At { rip: to, length: None });
                    }
                    return Ok(self.vmcall(to));
                }
                Instruction::Interrupt { .. } => return Ok(self.vmcall(HANDLER)),
                _ => {}
            }
        }
        let end = guest::RIP + code.bytes.len() as u64 - code::VMCALL.len() as u64;
        Ok(self.vmcall(end))
    }

    /// Fetches a VMCALL, one page after the other: bytes of the first that begin another instruction
    /// would let the processor do who knows what.
    fn fetch_vmcall(&mut self, linear: u64) -> Result<(), Stop> {
        let in_first = to_usize(0x1000 - linear % 0x1000).min(code::VMCALL.len());
        let (first, second) = code::VMCALL.split_at(in_first);
        for (linear, expected) in [(linear, first), (linear + in_first as u64, second)] {
            let mut bytes = code::VMCALL;
            let bytes = &mut bytes[..expected.len()];
            if !expected.is_empty() {
                self.guest.fetch(linear, bytes)?;
            }
            if bytes != expected {
                return Err(Stop::Useless);
            }
        }
        Ok(())
    }

    fn vmcall(&self, rip: u64) -> Observed {
        Observed {
            reason: VMCALL,
            qualification: None,
            gpa: None,
            gla: None,
            event: None,
            error: None,
            vectoring: 0,
            length: Some(3),
            rip,
            registers: self.registers.in_order(),
            changed: Vec::new(),
            performed: self.performed,
        }
    }

    fn stopped(&self, stop: Stop, at: &At) -> Result<Observed, Useless> {
        let common = Observed { vectoring: self.vectoring, length: None, ..self.vmcall(at.rip) };
        match stop {
            Stop::Useless => Err(Useless),
            Stop::GeneralProtection => Ok(Observed {
                reason: EXCEPTION,
                // Valid, with error code, hardware exception, vector 13.
                event: Some(0x8000_0B0D),
                error: Some(0),
                ..common
            }),
            Stop::PageFault { linear, error } => Ok(Observed {
                reason: EXCEPTION,
                qualification: Some(linear),
                // Valid, with error code, hardware exception, vector 14.
                event: Some(0x8000_0B0E),
                error: Some(error),
                ..common
            }),
            Stop::Exit(exit) => {
                // SDM Vol. 3C, "EPT Misconfigurations": nothing but the address is defined.
                let misconfiguration = exit.reason == ExitReason::EPT_MISCONFIGURATION;
                Ok(Observed {
                    reason: exit.reason.0.into(),
                    qualification: (!misconfiguration).then_some(exit.qualification),
                    gpa: Some(exit.gpa.as_u64()),
                    gla: exit.gla,
                    length: at.length,
                    ..common
                })
            }
        }
    }

    /// Loads the operands and makes the access; `next` is the address of the next instruction.
    fn perform(&mut self, instruction: &Instruction, next: u64) -> Result<(), Stop> {
        let (guest, registers) = (&mut self.guest, &mut self.registers);
        match *instruction {
            Instruction::Load { at, size } => {
                registers.rdi = at;
                let mut bytes = [0; 8];
                guest.read(at, operand(&mut bytes, size))?;
                registers.rax = merge(registers.rax, u64::from_le_bytes(bytes), size);
            }
            Instruction::Store { at, size, value } => {
                (registers.rdi, registers.rax) = (at, value);
                guest.write(at, operand(&mut value.to_le_bytes(), size))?;
            }
            Instruction::Modify { at, size, kind, value, compare } => {
                (registers.rdi, registers.rcx, registers.rax) = (at, value, compare);
                guest.modify(at, size.bytes(), |bytes| modify(bytes, size, kind, registers))?;
            }
            Instruction::CompareExchange16 { at, value } => {
                *registers =
                    Registers { rdi: at, rax: 0, rdx: 0, rbx: value, rcx: value, ..*registers };
                guest.modify(at, 16, |bytes| {
                    let (low, high) = bytes.split_at_mut(8);
                    let halves = [&*low, &*high].map(quad);
                    if halves == [0, 0] {
                        low.copy_from_slice(&value.to_le_bytes());
                        high.copy_from_slice(&value.to_le_bytes());
                    } else {
                        [registers.rax, registers.rdx] = halves;
                    }
                })?;
            }
            Instruction::LoadWide { at, size } => {
                registers.rdi = at;
                let mut buffer = [0; 32];
                let bytes = &mut buffer[..to_usize(size.bytes())];
                guest.read(at, bytes)?;
                registers.rdi = harness(frame::SCRATCH);
                guest.write(harness(frame::SCRATCH), bytes)?;
            }
            Instruction::StoreWide { at, size, source } => {
                registers.rdi = at;
                let mut buffer = [0; 32];
                let bytes = &mut buffer[..to_usize(size.bytes())];
                guest.read(harness(frame::SOURCE) + u64::from(source), bytes)?;
                guest.write(at, bytes)?;
            }
            Instruction::SaveState { at } => {
                registers.rdi = at;
                let mut bytes = [0; FXSAVE_BYTES];
                for (offset, part) in (FXSAVE_IMAGE..).step_by(16).zip(bytes.chunks_mut(16)) {
                    guest.read(offset, part)?;
                }
                let parts: Vec<_> = (at..).step_by(16).zip(bytes.chunks(16)).collect();
                guest.write_parts(&parts)?;
            }
            Instruction::Push { stack, value } => {
                (registers.rsp, registers.rax) = (stack, value);
                guest.write(stack.wrapping_sub(8), &value.to_le_bytes())?;
                registers.rsp = stack.wrapping_sub(8);
            }
            Instruction::Call { stack } => {
                (registers.rsp, registers.rax) = (stack, next);
                guest.write(stack.wrapping_sub(8), &next.to_le_bytes())?;
                registers.rsp = stack.wrapping_sub(8);
            }
            Instruction::Interrupt { stack } => return self.interrupt(stack, next),
            Instruction::Fill { at, size, count, value, backward } => {
                *registers = Registers { rdi: at, rcx: count.into(), rax: value, ..*registers };
                let advance = advance(size, backward);
                while registers.rcx != 0 {
                    guest.write(registers.rdi, operand(&mut value.to_le_bytes(), size))?;
                    registers.rdi = registers.rdi.wrapping_add(advance);
                    registers.rcx -= 1;
                }
            }
            Instruction::Copy { from, to, size, count, backward } => {
                *registers = Registers { rsi: from, rdi: to, rcx: count.into(), ..*registers };
                let advance = advance(size, backward);
                while registers.rcx != 0 {
                    let mut bytes = [0; 8];
                    let bytes = operand(&mut bytes, size);
                    guest.read(registers.rsi, bytes)?;
                    guest.write(registers.rdi, bytes)?;
                    registers.rsi = registers.rsi.wrapping_add(advance);
                    registers.rdi = registers.rdi.wrapping_add(advance);
                    registers.rcx -= 1;
                }
            }
            Instruction::Invalidate { at } => {
                registers.rdi = at;
                if guest.user {
                    return Err(Stop::GeneralProtection);
                }
                guest.translations.invalidate(at);
            }
            Instruction::Jump { to } => registers.rdi = to,
        }
        Ok(())
    }

    /// Delivers a software interrupt to a handler at CPL 0.
    ///
    /// SDM Vol. 3A, "64-Bit Mode Stack Frame": the stack pointer is aligned down to 16 bytes, five
    /// words are pushed. From CPL 3 the stack pointer is RSP0 of the task state segment, which the
    /// step has made the same number. Descriptor tables and task state are read as supervisor, and
    /// the frame is pushed with the privilege of the handler.
    fn interrupt(&mut self, stack: u64, next: u64) -> Result<(), Stop> {
        self.registers.rsp = stack;
        // Valid, software interrupt.
        self.vectoring = 0x8000_0400 | u32::from(VECTOR);
        let mode = self.guest.mode;
        self.guest.user = false;
        self.guest.read(guest::IDT + u64::from(VECTOR) * 16, &mut [0; 16])?;
        self.guest.read(guest::GDT + u64::from(guest::CODE), &mut [0; 8])?;
        let (code, data) = if mode.user {
            self.guest.read(guest::TASK_STATE + 4, &mut [0; 8])?;
            (guest::USER_CODE, guest::USER_DATA)
        } else {
            (guest::CODE, guest::DATA)
        };
        let top = stack & !0xF;
        let flags = 2 | if mode.alignment_check { 1 << 18 } else { 0 };
        let values = [data.into(), stack, flags, code.into(), next];
        let values = values.map(u64::to_le_bytes);
        let parts: Vec<_> =
            (1..).zip(&values).map(|(at, value)| (top.wrapping_sub(at * 8), &value[..])).collect();
        self.guest.write_parts(&parts)?;
        self.registers.rsp = top.wrapping_sub(40);
        self.vectoring = 0;
        Ok(())
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the length of an operand")
}

/// The bytes of an operand in its register.
fn operand(bytes: &mut [u8; 8], size: Size) -> &mut [u8] {
    &mut bytes[..to_usize(size.bytes())]
}

fn quad(bytes: &[u8]) -> u64 {
    let mut buffer = [0; 8];
    buffer[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(buffer)
}

/// A register after an operand has been written to it: 4 bytes clear the upper half, fewer keep the
/// rest. SDM Vol. 1, "General-Purpose Registers in 64-Bit Mode".
const fn merge(register: u64, value: u64, size: Size) -> u64 {
    match size {
        Size::Byte | Size::Word => register & !size.mask() | value & size.mask(),
        Size::Double | Size::Quad => value & size.mask(),
    }
}

const fn advance(size: Size, backward: bool) -> u64 {
    if backward { size.bytes().wrapping_neg() } else { size.bytes() }
}

fn modify(bytes: &mut [u8], size: Size, kind: Modify, registers: &mut Registers) {
    let memory = quad(bytes);
    let value = registers.rcx & size.mask();
    let stored = match kind {
        Modify::Add | Modify::LockAdd => memory.wrapping_add(value),
        Modify::Exchange => {
            registers.rcx = merge(registers.rcx, memory, size);
            value
        }
        Modify::CompareExchange if memory == registers.rax & size.mask() => value,
        Modify::CompareExchange => {
            registers.rax = merge(registers.rax, memory, size);
            memory
        }
    };
    bytes.copy_from_slice(&stored.to_le_bytes()[..bytes.len()]);
}
