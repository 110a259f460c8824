//! The scenario of the KVM series' own self-test.
//!
//! There a slot of 16 pages at 0x10000000 has one page whose map is 0: writes of four bytes to the
//! start of each of its 32 sub-pages give 32 exits, and none after the map is all ones.

use kvm_bindings::kvm_regs;
use subpage::access::AccessMap;
use subpage_emulate::XsaveArea;

use crate::guest::{PAGE, assemble, both_ways, gfn, kvm};
use crate::privilege::{FLAGS, LEVELS};
use crate::stepper::{Registers, Stepper};

const CODE_AT: u64 = 0x21_0000;

#[test]
fn thirty_two_denials_and_none_when_all_is_permitted() {
    use iced_x86::code_asm::{dword_ptr, eax, ecx, rbx};
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let stepper = Stepper::new(&configuration, level, &[]);
            let guest = &stepper.guest;
            let code = assemble(CODE_AT, |code| {
                let mut again = code.create_label();
                code.mov(rbx, PAGE).unwrap();
                code.mov(ecx, 32).unwrap();
                code.set_label(&mut again).unwrap();
                code.mov(dword_ptr(rbx), eax).unwrap();
                code.add(rbx, 128).unwrap();
                code.dec(ecx).unwrap();
                code.jnz(again).unwrap();
            });
            let run = || {
                let rax = 0x0101_0101;
                let general = kvm_regs { rip: CODE_AT, rax, rflags: FLAGS, ..kvm_regs::default() };
                let extended = Box::new(XsaveArea::INITIAL);
                stepper.step(&code, &Registers { general, extended }).unwrap();
            };
            guest.vm.set_access(gfn(PAGE), &[AccessMap::NONE]).unwrap();
            run();
            let events = guest.events();
            let places: Vec<_> = events.iter().map(|it| it.event.gpa.as_u64()).collect();
            assert_eq!(places, (0..32).map(|sub| PAGE + sub * 128).collect::<Vec<_>>());
            assert!(guest.read(PAGE) == [0; 4096]);
            let trapped = guest.vm.trap_counts().writes();
            guest.vm.set_access(gfn(PAGE), &[AccessMap::ALL]).unwrap();
            run();
            assert!(guest.events().is_empty());
            assert_eq!(guest.vm.trap_counts().writes(), trapped, "no exit either");
            assert!((0..32).all(|sub| guest.read(PAGE + sub * 128) == [1, 1, 1, 1]));
        }
    }
}
