//! What one instruction needs to be stepped over: which pages, and what ends the step.

use arrayvec::ArrayVec;
use iced_x86::{CpuidFeature, Mnemonic};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug,
};
use subpage::address::{Gfn, GfnRange, Gpa};
use subpage_emulate::bits::{CR0_EM, CR0_TS, EFER_LMA, RFLAGS_AC, RFLAGS_RF, RFLAGS_TF};
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Access, Exception, GuestInstruction, MAX_ACCESSES, MAX_INSTRUCTION_BYTES, read_linear,
    table_frames, translate, walk_entries,
};

use crate::guard::Guard;
use crate::memory::Ram;
use crate::store::StoreContext;
use crate::trap::{PageSet, pages_of};
use crate::vcpu::{Interrupted, Processor};

use super::STEP_TABLES;

const CR0_AM: u64 = 1 << 18;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSENTER_EIP: u32 = 0x176;

/// Bytes that an instruction of unknown extent may write.
const WIDE_BYTES: u64 = 4096;

/// What ends a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// KVM sets TF. To be taken where TF goes nowhere.
    TrapFlag,
    /// A breakpoint at the instruction that follows.
    Breakpoint(u64),
    /// The guest has set TF, or sets it: its own trap ends the step.
    OwnTrap,
}

/// How to step over one instruction.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) code: Option<GuestInstruction>,
    pub(super) end: End,
    /// Handlers of exceptions that it may have: vector and address.
    pub(super) handlers: ArrayVec<(u8, u64), 4>,
    /// Trapping pages with page tables that it uses.
    pub(super) tables: PageSet,
    /// Trapping pages that it writes.
    pub(super) targets: PageSet,
    /// What it writes, as far as the decoder knows: linear address and bytes.
    pub(super) writes: ArrayVec<(u64, u64), MAX_ACCESSES>,
    /// The processor must be let go of afterwards.
    pub(super) last: bool,
}

/// Why an instruction is not stepped over.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The guest gets this exception instead, as from a processor.
    Exception(Exception),
    /// #DB behind the instruction, which has no other effect (ICEBP).
    DebugTrap,
    /// It is a software interrupt, which is carried out in software if it has to be.
    Software,
    /// Why not, as a sentence without its end.
    Cannot(String),
}

/// Plans the step over the instruction at RIP. `wide`: it touches more than the decoder tells.
pub(super) fn plan(
    context: StoreContext<'_, Ram>,
    guard: &Guard,
    processor: &Processor,
    at: &Interrupted,
    watched: u64,
    wide: bool,
) -> Result<Plan, Refusal> {
    let (mut plan, accesses) = outline(context, processor, at, watched)?;
    plan.find_pages(context, guard, at, &accesses, wide)?;
    plan.find_handlers(context, at)?;
    Ok(plan)
}

/// The same for a step with all pages as they are, and with what a processor in a step cannot do in
/// software: it stops at the handler of a software interrupt.
pub(super) fn plan_held(
    context: StoreContext<'_, Ram>,
    processor: &Processor,
    at: &Interrupted,
    watched: u64,
) -> Option<Plan> {
    let mut plan = match outline(context, processor, at, watched) {
        Ok((plan, _)) => plan,
        Err(Refusal::Software | Refusal::DebugTrap) => {
            let code = GuestInstruction::fetch(context.ram, context.paging, &at.state).ok()?;
            let vector = match code.instruction().mnemonic() {
                Mnemonic::Int1 => 1,
                Mnemonic::Int3 => 3,
                Mnemonic::Int => code.instruction().immediate8(),
                _ => return None,
            };
            let end = End::Breakpoint(handler(context, at, vector)?);
            Plan { end, code: Some(code), ..Plan::empty() }
        }
        Err(Refusal::Exception(_) | Refusal::Cannot(_)) => return None,
    };
    // Of too many, those that there is room for.
    let _ = plan.find_handlers(context, at);
    Some(plan)
}

/// What an instruction touches: linear address, bytes, and whether it writes them.
type Accesses = ArrayVec<(u64, u64, bool), MAX_ACCESSES>;

/// What ends the step over the instruction at RIP, and what the instruction touches.
fn outline(
    context: StoreContext<'_, Ram>,
    processor: &Processor,
    at: &Interrupted,
    watched: u64,
) -> Result<(Plan, Accesses), Refusal> {
    let state = &at.state;
    if state.efer & EFER_LMA == 0 {
        return Err(Refusal::Cannot("the processor is not in IA-32e mode".into()));
    }
    let code = GuestInstruction::fetch(context.ram, context.paging, state).ok();
    let end = match &code {
        Some(code) => end_of(context, processor, state, code)?,
        None => End::TrapFlag,
    };
    let end = match end {
        End::TrapFlag if state.rflags & RFLAGS_TF != 0 => End::OwnTrap,
        end => end,
    };
    let accesses = code.as_ref().map(|code| code.accesses(state)).unwrap_or_default();
    if watched & 0xff != 0 {
        own_breakpoints(processor, state, code.as_ref(), &accesses, watched)?;
    }
    let plan = Plan {
        end,
        writes: accesses
            .iter()
            .filter(|access| access.2)
            .map(|access| (access.0, access.1))
            .collect(),
        last: code.as_ref().is_some_and(|code| code.instruction().mnemonic() == Mnemonic::Hlt),
        code,
        ..Plan::empty()
    };
    Ok((plan, accesses))
}

/// What ends the step over `code`, if it can be stepped over.
fn end_of(
    context: StoreContext<'_, Ram>,
    processor: &Processor,
    state: &State,
    code: &GuestInstruction,
) -> Result<End, Refusal> {
    let msr = |number| processor.msr(number).map_err(|error| Refusal::Cannot(format!("{error}")));
    // A word of the stack; what cannot be read the processor finds out.
    let stack = |offset: u64| -> u64 {
        let mut word = [0; 8];
        let at = state.registers[Register::Rsp].wrapping_add(offset);
        let access = Access::read_by(state);
        let read = read_linear(context.ram, context.paging, state, at, access, &mut word);
        read.map_or(0, |()| u64::from_le_bytes(word))
    };
    let breakpoint = |at: u64| if at == state.rip { End::TrapFlag } else { End::Breakpoint(at) };
    let next = state.rip.wrapping_add(code.bytes().len() as u64);
    Ok(match code.instruction().mnemonic() {
        // Outside of system-management mode it is undefined.
        Mnemonic::Rsm => return Err(Refusal::Exception(Exception::INVALID_OPCODE)),
        Mnemonic::Int1 => return Err(Refusal::DebugTrap),
        // They push TF, whether the guest or this program has set it.
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => breakpoint(next),
        Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into => return Err(Refusal::Software),
        Mnemonic::Syscall => breakpoint(msr(if state.is_64_bit() { LSTAR } else { CSTAR })?),
        Mnemonic::Sysret | Mnemonic::Sysretq => breakpoint(state.registers[Register::Rcx]),
        Mnemonic::Sysenter => breakpoint(msr(SYSENTER_EIP)?),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => breakpoint(state.registers[Register::Rdx]),
        // A TF that they set is the guest's.
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq if stack(0) & RFLAGS_TF != 0 => {
            breakpoint(next)
        }
        Mnemonic::Iretq if stack(16) & RFLAGS_TF != 0 => End::OwnTrap,
        Mnemonic::Iretd if stack(8) & RFLAGS_TF != 0 => End::OwnTrap,
        _ => End::TrapFlag,
    })
}

/// Refuses an instruction that the guest's own breakpoints may watch: they are not in force while
/// ours are.
fn own_breakpoints(
    processor: &Processor,
    state: &State,
    code: Option<&GuestInstruction>,
    accesses: &[(u64, u64, bool)],
    control: u64,
) -> Result<(), Refusal> {
    let refused = || Refusal::Cannot("the guest's own debug registers watch what it does".into());
    let registers =
        processor.debug_registers().map_err(|error| Refusal::Cannot(format!("{error}")))?;
    for (number, address) in (0_u32..).zip(registers.db) {
        let enabled = control >> (2 * number) & 3;
        if enabled == 0 {
            continue;
        }
        let bytes = [1, 2, 8, 4][(control >> (18 + 4 * number) & 3) as usize];
        let start = address & !(bytes - 1);
        let hit = match control >> (16 + 4 * number) & 3 {
            0 => address == state.rip && state.rflags & RFLAGS_RF == 0,
            2 => code.is_none_or(|code| {
                code.instruction().cpuid_features().is_empty()
                    || matches!(
                        code.instruction().mnemonic(),
                        Mnemonic::In
                            | Mnemonic::Out
                            | Mnemonic::Insb
                            | Mnemonic::Insw
                            | Mnemonic::Insd
                            | Mnemonic::Outsb
                            | Mnemonic::Outsw
                            | Mnemonic::Outsd
                    )
            }),
            _ => {
                accesses.iter().any(|(at, length, _)| {
                    at.wrapping_sub(start) < bytes || start.wrapping_sub(*at) < *length
                }) || accesses.len() == MAX_ACCESSES
            }
        };
        if hit {
            return Err(refused());
        }
    }
    Ok(())
}

impl Plan {
    fn empty() -> Self {
        Self {
            code: None,
            end: End::TrapFlag,
            handlers: ArrayVec::new(),
            tables: PageSet::new(),
            targets: PageSet::new(),
            writes: ArrayVec::new(),
            last: false,
        }
    }

    /// All pages that have to be open.
    pub(super) fn pages(&self) -> PageSet {
        self.tables.runs().chain(self.targets.runs()).collect()
    }

    /// What has the processor stop behind the instruction, and at handlers.
    pub(super) fn debug(&self) -> kvm_guest_debug {
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_BLOCKIRQ,
            ..kvm_guest_debug::default()
        };
        if self.end == End::TrapFlag {
            debug.control |= KVM_GUESTDBG_SINGLESTEP;
        }
        // Global breakpoints on execution; bit 10 is always set.
        debug.arch.debugreg[7] = 1 << 10;
        for (number, address) in self.breakpoints().into_iter().enumerate() {
            debug.arch.debugreg[number] = address;
            debug.arch.debugreg[7] |= 2 << (2 * number);
        }
        debug
    }

    /// The breakpoints, in the order of the debug registers.
    pub(super) fn breakpoints(&self) -> ArrayVec<u64, 4> {
        let target = if let End::Breakpoint(at) = self.end { Some(at) } else { None };
        target.into_iter().chain(self.handlers.iter().map(|handler| handler.1)).take(4).collect()
    }

    /// Finds the trapping pages that the instruction's walks, and its stores, need.
    fn find_pages(
        &mut self,
        context: StoreContext<'_, Ram>,
        guard: &Guard,
        at: &Interrupted,
        accesses: &[(u64, u64, bool)],
        wide: bool,
    ) -> Result<(), Refusal> {
        let state = &at.state;
        let base = if state.is_64_bit() { 0 } else { state.segments.cs.base };
        let rip = base.wrapping_add(state.rip);
        let length = self.code.map_or(MAX_INSTRUCTION_BYTES, |code| code.bytes().len());
        let mut walks: ArrayVec<u64, { 2 * MAX_ACCESSES + 10 }> = ArrayVec::new();
        walks.extend([rip, rip.wrapping_add(length as u64 - 1)]);
        let mut targets: ArrayVec<Gfn, { 2 * MAX_ACCESSES }> = ArrayVec::new();
        for &(linear, bytes, write) in accesses {
            let bytes = if wide && write { bytes.max(WIDE_BYTES) } else { bytes };
            for end in [linear, linear.wrapping_add(bytes.saturating_sub(1))] {
                walks.push(end);
                if write {
                    let access = Access::write_by(state);
                    let walk = translate(context.ram, context.paging, state, end, access);
                    targets.extend(walk.ok().map(|walk| walk.gpa.gfn()));
                }
            }
        }
        if self.code.is_none_or(|code| uses_descriptors(&code)) {
            let tables = &at.tables;
            for (base, limit) in [
                (tables.gdtr.base, tables.gdtr.limit),
                (tables.ldtr.base, 0xffff),
                (tables.tr.base, 0xff),
            ] {
                walks.extend([base, base.wrapping_add(limit.into())]);
            }
        }
        let traps = |gfn: &Gfn| guard.traps().traps(*gfn);
        let mut tables: Vec<Gfn> = walks
            .iter()
            .flat_map(|linear| walk_entries(context.ram, context.paging, state, *linear))
            .map(Gpa::gfn)
            .filter(traps)
            .collect();
        if wide {
            tables.extend(
                table_frames(context.ram, context.paging, state, WIDE_TABLES)
                    .into_iter()
                    .filter(traps)
                    .take(STEP_TABLES),
            );
        }
        self.tables = pages_of(tables.into_iter().map(GfnRange::one));
        self.targets = pages_of(targets.into_iter().filter(traps).map(GfnRange::one));
        if self.pages().pages() > STEP_TABLES as u64 {
            return Err(Refusal::Cannot(format!(
                "one instruction uses more than {STEP_TABLES} pages that trap"
            )));
        }
        Ok(())
    }

    /// Finds the handlers of the exceptions that the instruction may have.
    fn find_handlers(
        &mut self,
        context: StoreContext<'_, Ram>,
        at: &Interrupted,
    ) -> Result<(), Refusal> {
        let room = 4 - usize::from(matches!(self.end, End::Breakpoint(_)));
        let (certain, likely) = vectors(&at.state, self.code.as_ref());
        for (number, vector) in certain.iter().chain(&likely).enumerate() {
            let Some(handler) = handler(context, at, *vector) else { continue };
            let known = self.handlers.iter().any(|known| known.1 == handler);
            // A breakpoint at RIP itself would end every attempt.
            if known || handler == at.state.rip {
                continue;
            }
            if self.handlers.len() == room {
                if number < certain.len() {
                    let reason = "its exceptions have more handlers than there are breakpoints";
                    return Err(Refusal::Cannot(reason.into()));
                }
                break;
            }
            self.handlers.push((*vector, handler));
        }
        Ok(())
    }
}

/// Tables that are looked at for those that trap, where the decoder does not tell which are used.
const WIDE_TABLES: usize = 1 << 12;

/// Whether an instruction reads descriptors.
fn uses_descriptors(code: &GuestInstruction) -> bool {
    let instruction = code.instruction();
    let segment = instruction.op_count() > 0 && instruction.op0_register().is_segment_register();
    segment
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Iret
                | Mnemonic::Iretd
                | Mnemonic::Iretq
                | Mnemonic::Retf
                | Mnemonic::Ltr
                | Mnemonic::Lldt
                | Mnemonic::Lar
                | Mnemonic::Lsl
                | Mnemonic::Verr
                | Mnemonic::Verw
                | Mnemonic::Lss
                | Mnemonic::Lfs
                | Mnemonic::Lgs
        )
        || instruction.is_call_far()
        || instruction.is_jmp_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far_indirect()
}

/// Vectors of exceptions that an instruction may have: those to be reckoned with, and those that are
/// watched for where a breakpoint is left.
fn vectors(state: &State, code: Option<&GuestInstruction>) -> (ArrayVec<u8, 8>, ArrayVec<u8, 4>) {
    const DE: u8 = 0;
    const UD: u8 = 6;
    const NM: u8 = 7;
    const NP: u8 = 11;
    const SS: u8 = 12;
    const GP: u8 = 13;
    const PF: u8 = 14;
    const MF: u8 = 16;
    const AC_FAULT: u8 = 17;
    const XM: u8 = 19;
    let mut certain: ArrayVec<u8, 8> = [PF, GP].into_iter().collect();
    let mut likely: ArrayVec<u8, 4> = ArrayVec::new();
    let Some(code) = code else {
        certain.push(UD);
        return (certain, likely);
    };
    let instruction = code.instruction();
    let features = instruction.cpuid_features();
    let has = |feature| features.contains(&feature);
    let integer = features.iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::INTEL8086
                | CpuidFeature::INTEL186
                | CpuidFeature::INTEL286
                | CpuidFeature::INTEL386
                | CpuidFeature::INTEL486
                | CpuidFeature::X64
        )
    });
    if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
        certain.push(DE);
    }
    if uses_descriptors(code) {
        certain.extend([NP, SS]);
    } else if instruction.is_stack_instruction()
        || instruction.memory_segment() == iced_x86::Register::SS
    {
        likely.push(SS);
    }
    if state.cpl == 3 && state.cr0 & CR0_AM != 0 && state.rflags & RFLAGS_AC != 0 {
        certain.push(AC_FAULT);
    }
    if !integer {
        let x87 = has(CpuidFeature::FPU) || has(CpuidFeature::MMX);
        let vector = (0..instruction.op_count())
            .any(|operand| instruction.op_register(operand).is_vector_register());
        if x87 || vector {
            certain.push(match () {
                () if state.cr0 & (CR0_TS | CR0_EM) != 0 => NM,
                () if x87 => MF,
                () => XM,
            });
        }
        certain.push(UD);
    }
    likely.push(UD);
    (certain, likely)
}

/// Address of a vector's handler; `None` if there is none.
fn handler(context: StoreContext<'_, Ram>, at: &Interrupted, vector: u8) -> Option<u64> {
    const GATE_BYTES: u64 = 16;
    const PRESENT: u8 = 1 << 7;
    let offset = u64::from(vector) * GATE_BYTES;
    let idtr = &at.tables.idtr;
    if offset + GATE_BYTES - 1 > u64::from(idtr.limit) {
        return None;
    }
    let mut gate = [0; 16];
    let linear = idtr.base.wrapping_add(offset);
    let access = Access::SYSTEM_READ;
    read_linear(context.ram, context.paging, &at.state, linear, access, &mut gate).ok()?;
    let part = |at: usize, bytes: usize| {
        gate[at..at + bytes].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    (gate[5] & PRESENT != 0).then(|| part(0, 2) | part(6, 2) << 16 | part(8, 4) << 32)
}
