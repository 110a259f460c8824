//! Rules that come into force while the guest runs.

use iced_x86::code_asm::{al, byte_ptr, dword_ptr, dx, eax, edx, rbx, rdi};
use subpage::address::Gpa;
use subpage::rules::{Action, Moment};
use subpage_kvm::boot::FirstProgram;
use subpage_kvm::control::RequestHandler as _;
use subpage_kvm::control::protocol::{Reply, Request, RuleRef};
use subpage_kvm::event::ArmedBy;
use subpage_kvm::vm::{Configuration, Ending, Vm, nowhere};
use subpage_trap::Verdict;

use crate::guest::{Guest, PAGE, PLAIN, both_ways, exit, kvm, rule};

/// Stores 1 to a byte, writes to the port, and stores 2 to it and to its neighbour.
fn arming(code: &mut iced_x86::code_asm::CodeAssembler) {
    code.mov(rdi, PAGE).unwrap();
    code.mov(byte_ptr(rdi), 1).unwrap();
    code.mov(edx, 0xf5).unwrap();
    code.out(dx, al).unwrap();
    code.mov(byte_ptr(rdi), 2).unwrap();
    code.mov(byte_ptr(rdi + 8), 2).unwrap();
    exit(code, 0);
}

#[test]
fn a_rule_that_waits_for_a_write_neither_denies_nor_counts_before() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, arming);
        let rules = [
            (rule("later", PAGE, 1, Action::Deny), Moment::Write),
            (rule("never", PAGE + 8, 1, Action::Deny), Moment::Command),
        ];
        let first = guest.vm.add_rules_at(&rules).expect("memory of the guest");
        assert_eq!(guest.vm.trapped_pages(), 0, "it costs nothing");
        guest.run_well();
        assert_eq!(guest.read(PAGE), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(guest.read::<1>(PAGE + 8)[0], 2);
        let events = guest.events();
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!(event.event.verdict, Verdict::Denied);
        assert_eq!(guest.vm.trap_counts().rule(first.0).denied, 1);
        let armings = guest.armings();
        let [arming] = &armings[..] else { panic!("{armings:?}") };
        assert_eq!(
            (&arming.rules[..], arming.by),
            (&[(first, "later".to_owned())][..], ArmedBy::Write)
        );
        let waiting = guest.vm.waiting_rules();
        assert_eq!(waiting, [(subpage::rules::RuleId(first.0 + 1), Moment::Command)]);
    }
}

#[test]
fn start_and_entry_hold_from_the_first_instruction() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, arming);
        let rules = [
            (rule("start", PAGE, 1, Action::Deny), Moment::Start),
            (rule("entry", PAGE + 8, 1, Action::Deny), Moment::Entry),
        ];
        guest.vm.add_rules_at(&rules).expect("memory of the guest");
        guest.run_well();
        assert_eq!((guest.read(PAGE), guest.read(PAGE + 8)), ([0; 8], [0; 8]));
        assert!(guest.armings().is_empty());
    }
}

/// Counts in a byte until another is not zero.
fn waiting(code: &mut iced_x86::code_asm::CodeAssembler) {
    let mut again = code.create_label();
    code.mov(rdi, PAGE).unwrap();
    code.mov(rbx, PLAIN).unwrap();
    code.set_label(&mut again).unwrap();
    code.inc(byte_ptr(rdi)).unwrap();
    code.cmp(byte_ptr(rbx), 0).unwrap();
    code.je(again).unwrap();
    code.mov(eax, 0).unwrap();
    exit(code, 0);
}

fn arm(guest: &Guest, rules: Vec<RuleRef>) -> Vec<u64> {
    match guest.vm.request_handler().perform(Request::Arm { rules }) {
        Ok(Reply::Armed { armed }) => armed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_arms_those_that_wait_for_it_or_that_it_names() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, waiting);
        let rules = [
            (rule("command", PAGE, 1, Action::Deny), Moment::Command),
            (rule("write", PAGE + 0x200, 1, Action::Deny), Moment::Write),
        ];
        let first = guest.vm.add_rules_at(&rules).expect("memory of the guest").0;
        guest.vm.start().expect("threads");
        assert_eq!(arm(&guest, Vec::new()), [first]);
        let held: [u8; 1] = guest.read(PAGE);
        assert!(arm(&guest, Vec::new()).is_empty(), "once");
        assert_eq!(arm(&guest, vec![RuleRef::Name("write".to_owned())]), [first + 1]);
        let by = guest.armings().iter().map(|arming| arming.by).collect::<Vec<_>>();
        assert_eq!(by, [ArmedBy::Command; 2]);
        assert_eq!(guest.read(PAGE), held, "in force when the call has returned");
        guest.write(PLAIN, &[1]);
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert_eq!(guest.read(PAGE), held);
        let no_rule = Request::Arm { rules: vec![RuleRef::Number(99)] };
        assert!(guest.vm.request_handler().perform(no_rule).is_err());
    }
}

#[test]
fn what_a_rule_waits_for_is_saved_and_restored() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let guest = Guest::new(&configuration, arming);
        let rules = [
            (rule("later", PAGE, 1, Action::Deny), Moment::Write),
            (rule("start", PAGE + 8, 1, Action::Deny), Moment::Start),
        ];
        guest.vm.add_rules_at(&rules).expect("memory of the guest");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("saved");
        guest.vm.save(&path).expect("room");
        let waits = guest.vm.waiting_rules();
        drop(guest);
        let vm = Vm::restore(&path, &Configuration::default(), nowhere()).expect("a snapshot");
        assert_eq!(vm.waiting_rules(), waits);
        let mut guest = Guest::of(vm);
        guest.run_well();
        assert_eq!((guest.read::<1>(PAGE)[0], guest.read::<1>(PAGE + 8)[0]), (1, 0));
    }
}

/// The kernel's write that tells of the first program is no event, and arms before the next instruction.
#[test]
fn the_first_program_is_known_by_the_write_before_it() {
    if !kvm() {
        return;
    }
    let state = PLAIN + 0x44;
    // Far from the page's ends, so that no neighbour traps for it.
    let guarded = PAGE + 0x800;
    let code = |code: &mut iced_x86::code_asm::CodeAssembler| {
        code.mov(rdi, guarded).unwrap();
        code.mov(rbx, state).unwrap();
        for number in 1..=3 {
            // A neighbour, then the variable.
            code.mov(dword_ptr(rbx + 4), 3).unwrap();
            code.mov(dword_ptr(rbx), number).unwrap();
            code.inc(byte_ptr(rdi)).unwrap();
        }
        exit(code, 0);
    };
    for configuration in both_ways() {
        for saved in [false, true] {
            let mut guest = Guest::new(&configuration, code);
            let rules = [(rule("later", guarded, 1, Action::Deny), Moment::Init)];
            let first = guest.vm.add_rules_at(&rules).expect("memory of the guest");
            let write = FirstProgram { at: Gpa::new(state), running: 3 };
            guest.vm.watch_first_program(write).expect("memory of the guest");
            if saved {
                let directory = tempfile::tempdir().expect("a directory");
                let path = directory.path().join("saved");
                guest.vm.save(&path).expect("room");
                drop(guest);
                guest = Guest::of(Vm::restore(&path, &configuration, nowhere()).expect("saved"));
            }
            assert_eq!(guest.rules(), first.0, "the other rule is not shown");
            guest.run_well();
            assert_eq!(guest.read(guarded), [2], "the third is denied");
            assert_eq!(guest.word(state), 3 << 32 | 3);
            let events = guest.events();
            let [event] = &events[..] else { panic!("{events:?}") };
            assert_eq!(event.rule_name.as_deref(), Some("later"));
            let armings = guest.armings();
            assert_eq!(armings.len(), 1);
            assert_eq!(armings[0].rules, [(first, "later".to_owned())]);
            assert_eq!(armings[0].by, ArmedBy::Init);
            assert_eq!(guest.vm.trapped_pages(), 1, "the variable's page is open again");
            assert_eq!(guest.vm.trap_counts().guarded(), 1, "the other rule does not count");
        }
    }
}

/// Other rules on the same bytes do not hide the write, and nobody reaches the one that watches it.
#[test]
fn the_first_program_is_known_whoever_guards_the_same_bytes() {
    if !kvm() {
        return;
    }
    let (state, guarded) = (PLAIN + 0x44, PAGE + 0x800);
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rdi, guarded).unwrap();
            code.mov(rbx, state).unwrap();
            code.mov(dword_ptr(rbx), 3).unwrap();
            code.inc(byte_ptr(rdi)).unwrap();
            exit(code, 0);
        });
        let rules = [
            (rule("first program", state, 4, Action::Log), Moment::Start),
            (rule("later", guarded, 1, Action::Deny), Moment::Init),
            (rule("gone", guarded + 8, 1, Action::Deny), Moment::Init),
        ];
        let first = guest.vm.add_rules_at(&rules).expect("memory of the guest").0;
        let write = FirstProgram { at: Gpa::new(state), running: 3 };
        guest.vm.watch_first_program(write).expect("memory of the guest");
        let handler = guest.vm.request_handler();
        let remove = |rule| handler.perform(Request::Remove { rule });
        assert!(remove(RuleRef::Number(first + 3)).is_err(), "it is nobody's");
        let lock = Request::Lock { rule: RuleRef::Name("first program".to_owned()) };
        handler.perform(lock).expect("the one rule that is shown with this name");
        remove(RuleRef::Name("gone".to_owned())).expect("a rule");
        guest.run_well();
        assert_eq!(guest.read(guarded), [0], "denied");
        let events: Vec<_> = guest.events().iter().map(|event| event.rule_name.clone()).collect();
        assert_eq!(events, [Some("first program".to_owned()), Some("later".to_owned())]);
        let armings = guest.armings();
        assert_eq!(armings.len(), 1, "{armings:?}");
        assert_eq!(armings[0].rules, [(subpage::rules::RuleId(first + 1), "later".to_owned())]);
        assert_eq!(guest.vm.waiting_rules(), []);
    }
}
