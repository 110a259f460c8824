//! Stores of more than a register, or of parts of one: against the processor, as the others are.

use iced_x86::code_asm::*;
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{
    Exception, Executor, Extended, FxArea, GuestInstruction, Incomplete, Progress, Refusal,
    Scratch, Store, Unsupported, XsaveArea,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, TABLES, state_16, state_32, state_64};
use crate::stores::Needs::{Alignment, Nothing};
use crate::stores::{Bench, Form, m};

#[rustfmt::skip] // a table
const ENTER: &[Form] = &[
    Form("enter level 1", 16, Nothing, |a| a.enter(0x40, 1)),
    Form("enter level 2", 24, Nothing, |a| a.enter(0, 2)),
    Form("enter level 31", 256, Nothing, |a| a.enter(0x123, 31)),
    Form("enter level 32 is 0", 8, Nothing, |a| a.enter(0x10, 32)),
    // With operands of 16 bits.
    Form("enterw level 3", 8, Nothing, |a| a.db(&[0x66, 0xc8, 0x20, 0x00, 0x03])),
];

#[rustfmt::skip] // a table
const X87_STATE: &[Form] = &[
    Form("fnstenv", 28, Nothing, |a| a.fnstenv(m())),
    Form("fnsave", 108, Nothing, |a| a.fnsave(m())),
    // [RBX] with operands of 16 bits.
    Form("fnstenv 16", 14, Nothing, |a| a.db(&[0x66, 0xd9, 0x33])),
    Form("fnsave 16", 94, Nothing, |a| a.db(&[0x66, 0xdd, 0x33])),
];

#[rustfmt::skip] // a table
const MASKED: &[Form] = &[
    Form("maskmovq", 8, Nothing, |a| a.maskmovq(mm1, mm4)),
    Form("maskmovdqu", 16, Nothing, |a| a.maskmovdqu(xmm3, xmm12)),
];

#[rustfmt::skip] // a table
const MASKED_AVX: &[Form] = &[
    Form("vmaskmovdqu", 16, Nothing, |a| a.vmaskmovdqu(xmm3, xmm12)),
    Form("vmaskmovps xmm", 16, Nothing, |a| a.vmaskmovps(xmmword_ptr(m()), xmm1, xmm2)),
    Form("vmaskmovps ymm", 32, Nothing, |a| a.vmaskmovps(ymmword_ptr(m()), ymm3, ymm4)),
    Form("vmaskmovpd xmm", 16, Nothing, |a| a.vmaskmovpd(xmmword_ptr(m()), xmm5, xmm6)),
    Form("vmaskmovpd ymm", 32, Nothing, |a| a.vmaskmovpd(ymmword_ptr(m()), ymm7, ymm8)),
    Form("vpmaskmovd xmm", 16, Nothing, |a| a.vpmaskmovd(xmmword_ptr(m()), xmm9, xmm10)),
    Form("vpmaskmovd ymm", 32, Nothing, |a| a.vpmaskmovd(ymmword_ptr(m()), ymm11, ymm11)),
    Form("vpmaskmovq ymm", 32, Nothing, |a| a.vpmaskmovq(ymmword_ptr(m()), ymm12, ymm13)),
];

#[rustfmt::skip] // a table
const SSE4A: &[Form] = &[
    Form("movntss", 4, Nothing, |a| a.movntss(dword_ptr(m()), xmm4)),
    Form("movntsd", 8, Nothing, |a| a.movntsd(qword_ptr(m()), xmm11)),
];

#[rustfmt::skip] // a table
const XSAVE: &[Form] = &[
    Form("xsave", 0, Alignment(64), |a| a.xsave(m())),
    Form("xsave64", 0, Alignment(64), |a| a.xsave64(m())),
];

#[rustfmt::skip] // a table
const XSAVE_KIN: &[Form] = &[
    Form("xsaveopt", 0, Alignment(64), |a| a.xsaveopt(m())),
    Form("xsaveopt64", 0, Alignment(64), |a| a.xsaveopt64(m())),
    Form("xsavec", 0, Alignment(64), |a| a.xsavec(m())),
    Form("xsavec64", 0, Alignment(64), |a| a.xsavec64(m())),
];

fn compare(present: bool, what: &str, forms: &[Form]) {
    if present {
        Bench::new().compare_all(forms);
    } else {
        println!("skipped: this processor has no {what}");
    }
}

#[test]
fn enter_pushes_the_frames_of_all_levels() {
    Bench::new().compare_all(ENTER);
}

#[test]
fn all_of_the_x87_state_is_stored_as_the_processor_does() {
    Bench::new().compare_all(X87_STATE);
}

#[test]
fn masked_stores_write_what_the_processor_writes() {
    Bench::new().compare_all(MASKED);
    compare(std::arch::is_x86_feature_detected!("avx2"), "AVX2", MASKED_AVX);
}

#[test]
fn stores_of_sse4a() {
    compare(std::arch::is_x86_feature_detected!("sse4a"), "SSE4A", SSE4A);
}

#[test]
fn extended_state_is_saved_as_the_processor_does() {
    compare(std::arch::is_x86_feature_detected!("xsave"), "XSAVE", XSAVE);
    let all = std::arch::is_x86_feature_detected!("xsaveopt")
        && std::arch::is_x86_feature_detected!("xsavec");
    compare(all, "XSAVEOPT and XSAVEC", XSAVE_KIN);
}

/// What an instruction stores in a state.
fn store(state: &State, code: &[u8]) -> Result<Store, Refusal> {
    let instruction = GuestInstruction::decode(state, code).expect("an instruction");
    Store::of(&instruction, state)
}

#[test]
fn lines_are_64_bytes_where_the_address_says() {
    let mut state = state_64();
    state.registers[Register::Rax] = 0x12_3475;
    // CLZERO rounds the address down.
    let line = store(&state, &[0x0f, 0x01, 0xfc]).unwrap();
    assert_eq!((line.linear(), line.length()), (0x12_3440, 64));
    // MOVDIR64B RAX, [RBX]
    let line = store(&state, &[0x66, 0x0f, 0x38, 0xf8, 0x03]).unwrap();
    assert_eq!((line.linear(), line.length()), (0x12_3475, 64));
}

/// Their features are hidden from guests, so they are what they are on a processor without them.
#[test]
fn tiles_and_commands_are_invalid() {
    let state = state_64();
    for code in [
        // ENQCMD RAX, [RBX]
        &[0xf2, 0x0f, 0x38, 0xf8, 0x03][..],
        // TILESTORED [RBX + RCX], TMM1; STTILECFG [RBX]
        &[0xc4, 0xe2, 0x7a, 0x4b, 0x0c, 0x0b],
        &[0xc4, 0xe2, 0x79, 0x49, 0x03],
    ] {
        let Err(Refusal::Exception(exception)) = store(&state, code) else {
            panic!("{code:02x?} is refused")
        };
        assert_eq!(exception.vector, 6, "{code:02x?}");
    }
}

/// Does `work` with a trampoline of its own.
fn execute<T>(
    memory: &Flat,
    extended: Extended<'_>,
    work: impl FnOnce(&mut Executor<'_, Flat>) -> T,
) -> T {
    let mut own = OwnTrampoline::new();
    let trampoline = &mut own.trampoline;
    work(&mut Executor { memory, paging: PAGING, tables: &TABLES, trampoline, extended })
}

/// What every byte of memory is.
const OLD: u8 = 0xcc;

/// What `code` leaves of bytes that all are `before`: [`OLD`], unless another processor has written them
/// since they were read.
fn stored(state: &State, code: &[u8], extended: Extended<'_>, before: u8) -> Vec<u8> {
    let memory = Flat::new(0x40000);
    memory.0.borrow_mut().fill(OLD);
    let mut state = *state;
    execute(&memory, extended, |executor| {
        let store = store(&state, code).unwrap();
        let store = executor.settle(&store, &state, || 7).unwrap();
        let mut scratch = Scratch::new(store.linear(), &vec![before; store.length()]);
        let progress = executor.complete(&store, &mut state, &mut scratch.window()).unwrap();
        assert_eq!(progress, Progress::Done);
        scratch.bytes().to_vec()
    })
}

#[test]
fn outside_of_64_bit_mode_half_of_the_vector_registers_are_saved() {
    let mut state = state_32();
    state.cr4 |= 1 << 18;
    state.registers[Register::Rax] = 7;
    state.registers[Register::Rbx] = 0x1000;
    if !std::arch::is_x86_feature_detected!("avx") {
        println!("skipped: this processor has no AVX");
        return;
    }
    let mut area = XsaveArea::INITIAL;
    area.0[512] = 7;
    for at in (32..160).filter(|at| at % 16 < 10).chain(160..416).chain(576..832) {
        area.0[at] = at.to_le_bytes()[0] | 1;
    }
    // XSAVE adds to the components that the header names; XSAVEC does not.
    let mut codes: Vec<(&[u8], u8)> = vec![(&[0x0f, 0xae, 0x23], OLD | 7)];
    if std::arch::is_x86_feature_detected!("xsavec") {
        codes.push((&[0x0f, 0xc7, 0x23], 7));
    }
    for ((code, named), before) in
        codes.into_iter().flat_map(|code| [OLD, 0xdd].map(|before| (code, before)))
    {
        let extended = Extended::Xsave { area: &mut area.clone(), components: 7 };
        let bytes = stored(&state, code, extended, before);
        assert_eq!(bytes.len(), 832, "{code:02x?}");
        for range in [32..42, 160..288, 576..704] {
            assert_eq!(bytes[range.clone()], area.0[range], "{code:02x?}");
        }
        assert_eq!(bytes[512], named, "{code:02x?}");
        // Registers that it leaves out, and the rest of the header, which nobody writes.
        for range in [288..512, 528..576, 704..832] {
            assert!(bytes[range].iter().all(|byte| *byte == before), "{code:02x?}");
        }
    }
    // FXSAVE [EBX].
    assert_eq!(store(&state, &[0x0f, 0xae, 0x03]).map(|store| store.length()), Ok(288));
    // And none of them at CPL 0 with EFER.FFXSR.
    let fast = State { cpl: 0, efer: 0x4d01, ..state_64() };
    assert_eq!(store(&fast, &[0x0f, 0xae, 0x03]).map(|store| store.length()), Ok(160));
}

/// ENTER asks for the right to write where the stack pointer then is, although it writes nothing there.
#[test]
fn enter_needs_the_room_that_it_makes() {
    // ENTER 0x2000, 0.
    let code = [0xc8, 0x00, 0x20, 0];
    let enter = |memory: &Flat, before: &State| {
        let mut state = *before;
        let store = store(before, &code).unwrap();
        let mut scratch = Scratch::new(store.linear(), &vec![OLD; store.length()]);
        let result = execute(memory, Extended::Unused, |executor| {
            executor.complete(&store, &mut state, &mut scratch.window())
        });
        if result.is_err() {
            assert_eq!(state, *before);
            assert!(scratch.bytes().iter().all(|byte| *byte == OLD));
        }
        result
    };
    let fault = |exception: Exception| Err(Incomplete::Fault(exception.into()));
    // All pages of the first 64 are there, but one.
    let memory = Flat::new(0x5000);
    for (table, next) in [(0x1000, 0x2007_u64), (0x2000, 0x3007), (0x3000, 0x4007)] {
        memory.put(table, &next.to_le_bytes());
    }
    for page in (0..64).filter(|page| *page != 0xe) {
        memory.put(0x4000 + 8 * page, &(page << 12 | 7).to_le_bytes());
    }
    let mut state = state_64();
    // User code writes to a page that is not there.
    let page_fault = Exception::page_fault(0xe7f8, 6);
    for (stack, expected) in [(0x1_0800, fault(page_fault)), (0x1_1800, Ok(Progress::Done))] {
        state.registers[Register::Rsp] = stack;
        assert_eq!(enter(&memory, &state), expected, "{stack:#x}");
    }
    let mut state = state_32();
    state.segments.ss.limit = 0x4fff;
    // The stack pointer wraps, and is then beyond the limit of SS.
    let stack_fault = Exception::stack(0);
    for (stack, expected) in [(0x1000, fault(stack_fault)), (0x3000, Ok(Progress::Done))] {
        state.registers[Register::Rsp] = stack;
        assert_eq!(enter(&Flat::new(0), &state), expected, "{stack:#x}");
    }
}

/// Of AVX-512, only 64-bit code can be told what a processor leaves out.
#[test]
fn components_of_avx512_are_refused_outside_of_64_bit_mode() {
    let mut state = state_32();
    state.cr4 |= 1 << 18;
    let store = store(&state, &[0x0f, 0xae, 0x23]).unwrap();
    // AVX-512 and protection keys are enabled.
    let mut settled = |asked| {
        state.registers[Register::Rax] = asked;
        execute(&Flat::new(0), Extended::Unused, |executor| {
            executor.settle(&store, &state, || 0x2e7).map(|_| ())
        })
    };
    assert_eq!(settled(0xe7), Err(Refusal::Unsupported(Unsupported::ExtendedState)));
    assert_eq!(settled(0x207), Ok(()));
}

#[test]
fn the_x87_environment_of_real_mode_has_linear_pointers() {
    let mut state = state_16();
    state.registers[Register::Rbx] = 0x1000;
    let mut fx = FxArea::INITIAL;
    fx.0[6..8].copy_from_slice(&0x123_u16.to_le_bytes());
    fx.0[8..12].copy_from_slice(&0x9abcd_u32.to_le_bytes());
    fx.0[16..20].copy_from_slice(&0x54321_u32.to_le_bytes());
    // FNSTENV [BX] and FNSAVE [BX] with operands of 16 and of 32 bits.
    let codes: [&[u8]; 4] =
        [&[0xd9, 0x37], &[0xdd, 0x37], &[0x66, 0xd9, 0x37], &[0x66, 0xdd, 0x37]];
    for (code, (length, unit)) in codes.into_iter().zip([(14, 2), (94, 2), (28, 4), (108, 4)]) {
        let bytes = stored(&state, code, Extended::Fx(&mut fx.clone()), OLD);
        assert_eq!(bytes.len(), length, "{code:02x?}");
        let words: Vec<u16> = (0..7)
            .map(|word| u16::from_le_bytes([bytes[word * unit], bytes[word * unit + 1]]))
            .collect();
        // Control, status and tag words.
        assert_eq!(words[..3], [0x37f, 0, 0xffff], "{code:02x?}");
        if unit == 2 {
            assert_eq!(words[3..], [0xabcd, 0x9123, 0x4321, 0x5000], "{code:02x?}");
        } else {
            let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let fields = [12, 16, 20, 24].map(field);
            assert_eq!(fields, [0xffff_abcd, 0x9123, 0xffff_4321, 0x5000], "{code:02x?}");
        }
    }
}
