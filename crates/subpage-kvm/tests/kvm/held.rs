//! Guests that are held: looked at, stepped, saved, let go and ended.

use std::time::Duration;

use iced_x86::code_asm::{CodeAssembler, al, dx, eax, edx, qword_ptr, rax, rbx, rcx, rdi, rsi};
use subpage::rules::Action;
use subpage_kvm::control::RequestHandler as _;
use subpage_kvm::control::protocol::{Refusal, Reply, Request};
use subpage_kvm::vm::{Configuration, Ending, Held, HoldError, OnRuleStop, StopCause, Vm, nowhere};

use crate::guest::{CODE, Guest, PAGE, PLAIN, both_ways, exit, kvm};

/// Counts at a guarded page's other bytes, without end.
fn counting(code: &mut CodeAssembler) {
    let mut again = code.create_label();
    code.mov(rbx, PAGE).unwrap();
    code.set_label(&mut again).unwrap();
    code.inc(qword_ptr(rbx + 0x800)).unwrap();
    code.jmp(again).unwrap();
}

fn ask(guest: &Guest, request: Request) -> Result<Reply, Refusal> {
    guest.vm.request_handler().perform(request)
}

fn rip(guest: &Guest, cpu: u32) -> u64 {
    let Ok(Reply::Registers(shown)) = ask(guest, Request::Registers { cpu }) else {
        panic!("a held guest's registers")
    };
    shown.registers.iter().find(|it| it.name == "rip").expect("it has one").value
}

#[test]
fn a_held_guest_stands_still_and_goes_on() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for cpus in [1, 3] {
            let configuration = Configuration { cpus, ..configuration.clone() };
            let mut guest = Guest::new(&configuration, counting);
            guest.guard(PAGE, 8, Action::Deny);
            guest.vm.start().unwrap();
            for _ in 0..3 {
                let before = guest.word(PAGE + 0x800);
                while guest.word(PAGE + 0x800) == before {
                    std::thread::yield_now();
                }
                ask(&guest, Request::Pause).unwrap();
                let held = guest.word(PAGE + 0x800);
                // The watch calls processors several times in that time.
                assert_eq!(guest.vm.wait(Duration::from_millis(200)), None);
                assert_eq!(guest.word(PAGE + 0x800), held);
                assert!(guest.vm.held().is_some());
                // Rules change meanwhile, and it can be saved.
                guest.guard(PAGE + 0x100, 8, Action::Log);
                ask(&guest, Request::Resume).unwrap();
            }
            let error = ask(&guest, Request::Resume).unwrap_err();
            assert_eq!(error.code, "EBUSY", "{error}");
            ask(&guest, Request::Pause).unwrap();
            guest.vm.stop();
            assert_eq!(guest.end(), Ending::Requested, "it can be ended");
        }
    }
}

#[test]
fn steps_are_single_instructions_also_where_stores_trap() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(rax, 7_u64).unwrap();
            code.mov(qword_ptr(rbx), rax).unwrap();
            code.mov(qword_ptr(rbx + 0x800), rax).unwrap();
            code.mov(rdi, PAGE + 0x900).unwrap();
            code.mov(rsi, PLAIN).unwrap();
            code.mov(rcx, 3_u64).unwrap();
            code.rep().movsb().unwrap();
            code.mov(edx, 0x3f8).unwrap();
            code.mov(eax, 65).unwrap();
            code.out(dx, al).unwrap();
            exit(code, 0);
        });
        guest.write(PLAIN, b"abc");
        guest.guard(PAGE, 8, Action::Deny);
        assert_eq!(guest.vm.step(0), Err(HoldError::Runs));
        guest.vm.hold();
        guest.vm.start().unwrap();
        assert_eq!(guest.vm.step(1), Err(HoldError::NoProcessor(1)));
        let mut places = vec![rip(&guest, 0)];
        assert_eq!(places, [CODE], "it waits before its first instruction");
        for _ in 0..40 {
            if guest.vm.step(0).is_err() {
                break;
            }
            let at = rip(&guest, 0);
            if at != *places.last().unwrap() {
                places.push(at);
            }
            if at == CODE + 23 {
                assert_eq!(guest.word(PAGE), 0, "denied");
                assert_eq!(guest.word(PAGE + 0x800), 0, "not yet");
            }
        }
        let ending = guest.end();
        assert_eq!(ending, Ending::Exited { code: 0 });
        assert_eq!(guest.read(PAGE + 0x900), *b"abc");
        // Each instruction's own place, and no other.
        let lengths: Vec<u64> = places.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let expected = [10, 10, 3, 7, 10, 10, 10, 2, 5, 5, 1, 5, 5];
        assert_eq!(lengths, expected, "{places:x?}");
    }
}

#[test]
fn a_rule_that_stops_holds_a_guest_that_can_be_saved_and_let_go() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stopped");
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(rax, 7_u64).unwrap();
            code.mov(qword_ptr(rbx), rax).unwrap();
            code.mov(qword_ptr(rbx + 0x800), rax).unwrap();
            exit(code, 0);
        });
        guest.guard(PAGE, 8, Action::Stop);
        guest.vm.on_rule_stop(OnRuleStop::Hold);
        guest.vm.start().unwrap();
        let stop = loop {
            match guest.vm.held() {
                Some(Held::By(stop)) => break stop,
                _ => std::thread::yield_now(),
            }
        };
        let StopCause::Rule(event) = &stop.cause else { panic!("{stop}") };
        assert_eq!((stop.vcpu, event.rule_name.as_deref()), (0, Some("rule")));
        assert_eq!(stop.to_string(), "the rule \"rule\" has stopped processor 0");
        guest.vm.hold();
        assert_eq!((guest.word(PAGE), guest.word(PAGE + 0x800)), (0, 0), "nothing follows");
        guest.vm.save(&path).unwrap();
        guest.vm.resume().unwrap();
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert_eq!((guest.word(PAGE), guest.word(PAGE + 0x800)), (0, 7));

        let mut restored = Guest::of(Vm::restore(&path, &configuration, nowhere()).unwrap());
        restored.run_well();
        assert_eq!((restored.word(PAGE), restored.word(PAGE + 0x800)), (0, 7));
    }
}

#[test]
fn memory_and_registers_are_read_and_nothing_else() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, counting);
        guest.write(PLAIN, b"subpage");
        let read = |start, length| ask(&guest, Request::Read { start, length });
        assert_eq!(read(PLAIN, 3), Ok(Reply::Memory { bytes: "737562".to_owned() }));
        for (start, length, code) in [
            (PLAIN, 0, "EINVAL"),
            (PLAIN, 65537, "EINVAL"),
            (configuration.memory - 1, 2, "EFAULT"),
            (u64::MAX, 1, "EINVAL"),
        ] {
            assert_eq!(read(start, length).unwrap_err().code, code, "{length} at {start:#x}");
        }
        let error = ask(&guest, Request::Registers { cpu: 0 }).unwrap_err();
        assert_eq!(error.code, "EBUSY", "it is not held");
        guest.vm.start().unwrap();
        ask(&guest, Request::Pause).unwrap();
        assert!((CODE..CODE + 32).contains(&rip(&guest, 0)));
        assert_eq!(ask(&guest, Request::Registers { cpu: 9 }).unwrap_err().code, "EINVAL");
        guest.vm.stop();
        guest.end();
        assert_eq!(ask(&guest, Request::Pause).unwrap_err().code, "EIO");
    }
}
