//! Page tables of the guest in guarded pages.
//!
//! The processor's walk is no write of the guest, whatever flags it sets, so it continues; stores of
//! the guest to entries are judged like all others.

use iced_x86::code_asm::{qword_ptr, rax, rbx, rcx};
use subpage::rules::Action;
use subpage_trap::Verdict;

use crate::guest::{CODE, Guest, PAGE, PLAIN, both_ways, exit, kvm};
use crate::privilege::{ENTRY, LEVELS, TABLES, WINDOW, WINDOW_TABLE, place, write_tables};

/// Accessed and dirty.
const FLAGS: u64 = 0x60;

/// A guest whose window is two pages. `clear`: no entry has its flags set.
fn guest(
    configuration: &subpage_kvm::vm::Configuration,
    level: crate::privilege::Level,
    clear: bool,
    code: impl FnOnce(&mut iced_x86::code_asm::CodeAssembler),
) -> Guest {
    let guest = Guest::new(configuration, code);
    write_tables(&guest, &[Some(PAGE), Some(PLAIN), None]);
    if clear {
        for table in 0..5 {
            for entry in 0..512 {
                let at = TABLES + table * 0x1000 + entry * 8;
                guest.write(at, &(guest.word(at) & !FLAGS).to_le_bytes());
            }
        }
    }
    guest.vm.with_processors(|processors| place(processors, CODE, &[level]));
    guest
}

#[test]
fn walks_through_guarded_tables_go_on() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            for clear in [false, true] {
                let mut guest = guest(&configuration, level, clear, |code| {
                    code.mov(rbx, WINDOW).unwrap();
                    code.mov(rax, qword_ptr(rbx)).unwrap();
                    code.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
                    code.mov(qword_ptr(rbx + 8), rax).unwrap();
                    exit(code, 0);
                });
                guest.write(PAGE, &7_u64.to_le_bytes());
                // Of every table, entries that are not used.
                for table in 0..5 {
                    guest.guard(TABLES + table * 0x1000 + 0xe00, 0x100, Action::Deny);
                }
                let ending = guest.run();
                let context = format!("{:?} at {level:?}, clear {clear}", configuration.trap);
                assert_eq!(ending, subpage_kvm::vm::Ending::Exited { code: 0 }, "{context}");
                assert_eq!([guest.word(PLAIN), guest.word(PAGE + 8)], [7, 7], "{context}");
                assert!(guest.events().is_empty(), "a walk is no write: {context}");
            }
        }
    }
}

#[test]
fn stores_to_entries_are_judged_like_others() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            // Entries 0 and 2 may be changed, entry 16 and what follows may not.
            let mut guest = guest(&configuration, level, false, |code| {
                code.mov(rbx, WINDOW_TABLE).unwrap();
                code.mov(rax, PAGE | ENTRY).unwrap();
                code.mov(qword_ptr(rbx + 2 * 8), rax).unwrap();
                code.mov(qword_ptr(rbx + 16 * 8), rax).unwrap();
                // The new entry is in force: nothing was there before.
                code.mov(rcx, WINDOW + 0x2000).unwrap();
                code.mov(qword_ptr(rcx + 0x10), rax).unwrap();
                exit(code, 0);
            });
            guest.guard(WINDOW_TABLE + 0x80, 0x80, Action::Deny);
            guest.run_well();
            let context = format!("{:?} at {level:?}", configuration.trap);
            assert_eq!(
                guest.word(WINDOW_TABLE + 2 * 8) & !FLAGS,
                (PAGE | ENTRY) & !FLAGS,
                "{context}"
            );
            assert_eq!(guest.word(WINDOW_TABLE + 16 * 8), 0, "{context}");
            assert_eq!(guest.word(PAGE + 0x10), PAGE | ENTRY, "{context}");
            let events = guest.events();
            let [event] = events.as_slice() else { panic!("{context}: {events:?}") };
            assert_eq!(
                (event.event.verdict, event.event.gpa.as_u64()),
                (Verdict::Denied, WINDOW_TABLE + 0x80),
                "{context}"
            );
        }
    }
}
