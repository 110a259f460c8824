//! One rule, one store.

use iced_x86::code_asm::{qword_ptr, rax, rbx};
use subpage::address::Gpa;
use subpage::rules::Action;
use subpage_kvm::vm::Ending;
use subpage_trap::Verdict;

use crate::guest::{Guest, PAGE, both_ways, exit, kvm};

#[test]
fn a_denied_store_leaves_memory_and_a_permitted_one_beside_it_does_not() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
            code.mov(qword_ptr(rbx + 0x100), rax).unwrap();
            code.mov(qword_ptr(rbx + 0x180), rax).unwrap();
            exit(code, 0);
        });
        guest.write(PAGE + 0x180, &[7; 8]);
        guest.guard(PAGE + 0x180, 128, Action::Deny);
        guest.run_well();
        assert_eq!(guest.word(PAGE + 0x100), 0x1122_3344_5566_7788);
        assert_eq!(guest.read(PAGE + 0x180), [7; 8]);
        let events = guest.events();
        let [record] = events.as_slice() else { panic!("{events:?}") };
        let event = &record.event;
        assert_eq!(event.verdict, Verdict::Denied);
        let at = Gpa::new(PAGE + 0x180);
        assert_eq!((event.gpa, event.at, event.sub_page().index()), (at, at, 3));
        assert_eq!(event.bytes, 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(record.text.as_deref(), Some("mov [rbx+180h],rax"), "{record:?}");
        assert_eq!((event.origin.cpl, event.gla), (Some(0), Some(PAGE + 0x180)));
    }
}

#[test]
fn a_rule_can_stop_the_guest() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(qword_ptr(rbx), rax).unwrap();
            code.mov(qword_ptr(rbx + 0x800), rbx).unwrap();
            exit(code, 0);
        });
        guest.guard(PAGE, 8, Action::Stop);
        let Ending::Stopped { event } = guest.run() else { panic!("it must be stopped") };
        assert_eq!(event.event.verdict, Verdict::Stopped);
        assert_eq!(guest.word(PAGE + 0x800), 0, "nothing follows");
    }
}
