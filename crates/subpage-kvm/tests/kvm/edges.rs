//! Stores across the end of a page of which only one side is guarded.

use iced_x86::code_asm::{dword_ptr, eax, qword_ptr, rax, rbx, xmm0, xmmword_ptr};
use subpage::rules::Action;

use crate::guest::{Guest, PAGE, both_ways, exit, kvm};

const BEFORE: [u8; 16] = [7; 16];

/// A store whose denied bytes lie in the next page, or in the one before, changes no byte of either:
/// also not of the page that no rule is about.
#[test]
fn a_store_that_is_denied_for_the_page_beyond_changes_neither() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        // The guarded bytes, and where stores of 8 and 16 bytes go across a page end.
        let cases = [(PAGE, 1, PAGE - 4), (PAGE, 128, PAGE - 1), (PAGE + 4095, 1, PAGE + 4095)];
        for (start, bytes, at) in cases {
            let mut guest = Guest::new(&configuration, |code| {
                code.mov(rbx, at).unwrap();
                code.mov(rax, u64::MAX).unwrap();
                code.mov(qword_ptr(rbx), rax).unwrap();
                code.movups(xmmword_ptr(rbx), xmm0).unwrap();
                code.lock().xadd(qword_ptr(rbx), rax).unwrap();
                code.xor(eax, eax).unwrap();
                exit(code, 0);
            });
            guest.write(at, &BEFORE);
            guest.guard(start, bytes, Action::Deny);
            guest.run_well();
            assert_eq!(guest.read(at), BEFORE, "{bytes} bytes at {start:#x}, store at {at:#x}");
            assert_eq!(guest.events().len(), 3, "{bytes} bytes at {start:#x}, store at {at:#x}");
        }
    }
}

/// The same where the bytes beyond may be written once: what is spent denies from then on, and the
/// page before it must not be written by halves then either.
#[test]
fn a_store_that_is_denied_for_what_was_spent_beyond_changes_neither() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(rax, u64::MAX).unwrap();
            // Spends it.
            code.mov(dword_ptr(rbx), eax).unwrap();
            code.mov(qword_ptr(rbx - 4), rax).unwrap();
            code.movups(xmmword_ptr(rbx - 8), xmm0).unwrap();
            exit(code, 0);
        });
        guest.write(PAGE - 8, &BEFORE);
        guest.guard(PAGE, 8, Action::AllowOnce);
        guest.run_well();
        let mut after = BEFORE;
        after[8..12].fill(0xff);
        assert_eq!(guest.read(PAGE - 8), after);
        assert_eq!(guest.events().len(), 3);
    }
}

/// The pages next to a guarded page trap only where a store could reach over, and not for good.
#[test]
fn neighbours_trap_only_where_a_store_could_reach() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let guest = Guest::new(&configuration, |code| exit(code, 0));
        let pages = |start: u64, bytes: u64| {
            guest.guard(start, bytes, Action::Deny);
            let trapped = guest.vm.trapped_pages();
            let rule = subpage::rules::RuleId(guest.rules());
            guest.vm.remove_rule(rule, subpage::rules::Owner::HOST).unwrap();
            trapped
        };
        assert_eq!(pages(PAGE + 0x800, 128), 1);
        assert_eq!(pages(PAGE + 511, 1), 1, "no store reaches that far");
        let beside = pages(PAGE + 510, 1);
        assert!(beside <= 2, "{beside}");
        assert_eq!(pages(PAGE, 4096), 2 * beside - 1, "on both sides as on one");
        assert_eq!(guest.vm.trapped_pages(), 0);
    }
}
