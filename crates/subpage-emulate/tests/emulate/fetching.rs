//! Fetching instructions: across pages, up to absent ones, with privilege.

use proptest::prelude::*;
use subpage_emulate::guest::{Register, State, Vendor};
use subpage_emulate::{DecodeCache, Exception, Fault, GuestInstruction, Store};

use crate::flat::Flat;
use crate::machine::{PAGING, state_16, state_32, state_64};

/// Linear 5000H leads to 8000H, 6000H to 3000H, and 7000H is absent.
fn memory() -> Flat {
    let memory = Flat::new(0x10000);
    memory.put(0x1000, &0x2007_u64.to_le_bytes());
    memory.put(0x2000, &0x9007_u64.to_le_bytes());
    memory.put(0x9000, &0xa007_u64.to_le_bytes());
    memory.put(0xa000 + 5 * 8, &0x8005_u64.to_le_bytes());
    memory.put(0xa000 + 6 * 8, &0x3005_u64.to_le_bytes());
    memory
}

/// MOV QWORD PTR [RAX + 11223344H], 55667788H
const MOVE: [u8; 11] = [0x48, 0xc7, 0x80, 0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55];

#[test]
fn an_instruction_may_begin_in_one_page_and_end_in_another() {
    for before in 1..MOVE.len() {
        let memory = memory();
        memory.put(0x9000 - before as u64, &MOVE[..before]);
        memory.put(0x3000, &MOVE[before..]);
        // What follows in the neighbouring frame is something else; the entry is at 9000H anyway.
        let mut state = state_64();
        state.rip = 0x6000 - before as u64;
        let instruction = GuestInstruction::fetch(&memory, PAGING, &state).unwrap();
        assert_eq!(instruction.bytes(), MOVE);
    }
}

#[test]
fn what_follows_an_instruction_may_be_absent() {
    let memory = memory();
    memory.put(0x4000 - MOVE.len() as u64, &MOVE);
    let mut state = state_64();
    state.rip = 0x7000 - MOVE.len() as u64;
    let instruction = GuestInstruction::fetch(&memory, PAGING, &state).unwrap();
    assert_eq!(instruction.bytes(), MOVE);

    // One byte later it is cut off, and the fault is at the absent page.
    memory.put(0x4000 - MOVE.len() as u64 + 1, &MOVE[..10]);
    state.rip += 1;
    let fault = GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err();
    assert_eq!(fault, Exception::page_fault(0x7000, 0b1_0100).into());
}

#[test]
fn bytes_that_are_no_instruction_are_an_exception() {
    let memory = memory();
    let invalid = Fault::Exception(Exception { vector: 6, error_code: None, address: None });
    let mut state = state_64();
    state.rip = 0x5000;
    // LOCK with a register; PUSH ES in 64-bit mode; sixteen prefixes.
    for bytes in [&[0xf0, 0x01, 0xc0][..], &[0x06], &[0x66; 16]] {
        memory.put(0x8000, bytes);
        assert_eq!(GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err(), invalid);
    }
    // Invalid already, so the next page is not asked for.
    memory.put(0x3ffd, &[0xf0, 0x01, 0xc0]);
    state.rip = 0x6ffd;
    assert_eq!(GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err(), invalid);
}

#[test]
fn fetches_respect_privilege_and_canonical_addresses() {
    let memory = memory();
    memory.put(0x8000, &MOVE);
    memory.put(0xa000 + 5 * 8, &0x8001_u64.to_le_bytes());
    let mut state = state_64();
    state.rip = 0x5000;
    let fault = GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err();
    assert_eq!(fault, Exception::page_fault(0x5000, 0b1_0101).into());
    state.cpl = 0;
    assert!(GuestInstruction::fetch(&memory, PAGING, &state).is_ok());
    state.rip = 0x8000_0000_0000;
    let fault = GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0).into());
}

#[test]
fn outside_of_64_bit_mode_base_and_limit_count() {
    let memory = Flat::new(0x20000);
    // MOV [BX], AL
    memory.put(0x1_2345, &[0x88, 0x07]);
    let mut state = state_16();
    state.segments.cs.base = 0x1_2000;
    state.rip = 0x345;
    let instruction = GuestInstruction::fetch(&memory, PAGING, &state).unwrap();
    assert_eq!(instruction.bytes(), [0x88, 0x07]);
    state.segments.cs.limit = 0x345;
    let fault = GuestInstruction::fetch(&memory, PAGING, &state).unwrap_err();
    assert_eq!(fault, Exception::general_protection(0).into());

    // Addresses wrap at 4 GiB.
    let mut state = state_32();
    state.segments.cs.base = 0xffff_f000;
    state.rip = 0x1_3345;
    let instruction = GuestInstruction::fetch(&memory, PAGING, &state).unwrap();
    assert_eq!(instruction.bytes(), [0x88, 0x07]);
}

/// What is remembered is what would be found anew: the same bytes in another state have the store of
/// that state, other bytes at the same address are another instruction, and an address that is
/// fetched from no more is a fault.
#[test]
fn a_remembered_instruction_is_the_one_that_is_there() {
    let memory = memory();
    let mut cache = DecodeCache::default();
    let mut state = state_64();
    state.rip = 0x5000;
    let mut check = |memory: &Flat, state: &State| {
        let decoded = cache.take(memory, PAGING, state).unwrap();
        let (instruction, store) = (decoded.instruction(), decoded.store());
        let fresh = GuestInstruction::fetch(memory, PAGING, state).unwrap();
        assert_eq!(instruction.bytes(), fresh.bytes());
        let (store, expected) = (store.unwrap(), Store::of(&fresh, state).unwrap());
        assert_eq!((store.linear(), store.length()), (expected.linear(), expected.length()));
        assert_eq!(store.substitute(), expected.substitute());
        cache.put(decoded);
    };
    // MOV [RAX + 11223344H], 55667788H; MOV [RDX], RCX; LOCK INC QWORD PTR [RAX]; BTS [RAX], RCX
    let all: [&[u8]; 4] =
        [&MOVE, &[0x48, 0x89, 0x0a], &[0xf0, 0x48, 0xff, 0x00], &[0x48, 0x0f, 0xab, 0x08]];
    for bytes in all {
        memory.put(0x8000, bytes);
        for (rax, rcx) in [(0x1000, 3), (0x2000, 3), (0x2000, 130)] {
            state.registers.0[0] = rax;
            state.registers.0[1] = rcx;
            check(&memory, &state);
        }
    }
    memory.put(0xa000 + 5 * 8, &0_u64.to_le_bytes());
    assert!(cache.take(&memory, PAGING, &state).is_err(), "the page is gone");
}

/// ADD, MOV, XCHG, INC, SHL by CL, MOV of an immediate; all but LOCK and the REX prefix.
const OPCODES: [u8; 6] = [0x01, 0x89, 0x87, 0xff, 0xd3, 0xc7];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Every form of an address, remembered with some registers, is what it is with others.
    #[test]
    fn a_remembered_operand_is_where_other_registers_put_it(
        narrow in any::<bool>(),
        segment in prop::sample::select(vec![None, Some(0x64), Some(0x65), Some(0x36), Some(0x2e)]),
        rex in 0x40..=0x4f_u8,
        opcode in prop::sample::select(OPCODES.to_vec()),
        mode in 0..=2_u8,
        rest in prop::array::uniform16(any::<u8>()),
        registers in prop::array::uniform16(any::<u64>()),
        small in any::<bool>(),
        bases in prop::array::uniform2(any::<u64>()),
    ) {
        let memory = memory();
        let mut bytes = Vec::new();
        bytes.extend(narrow.then_some(0x67));
        bytes.extend(segment);
        bytes.extend([rex, opcode]);
        let digit = match opcode {
            0xff | 0xc7 => 0,
            0xd3 => 4 << 3,
            _ => rest[0] & 0x38,
        };
        bytes.push(mode << 6 | digit | rest[0] & 7);
        bytes.extend(&rest[1..12]);
        memory.put(0x8000, &bytes);
        let mut state = state_64();
        state.rip = 0x5000;
        let mut cache = DecodeCache::default();
        let first = cache.take(&memory, PAGING, &state);
        prop_assert!(first.is_ok(), "{bytes:02x?}");
        cache.put(first.unwrap());
        state.registers.0 = registers.map(|value| if small { value >> 20 } else { value });
        [state.segments.fs.base, state.segments.gs.base] = bases;
        let decoded = cache.take(&memory, PAGING, &state).unwrap();
        match (decoded.store(), Store::of(decoded.instruction(), &state)) {
            (Ok(store), Ok(expected)) => {
                prop_assert_eq!(store.linear(), expected.linear(), "{:02x?}", bytes);
                prop_assert_eq!(store.length(), expected.length());
                prop_assert_eq!(store.substitute(), expected.substitute());
            }
            (store, expected) => prop_assert_eq!(store.err(), expected.err(), "{:02x?}", bytes),
        }
    }
}

/// An operand-size prefix before a near call of 64-bit code: Intel's processors ignore it, AMD's take
/// an operand of 16 bits, so that the instruction is shorter and pushes less.
#[test]
fn an_operand_size_prefix_before_a_near_call_is_the_vendors() {
    // CALL rel16 or rel32; CALL RAX or AX.
    for (code, intel, amd) in [
        ([0x66, 0xe8, 0x10, 0x00, 0x00, 0x00], (6, 8), (4, 2)),
        ([0x66, 0xff, 0xd0, 0x90, 0x90, 0x90], (3, 8), (3, 2)),
    ] {
        for (vendor, expected) in [(Vendor::Intel, intel), (Vendor::Amd, amd)] {
            let mut state = State { vendor, ..state_64() };
            state.registers[Register::Rsp] = 0x1008;
            let instruction = GuestInstruction::decode(&state, &code).unwrap();
            let store = Store::of(&instruction, &state).unwrap();
            let got = (instruction.bytes().len(), store.length());
            assert_eq!(got, expected, "{code:02x?}, {vendor:?}");
        }
    }
}
