//! Random instructions in random states: nothing panics, nothing outside the allow list is executed.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, MemorySize, OpAccess, OpKind,
    Register as Name, RflagsBits as Bits,
};
use proptest::prelude::*;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Executor, Extended, FxArea, GuestInstruction, MAX_STORE_BYTES, Scratch, Store, Substitute,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, TABLES, state_16, state_32, state_64};

fn state(mode: u8, registers: [u64; 16], flags: u64, cr4: u64) -> State {
    let mut state = match mode % 3 {
        0 => state_16(),
        1 => state_32(),
        _ => state_64(),
    };
    state.registers.0 = registers;
    state.rflags = flags & 0x3f_7fd5 & !(1 << 17) | 2;
    state.cr4 |= cr4 & 1 << 11;
    state
}

/// What is about to be executed has one access to memory, at the window, of the store's length, and
/// is neither a transfer of control nor privileged.
fn check(substitute: &Substitute, length: usize) {
    let mut decoder = Decoder::new(64, substitute.bytes(), DecoderOptions::NONE);
    let instruction = decoder.decode();
    assert!(!instruction.is_invalid());
    assert_eq!(instruction.len(), substitute.bytes().len());
    assert_eq!(instruction.flow_control(), FlowControl::Next, "{instruction:?}");
    assert!(!instruction.is_privileged() && !instruction.is_stack_instruction());
    assert_eq!(instruction.op0_kind(), OpKind::Memory);
    assert!(
        instruction.memory_index() == Name::None && instruction.memory_displacement64() == 0,
        "{instruction:?}"
    );
    assert_eq!(instruction.memory_base().number(), substitute.pointer() as usize);
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instruction);
    for memory in info.used_memory() {
        assert_eq!(memory.base(), instruction.memory_base(), "{instruction:?}");
        // What XSAVE stores the decoder does not tell.
        let saves = matches!(memory.memory_size(), MemorySize::Xsave | MemorySize::Xsave64);
        assert!(saves || memory.memory_size().size() >= length, "{instruction:?}");
    }
    assert!(info.used_memory().len() == 1, "{instruction:?}");
    for register in info.used_registers() {
        let full = register.register().full_register();
        assert_ne!(full, Name::RSP, "{instruction:?}");
        assert!(
            full != instruction.memory_base() || register.access() == OpAccess::Read,
            "the address is only read: {instruction:?}"
        );
        assert!(!full.is_cr() && !full.is_dr() && !full.is_tr());
        let written = !matches!(register.access(), OpAccess::Read | OpAccess::CondRead);
        assert!(!full.is_segment_register() || !written, "{instruction:?}");
    }
    // Only arithmetic flags change.
    let arithmetic = Bits::CF | Bits::PF | Bits::AF | Bits::ZF | Bits::SF | Bits::OF;
    // FPU condition codes are of the x87 state.
    let x87 = Bits::C0 | Bits::C1 | Bits::C2 | Bits::C3;
    assert_eq!(instruction.rflags_modified() & !(arithmetic | x87), 0, "{instruction:?}");
}

/// Finds the store of `code` and checks it; whether there is one that is executed.
fn judge(own: &mut OwnTrampoline, mut state: State, code: &[u8]) -> bool {
    let Some(instruction) = GuestInstruction::decode(&state, code) else { return false };
    assert!(code.starts_with(instruction.bytes()));
    let Ok(store) = Store::of(&instruction, &state) else { return false };
    assert!((1..=MAX_STORE_BYTES).contains(&store.length()));
    if let Some(substitute) = store.substitute() {
        check(substitute, store.length());
        // Not executed here: the processor may lack it. What is executed is in `stores`.
        return true;
    }
    // A scatter: the processor may lack what tells where it stores.
    if store.is_open() && store.uses_extended() {
        return false;
    }
    let memory = Flat::new(0x1000);
    let before = state;
    let mut machine = Executor {
        memory: &memory,
        paging: PAGING,
        tables: &TABLES,
        trampoline: &mut own.trampoline,
        extended: Extended::Fx(&mut FxArea::INITIAL.clone()),
    };
    let Ok(store) = machine.settle(&store, &state, || 0) else { return false };
    let mut scratch = Scratch::new(store.linear(), &vec![0; store.length()]);
    if machine.complete(&store, &mut state, &mut scratch.window()).is_err() {
        assert_eq!(state, before, "what fails changes nothing");
        assert!(scratch.bytes().iter().all(|&byte| byte == 0), "and writes nothing");
    }
    false
}

/// Every opcode of every map, with every prefix that selects another instruction, and every ModRM
/// byte with these operands, in every mode.
#[test]
fn of_all_opcodes_only_harmless_ones_are_executed() {
    // [RBX], [RIP + disp], with SIB and displacement, RBX.
    const OPERANDS: [u8; 4] = [0x03, 0x05, 0x44, 0xc3];
    let legacy: &[&[u8]] = &[&[], &[0x66], &[0xf2], &[0xf3], &[0xf0], &[0x66, 0xf0], &[0xf2, 0xf0]];
    let maps: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a], &[0x0f, 0x0f]];
    let rex: &[&[u8]] = &[&[], &[0x48], &[0x4d]];
    let mut openings: Vec<Vec<u8>> = Vec::new();
    for prefix in legacy {
        for rex in rex {
            openings.extend(maps.iter().map(|map| [*prefix, *rex, *map].concat()));
        }
    }
    // VEX, XOP and EVEX: map, W, L and pp; no opmask and one.
    for map in 1..=10_u8 {
        for low in 0..16_u8 {
            let (length, pp) = (low >> 2 & 1, low & 3);
            let third = low >> 3 << 7 | 0x78 | length << 2 | pp;
            openings.push(vec![0xc4, 0xe0 | map, third]);
            openings.push(vec![0x8f, 0xe0 | map, third]);
            for fourth in [0x08, 0x28, 0x48, 0x49] {
                openings.push(vec![0x62, 0xf0 | map, third | 0x04, fourth]);
            }
        }
    }
    let registers = std::array::from_fn(|number| 0x1000 + 0x40 * number as u64);
    let mut executed = std::collections::BTreeSet::new();
    let mut own = OwnTrampoline::new();
    for mode in 0..3 {
        let state = state(mode, registers, 2, 0);
        for opening in &openings {
            for opcode in 0..=255 {
                for modrm in (0..=255_u8).filter(|modrm| OPERANDS.contains(&(modrm & 0xc7))) {
                    let mut code = opening.clone();
                    code.extend([opcode, modrm, 0x24, 0x11, 0x22, 0x33, 0x44, 0x55]);
                    if judge(&mut own, state, &code) {
                        executed.insert((mode, opening.clone(), opcode));
                    }
                }
            }
        }
    }
    // Were it refused altogether, nothing would have been tested.
    assert!(executed.len() > 2_000, "{} forms", executed.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn random_code_is_refused_or_harmless(
        code in any::<[u8; 15]>(),
        mode in any::<u8>(),
        registers in any::<[u64; 16]>(),
        (flags, cr4, rip) in any::<(u64, u64, u64)>(),
    ) {
        let state = State { rip, ..state(mode, registers, flags, cr4) };
        judge(&mut OwnTrampoline::new(), state, &code);
    }
}
