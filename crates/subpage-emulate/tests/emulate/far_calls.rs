//! Far calls to a code segment: what they push, where they go, and what they refuse.

use subpage_emulate::guest::{Register, Segment, State};
use subpage_emulate::{
    Exception, Executor, Extended, Fault, FxArea, GuestInstruction, Incomplete, Progress, Scratch,
    Store, SystemTables, TableRegister, Unsupported,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, TABLES, state_16, state_32};

const MEMORY: usize = 0x10000;
const TABLE: u64 = 0x2000;
/// Where the instruction's pointer lies, for those that name memory.
const POINTER: u64 = 0x3000;
const STACK: u64 = 0x8000;
const RIP: u64 = 0x1234;

/// Selectors of the descriptors in the table.
const CODE_32: u16 = 0x08;
const CODE_64: u16 = 0x10;
const USER_64: u16 = 0x18;
const CONFORMING: u16 = 0x20;
const DATA: u16 = 0x28;
const ABSENT: u16 = 0x30;
const FRESH: u16 = 0x38;
const GATE: u16 = 0x40;
const WRONG_SIZE: u16 = 0x48;
const SMALL: u16 = 0x50;

fn memory() -> Flat {
    let memory = Flat::new(MEMORY);
    for (selector, descriptor) in [
        (CODE_32, 0x00cf_9b00_0000_ffff_u64),
        (CODE_64, 0x00af_9b00_0000_ffff),
        (USER_64, 0x00af_fb00_0000_ffff),
        (CONFORMING, 0x00af_9f00_0000_ffff),
        (DATA, 0x00cf_9300_0000_ffff),
        (ABSENT, 0x00af_1b00_0000_ffff),
        (FRESH, 0x00af_9a00_0000_ffff),
        (GATE, 0x0000_8c00_0010_5678),
        (WRONG_SIZE, 0x00ef_9b00_0000_ffff),
        // With a base and a limit of its own.
        (SMALL, 0x0040_9b01_2345_0fff),
    ] {
        memory.put(TABLE + u64::from(selector), &descriptor.to_le_bytes());
    }
    memory
}

const SYSTEM: SystemTables =
    SystemTables { gdtr: TableRegister { base: TABLE, limit: 0x57 }, ..TABLES };

/// In IA-32e mode without paging, which no processor is in, so that addresses are physical.
fn state_64() -> State {
    let mut state = State { efer: 0x500, ..state_32() };
    state.segments.cs = Segment { selector: CODE_64, base: 0, limit: !0, access: 0xa09b };
    state
}

fn done(memory: &Flat, before: &State, code: &[u8]) -> Result<(u64, Vec<u8>, State), Incomplete> {
    let mut state = State { rip: RIP, rflags: 0x1_0202, ..*before };
    state.registers[Register::Rbx] = POINTER;
    state.registers[Register::Rsp] = STACK;
    let instruction = GuestInstruction::decode(&state, code).expect("an instruction");
    let store = Store::of(&instruction, &state).expect("a store");
    let mut own = OwnTrampoline::new();
    let mut scratch = Scratch::new(store.linear(), &vec![0xcc; store.length()]);
    let mut executor = Executor {
        memory,
        paging: PAGING,
        tables: &SYSTEM,
        trampoline: &mut own.trampoline,
        extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
    };
    let progress = executor.complete(&store, &mut state, &mut scratch.window())?;
    assert_eq!(progress, Progress::Done);
    Ok((store.linear(), scratch.bytes().to_vec(), state))
}

/// CALL FAR [RBX] in 64-bit code, of which `prefix` is the size of the operand.
fn call(state: &State, prefix: &[u8], offset: &[u8], selector: u16) -> Result<State, Incomplete> {
    let memory = memory();
    memory.put(POINTER, &[offset, &selector.to_le_bytes()].concat());
    let code = [prefix, &[0xff, 0x1b]].concat();
    let (at, bytes, after) = done(&memory, state, &code)?;
    let unit = offset.len();
    let next = RIP + code.len() as u64;
    let pushed = [next, state.segments.cs.selector.into()];
    let expected: Vec<u8> =
        pushed.iter().flat_map(|value| value.to_le_bytes().into_iter().take(unit)).collect();
    assert_eq!((at, bytes), (STACK - 2 * unit as u64, expected));
    assert_eq!(after.registers[Register::Rsp], at);
    assert_eq!(after.rflags, 0x202, "RF ends with the instruction");
    Ok(after)
}

#[test]
fn each_operand_size_pushes_two_values_of_it() {
    let state = state_64();
    let wide = 0x7fff_1234_5678_u64.to_le_bytes();
    for (prefix, offset) in
        [(&[0x66][..], &[0x78, 0x56][..]), (&[], &[0x78, 0x56, 0x34, 0x12]), (&[0x48], &wide)]
    {
        let after = call(&state, prefix, offset, CODE_64).expect("a code segment");
        let mut expected = [0; 8];
        expected[..offset.len()].copy_from_slice(offset);
        assert_eq!(after.rip, u64::from_le_bytes(expected));
        assert_eq!(after.segments.cs, Segment { selector: CODE_64, ..state.segments.cs });
        assert!(after.is_64_bit());
    }
}

#[test]
fn the_segment_is_that_of_the_descriptor() {
    let after = call(&state_64(), &[], &[0x00, 0x0f, 0, 0], SMALL).expect("a code segment");
    let cs = Segment { selector: SMALL, base: 0x1_2345, limit: 0xfff, access: 0x409b };
    assert_eq!((after.segments.cs, after.rip), (cs, 0xf00));
    assert!(!after.is_64_bit());
    let user = State { cpl: 3, ..state_64() };
    for (selector, expected) in [(USER_64 | 3, USER_64 | 3), (CONFORMING, CONFORMING | 3)] {
        let after = call(&user, &[], &[0; 4], selector).expect("a code segment");
        assert_eq!(after.segments.cs.selector, expected);
        assert_eq!(after.cpl, 3);
    }
}

#[test]
fn pointers_in_the_instruction_do_the_same() {
    let memory = memory();
    // CALL 0008:00005678, and CALL 0008:5678.
    let long = [0x9a, 0x78, 0x56, 0, 0, 0x08, 0];
    let (at, bytes, after) = done(&memory, &state_32(), &long).expect("a code segment");
    assert_eq!((at, after.rip), (STACK - 8, 0x5678));
    assert_eq!(bytes, [0x3b, 0x12, 0, 0, 0x33, 0, 0, 0]);
    let short = [0x66, 0x9a, 0x78, 0x56, 0x08, 0];
    let (at, bytes, after) = done(&memory, &state_32(), &short).expect("a code segment");
    assert_eq!((at, after.rip), (STACK - 4, 0x5678));
    assert_eq!(bytes, [0x3a, 0x12, 0x33, 0]);
}

#[test]
fn real_mode_has_no_descriptors() {
    let mut state = state_16();
    state.segments.cs.selector = 0x1000;
    state.segments.cs.base = 0x1_0000;
    let code = [0x9a, 0x78, 0x56, 0x34, 0x12];
    let (at, bytes, after) = done(&memory(), &state, &code).expect("an address");
    assert_eq!((at, bytes), (STACK - 4, vec![0x39, 0x12, 0x00, 0x10]));
    let cs = Segment { selector: 0x1234, base: 0x1_2340, ..state.segments.cs };
    assert_eq!((after.segments.cs, after.rip), (cs, 0x5678));
    // An offset of 32 bits beyond the limit.
    let beyond = [0x66, 0x9a, 0, 0, 1, 0, 0x34, 0x12];
    assert_eq!(done(&memory(), &state, &beyond), Err(fault(Exception::general_protection(0))));
}

fn fault(exception: Exception) -> Incomplete {
    Incomplete::Fault(Fault::Exception(exception))
}

#[test]
fn what_a_processor_refuses_is_refused_alike() {
    let gp = |code| fault(Exception::general_protection(code));
    let user = State { cpl: 3, ..state_64() };
    let near = &[0; 4][..];
    for (state, selector, offset, expected) in [
        (state_64(), 3, near, gp(0)),
        (state_64(), 0x58, near, gp(0x58)),
        (state_64(), 0x0c, near, gp(0x0c)),
        (state_64(), DATA, near, gp(DATA.into())),
        (state_64(), WRONG_SIZE, near, gp(WRONG_SIZE.into())),
        (state_64(), USER_64, near, gp(USER_64.into())),
        (user, CODE_64, near, gp(CODE_64.into())),
        (state_64(), ABSENT, near, fault(Exception::not_present(ABSENT.into()))),
        (state_64(), SMALL, &[0, 0x10, 0, 0], gp(0)),
        (state_64(), GATE, near, Incomplete::Unsupported(Unsupported::FarCall)),
        (state_64(), FRESH, near, Incomplete::Unsupported(Unsupported::DescriptorMark)),
    ] {
        let got = call(&state, &[], offset, selector);
        assert_eq!(got, Err(expected), "selector {selector:#x} at CPL {}", state.cpl);
    }
    // A target that is not canonical.
    let far = 0x8000_0000_0000_u64.to_le_bytes();
    assert_eq!(call(&state_64(), &[0x48], &far, CODE_64), Err(gp(0)));
}
