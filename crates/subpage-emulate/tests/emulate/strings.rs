//! String instructions, one element at a time, against the processor's whole repetition; and
//! faults in the trampoline.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, byte_ptr, dword_ptr, edi, esi, qword_ptr};
use subpage_emulate::guest::{GeneralRegisters, Register, State, Vendor};
use subpage_emulate::{
    Executor, Extended, FxArea, GuestInstruction, Progress, Scratch, Store, Window,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, TABLES, state_64};
use crate::native::{DATA_BYTES, Native, Registers};

const DIRECTION: u64 = 1 << 10;

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Emulates the instruction at `rip` until it is done; returns the state and how many elements.
fn emulate(native: &Native, registers: &Registers, rip: u64) -> (State, usize) {
    let mut own = OwnTrampoline::new();
    let mut state = Native::state(registers, rip);
    let mut fx = registers.fx;
    let mut elements = 0;
    loop {
        let instruction = GuestInstruction::fetch(native, PAGING, &state).unwrap();
        let store = Store::of(&instruction, &state).unwrap();
        let start = usize::try_from(store.linear() - native.data.address()).unwrap();
        assert!(start + store.length() <= DATA_BYTES);
        let first = native.data.first.wrapping_add(start);
        // SAFETY: the destination lies within the data, to which there is no reference.
        let mut window = unsafe { Window::new(first, store.length()) };
        let mut machine = Executor {
            memory: native,
            paging: PAGING,
            tables: &TABLES,
            trampoline: &mut own.trampoline,
            extended: Extended::Fx(&mut fx),
        };
        elements += 1;
        match machine.complete(&store, &mut state, &mut window).unwrap() {
            Progress::Repeats => assert_eq!(state.rip, rip, "more to do at the same instruction"),
            Progress::Done => return (state, elements),
        }
    }
}

fn compare(name: &str, assemble: Assemble, flags: u64, count: u64, elements: usize) {
    let native = Native::new();
    let data: Vec<u8> = (0..DATA_BYTES).map(|index| (index * 7 + index / 251) as u8).collect();
    let base = native.data.address();
    let mut general = GeneralRegisters(std::array::from_fn(|number| 0x0101_0101 * number as u64));
    general[Register::Rax] = 0x8877_6655_4433_2211;
    general[Register::Rcx] = count;
    general[Register::Rdi] = base + 0x1ff0;
    general[Register::Rsi] = base + 0x1fe3;
    let before = Registers { general, flags, fx: FxArea::INITIAL };
    let (rip, code) = native.assemble(&|a| assemble(a).unwrap());

    native.data.put(0, &data);
    let mut direct = before;
    native.run(&mut direct);
    let expected = native.data.copy();

    native.data.put(0, &data);
    let (state, done) = emulate(&native, &before, rip);
    assert!(native.data.copy() == expected, "memory differs: {name}, flags {flags:#x}");
    assert_eq!(state.registers, direct.general, "{name}, flags {flags:#x}");
    assert_eq!(state.rip, rip + code.len() as u64, "{name}");
    assert_eq!(done, elements, "{name}");
}

#[test]
fn repeated_strings_go_forwards_and_backwards_one_element_at_a_time() {
    let forms: [(&str, Assemble); 9] = [
        ("rep stosb", |a| a.rep().stosb()),
        ("rep stosw", |a| a.rep().stosw()),
        ("rep stosd", |a| a.rep().stosd()),
        ("rep stosq", |a| a.rep().stosq()),
        ("rep movsb", |a| a.rep().movsb()),
        ("rep movsw", |a| a.rep().movsw()),
        ("rep movsd", |a| a.rep().movsd()),
        // The two areas overlap, so the order of the elements counts.
        ("rep movsq", |a| a.rep().movsq()),
        ("repne stosb", |a| a.repne().stosb()),
    ];
    for (name, assemble) in forms {
        for flags in [0x202, 0x202 | DIRECTION] {
            compare(name, assemble, flags, 100, 100);
            compare(name, assemble, flags, 1, 1);
        }
    }
}

#[test]
fn without_a_prefix_the_count_does_not_matter() {
    compare("movsq", |a| a.movsq(), 0x202, 0, 1);
    compare("stosb", |a| a.stosb(), 0x202 | DIRECTION, 5, 1);
}

#[test]
fn an_address_size_prefix_makes_count_and_pointers_32_bits_wide() {
    // The upper half of RCX is neither counted nor kept; RSI and RDI are zero-extended.
    let forms: [(&str, Assemble, usize); 2] = [
        ("addr32 rep stosb", |a| a.db(&[0x67, 0xf3, 0xaa]), 9),
        ("addr32 rep movsd", |a| a.db(&[0x67, 0xf3, 0xa5]), 9),
    ];
    for (name, assemble, elements) in forms {
        compare(name, assemble, 0x202, 0x55_0000_0009, elements);
    }
    // Not strings, but addresses of 32 bits all the same.
    compare("mov [edi], rax", |a| a.mov(qword_ptr(edi), iced_x86::code_asm::rax), 0x202, 3, 1);
    compare("not [esi + 1]", |a| a.not(dword_ptr(esi + 1)), 0x202, 3, 1);
}

#[test]
fn a_prefix_that_means_nothing_does_not_repeat() {
    // F3 before a MOV.
    compare("rep mov", |a| a.db(&[0xf3, 0x88, 0x07]), 0x202, 100, 1);
    compare("inc", |a| a.inc(byte_ptr(iced_x86::code_asm::rdi)), 0x202, 100, 1);
}

/// Between two elements RFLAGS.RF is what the processor saves for an event there; at the end it is
/// clear.
#[test]
fn between_elements_the_resume_flag_is_the_vendors() {
    const RESUME: u64 = 1 << 16;
    let memory = Flat::new(0);
    let mut own = OwnTrampoline::new();
    for (vendor, between) in [(Vendor::Intel, RESUME), (Vendor::Amd, 0)] {
        for before in [0, RESUME] {
            let mut state = State { vendor, ..state_64() };
            state.rflags |= before;
            state.registers[Register::Rcx] = 2;
            // REP STOSB
            let instruction = GuestInstruction::decode(&state, &[0xf3, 0xaa]).unwrap();
            for expected in [(Progress::Repeats, between), (Progress::Done, 0)] {
                let store = Store::of(&instruction, &state).unwrap();
                let mut scratch = Scratch::new(store.linear(), &[0]);
                let mut machine = Executor {
                    memory: &memory,
                    paging: PAGING,
                    tables: &TABLES,
                    trampoline: &mut own.trampoline,
                    extended: Extended::Unused,
                };
                let progress = machine.complete(&store, &mut state, &mut scratch.window());
                assert_eq!((progress.unwrap(), state.rflags & RESUME), expected, "{vendor:?}");
            }
        }
    }
}
