//! How guests end, and starting them again.

use std::time::Duration;

use iced_x86::code_asm::{al, ax, dx, eax, edx, qword_ptr, rax, rbx, rdi};
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, Ending, TrapChoice};
use subpage_trap::Verdict;

use crate::guest::{CODE, Guest, PAGE, PLAIN, assemble, both_ways, exit, kvm, rule, small};
use crate::privilege::{LEVELS, place_first};

/// Runs code both ways and at both levels.
fn each(code: impl Fn(&mut iced_x86::code_asm::CodeAssembler), look: impl Fn(&Guest, Ending, u8)) {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, &code);
            place_first(&guest, level);
            guest.guard(PAGE, 8, Action::Deny);
            let ending = guest.run();
            look(&guest, ending, level.cpl());
        }
    }
}

#[test]
fn an_exception_without_handlers_is_a_triple_fault() {
    each(
        |code| {
            code.nop().unwrap();
            code.ud2().unwrap();
        },
        |_, ending, _| {
            // An AMD processor loses its state at a shutdown, and KVM puts that of a reset there.
            const RESET: u64 = 0xfff0;
            let Ending::TripleFault { rip, .. } = ending else { panic!("{ending}") };
            assert!([CODE + 1, RESET].contains(&rip), "{rip:#x}");
        },
    );
}

#[test]
fn what_kvm_cannot_emulate_is_named_with_address_and_bytes() {
    let code = |code: &mut iced_x86::code_asm::CodeAssembler| {
        code.nop().unwrap();
        code.fld1().unwrap();
        exit(code, 0);
    };
    each(code, |_, ending, cpl| match ending {
        Ending::Failed(failure) => {
            assert_eq!(cpl, 0, "{failure}");
            assert_eq!((failure.vcpu, failure.rip), (0, Some(CODE + 1)));
            assert_eq!(failure.instruction, [0xd9, 0xe8]);
            let text = failure.to_string();
            assert!(text.contains("rip 0x200001, instruction d9 e8"), "{text}");
        }
        ending => {
            assert_eq!(ending, Ending::Exited { code: 0 });
            if cpl == 0 {
                println!("skipped: this KVM executes code at CPL 0");
            }
        }
    });
}

#[test]
fn a_state_that_failed_can_be_looked_at() {
    if !kvm() {
        return;
    }
    let store = |code: &mut iced_x86::code_asm::CodeAssembler| {
        code.mov(rax, 0x77_u64).unwrap();
        code.mov(rdi, PAGE).unwrap();
        // No store, so nothing here carries it out, and KVM's emulator does not know it.
        code.xrstor(iced_x86::code_asm::ptr(rdi)).unwrap();
    };
    let configuration = Configuration { trap: TrapChoice::Mprotect, ..small() };
    let mut guest = Guest::new(&configuration, store);
    guest.guard(PAGE, 8, Action::Deny);
    let failure = match guest.run() {
        Ending::Failed(failure) => failure,
        // XSAVE is off there: #UD, and there is no handler.
        Ending::TripleFault { .. } => {
            println!("skipped: this KVM runs a guest's kernel itself, and no instruction fails it");
            return;
        }
        other => panic!("{other}"),
    };
    let registers = guest.vm.with_processors(|processors| processors[0].fd.get_regs().unwrap());
    assert_eq!((registers.rax, Some(registers.rip)), (0x77, failure.rip));
    assert_eq!(guest.read(PAGE), [0; 8]);
}

#[test]
fn halting_for_good_ends_it() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for cpus in [1, 2] {
            let configuration = Configuration { cpus, ..configuration.clone() };
            let mut guest = Guest::new(&configuration, |code| code.hlt().unwrap());
            assert_eq!(guest.run(), Ending::Halted, "{cpus} processors");
        }
    }
}

#[test]
fn it_can_exit_with_a_code_and_switch_itself_off() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| exit(code, 77));
        assert_eq!(guest.run(), Ending::Exited { code: 77 });
        let mut guest = Guest::new(&configuration, |code| {
            // Sleep of type 0, beside the bit that says that ACPI is on.
            code.mov(eax, 0x2001).unwrap();
            code.mov(edx, 0x604).unwrap();
            code.out(dx, ax).unwrap();
            exit(code, 1);
        });
        assert_eq!(guest.run(), Ending::PoweredOff);
    }
}

/// A kernel that panics says so on its console, and asks for a reset like others.
#[test]
fn a_reset_after_a_panic_is_told_apart() {
    if !kvm() {
        return;
    }
    for (said, reason) in [
        ("[    0.5] Kernel panic - not syncing: no init\r\n", Some("no init")),
        ("[    0.5] reboot: Restarting system\r\n", None),
    ] {
        for configuration in both_ways() {
            let mut guest = Guest::new(&configuration, |code| {
                code.mov(edx, 0x3f8).unwrap();
                for letter in said.bytes() {
                    code.mov(eax, u32::from(letter)).unwrap();
                    code.out(dx, al).unwrap();
                }
                code.mov(edx, 0xcf9).unwrap();
                code.mov(eax, 6).unwrap();
                code.out(dx, al).unwrap();
                code.hlt().unwrap();
            });
            let ending = guest.run();
            let line = said.trim_end().to_owned();
            let panicked = |reason: &str| Ending::Panicked {
                reason: reason.to_owned(),
                console: vec![line.clone()],
            };
            assert_eq!(ending, reason.map_or(Ending::Reset, panicked));
        }
    }
}

/// Counts its starts, writes to two rules, and resets itself until it has started three times.
fn restarting(code: &mut iced_x86::code_asm::CodeAssembler) {
    let mut end = code.create_label();
    code.mov(rbx, PLAIN).unwrap();
    code.inc(qword_ptr(rbx)).unwrap();
    code.mov(rax, qword_ptr(rbx)).unwrap();
    code.mov(rdi, PAGE).unwrap();
    code.mov(qword_ptr(rdi), rax).unwrap();
    code.mov(qword_ptr(rdi + 0x100), rax).unwrap();
    code.mov(qword_ptr(rdi + 0x200), rax).unwrap();
    code.cmp(rax, 3).unwrap();
    code.je(end).unwrap();
    code.mov(edx, 0xcf9).unwrap();
    code.mov(eax, 6).unwrap();
    code.out(dx, al).unwrap();
    code.hlt().unwrap();
    code.set_label(&mut end).unwrap();
    exit(code, 0);
}

#[test]
fn rules_and_what_is_spent_of_them_outlive_a_reset() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let configuration = Configuration { reboots: true, ..configuration };
        // The image has to be there for the next start.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), assemble(CODE, restarting)).unwrap();
        let mut vm = subpage_kvm::vm::Vm::new(&configuration, subpage_kvm::vm::nowhere()).unwrap();
        vm.load(&crate::guest::request(file.path(), 1)).unwrap();
        let mut guest = Guest::of(vm);
        let rules =
            [rule("deny", PAGE, 8, Action::Deny), rule("once", PAGE + 0x100, 8, Action::AllowOnce)];
        guest.vm.add_rules(&rules).unwrap();
        guest.run_well();
        assert_eq!(guest.word(PLAIN), 3, "starts");
        assert_eq!([0x0, 0x100, 0x200].map(|offset| guest.word(PAGE + offset)), [0, 1, 3]);
        let told: Vec<_> = guest
            .events()
            .iter()
            .map(|it| (it.event.verdict, it.rule_or_map().to_owned()))
            .collect();
        let told: Vec<_> = told.iter().map(|(verdict, name)| (*verdict, name.as_str())).collect();
        let (denied, once) = ((Verdict::Denied, "deny"), (Verdict::AllowedOnce, "once"));
        let spent = (Verdict::Denied, "once");
        assert_eq!(told, [denied, once, denied, spent, denied, spent]);
    }
}

#[test]
fn a_reset_ends_it_if_it_is_not_to_be_started_again() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, restarting);
        assert_eq!(guest.run(), Ending::Reset);
        assert_eq!(guest.word(PLAIN), 1);
    }
}

#[test]
fn it_can_be_stopped_from_outside() {
    each_level_spins(|guest| {
        assert_eq!(guest.vm.wait(Duration::ZERO), None);
        guest.vm.stop();
        assert_eq!(guest.end(), Ending::Requested);
    });
}

fn each_level_spins(look: impl Fn(&Guest)) {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| {
                let mut here = code.create_label();
                code.set_label(&mut here).unwrap();
                code.jmp(here).unwrap();
            });
            place_first(&guest, level);
            guest.vm.start().unwrap();
            look(&guest);
        }
    }
}
