//! Stores that software does not carry out: the processor is stepped over them, or a program gets #UD,
//! and its machine goes on.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::exceptions::{install, received, use_table};
use crate::guest::{PAGE, kvm, small};
use crate::privilege::Level;
use crate::stepper::{Registers, Stepper};

/// Where the code is.
const CODE: u64 = 0x21_0000;

const INVALID_OPCODE: u64 = 6;

#[test]
fn a_program_gets_an_exception_and_its_machine_goes_on() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Mprotect, ..small() };
    let stepper = Stepper::new(&configuration, Level::User, &[]);
    let guest = &stepper.guest;
    install(guest);
    guest.vm.with_processors(|processors| use_table(processors[0]));
    let before = [0x5a; 0x1000];
    // XSAVE [EBX] in 32-bit code, whose format is another, to permitted bytes of the page.
    let code = [0x0f, 0xae, 0x23];
    let special = guest.vm.with_processors(|processors| {
        let special = processors[0].fd.get_sregs().unwrap();
        let cs = kvm_segment { l: 0, db: 1, ..special.cs };
        kvm_sregs { cs, ..special }
    });
    let general =
        kvm_regs { rip: CODE, rax: 3, rbx: PAGE + 0x800, rflags: 2, ..kvm_regs::default() };
    let extended = Box::new(subpage_emulate::XsaveArea::INITIAL);
    let step = || {
        guest.write(PAGE, &before);
        // The exception before has ended in a handler of the kernel.
        guest.vm.with_processors(|processors| processors[0].fd.set_sregs(&special).unwrap());
        let after = stepper.step(&code, &Registers { general, extended: extended.clone() });
        let after = after.unwrap_or_else(|ending| panic!("{ending}"));
        let special = guest.vm.with_processors(|processors| processors[0].fd.get_sregs().unwrap());
        received(guest, after.general.rip, &special)
    };
    if step().is_some_and(|received| received.vector == INVALID_OPCODE) {
        println!("skipped: this KVM gives #UD for it without a guard");
        return;
    }
    let stored = guest.read::<0x1000>(PAGE);
    guest.guard(PAGE, 8, Action::Deny);
    if subpage_kvm::probe::is_native() {
        // A step does what the processor does.
        assert_eq!(step(), None);
        assert!(guest.read(PAGE) == stored && stored != before);
        assert!(guest.vm.steps() > 0 && guest.events().is_empty());
        // Not where the guest watches eight bytes of it for stores.
        guest.vm.with_processors(|processors| {
            let mut debug = processors[0].debug_registers().unwrap();
            (debug.db[0], debug.dr7) = (PAGE + 0x800, 0x401 | 1 << 16 | 2 << 18);
            processors[0].set_debug_registers(&debug).unwrap();
        });
    }
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
