//! PlannedDelivery of interrupts and exceptions in IA-32e mode.

use subpage_emulate::guest::{Register, Segment, State};
use subpage_emulate::{
    Escalation, EventKind, Exception, Fault, PlannedDelivery, SystemTables, TableRegister,
    VectoringEvent, deliver,
};

use crate::flat::Flat;
use crate::machine::{PAGING, state_64};

const IDT: u64 = 0x8000;
const GDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
const LDT: u64 = 0xc000;
const HANDLER: u64 = 0xffff_8123_4567_89ab;

const INTERRUPT: EventKind = EventKind::Interrupt;
const EXCEPTION: EventKind = EventKind::Exception;
const INT_N: EventKind = EventKind::Software { instruction_bytes: 2 };

/// Tables in the first 2 MiB, mapped for the supervisor.
struct World {
    memory: Flat,
    tables: SystemTables,
    state: State,
}

impl World {
    fn new() -> Self {
        let memory = Flat::new(0x10000);
        memory.put(0x1000, &0x2063_u64.to_le_bytes());
        memory.put(0x2000, &0x3063_u64.to_le_bytes());
        memory.put(0x3000, &0xe3_u64.to_le_bytes());
        // Long code at CPL 0 (08H), at CPL 3 (18H), conforming (20H), 32-bit (28H), data (30H).
        for (selector, descriptor) in [
            (0x08, 0x00af_9b00_0000_ffff),
            (0x18, 0x00af_fb00_0000_ffff),
            (0x20, 0x00af_9f00_0000_ffff),
            (0x28, 0x00cf_9b00_0000_ffff),
            (0x30, 0x00cf_9300_0000_ffff),
            (0x38, 0x00af_9a00_0000_ffff),
            (0x40, 0x00af_1b00_0000_ffff_u64),
        ] {
            memory.put(GDT + selector, &descriptor.to_le_bytes());
        }
        memory.put(LDT + 8, &0x12af_9b34_5678_ffff_u64.to_le_bytes());
        memory.put(TSS + 4, &0xffff_8000_0000_7777_u64.to_le_bytes());
        for stack in 1..8 {
            memory.put(TSS + 28 + 8 * stack, &(0x5_0000 + stack * 0x1000).to_le_bytes());
        }
        let tables = SystemTables {
            gdtr: TableRegister { base: GDT, limit: 0x4f },
            idtr: TableRegister { base: IDT, limit: 0xfff },
            ldtr: Segment { selector: 0x50, base: LDT, limit: 0xf, access: 0x82 },
            tr: Segment { selector: 0x60, base: TSS, limit: 0x67, access: 0x8b },
        };
        let mut state = state_64();
        state.rip = 0x40_1234;
        state.rflags = 0x5_4b46;
        state.registers[Register::Rsp] = 0x7fff_1239;
        let world = Self { memory, tables, state };
        world.gate(0x40, 0x08, 0, 0x8e);
        world
    }

    fn gate(&self, vector: u64, selector: u64, stack: u64, rights: u64) {
        let low = HANDLER & 0xffff
            | selector << 16
            | stack << 32
            | rights << 40
            | (HANDLER >> 16 & 0xffff) << 48;
        self.memory.put(IDT + vector * 16, &low.to_le_bytes());
        self.memory.put(IDT + vector * 16 + 8, &(HANDLER >> 32).to_le_bytes());
    }

    fn deliver(
        &self,
        vector: u8,
        error_code: Option<u32>,
        kind: EventKind,
    ) -> Result<PlannedDelivery, Fault> {
        let event = VectoringEvent { vector, error_code, kind };
        deliver(&self.memory, PAGING, &self.state, &self.tables, &event)
    }

    fn refused(&self, kind: EventKind) -> Exception {
        match self.deliver(0x40, None, kind).unwrap_err() {
            Fault::Exception(exception) => exception,
            other @ Fault::NotMemory(_) => panic!("{other:?}"),
        }
    }
}

fn words(delivery: &PlannedDelivery) -> Vec<u64> {
    let words = delivery.frame.chunks_exact(8);
    words.map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn an_interrupt_from_user_mode_goes_to_the_stack_of_the_tss() {
    let world = World::new();
    let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
    assert_eq!(delivery.linear, 0xffff_8000_0000_7770 - 40, "aligned before the push");
    assert_eq!(words(&delivery), [0x40_1234, 0x33, 0x4_4b46, 0x7fff_1239, 0x2b]);
    assert_eq!(delivery.mark_descriptor, None);
    let access = delivery.access();
    assert!(access.write && !access.user && !access.fetch);

    let after = &delivery.after;
    assert_eq!((after.cpl, after.rip), (0, HANDLER));
    assert_eq!(after.registers[Register::Rsp], delivery.linear);
    assert_eq!(after.rflags, 0x4_0846, "TF, IF, NT and RF are clear");
    assert_eq!(after.segments.cs, Segment { selector: 8, base: 0, limit: !0, access: 0xa09b });
    assert_eq!((after.segments.ss.selector, after.segments.ss.access), (0, 0x1_0000));
    assert!(after.is_64_bit());
}

#[test]
fn an_exception_pushes_its_code_and_the_resume_flag() {
    let mut world = World::new();
    world.gate(14, 0x08, 0, 0x8f);
    world.state.rflags = 0x202;
    let delivery = world.deliver(14, Some(7), EXCEPTION).unwrap();
    assert_eq!(words(&delivery), [7, 0x40_1234, 0x33, 0x1_0202, 0x7fff_1239, 0x2b]);
    assert_eq!(delivery.linear, 0xffff_8000_0000_7770 - 48);
    assert_eq!(delivery.after.rflags, 0x202, "a trap gate leaves interrupts on");
}

#[test]
fn a_software_interrupt_returns_behind_its_instruction() {
    let mut world = World::new();
    world.gate(0x40, 0x08, 0, 0xee);
    let delivery = world.deliver(0x40, None, INT_N).unwrap();
    assert_eq!(words(&delivery)[0], 0x40_1236);
    // In compatibility mode it has 32 bits.
    world.state.segments.cs.access = 0xc0fb;
    world.state.rip = 0xffff_ffff;
    assert_eq!(words(&world.deliver(0x40, None, INT_N).unwrap())[0], 1);
}

#[test]
fn without_a_change_of_privilege_the_stack_stays_unless_the_gate_names_one() {
    let mut world = World::new();
    world.state.cpl = 0;
    world.state.segments.ss.selector = 0x10;
    let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
    assert_eq!(delivery.linear, 0x7fff_1230 - 40);
    assert_eq!(words(&delivery)[3..], [0x7fff_1239, 0x10]);
    assert_eq!(delivery.after.segments.ss, world.state.segments.ss);
    for stack in 1..8 {
        world.gate(0x40, 0x08, stack, 0x8e);
        let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
        assert_eq!(delivery.linear, 0x5_0000 + stack * 0x1000 - 40);
    }
    // Conforming code keeps the privilege level of whom it interrupts.
    world.state.cpl = 3;
    world.gate(0x40, 0x20, 0, 0x8e);
    let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
    assert_eq!((delivery.after.cpl, delivery.after.segments.cs.selector), (3, 0x23));
    assert_eq!(delivery.linear, 0x7fff_1230 - 40);
    assert!(delivery.access().user);
}

#[test]
fn descriptors_come_from_the_ldt_too_and_are_marked() {
    let world = World::new();
    world.gate(0x40, 0x0c, 0, 0x8e);
    let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
    assert_eq!(delivery.after.segments.cs.base, 0x1234_5678);
    assert_eq!(delivery.after.segments.cs.selector, 0x0c);
    world.gate(0x40, 0x38, 0, 0x8e);
    let delivery = world.deliver(0x40, None, INTERRUPT).unwrap();
    assert_eq!(delivery.mark_descriptor, Some(GDT + 0x38 + 5));
    assert_eq!(delivery.after.segments.cs.access, 0xa09b, "loaded as accessed");
}

#[test]
fn what_is_wrong_with_a_gate_is_the_guests_exception() {
    let mut world = World::new();
    let idt_code = 0x40 << 3 | 2;
    // A gate of another type, and one that software may not use.
    for rights in [0x8c, 0x85, 0x80, 0x9e] {
        world.gate(0x40, 0x08, 0, rights);
        assert_eq!(world.refused(INTERRUPT), Exception::general_protection(idt_code | 1));
    }
    world.gate(0x40, 0x08, 0, 0x8e);
    assert_eq!(world.refused(INT_N), Exception::general_protection(idt_code));
    world.gate(0x40, 0x08, 0, 0x0e);
    assert_eq!(world.refused(INTERRUPT), Exception::not_present(idt_code | 1));
    world.gate(0x40, 0x08, 0, 0x6e);
    assert_eq!(world.refused(INT_N), Exception::not_present(idt_code));
    // Behind the limit.
    world.gate(0x40, 0x08, 0, 0x8e);
    world.tables.idtr.limit = 0x40f;
    assert!(world.deliver(0x40, None, INTERRUPT).is_ok());
    world.tables.idtr.limit = 0x40e;
    assert_eq!(world.refused(INTERRUPT), Exception::general_protection(idt_code | 1));
}

#[test]
fn what_is_wrong_with_a_code_segment_is_the_guests_exception() {
    let mut world = World::new();
    let cases = [
        (0x00, Exception::general_protection(1)),
        (0x03, Exception::general_protection(1)),
        (0x28, Exception::general_protection(0x29)), // not 64-bit
        (0x30, Exception::general_protection(0x31)), // data
        (0x40, Exception::not_present(0x41)),
        (0x48, Exception::general_protection(0x49)), // empty
        (0x50, Exception::general_protection(0x51)), // behind the limit
        (0x14, Exception::general_protection(0x15)), // behind the limit of the LDT
    ];
    for (selector, exception) in cases {
        world.gate(0x40, selector, 0, 0x8e);
        assert_eq!(world.refused(INTERRUPT), exception, "selector {selector:#x}");
    }
    world.tables.ldtr.access = 0x1_0000;
    world.gate(0x40, 0x0c, 0, 0x8e);
    assert_eq!(world.refused(INTERRUPT), Exception::general_protection(0x0d));
    // Less privileged than what is interrupted.
    world.state.cpl = 0;
    world.gate(0x40, 0x18, 0, 0x8e);
    assert_eq!(world.refused(INTERRUPT), Exception::general_protection(0x19));
}

#[test]
fn what_is_wrong_with_a_stack_is_the_guests_exception() {
    let mut world = World::new();
    world.tables.tr.limit = 0xa;
    assert_eq!(world.refused(INTERRUPT), Exception::invalid_tss(0x61));
    assert_eq!(
        {
            world.gate(0x40, 0x08, 0, 0xee);
            world.refused(INT_N)
        },
        Exception::invalid_tss(0x60)
    );
    world.tables.tr.limit = 0x67;
    world.memory.put(TSS + 4, &0x8000_0000_0000_0000_u64.to_le_bytes());
    assert_eq!(world.refused(INTERRUPT), Exception::stack(1));
    // The top is canonical, the frame is not.
    world.memory.put(TSS + 4, &0xffff_8000_0000_0010_u64.to_le_bytes());
    assert_eq!(world.refused(INTERRUPT), Exception::stack(1));
}

#[test]
fn tables_are_read_as_the_supervisor_whatever_smap_says() {
    let mut world = World::new();
    world.state.cr4 |= 1 << 21;
    assert!(world.deliver(0x40, None, INTERRUPT).is_ok());
    // The tables in user pages: RFLAGS.AC does not help an implicit access.
    for (entry, value) in [(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0xe7_u64)] {
        world.memory.put(entry, &value.to_le_bytes());
    }
    assert_eq!(world.refused(INTERRUPT), Exception::page_fault(IDT + 0x400, 1));
    world.state.cr4 &= !(1 << 21);
    world.memory.put(0x3000, &0_u64.to_le_bytes());
    assert_eq!(world.refused(INTERRUPT), Exception::page_fault(IDT + 0x400, 0));
}

/// SDM Vol. 3A, table "Conditions for Generating a Double Fault".
#[test]
fn exceptions_during_delivery_escalate() {
    let gp = Exception::general_protection(1);
    let pf = Exception::page_fault(5, 0);
    let double = Exception { vector: 8, error_code: Some(0), address: None };
    for first in 0..32 {
        let contributory = matches!(first, 0 | 10 | 11 | 12 | 13 | 21);
        let page = matches!(first, 14 | 20);
        let (on_gp, on_pf) = if first == 8 {
            (Escalation::Shutdown, Escalation::Shutdown)
        } else {
            let either =
                |doubled, itself| Escalation::Deliver(if doubled { double } else { itself });
            (either(contributory || page, gp), either(page, pf))
        };
        assert_eq!(gp.while_delivering(first), on_gp, "#GP after {first}");
        assert_eq!(pf.while_delivering(first), on_pf, "#PF after {first}");
    }
    // INT n and interrupts are benign, also with the vector of an exception.
    for kind in [INTERRUPT, INT_N] {
        for vector in [8, 13, 14] {
            let event = VectoringEvent { vector, error_code: None, kind };
            assert_eq!(event.escalate(gp), Escalation::Deliver(gp));
        }
    }
    let event = VectoringEvent { vector: 13, error_code: Some(0), kind: EXCEPTION };
    assert_eq!(event.escalate(gp), Escalation::Deliver(double));
}
