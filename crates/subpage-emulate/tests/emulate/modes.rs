//! What this processor cannot be asked directly: other modes, segments, privilege.

use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Exception, Executor, Extended, FxArea, GuestInstruction, Incomplete, Progress, Refusal,
    Scratch, Store, Unsupported,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, TABLES, state_16, state_32, state_64};

const MEMORY: usize = 0x40000;

fn store(state: &State, code: &[u8]) -> Result<Store, Refusal> {
    let instruction = GuestInstruction::decode(state, code).expect("an instruction");
    assert_eq!(instruction.bytes(), code, "the whole of it");
    Store::of(&instruction, state)
}

/// Where `code` writes, what, and how the state is afterwards.
fn done(memory: &Flat, before: &State, code: &[u8]) -> (u64, Vec<u8>, State) {
    let mut state = *before;
    let store = store(before, code).unwrap();
    let mut own = OwnTrampoline::new();
    let mut scratch = Scratch::new(store.linear(), &vec![0xcc; store.length()]);
    let mut machine = Executor {
        memory,
        paging: PAGING,
        tables: &TABLES,
        trampoline: &mut own.trampoline,
        extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
    };
    let progress = machine.complete(&store, &mut state, &mut scratch.window()).unwrap();
    assert_eq!(progress, Progress::Done);
    (store.linear(), scratch.bytes().to_vec(), state)
}

/// The same with registers that have their number in every byte, and nothing in memory.
fn simply(mut state: State, code: &[u8]) -> (u64, Vec<u8>, State) {
    for (number, value) in state.registers.0.iter_mut().enumerate() {
        *value = 0x0101_0101_0101_0101 * (number as u64 + 1);
    }
    done(&Flat::new(MEMORY), &state, code)
}

#[test]
fn segment_bases_count_in_64_bit_mode_for_fs_and_gs_only() {
    let mut state = state_64();
    state.segments.gs.base = 0xffff_8000_0000_1000;
    state.segments.fs.base = 0x5000;
    state.segments.ds.base = 0x9000;
    let at = |state: &State, code: &[u8]| store(state, code).unwrap().linear();
    state.registers[Register::Rbx] = 0x234;
    assert_eq!(at(&state, &[0x65, 0x88, 0x03]), 0xffff_8000_0000_1234);
    assert_eq!(at(&state, &[0x64, 0x88, 0x03]), 0x5234);
    assert_eq!(at(&state, &[0x3e, 0x88, 0x03]), 0x234);
    // The address wraps at 32 bits before the base is added.
    state.registers[Register::Rbx] = 0xffff_ffff_ffff_fff0;
    // MOV GS:[EBX + 20H], AL
    assert_eq!(at(&state, &[0x65, 0x67, 0x88, 0x43, 0x20]), 0xffff_8000_0000_1010);
}

#[test]
fn rip_relative_addresses_count_from_the_next_instruction() {
    let mut state = state_64();
    state.rip = 0x40_0000;
    // MOV [RIP + 10H], 12345678H
    let code = [0xc7, 0x05, 0x10, 0, 0, 0, 0x78, 0x56, 0x34, 0x12];
    let (at, bytes, after) = simply(state, &code);
    assert_eq!((at, &bytes[..]), (0x40_001a, &[0x78, 0x56, 0x34, 0x12][..]));
    assert_eq!(after.rip, 0x40_000a);
    // MOV [EIP - 10H], AL, where EIP wraps.
    state.rip = 0x1_0000_0000;
    assert_eq!(simply(state, &[0x67, 0x88, 0x05, 0xf0, 0xff, 0xff, 0xff]).0, 0xffff_fff7);
}

#[test]
fn bare_addresses_have_every_width() {
    // MOV moffs, AL / AX / EAX / RAX
    let long = [0x48, 0xa3, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0, 0];
    assert_eq!(simply(state_64(), &long).0, 0x3344_5566_7788);
    assert_eq!(simply(state_64(), &long).1, [1; 8]);
    let (at, bytes, _) = simply(state_64(), &[0x67, 0xa2, 0x88, 0x77, 0x66, 0x55]);
    assert_eq!((at, bytes), (0x5566_7788, vec![1]));
    let (at, bytes, _) = simply(state_32(), &[0xa3, 0x88, 0x77, 0x66, 0x55]);
    assert_eq!((at, bytes), (0x5566_7788, vec![1; 4]));
    let (at, bytes, _) = simply(state_16(), &[0xa3, 0x88, 0x77]);
    assert_eq!((at, bytes), (0x7788, vec![1; 2]));
    // MOV [disp32], AL in 64-bit mode is sign-extended.
    let (at, ..) = simply(state_64(), &[0x88, 0x04, 0x25, 0, 0, 0, 0x80]);
    assert_eq!(at, 0xffff_ffff_8000_0000);
}

#[test]
fn sixteen_bit_addresses_wrap_in_their_segment() {
    let mut state = state_16();
    state.segments.ds.base = 0x1_0000;
    state.segments.ss.base = 0x2_0000;
    state.registers[Register::Rbx] = 0xffff_fff0;
    state.registers[Register::Rsi] = 0x0000_0030;
    state.registers[Register::Rbp] = 0x1_0010;
    // MOV [BX + SI], AL; MOV [BP + 4], AL
    assert_eq!(store(&state, &[0x88, 0x00]).unwrap().linear(), 0x1_0020);
    assert_eq!(store(&state, &[0x88, 0x46, 0x04]).unwrap().linear(), 0x2_0014);
}

#[test]
fn limits_and_types_of_segments_are_checked_outside_of_64_bit_mode() {
    let gp = Refusal::Exception(Exception::general_protection(0));
    let ss = Refusal::Exception(Exception::stack(0));
    let mut state = state_32();
    state.registers[Register::Rbx] = 0x1000;
    state.registers[Register::Rbp] = 0x1000;
    // MOV [EBX], EAX; MOV [EBP + 0], EAX
    let (by_ds, by_ss) = (&[0x89, 0x03], &[0x89, 0x45, 0x00]);
    let refusal = |state: &State, code: &[u8]| store(state, code).err();
    assert_eq!(refusal(&state, by_ds), None);
    state.segments.ds.limit = 0x1003;
    assert_eq!(refusal(&state, by_ds), None);
    state.segments.ds.limit = 0x1002;
    assert_eq!(refusal(&state, by_ds), Some(gp));
    // Expand-down: above the limit it is.
    state.segments.ds.access = 0xc097;
    state.segments.ds.limit = 0xfff;
    assert_eq!(refusal(&state, by_ds), None);
    state.segments.ds.limit = 0x1000;
    assert_eq!(refusal(&state, by_ds), Some(gp));
    // Read-only data, code, nothing.
    for access in [0xc091, 0xc09b, 0x1_0000] {
        state.segments.ds.limit = !0;
        state.segments.ds.access = access;
        assert_eq!(refusal(&state, by_ds), Some(gp));
    }
    state.segments.ss.limit = 0xfff;
    assert_eq!(refusal(&state, by_ss), Some(ss));
    // In real mode a write through CS is one like any other, within its limit.
    let mut state = state_16();
    state.registers[Register::Rbx] = 0xfffe;
    assert_eq!(refusal(&state, &[0x2e, 0x89, 0x07]), None);
    state.registers[Register::Rbx] = 0xffff;
    assert_eq!(refusal(&state, &[0x2e, 0x89, 0x07]), Some(gp));
}

#[test]
fn a_destination_across_the_canonical_hole_is_refused() {
    let mut state = state_64();
    state.registers[Register::Rbx] = 0x7fff_ffff_fffd;
    state.registers[Register::Rsp] = 0x8000_0000_0004;
    let gp = Refusal::Exception(Exception::general_protection(0));
    let ss = Refusal::Exception(Exception::stack(0));
    assert_eq!(store(&state, &[0x89, 0x03]).unwrap_err(), gp);
    assert_eq!(store(&state, &[0x50]).unwrap_err(), ss);
    state.registers[Register::Rbx] = 0xffff_ffff_ffff_fffe;
    assert_eq!(store(&state, &[0x89, 0x03]).unwrap_err(), gp);
}

#[test]
fn pushes_move_as_much_of_the_stack_pointer_as_there_is() {
    // PUSH EAX with a 32-bit, and PUSH AX with a 16-bit stack pointer; the rest is not touched.
    let mut state = state_32();
    state.registers[Register::Rsp] = 0x5_0000_0000;
    let (at, _, after) = done(&Flat::new(0), &state, &[0x50]);
    assert_eq!((at, after.registers[Register::Rsp]), (0xffff_fffc, 0x5_ffff_fffc));
    let mut state = state_16();
    state.segments.ss.base = 0x10000;
    state.registers[Register::Rsp] = 0x7_0000;
    let (at, _, after) = done(&Flat::new(0), &state, &[0x50]);
    assert_eq!((at, after.registers[Register::Rsp]), (0x1_fffe, 0x7_fffe));
}

#[test]
fn pusha_pushes_eight_registers_and_the_stack_pointer_as_it_was() {
    let (at, bytes, after) = simply(state_32(), &[0x60]);
    assert_eq!(at, 0x0505_0505 - 32);
    let expected: Vec<u8> =
        [8_u8, 7, 6, 5, 4, 3, 2, 1].iter().flat_map(|&byte| [byte; 4]).collect();
    assert_eq!(bytes, expected);
    assert_eq!(after.registers[Register::Rsp] & 0xffff_ffff, 0x0505_0505 - 32);
    let (at, bytes, _) = simply(state_16(), &[0x60]);
    assert_eq!((at, bytes.len()), (0x0505 - 16, 16));
}

#[test]
fn segment_registers_are_pushed_and_stored() {
    let mut state = state_32();
    state.segments.es.selector = 0x1234;
    // PUSH ES: the selector only, in a slot of four bytes.
    let (at, bytes, after) = simply(state, &[0x06]);
    assert_eq!((at, &bytes[..]), (0x0505_0505 - 4, &[0x34, 0x12][..]));
    assert_eq!(after.registers[Register::Rsp] & 0xffff_ffff, 0x0505_0505 - 4);
    let mut state = state_64();
    state.segments.fs.selector = 0x1234;
    // PUSH FS: zero-extended.
    let (_, bytes, _) = done(
        &Flat::new(0),
        &{
            state.registers[Register::Rsp] = 0x1000;
            state
        },
        &[0x0f, 0xa0],
    );
    assert_eq!(bytes, [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
    // MOV [RBX], FS with any operand size stores two bytes.
    state.registers[Register::Rbx] = 0x1000;
    for code in [&[0x8c, 0x23][..], &[0x48, 0x8c, 0x23], &[0x66, 0x8c, 0x23]] {
        assert_eq!(done(&Flat::new(0), &state, code).1, [0x34, 0x12]);
    }
}

#[test]
fn pushed_flags_have_no_rf_and_no_vm() {
    let mut state = state_64();
    state.registers[Register::Rsp] = 0x1000;
    state.rflags = 0x1_0ad7;
    let (_, bytes, after) = done(&Flat::new(0), &state, &[0x9c]);
    assert_eq!(bytes, 0x0ad7_u64.to_le_bytes());
    assert_eq!(after.rflags, 0x0ad7, "and RF ends with the instruction");
}

#[test]
fn system_registers_are_the_guests_and_umip_guards_them() {
    let mut state = state_64();
    state.registers[Register::Rbx] = 0x1000;
    state.cr0 = 0x8005_0033;
    let stored = |state: &State, code: &[u8]| done(&Flat::new(0), state, code).1;
    let table = |limit: u16, base: u64| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    let (sgdt, sidt) = (&[0x0f, 0x01, 0x03][..], &[0x0f, 0x01, 0x0b][..]);
    let (sldt, str) = (&[0x0f, 0x00, 0x03][..], &[0x0f, 0x00, 0x0b][..]);
    let smsw = &[0x0f, 0x01, 0x23][..];
    assert_eq!(stored(&state, sgdt), table(0x77, 0x1122_3344_5566));
    assert_eq!(stored(&state, sidt), table(0xfff, 0x0111_2222_3333));
    assert_eq!(stored(&state, sldt), [0x48, 0]);
    assert_eq!(stored(&state, str), [0x40, 0]);
    assert_eq!(stored(&state, smsw), [0x33, 0]);
    let mut small = state_32();
    small.registers[Register::Rbx] = 0x1000;
    assert_eq!(stored(&small, sgdt), [0x77, 0, 0x66, 0x55, 0x44, 0x33]);
    state.cr4 |= 1 << 11;
    for code in [sgdt, sidt, sldt, str, smsw] {
        let refused = Refusal::Unsupported(Unsupported::Disabled);
        assert_eq!(store(&state, code).unwrap_err(), refused);
    }
    state.cpl = 0;
    assert_eq!(stored(&state, str), [0x40, 0]);
}

#[test]
fn calls_out_of_reach_push_nothing() {
    let mut state = state_64();
    state.registers[Register::Rsp] = 0x1000;
    state.registers[Register::Rax] = 0x8000_0000_0000;
    let call = store(&state, &[0xff, 0xd0]).unwrap();
    let mut own = OwnTrampoline::new();
    let mut scratch = Scratch::new(call.linear(), &[0xcc; 8]);
    let before = state;
    let memory = Flat::new(0);
    let mut machine = Executor {
        memory: &memory,
        paging: PAGING,
        tables: &TABLES,
        trampoline: &mut own.trampoline,
        extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
    };
    let got = machine.complete(&call, &mut state, &mut scratch.window());
    let gp = Exception::general_protection(0);
    assert_eq!(got, Err(Incomplete::Fault(gp.into())));
    assert_eq!((state, scratch.bytes()), (before, &[0xcc; 8][..]));

    // In 32-bit code the limit of CS decides; the return address has 32 bits.
    let mut state = state_32();
    state.rip = 0xffff_fffd;
    let (_, bytes, after) = simply(state, &[0xe8, 0x10, 0, 0, 0]);
    assert_eq!((bytes, after.rip), (vec![2, 0, 0, 0], 0x12));
}

#[test]
fn sources_are_read_with_the_guests_privilege() {
    // A supervisor page at 5000H, read by MOVSB and PUSH at CPL 3.
    let memory = Flat::new(MEMORY);
    for (entry, value) in
        [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4028, 0x5003_u64)]
    {
        memory.put(entry, &value.to_le_bytes());
    }
    memory.put(0x5008, &0x1122_3344_5566_7788_u64.to_le_bytes());
    for code in [&[0xa4][..], &[0xff, 0x36]] {
        let mut state = state_64();
        state.registers[Register::Rsi] = 0x5008;
        state.registers[Register::Rdi] = 0x6000;
        state.registers[Register::Rsp] = 0x7000;
        let before = state;
        let store = store(&state, code).unwrap();
        let mut own = OwnTrampoline::new();
        let mut scratch = Scratch::new(store.linear(), &vec![0xcc; store.length()]);
        let mut machine = Executor {
            memory: &memory,
            paging: PAGING,
            tables: &TABLES,
            trampoline: &mut own.trampoline,
            extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
        };
        let got = machine.complete(&store, &mut state, &mut scratch.window());
        let fault = Exception::page_fault(0x5008, 0b101);
        assert_eq!(got, Err(Incomplete::Fault(fault.into())));
        assert_eq!(state, before);
        assert!(scratch.bytes().iter().all(|&byte| byte == 0xcc));
        state.cpl = 0;
        let got = machine.complete(&store, &mut state, &mut scratch.window());
        assert_eq!(got, Ok(Progress::Done));
        assert_eq!(scratch.bytes()[0], 0x88);
    }
}

#[test]
fn an_instruction_that_the_guest_has_disabled_is_not_executed() {
    let disabled = Some(Refusal::Unsupported(Unsupported::Disabled));
    let refusal = |state: &State, code: &[u8]| store(state, code).err();
    // MOVUPS, VMOVUPS, FSTP, MOVQ from MMX
    let (sse, avx) = (&[0x0f, 0x11, 0x03], &[0xc5, 0xf8, 0x11, 0x03]);
    let (x87, mmx) = (&[0xdd, 0x1b], &[0x0f, 0x7f, 0x03]);
    let clear = |cr0: u64, cr4: u64| {
        let mut state = state_64();
        state.cr0 |= cr0;
        state.cr4 &= !cr4;
        state
    };
    for (cr0, cr4, refused) in [
        (0, 0, [false, false, false, false]),
        (1 << 3, 0, [true, true, true, true]),
        (1 << 2, 0, [true, false, true, true]),
        (0, 1 << 9, [true, false, false, false]),
        (0, 1 << 18, [false, true, false, false]),
    ] {
        let state = clear(cr0, cr4);
        let got = [&sse[..], avx, x87, mmx].map(|code| refusal(&state, code) == disabled);
        assert_eq!(got, refused, "CR0 bits {cr0:#x} set, CR4 bits {cr4:#x} clear");
    }
    // VEX does not exist in real mode.
    assert_eq!(refusal(&state_16(), &[0xc5, 0xf8, 0x11, 0x07]), disabled);
}

#[test]
fn what_is_refused_says_why() {
    let refusal = |code: &[u8]| match store(&state_64(), code) {
        Err(Refusal::Unsupported(why)) => why,
        other => panic!("{code:02x?}: {other:?}"),
    };
    let cases: &[(&[u8], Unsupported)] = &[
        (&[0x8b, 0x03], Unsupported::NoStore),       // mov eax, [rbx]
        (&[0x89, 0xc3], Unsupported::NoStore),       // mov ebx, eax
        (&[0x39, 0x03], Unsupported::NoStore),       // cmp [rbx], eax
        (&[0x0f, 0xa3, 0x03], Unsupported::NoStore), // bt [rbx], eax
        (&[0xf3, 0xaa], Unsupported::NoStore),       // rep stosb, RCX = 0
        (&[0xcd, 0x80], Unsupported::SoftwareInterrupt), // int 80h
        (&[0xcc], Unsupported::SoftwareInterrupt),   // int3
        (&[0x6c], Unsupported::PortInput),           // insb
        (&[0x0f, 0xc7, 0x33], Unsupported::NoStore), // vmptrld [rbx]
        (&[0x0f, 0xc7, 0x3b], Unsupported::Unlisted), // vmptrst [rbx]
        (&[0x8e, 0xd8], Unsupported::DescriptorMark), // mov ds, eax
        (&[0x0f, 0xa1], Unsupported::DescriptorMark), // pop fs
        (&[0x0f, 0xb2, 0x03], Unsupported::DescriptorMark), // lss eax, [rbx]
        (&[0x0f, 0x00, 0xd8], Unsupported::DescriptorMark), // ltr ax
        (&[0xff, 0x2b], Unsupported::FarJump),       // jmp far [rbx]
        (&[0x48, 0xcf], Unsupported::InterruptReturn), // iretq
        (&[0xcb], Unsupported::FarReturn),           // retf
        (&[0xc3], Unsupported::NoStore),             // ret
        (&[0x58], Unsupported::NoStore),             // pop rax
    ];
    for &(code, why) in cases {
        assert_eq!(refusal(code), why, "{code:02x?}");
    }
}
