//! Delivering an interrupt or exception in software (SDM Vol. 3A, "64-Bit Mode Interrupt and
//! Exception Handling"; Vol. 2, "INT n").
//!
//! For frames that would go to a protected stack: which bytes, where, and how the processor would be
//! afterwards. Nothing is written.

use arrayvec::ArrayVec;
use bitfield_struct::bitfield;

use super::bits::{EFER_LMA, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM};
use super::descriptor::Table;
use super::linear::read_linear;
use super::{Access, Escalation, Exception, Fault, PagingFeatures, SystemTables, is_canonical};
use crate::guest::{PhysicalMemory, Register, Segment, State};

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// An external interrupt or NMI.
    Interrupt,
    /// An exception that the processor found: not by INT3, INTO or INT n.
    Exception,
    /// INT n, INT3 or INTO of this many bytes: the gate's privilege level counts, and the frame
    /// points behind the instruction.
    Software {
        /// Length of the instruction.
        instruction_bytes: u8,
    },
}

/// An interrupt or exception to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectoringEvent {
    /// Vector, 0..=255.
    pub vector: u8,
    /// The error code to push, if the vector has one.
    pub error_code: Option<u32>,
    /// Where it comes from.
    pub kind: EventKind,
}

impl VectoringEvent {
    /// What becomes of `exception` if it arose while this event was being delivered.
    ///
    /// An interrupt, or INT n, is benign whatever its vector: only exceptions that the processor
    /// found escalate.
    pub const fn escalate(&self, exception: Exception) -> Escalation {
        match self.kind {
            EventKind::Exception => exception.while_delivering(self.vector),
            EventKind::Interrupt | EventKind::Software { .. } => Escalation::Deliver(exception),
        }
    }
}

/// What a delivery does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDelivery {
    /// Linear address of the frame's first byte: RSP afterwards.
    pub linear: u64,
    /// The frame: error code if any, RIP, CS, RFLAGS, RSP, SS, eight bytes each.
    pub frame: ArrayVec<u8, 48>,
    /// The state with which the handler starts. The frame's pages are accessed with its privilege.
    pub after: State,
    /// Linear address of the byte of the code descriptor whose accessed flag (bit 0) the processor
    /// sets; `None` if it is set.
    pub mark_descriptor: Option<u64>,
}

impl PlannedDelivery {
    /// The access that pushing the frame makes.
    pub const fn access(&self) -> Access {
        Access::write_by(&self.after)
    }
}

struct Context<'a, M> {
    memory: &'a M,
    paging: PagingFeatures,
    state: &'a State,
    tables: &'a SystemTables,
    /// EXT: bit 0 of error codes, unless software asked for the event.
    external: u32,
}

/// What delivering `event` in `state` does.
///
/// RFLAGS.RF in the frame is 1 for fault-class exceptions and 0 for everything else. Errors: the
/// exception that comes up instead, which may escalate
/// ([`VectoringEvent::escalate`]). IA-32e mode only.
///
/// Panics outside of IA-32e mode.
pub fn deliver<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    tables: &SystemTables,
    event: &VectoringEvent,
) -> Result<PlannedDelivery, Fault> {
    assert!(state.efer & EFER_LMA != 0, "delivery is in software in IA-32e mode only");
    let external = u32::from(!matches!(event.kind, EventKind::Software { .. }));
    let context = Context { memory, paging, state, tables, external };
    let gate = context.gate(event)?;
    let target = context.code_segment(gate.selector())?;
    let inner = !target.conforming && target.dpl < state.cpl;
    let cpl = if inner { target.dpl } else { state.cpl };
    let top = context.stack_top(gate, inner, cpl)?;
    if !is_canonical(gate.offset()) {
        return Err(Exception::general_protection(external).into());
    }
    let frame = frame(state, event);
    let mut after = *state;
    let pointer = (top & !0xf).wrapping_sub(frame.len() as u64);
    if !is_canonical(pointer) || !is_canonical(pointer.wrapping_add(frame.len() as u64 - 1)) {
        return Err(Exception::stack(external).into());
    }
    after.registers[Register::Rsp] = pointer;
    after.rip = gate.offset();
    after.rflags &= !(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM);
    if gate.kind() == Gate::INTERRUPT {
        after.rflags &= !RFLAGS_IF;
    }
    after.cpl = cpl;
    after.segments.cs =
        Segment { selector: gate.selector() & !3 | u16::from(cpl), ..target.segment };
    if inner {
        // A null selector, whose hidden DPL is the new privilege level.
        let access = 1 << 16 | u32::from(cpl) << 5;
        after.segments.ss = Segment { selector: cpl.into(), base: 0, limit: 0, access };
    }
    Ok(PlannedDelivery { linear: pointer, frame, after, mark_descriptor: target.mark })
}

/// The frame, first byte first.
fn frame(state: &State, event: &VectoringEvent) -> ArrayVec<u8, 48> {
    let rip = match event.kind {
        EventKind::Software { instruction_bytes } => {
            let next = state.rip.wrapping_add(instruction_bytes.into());
            if state.is_64_bit() { next } else { next & 0xffff_ffff }
        }
        _ => state.rip,
    };
    let fault = event.kind == EventKind::Exception && is_fault(event.vector);
    let rflags = state.rflags & !RFLAGS_RF | if fault { RFLAGS_RF } else { 0 };
    let mut frame = ArrayVec::new();
    if let Some(error_code) = event.error_code {
        frame.extend(u64::from(error_code).to_le_bytes());
    }
    let selector = |segment: Segment| u64::from(segment.selector);
    for value in [
        rip,
        selector(state.segments.cs),
        rflags,
        state.registers[Register::Rsp],
        selector(state.segments.ss),
    ] {
        frame.extend(value.to_le_bytes());
    }
    frame
}

/// Exceptions of class fault (SDM Vol. 3A, "Protected-Mode Exceptions and Interrupts"). #DB is a
/// fault or a trap; here it is taken for a trap, and its resume flag stays clear either way.
const fn is_fault(vector: u8) -> bool {
    matches!(vector, 0 | 5..=7 | 10..=14 | 16 | 17 | 19..=21)
}

/// A gate of the 64-bit IDT (SDM Vol. 3A, "64-Bit Mode IDT").
#[bitfield(u128)]
struct Gate {
    offset_low: u16,
    selector: u16,
    #[bits(3)]
    stack: u8,
    #[bits(5)]
    __: u8,
    /// Type and S.
    #[bits(5)]
    kind: u8,
    #[bits(2)]
    dpl: u8,
    present: bool,
    #[bits(48)]
    offset_high: u64,
    __: u32,
}

impl Gate {
    const INTERRUPT: u8 = 0xe;
    const TRAP: u8 = 0xf;

    const fn offset(self) -> u64 {
        self.offset_low() as u64 | self.offset_high() << 16
    }
}

struct CodeSegment {
    segment: Segment,
    conforming: bool,
    dpl: u8,
    mark: Option<u64>,
}

impl<M: PhysicalMemory> Context<'_, M> {
    fn read<const BYTES: usize>(&self, linear: u64) -> Result<[u8; BYTES], Fault> {
        let mut bytes = [0; BYTES];
        let access = Access::SYSTEM_READ;
        read_linear(self.memory, self.paging, self.state, linear, access, &mut bytes)?;
        Ok(bytes)
    }

    fn gate(&self, event: &VectoringEvent) -> Result<Gate, Fault> {
        let at = u64::from(event.vector) * 16;
        let code = u32::from(event.vector) << 3 | 1 << 1 | self.external;
        if at + 15 > self.tables.idtr.limit.into() {
            return Err(Exception::general_protection(code).into());
        }
        let gate = Gate::from_bits(u128::from_le_bytes(
            self.read(self.tables.idtr.base.wrapping_add(at))?,
        ));
        let asked_for = self.external == 0;
        if !matches!(gate.kind(), Gate::INTERRUPT | Gate::TRAP)
            || asked_for && gate.dpl() < self.state.cpl
        {
            return Err(Exception::general_protection(code).into());
        }
        if !gate.present() {
            return Err(Exception::not_present(code).into());
        }
        Ok(gate)
    }

    fn code_segment(&self, selector: u16) -> Result<CodeSegment, Fault> {
        let code = u32::from(selector & !3) | self.external;
        let table = Table { memory: self.memory, paging: self.paging, tables: self.tables };
        let (descriptor, linear) = table.descriptor(self.state, selector, self.external)?;
        let is_long_code = descriptor.not_system()
            && descriptor.executable()
            && descriptor.long()
            && !descriptor.big();
        if !is_long_code || descriptor.dpl() > self.state.cpl {
            return Err(Exception::general_protection(code).into());
        }
        if !descriptor.present() {
            return Err(Exception::not_present(code).into());
        }
        Ok(CodeSegment {
            segment: descriptor.segment(selector),
            conforming: descriptor.conforming(),
            dpl: descriptor.dpl(),
            mark: (!descriptor.accessed()).then_some(linear.wrapping_add(5)),
        })
    }

    /// Where the stack starts, before it is aligned.
    fn stack_top(&self, gate: Gate, inner: bool, cpl: u8) -> Result<u64, Fault> {
        // Places in a 64-bit TSS: RSP0 at 4, IST1 at 36.
        let at = match (gate.stack(), inner) {
            (0, false) => return Ok(self.state.registers[Register::Rsp]),
            (0, true) => 4 + 8 * u64::from(cpl),
            (stack, _) => 28 + 8 * u64::from(stack),
        };
        let tr = &self.tables.tr;
        if at + 7 > tr.limit.into() {
            let code = u32::from(tr.selector & !3) | self.external;
            return Err(Exception::invalid_tss(code).into());
        }
        let top = u64::from_le_bytes(self.read(tr.base.wrapping_add(at))?);
        if is_canonical(top) { Ok(top) } else { Err(Exception::stack(self.external).into()) }
    }
}
