//! What gdb would not do, and what comes of it; by packets of its protocol.

use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rbx};
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, Ending, Held, OnRuleStop, StopCause, TrapChoice};

use crate::gdb::{WATCHED, place, stores};
use crate::guest::{Guest, PAGE, both_ways, exit, kvm, small};
use crate::privilege::{Level, place_all};
use crate::remote::{LIMIT, Remote, listen};

/// Counts without end.
fn endless(code: &mut CodeAssembler) {
    let mut again = code.create_label();
    code.mov(rbx, PAGE).unwrap();
    code.set_label(&mut again).unwrap();
    code.inc(qword_ptr(rbx)).unwrap();
    code.jmp(again).unwrap();
}

fn runs(guest: &Guest) {
    let before = guest.word(PAGE);
    until(|| guest.word(PAGE) != before, "the guest does not go on");
}

fn until(happens: impl Fn() -> bool, or: &str) {
    let began = Instant::now();
    while !happens() {
        assert!(began.elapsed() < LIMIT, "{or}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_told(guest: &Guest, text: &str) {
    until(|| guest.vm.debugger_news().iter().any(|it| it.message.contains(text)), text);
}

/// Whoever sends no packet first is nobody, also where the guest is held for another reason.
#[test]
fn who_is_no_debugger_neither_holds_nor_releases() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(&small(), endless);
    guest.vm.hold();
    let address = listen(&guest);
    guest.vm.start().unwrap();
    let no_end = vec![b'$'; 100_000];
    let no_packets: [&[u8]; 6] =
        [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x03", b"$k#00", b"$vCont;c", &no_end];
    for bytes in no_packets {
        let mut caller = Remote::connect(&address);
        caller.send_bytes(bytes);
        assert!(caller.hang_up(), "nobody answers {}", bytes.escape_ascii());
        assert_eq!(guest.vm.held(), Some(Held::OnRequest));
    }
    assert_eq!(guest.word(PAGE), 0, "it still waits before its first instruction");
    assert!(guest.vm.debugger_news().is_empty());
    guest.vm.resume().unwrap();
    runs(&guest);
    // One that was a debugger and says something else keeps the guest held.
    let mut debugger = Remote::connect(&address);
    assert!(debugger.ask("?").starts_with('T'));
    debugger.send_bytes(b"$vCont;c#00");
    is_told(&guest, "the guest stays held");
    assert!(guest.vm.held().is_some());
    guest.vm.resume().unwrap();
    runs(&guest);
    guest.vm.stop();
}

/// What cannot be put in force leaves the guest held and the debugger attached.
#[test]
fn too_many_watchpoints_are_told_and_keep_the_guest_held() {
    const APART: u64 = 0x2000;
    if !kvm() || subpage_kvm::probe::is_native() {
        return;
    }
    let configuration = Configuration { trap: TrapChoice::Slots, slots: Some(8), ..small() };
    let mut guest = Guest::new(&configuration, |code| {
        code.mov(rbx, PAGE).unwrap();
        code.mov(qword_ptr(rbx), rbx).unwrap();
        exit(code, 0);
    });
    guest.vm.hold();
    let address = listen(&guest);
    guest.vm.start().unwrap();
    let mut debugger = Remote::connect(&address);
    for number in 0..4 {
        assert_eq!(debugger.ask(&format!("Z2,{:x},8", PAGE + number * APART)), "OK");
    }
    let told = debugger.ask("vCont;c");
    let bytes: Vec<u8> = (1..told.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&told[at..at + 2], 16).expect("console output"))
        .collect();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("9 memory slots are needed, KVM has 8"), "{text}");
    assert!(text.contains("the guest stays held"), "{text}");
    assert!(debugger.receive().unwrap().starts_with("T05"));
    is_told(&guest, "9 memory slots are needed");
    assert_eq!((debugger.word(PAGE), guest.vm.held().is_some()), (0, true));
    assert_eq!(debugger.ask(&format!("z2,{:x},8", PAGE + APART)), "OK");
    assert!(debugger.ask("vCont;c").contains("watch:400000;"));
    assert_eq!(debugger.ask("vCont;c"), "W00");
    assert_eq!(guest.end(), Ending::Exited { code: 0 });
}

/// Where a rule's stop ends the guest, a debugger that is attached does not let it go on before.
#[test]
fn a_debugger_takes_no_stop_from_whoever_saves_the_guest() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(qword_ptr(rbx), rbx).unwrap();
            code.mov(qword_ptr(rbx + 0x800), rbx).unwrap();
            exit(code, 0);
        });
        guest.guard(PAGE, 8, Action::Stop);
        guest.vm.on_rule_stop(OnRuleStop::Keep);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        assert!(debugger.ask("vCont;c").starts_with("T05"), "it is told of the stop");
        debugger.send("vCont;c");
        // A debugger that goes does not let it go either.
        drop(debugger);
        is_told(&guest, "the guest stays held");
        let stops = guest.vm.take_rule_stops();
        let [stop] = stops.as_slice() else { panic!("{stops:?}") };
        let StopCause::Rule(event) = &stop.cause else { panic!("{stop}") };
        let error = guest.vm.resume().unwrap_err().to_string();
        assert_eq!(error, "a rule has stopped the guest, which is saved and ends");
        guest.vm.hold();
        assert_eq!((guest.word(PAGE), guest.word(PAGE + 0x800)), (0, 0));
        guest.vm.end_stopped(event.clone());
        assert!(matches!(guest.end(), Ending::Stopped { .. }));
    }
}

/// A store to a watched counter that a debugger interrupts is told, and none is told twice.
#[test]
fn no_stop_is_lost_when_a_debugger_interrupts() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, endless);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        let mut told = 0;
        for round in 0..300 {
            assert_eq!(debugger.ask(&format!("Z2,{PAGE:x},8")), "OK");
            debugger.send("vCont;c");
            for _ in 0..round * 100 {
                std::hint::spin_loop();
            }
            debugger.send_bytes(b"\x03");
            // Where the store comes first, the interrupt comes in the next round.
            let stop = debugger.receive().unwrap();
            told += u64::from(stop.contains("watch:"));
            assert_eq!(debugger.word(PAGE), told, "{stop} in round {round}");
            assert_eq!(debugger.ask(&format!("z2,{PAGE:x},8")), "OK");
        }
        assert!(told > 0, "nothing was watched");
        guest.vm.stop();
    }
}

/// Two processors that rules have stopped before a debugger comes: it is told of both.
#[test]
fn a_debugger_that_comes_is_told_of_every_processor_that_has_stopped() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { cpus: 2, trap: TrapChoice::Mprotect, ..small() };
    let mut guest = Guest::new(&configuration, |code| {
        code.mov(rbx, PAGE).unwrap();
        code.mov(qword_ptr(rbx), rax).unwrap();
        exit(code, 0);
    });
    guest.guard(PAGE, 8, Action::Stop);
    place_all(&guest, &[Level::Supervisor; 2]);
    guest.vm.on_rule_stop(OnRuleStop::Hold);
    guest.vm.hold();
    let address = listen(&guest);
    guest.vm.start().unwrap();
    for vcpu in [0, 0, 1, 1] {
        guest.vm.step(vcpu).unwrap();
    }
    let stops: Vec<u32> = guest.vm.take_rule_stops().iter().map(|stop| stop.vcpu).collect();
    assert_eq!(stops, [0, 1]);
    let mut debugger = Remote::connect(&address);
    assert!(debugger.ask("qSupported:multiprocess+;swbreak+;hwbreak+").contains("multiprocess+"));
    assert!(debugger.ask("?").contains("thread:p01.01"), "the first");
    assert!(debugger.ask("vCont;c").contains("thread:p01.02"), "then the second");
    assert_eq!(debugger.ask("vCont;c"), "W00");
}

/// A debugger's write happens whatever a rule says, and is told with the rule.
#[test]
fn what_a_debugger_writes_is_told() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| exit(code, 0));
        guest.guard(PAGE + 8, 8, Action::Deny);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        assert_eq!(debugger.ask(&format!("M{:x},4:01020304", PAGE + 6)), "OK");
        assert_eq!(guest.read(PAGE + 6), [1, 2, 3, 4]);
        assert_eq!(debugger.ask(&format!("M{PAGE:x},1:05")), "OK");
        assert_eq!(debugger.ask("vCont;c"), "W00");
        let told = guest.vm.debugger_news();
        let writes: Vec<_> = told.iter().filter_map(|news| news.write.as_ref()).collect();
        let [first, second] = writes.as_slice() else { panic!("{told:?}") };
        assert_eq!((first.range.first().as_u64(), first.range.bytes()), (PAGE + 6, 4));
        assert_eq!(
            (&first.bytes[..], &first.rules[..]),
            (&[1, 2, 3, 4][..], &["rule".to_owned()][..])
        );
        assert_eq!((&second.bytes[..], &second.rules[..]), (&[5][..], &[][..]));
        let message =
            "a debugger has written 4 bytes at 0x400006, which no rule was asked about: \"rule\"";
        assert!(told.iter().any(|news| news.message == message), "{told:?}");
        assert!(guest.events().is_empty(), "it is no write of the guest");
    }
}

/// A debugger that does not answer any more is sent away, and its points go.
#[test]
fn a_debugger_can_be_sent_away() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(&small(), endless);
    guest.vm.hold();
    let address = listen(&guest);
    guest.vm.start().unwrap();
    assert!(guest.vm.send_debugger_away().is_err(), "there is none");
    for runs_before in [false, true] {
        let mut debugger = Remote::connect(&address);
        assert_eq!(debugger.ask(&format!("Z2,{:x},8", PAGE + 8)), "OK");
        if runs_before {
            debugger.send("vCont;c");
            runs(&guest);
        }
        guest.vm.send_debugger_away().unwrap();
        is_told(&guest, "the debugger was sent away, and the guest goes on");
        runs(&guest);
        assert_eq!(guest.vm.trapped_pages(), 0);
        assert!(debugger.hang_up());
    }
    guest.vm.stop();
}

/// As many as gdb sets in its own test, in both ways to trap.
#[test]
fn ten_thousand_watchpoints_are_set_and_met() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, stores);
        guest.vm.hold();
        let address = listen(&guest);
        guest.vm.start().unwrap();
        let mut debugger = Remote::connect(&address);
        for number in 0..WATCHED {
            assert_eq!(debugger.ask(&format!("Z2,{:x},8", place(number))), "OK");
        }
        for at in [place(5000), place(9999) + 7, place(0)] {
            let stop = debugger.ask("vCont;c");
            assert!(stop.contains(&format!("watch:{at:x};")), "{stop}, not {at:#x}");
        }
        assert_eq!(debugger.ask("vCont;c"), "W00");
        assert!(guest.events().is_empty(), "watchpoints are no rules");
    }
}
