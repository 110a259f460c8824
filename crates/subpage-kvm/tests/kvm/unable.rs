//! Guests that cannot continue because of what lies in pages that trap: the message names the rule.

use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rsp, word_ptr};
use subpage::rules::Action;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::Ending;
use subpage_kvm::{InTrap, Structure};

use crate::guest::{Guest, PAGE, PLAIN, both_ways, kvm};

/// Runs code that ends in a triple fault or a failure; what is told of it, and the message.
fn told(guard: &[(&str, u64)], code: impl Fn(&mut CodeAssembler)) -> Vec<(Vec<InTrap>, String)> {
    let mut all = Vec::new();
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, &code);
        for (name, page) in guard {
            // Bytes that nothing touches.
            guest.vm.add_rules(&[crate::guest::rule(name, page + 0xf00, 8, Action::Deny)]).unwrap();
        }
        let ending = guest.run();
        let text = ending.to_string();
        match ending {
            Ending::TripleFault { in_traps, .. } => all.push((in_traps, text)),
            Ending::Failed(failure) => all.push((failure.in_traps, text)),
            other => panic!("{other}"),
        }
    }
    all
}

/// #UD with a stack in the page and an IDT of zeros.
fn without_handlers(code: &mut CodeAssembler) {
    code.mov(word_ptr(PLAIN + 0x100), 0xfff).unwrap();
    code.mov(rax, PLAIN).unwrap();
    code.mov(qword_ptr(PLAIN + 0x102), rax).unwrap();
    code.lidt(qword_ptr(PLAIN + 0x100)).unwrap();
    code.mov(rsp, PAGE + 0x800).unwrap();
    code.ud2().unwrap();
}

/// AMD's processors lose their state at a shutdown: there is nothing to be told then.
fn is_lost(text: &str) -> bool {
    text.starts_with("the guest has had a triple fault at 0xfff0")
}

#[test]
fn the_stack_and_the_tables_are_named_with_their_rules() {
    if !kvm() {
        return;
    }
    for (in_traps, text) in told(&[("the stack", PAGE), ("the table", PLAIN)], without_handlers) {
        if is_lost(&text) {
            println!("skipped: {text}");
            continue;
        }
        let named = |structure| {
            let found = in_traps.iter().find(|it| it.structure == structure);
            found.map(|it| (it.page.as_u64(), it.rule.as_deref()))
        };
        assert_eq!(named(Structure::Stack), Some((PAGE, Some("the stack"))), "{text}");
        assert_eq!(named(Structure::Idt), Some((PLAIN, Some("the table"))), "{text}");
        assert!(
            text.contains("in guarded pages: its stack (page 0x400000, rule \"the stack\")"),
            "{text}"
        );
        assert!(text.contains("its IDT (page 0x410000, rule \"the table\")"), "{text}");
        assert_eq!(named(Structure::PageTable), None);
    }
}

/// The page directory that the boot contract puts at 0xb000.
#[test]
fn a_page_table_is_named_with_its_rule() {
    if !kvm() {
        return;
    }
    for (in_traps, text) in told(&[("a directory", 0xb000)], |code| code.ud2().unwrap()) {
        if is_lost(&text) {
            println!("skipped: {text}");
            continue;
        }
        let table = in_traps.iter().find(|it| it.structure == Structure::PageTable);
        assert_eq!(table.map(|it| it.page.as_u64()), Some(0xb000), "{text}");
        assert!(text.contains("a page table (page 0xb000, rule \"a directory\")"), "{text}");
    }
}

/// A page that traps for the next one has no rule, and none is claimed.
#[test]
fn a_page_that_traps_for_its_neighbour_has_no_rule() {
    if !kvm() {
        return;
    }
    // The first bytes of the page behind that of the stack.
    for (in_traps, text) in told(&[("behind", PAGE + 0x1000 - 0xf00)], without_handlers) {
        assert!(in_traps.iter().all(|it| it.rule.is_none()), "{text}");
        assert!(!text.contains("guarded pages"), "{text}");
    }
}

#[test]
fn nothing_is_told_where_nothing_lies_there() {
    if !kvm() {
        return;
    }
    for (in_traps, text) in told(&[("elsewhere", PAGE)], |code| code.ud2().unwrap()) {
        assert!(in_traps.is_empty() && !text.contains("guarded"), "{text}");
    }
}

/// What is known to be wrong needs no guess: KVM does not know the instruction, and the stack in a guarded
/// page is not why.
#[test]
fn nothing_is_told_where_the_reason_is_known() {
    if !kvm() {
        return;
    }
    if is_native() {
        println!("skipped: this KVM runs a guest's kernel itself, and no instruction fails it");
        return;
    }
    for (in_traps, text) in told(&[("the stack", PAGE)], |code| {
        code.mov(rsp, PAGE + 0x800).unwrap();
        code.fld1().unwrap();
    }) {
        assert!(text.contains("cannot continue: KVM cannot emulate the instruction"), "{text}");
        assert!(in_traps.is_empty() && !text.contains("guarded"), "{text}");
    }
}
