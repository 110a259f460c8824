//! Far calls whose stack lies in a page that traps.

use kvm_bindings::{kvm_dtable, kvm_regs};
use subpage::rules::Action;
use subpage_emulate::XsaveArea;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::guest::{PAGE, PLAIN, kvm, small};
use crate::privilege::{FLAGS, LEVELS, Level};
use crate::stepper::{Registers, Stepper};

/// Below 64 KiB, so that an offset of 16 bits reaches it.
const CODE_AT: u64 = 0x3000;

/// A table of descriptors.
const TABLE: u64 = 0x60_c000;

/// Where the stack begins.
const TOP: u64 = PAGE + 0x800;

/// Code of 64 bits at CPL 0, where the code is, and once more.
const DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const SELECTORS: [u16; 2] = [0x10, 0x28];

/// The selector that is called.
fn target(level: Level) -> u16 {
    SELECTORS[1] | u16::from(level.cpl())
}

/// The bytes below the stack after CALL FAR [RBX] with one byte there denied or none, and CS.
fn pushed(level: Level, prefix: &[u8], unit: usize, denied: Option<u64>) -> (Vec<u8>, u16) {
    let configuration = Configuration { trap: TrapChoice::Mprotect, ..small() };
    let stepper = Stepper::new(&configuration, level, &[]);
    let guest = &stepper.guest;
    for selector in SELECTORS {
        let descriptor = DESCRIPTOR | u64::from(level.cpl()) << 45;
        guest.write(TABLE + u64::from(selector), &descriptor.to_le_bytes());
    }
    guest.vm.with_processors(|processors| {
        let mut special = processors[0].fd.get_sregs().unwrap();
        special.gdt = kvm_dtable { base: TABLE, limit: 0x2f, ..special.gdt };
        processors[0].fd.set_sregs(&special).unwrap();
    });
    let code = [prefix, &[0xff, 0x1b]].concat();
    let next = CODE_AT + code.len() as u64;
    guest.write(PLAIN, &next.to_le_bytes());
    guest.write(PLAIN + unit as u64, &target(level).to_le_bytes());
    guest.write(PAGE + 0x7c0, &[0xcc; 0x40]);
    guest.guard(denied.unwrap_or(PAGE + 0x100), 1, Action::Deny);
    let general =
        kvm_regs { rip: CODE_AT, rflags: FLAGS, rbx: PLAIN, rsp: TOP, ..kvm_regs::default() };
    let before = Registers { general, extended: Box::new(XsaveArea::INITIAL) };
    let after = stepper.step(&code, &before).unwrap();
    let bottom = TOP - 2 * unit as u64;
    assert_eq!(after.general.rsp, bottom);
    let events = guest.events();
    let told = events.iter().map(|record| (record.event.gpa.as_u64(), record.event.length));
    let whole = denied.map(|_| (bottom, Some(2 * unit as u64)));
    assert!(told.eq(whole), "both values are one write: {events:?}");
    let cs = guest.vm.with_processors(|processors| processors[0].fd.get_sregs().unwrap().cs);
    (guest.read::<32>(PAGE + 0x7e0).to_vec(), cs.selector)
}

#[test]
fn a_far_call_pushes_both_its_values_or_none() {
    if !kvm() {
        return;
    }
    if !is_native() {
        println!("skipped: this KVM emulates far calls, and tells of one of their pushes");
        return;
    }
    for level in LEVELS {
        let target = target(level);
        for (prefix, unit) in [(&[0x66][..], 2), (&[], 4)] {
            let next = CODE_AT + prefix.len() as u64 + 2;
            let cs = u64::from(SELECTORS[0] | u16::from(level.cpl()));
            let mut expected = vec![0xcc; 32];
            expected[32 - 2 * unit..32 - unit].copy_from_slice(&next.to_le_bytes()[..unit]);
            expected[32 - unit..].copy_from_slice(&cs.to_le_bytes()[..unit]);
            let context = format!("{unit} bytes at {level:?}");
            assert_eq!(pushed(level, prefix, unit, None), (expected, target), "{context}");
            // A byte of the instruction pointer, and one of the selector.
            for denied in [TOP - 2 * unit as u64, TOP - 2] {
                let kept = pushed(level, prefix, unit, Some(denied));
                assert_eq!(kept, (vec![0xcc; 32], target), "{denied:#x} is denied, {context}");
            }
        }
    }
}
