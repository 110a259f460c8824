//! Random instructions in random states: nothing panics, nothing outside the allow list is executed.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, OpKind,
    Register as Name, RflagsBits as Bits,
};
use proptest::prelude::*;
use subpage_vmx::emulate::{
    FxArea, GuestInstruction, MAX_STORE_BYTES, Machine, Scratch, Store, Substitute,
};
use subpage_vmx::guest::State;

use crate::machine::{Flat, OwnTrampoline, PROCESSOR, TABLES, state_16, state_32, state_64};

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

/// Bytes that are more often instructions than random ones are.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![
        vec![],
        vec![0x66],
        vec![0x67],
        vec![0xf0],
        vec![0xf2],
        vec![0xf3],
        vec![0x48],
        vec![0x4d],
        vec![0x65],
        vec![0x0f],
        vec![0x66, 0x0f],
        vec![0xf0, 0x0f],
        vec![0xf3, 0x0f],
        vec![0x0f, 0x38],
        vec![0x66, 0x0f, 0x3a],
        vec![0xc5],
        vec![0xc4, 0xe3],
        vec![0x62, 0xf1],
        vec![0x66, 0xf0, 0x48, 0x0f],
        vec![0x8f],
    ]);
    (prefix, prop::collection::vec(any::<u8>(), 15)).prop_map(|(prefix, rest)| {
        let mut code = prefix;
        code.extend(rest);
        code.truncate(15);
        code
    })
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
        assert_eq!(memory.memory_size().size(), length, "{instruction:?}");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60_000))]
    #[test]
    fn random_code_is_refused_or_harmless(
        code in code(),
        mode in any::<u8>(),
        registers in any::<[u64; 16]>(),
        (flags, cr4, rip) in any::<(u64, u64, u64)>(),
    ) {
        let mut state = state(mode, registers, flags, cr4);
        state.rip = rip;
        let Some(instruction) = GuestInstruction::decode(&state, &code) else { return Ok(()) };
        prop_assert!(code.starts_with(instruction.bytes()));
        let Ok(store) = Store::of(&instruction, &state) else { return Ok(()) };
        prop_assert!((1..=MAX_STORE_BYTES).contains(&store.length()));
        if let Some(substitute) = store.substitute() {
            check(substitute, store.length());
            // Not executed here: the processor may lack it. What is executed is in `stores`.
            return Ok(());
        }
        let mut own = OwnTrampoline::new();
        let mut scratch = Scratch::new(store.linear(), &vec![0; store.length()]);
        let memory = Flat::new(0x1000);
        let before = state;
        let mut machine = Machine {
            memory: &memory,
            processor: PROCESSOR,
            tables: &TABLES,
            trampoline: &mut own.trampoline,
            fx: &mut FxArea::INITIAL.clone(),
        };
        let done = machine.complete(&store, &mut state, &mut scratch.window());
        if done.is_err() {
            prop_assert_eq!(state, before);
        }
    }
}
