//! Stores that software does not carry out: the processor is stepped over them, or a program gets #UD,
//! and its machine continues.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_sregs};
use subpage::rules::Action;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::exceptions::{install, received, use_table};
use crate::guest::{PAGE, PLAIN, kvm, small};
use crate::privilege::{FLAGS, Level};
use crate::stepper::{Registers, Stepper};

/// Where the code is.
const CODE: u64 = 0x21_0000;

/// VMOVUPS [RBX], YMM0
const STORE: [u8; 4] = [0xc5, 0xfc, 0x11, 0x03];

/// CALL FAR [RBX]
const CALL: [u8; 2] = [0xff, 0x1b];

/// A table of descriptors.
const TABLE: u64 = 0x60_c000;

/// Code of 64 bits for the handlers, at CPL 0.
const HANDLERS: (u64, u64) = (0x10, 0x00af_9b00_0000_ffff);

/// The same at CPL 3, and not yet used: a far call to it sets its accessed flag, for which software
/// leaves it to the processor.
const UNUSED: (u64, u64) = (0x28, 0x00af_fa00_0000_ffff);

const INVALID_OPCODE: u64 = 6;

#[test]
fn a_program_gets_an_exception_and_its_machine_goes_on() {
    if !kvm() {
        return;
    }
    if !is_native() {
        println!("skipped: this KVM emulates far calls, and tells of one of their pushes");
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Mprotect, ..small() };
    let stepper = Stepper::new(&configuration, Level::User, &[]);
    let guest = &stepper.guest;
    install(guest);
    guest.vm.with_processors(|processors| use_table(processors[0]));
    guest.write(PLAIN, &(CODE + CALL.len() as u64).to_le_bytes());
    guest.write(PLAIN + 4, &(UNUSED.0 | 3).to_le_bytes());
    let before = [0x5a; 0x1000];
    let special = guest.vm.with_processors(|processors| {
        let mut special = processors[0].fd.get_sregs().unwrap();
        special.gdt = kvm_dtable { base: TABLE, limit: 0x2f, ..special.gdt };
        special
    });
    let (rbx, rsp) = (PLAIN, PAGE + 0x800);
    let general = kvm_regs { rip: CODE, rbx, rsp, rflags: FLAGS, ..kvm_regs::default() };
    let extended = Box::new(subpage_emulate::XsaveArea::INITIAL);
    let step = || {
        guest.write(PAGE, &before);
        for (selector, descriptor) in [HANDLERS, UNUSED] {
            guest.write(TABLE + selector, &descriptor.to_le_bytes());
        }
        // The exception before has ended in a handler of the kernel.
        guest.vm.with_processors(|processors| processors[0].fd.set_sregs(&special).unwrap());
        let after = stepper.step(&CALL, &Registers { general, extended: extended.clone() });
        let after = after.unwrap_or_else(|ending| panic!("{ending}"));
        let special = guest.vm.with_processors(|processors| processors[0].fd.get_sregs().unwrap());
        received(guest, after.general.rip, &special)
    };
    // Without a rule, as the processor does it.
    assert_eq!(step(), None);
    let stored = guest.read::<0x1000>(PAGE);
    assert!(stored != before);
    guest.guard(PAGE, 8, Action::Deny);
    assert_eq!(step(), None);
    assert!(guest.read(PAGE) == stored);
    assert!(guest.vm.steps() > 0 && guest.events().is_empty());
    // Nothing is stepped over where the guest watches eight bytes of it for stores.
    guest.vm.with_processors(|processors| {
        let mut debug = processors[0].debug_registers().unwrap();
        (debug.db[0], debug.dr7) = (PAGE + 0x7f8, 0x401 | 1 << 16 | 2 << 18);
        processors[0].set_debug_registers(&debug).unwrap();
    });
    for round in 1..=3 {
        let received = step().expect("an exception");
        assert_eq!(received.vector, INVALID_OPCODE, "{received:x?}");
        assert_eq!(received.frame[0], CODE, "{received:x?}");
        assert!(guest.read(PAGE) == before);
        let metrics = guest.vm.metrics().encode();
        let counted = format!("subpage_instructions_refused_total {round}\n");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}

/// A KVM that runs CPL 3 without the processor's help leaves the host's control registers in force there: a
/// store of AVX that the guest has not switched on happens, which no processor would do. Where it traps,
/// software does not know it either.
#[test]
fn a_program_gets_an_exception_for_what_its_guest_has_switched_off() {
    const OSXSAVE: u64 = 1 << 18;
    if !kvm() {
        return;
    }
    if is_native() || !std::arch::is_x86_feature_detected!("avx") {
        println!("skipped: the processor itself refuses what the guest has switched off");
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Mprotect, ..small() };
    let stepper = Stepper::new(&configuration, Level::User, &[]);
    let guest = &stepper.guest;
    install(guest);
    guest.vm.with_processors(|processors| use_table(processors[0]));
    let special = guest.vm.with_processors(|processors| {
        let special = processors[0].fd.get_sregs().unwrap();
        kvm_sregs { cr4: special.cr4 & !OSXSAVE, ..special }
    });
    let general = kvm_regs { rip: CODE, rbx: PAGE + 0x40, rflags: FLAGS, ..kvm_regs::default() };
    let extended = Box::new(subpage_emulate::XsaveArea::INITIAL);
    let before = [0x5a; 0x1000];
    guest.guard(PAGE + 0x800, 8, Action::Deny);
    for round in 1..=3 {
        guest.write(PAGE, &before);
        guest.vm.with_processors(|processors| processors[0].fd.set_sregs(&special).unwrap());
        let after = stepper.step(&STORE, &Registers { general, extended: extended.clone() });
        let after = after.unwrap_or_else(|ending| panic!("{ending}"));
        let special = guest.vm.with_processors(|processors| processors[0].fd.get_sregs().unwrap());
        let received = received(guest, after.general.rip, &special).expect("an exception");
        assert_eq!(received.vector, INVALID_OPCODE, "{received:x?}");
        assert_eq!(received.frame[0], CODE, "{received:x?}");
        assert!(guest.read(PAGE) == before && guest.events().is_empty());
        let metrics = guest.vm.metrics().encode();
        let counted = format!("subpage_instructions_refused_total {round}\n");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}
