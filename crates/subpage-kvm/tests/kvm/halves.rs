//! Long stores arrive as several exits, and are one store all the same.

use iced_x86::code_asm::{ptr, rbx, rdi, xmm1, xmmword_ptr};
use subpage::rules::Action;

use crate::guest::{Guest, PAGE, PLAIN, both_ways, exit, kvm};
use crate::privilege::{LEVELS, place_first};

/// Stores 16 bytes at `offset`, of which `denied` is denied, and expects nothing of it to happen.
fn nothing_happens(offset: u64, denied: u64) {
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| {
                code.mov(rdi, PLAIN).unwrap();
                code.mov(rbx, PAGE + offset).unwrap();
                code.movups(xmm1, xmmword_ptr(rdi)).unwrap();
                code.movups(xmmword_ptr(rbx), xmm1).unwrap();
                exit(code, 0);
            });
            place_first(&guest, level);
            let bytes: Vec<u8> = (1..=16).collect();
            guest.write(PLAIN, &bytes);
            guest.write(PAGE, &[0x77; 0x2000]);
            guest.guard(PAGE + denied, 1, Action::Deny);
            // Both pages trap: what goes to a page that does not is another story.
            guest.map(PAGE, !(1 << 20));
            guest.map(PAGE + 0x1000, !(1 << 20));
            guest.run_well();
            let context = format!("{offset:#x}, {:?} at {level:?}", configuration.trap);
            assert!(guest.read(PAGE) == [0x77; 0x2000], "{context}");
            let events = guest.events();
            let [record] = events.as_slice() else { panic!("{context}: {events:?}") };
            let event = &record.event;
            assert_eq!(
                (event.gpa.as_u64(), event.at.as_u64()),
                (PAGE + offset, PAGE + denied),
                "{context}"
            );
            assert_eq!(event.bytes, bytes, "{context}");
            assert_eq!(guest.vm.trap_counts().writes(), 1, "one store, {context}");
        }
    }
}

#[test]
fn a_denied_second_half_leaves_the_first() {
    if kvm() {
        nothing_happens(0x100, 0x10f);
        nothing_happens(0x103, 0x10b);
        nothing_happens(0xff8, 0x1000);
    }
}

#[test]
fn a_denied_first_half_leaves_the_second() {
    if kvm() {
        nothing_happens(0x100, 0x100);
        nothing_happens(0xffc, 0xfff);
    }
}

#[test]
fn a_long_save_area_is_one_store() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            for (denied, happens) in [(Some(0x3ff), false), (None, true)] {
                let mut guest = Guest::new(&configuration, |code| {
                    code.mov(rbx, PAGE + 0x200).unwrap();
                    code.fxsave(ptr(rbx)).unwrap();
                    exit(code, 0);
                });
                place_first(&guest, level);
                guest.write(PAGE, &[0x77; 0x1000]);
                guest.guard(PAGE + denied.unwrap_or(0x400), 1, Action::Deny);
                guest.run_well();
                let changed = guest.read(PAGE) != [0x77; 0x1000];
                assert_eq!(changed, happens, "{:?} at {level:?}", configuration.trap);
                assert_eq!(guest.events().len(), usize::from(!happens));
            }
        }
    }
}
