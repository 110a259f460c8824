//! Far calls to a code segment: what they push, where they go, and what they refuse.

use subpage_emulate::guest::{Register, Segment, Segments, State};
use subpage_emulate::{
    Exception, Executor, Extended, Fault, GuestInstruction, Incomplete, Progress, Refusal, Scratch,
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
const CONFORMING_USER: u16 = 0x58;

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
        (CONFORMING_USER, 0x00af_ff00_0000_ffff),
    ] {
        memory.put(TABLE + u64::from(selector), &descriptor.to_le_bytes());
    }
    memory
}

const SYSTEM: SystemTables =
    SystemTables { gdtr: TableRegister { base: TABLE, limit: 0x5f }, ..TABLES };

/// In IA-32e mode without paging, which no processor is in, so that addresses are physical.
fn state_64() -> State {
    let mut state = State { efer: 0x500, ..state_32() };
    state.segments.cs = Segment { selector: CODE_64, base: 0, limit: !0, access: 0xa09b };
    state
}

fn executor<'a>(memory: &'a Flat, own: &'a mut OwnTrampoline) -> Executor<'a, Flat> {
    let (trampoline, extended) = (&mut own.trampoline, Extended::Unused);
    Executor { memory, paging: PAGING, tables: &SYSTEM, trampoline, extended }
}

/// Does a far call, with the stack at [`STACK`] unless the state says where.
fn done(memory: &Flat, before: &State, code: &[u8]) -> Result<(u64, Vec<u8>, State), Incomplete> {
    done_after(memory, before, code, || {})
}

/// The same; `change` comes between finding the store and doing it.
fn done_after(
    memory: &Flat,
    before: &State,
    code: &[u8],
    change: impl FnOnce(),
) -> Result<(u64, Vec<u8>, State), Incomplete> {
    let mut state = State { rip: RIP, rflags: before.rflags | 0x1_0000, ..*before };
    state.registers[Register::Rbx] = POINTER;
    if state.registers[Register::Rsp] == 0 {
        state.registers[Register::Rsp] = STACK;
    }
    let instruction = GuestInstruction::decode(&state, code).expect("an instruction");
    let store = Store::of(&instruction, &state).expect("a store");
    let mut own = OwnTrampoline::new();
    let mut executor = executor(memory, &mut own);
    let store = executor.settle(&store, &state, || unreachable!("it needs no XCR0"))?;
    assert!(!store.is_open());
    change();
    let mut scratch = Scratch::new(store.linear(), &vec![0xcc; store.length()]);
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

/// Measured on a processor of AMD's, with and without a base of SS: what is pushed goes to the stack as
/// the code segment that is called has it.
#[test]
fn the_stack_is_that_of_the_segment_that_is_called() {
    let compatibility = State {
        segments: Segments {
            cs: Segment { selector: CODE_32, access: 0xc09b, ..state_64().segments.cs },
            ..state_64().segments
        },
        ..state_64()
    };
    let flat = state_64().segments.ss;
    let narrow = Segment { base: 0x1000, access: 0x8093, ..flat };
    for (from, ss, pointer, selector, at, behind) in [
        (state_64(), flat, 0x1_0000_8000, CODE_64, 0x1_0000_7ff8, 0x1_0000_7ff8),
        (state_64(), flat, 0x1_0000_8000, CODE_32, 0x7ff8, 0x7ff8),
        (state_64(), narrow, 0x2_0000, CODE_32, 0x1_0ff8, 0x2_fff8),
        (compatibility, narrow, 0x2_0000, CODE_32, 0x1_0ff8, 0x2_fff8),
        (compatibility, narrow, 0x2_0000, CODE_64, 0x1_fff8, 0x1_fff8),
    ] {
        let mut state = from;
        state.segments.ss = ss;
        state.registers[Register::Rsp] = pointer;
        let memory = memory();
        memory.put(POINTER, &[&[0; 4], &selector.to_le_bytes()[..]].concat());
        let (linear, bytes, after) = done(&memory, &state, &[0xff, 0x1b]).expect("a code segment");
        let what = format!("from {:x} to {selector:x} at {pointer:x}", state.segments.cs.selector);
        let stack_pointer = after.registers[Register::Rsp];
        assert_eq!((linear, stack_pointer), (at, behind), "{what}");
        assert_eq!(bytes[4..6], state.segments.cs.selector.to_le_bytes(), "{what}");
    }
    // Code of 64 bits needs no stack segment, other code does.
    let mut state = state_64();
    state.segments.ss.access = 1 << 16;
    call(&state, &[], &[0; 4], CODE_64).expect("a code segment");
    assert_eq!(call(&state, &[], &[0; 4], CODE_32), Err(fault(Exception::stack(0))));
}

/// A gate may lead to another stack, so nobody is told that it is this one.
#[test]
fn the_stack_of_a_gate_is_not_known() {
    for state in [state_64(), state_32()] {
        let mut state = State { rip: RIP, ..state };
        state.registers[Register::Rbx] = POINTER;
        state.registers[Register::Rsp] = STACK;
        let memory = memory();
        memory.put(POINTER, &[&[0; 4], &GATE.to_le_bytes()[..]].concat());
        let instruction = GuestInstruction::decode(&state, &[0xff, 0x1b]).expect("an instruction");
        let store = Store::of(&instruction, &state).expect("a store");
        let mut own = OwnTrampoline::new();
        let mut executor = executor(&memory, &mut own);
        let settled = executor.settle(&store, &state, || unreachable!("it needs no XCR0"));
        let refused = Err(Refusal::Unsupported(Unsupported::FarCall));
        assert_eq!(settled.map(|store| store.linear()), refused);
    }
}

/// Another processor of the guest exchanges the target after its stack was found.
#[test]
fn a_target_that_changes_to_one_with_another_stack_is_not_called() {
    let mut state = state_64();
    state.registers[Register::Rsp] = 0x1_0000_8000;
    let memory = memory();
    for (selector, expected) in
        [(SMALL, Ok(0x7ff8)), (CODE_64, Err(Incomplete::Unsupported(Unsupported::FarCall)))]
    {
        memory.put(POINTER, &[&[0; 4], &CODE_32.to_le_bytes()[..]].concat());
        let change = || memory.put(POINTER + 4, &selector.to_le_bytes());
        let result = done_after(&memory, &state, &[0xff, 0x1b], change);
        assert_eq!(result.map(|(at, ..)| at), expected, "{selector:#x}");
    }
}

#[test]
fn a_segment_of_32_bits_takes_as_many_of_an_offset() {
    let offset = 0x1_0000_0f00_u64.to_le_bytes();
    let after = call(&state_64(), &[0x48], &offset, SMALL).expect("a code segment");
    assert_eq!((after.segments.cs.selector, after.rip), (SMALL, 0xf00));
}

/// Outside of IA-32e mode the bit that says that code has 64 bits means nothing.
#[test]
fn a_long_segment_is_none_outside_of_ia_32e_mode() {
    let code = [0x9a, 0x78, 0x56, 0, 0, WRONG_SIZE.to_le_bytes()[0], 0];
    let (at, _, after) = done(&memory(), &state_32(), &code).expect("a code segment");
    assert_eq!((at, after.rip), (STACK - 8, 0x5678));
    assert_eq!((after.segments.cs.selector, after.is_64_bit()), (WRONG_SIZE, false));
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
    // Nor has virtual-8086 mode.
    let virtual_8086 = State { cr0: 0x11, cpl: 3, rflags: 0x2_0202, ..state };
    let (at, _, after) = done(&memory(), &virtual_8086, &code).expect("an address");
    assert_eq!((at, after.segments.cs, after.rip), (STACK - 4, cs, 0x5678));
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
        (state_64(), 0x60, near, gp(0x60)),
        (state_64(), 0x0c, near, gp(0x0c)),
        (state_64(), DATA, near, gp(DATA.into())),
        (state_64(), WRONG_SIZE, near, gp(WRONG_SIZE.into())),
        (state_64(), USER_64, near, gp(USER_64.into())),
        (state_64(), CODE_64 | 3, near, gp(CODE_64.into())),
        (state_64(), CONFORMING_USER, near, gp(CONFORMING_USER.into())),
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
