//! Locked instructions of several processors on permitted bytes of a guarded page: nothing is lost.

use std::time::Duration;

use iced_x86::code_asm::*;
use subpage::access::AccessMap;
use subpage::rules::Action;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, Ending, TrapChoice};

use crate::guest::{Guest, PAGE, PLAIN, exit, gfn, kvm, small};
use crate::privilege::{Level, place_all};

/// Times that each processor does each thing.
const TIMES: u64 = 400;

/// Bits that the processors race for.
const BITS: u64 = 512;

/// Offsets in the guarded page. All but the last are permitted.
const COUNTER: u64 = 0x0;
const TICKETS: u64 = 0x8;
const LOOP: u64 = 0x10;
const LOCK: u64 = 0x18;
const PAIR: u64 = 0x20;
const FIELD: u64 = 0x100;
const DENIED: u64 = 0x800;

/// Offsets in the plain page.
const TICKET_SUM: u64 = 0x0;
const UNDER_LOCK: u64 = 0x8;
const BITS_WON: u64 = 0x10;
const READY: u64 = 0x18;
const STOP: u64 = 0x20;
const ROUNDS: u64 = 0x28;

/// What each processor does.
fn race(a: &mut CodeAssembler, processors: u64) {
    a.mov(rbx, PAGE).unwrap();
    a.mov(rbp, PLAIN).unwrap();
    // Increments.
    repeat(a, TIMES, |a| a.lock().inc(at(COUNTER)).unwrap());
    // Tickets: each number is given out once, so their sum is known.
    a.xor(r12d, r12d).unwrap();
    repeat(a, TIMES, |a| {
        a.mov(eax, 1).unwrap();
        a.lock().xadd(at(TICKETS), rax).unwrap();
        a.add(r12, rax).unwrap();
    });
    a.lock().add(plain(TICKET_SUM), r12).unwrap();
    // Compare and exchange.
    repeat(a, TIMES, |a| {
        let mut retry = a.create_label();
        a.mov(rax, at(LOOP)).unwrap();
        a.set_label(&mut retry).unwrap();
        a.lea(rdx, ptr(rax + 1)).unwrap();
        a.lock().cmpxchg(at(LOOP), rdx).unwrap();
        a.jne(retry).unwrap();
    });
    // The same with 16 bytes.
    repeat(a, TIMES / 4, |a| {
        let mut retry = a.create_label();
        a.mov(r13, rbx).unwrap();
        a.mov(rax, at(PAIR)).unwrap();
        a.mov(rdx, at(PAIR + 8)).unwrap();
        a.set_label(&mut retry).unwrap();
        a.mov(rcx, rdx).unwrap();
        a.sub(rcx, 1).unwrap();
        a.lea(rbx, ptr(rax + 1)).unwrap();
        a.lock().cmpxchg16b(xmmword_ptr(r13 + PAIR)).unwrap();
        a.jne(retry).unwrap();
        a.mov(rbx, r13).unwrap();
    });
    // A lock by exchange around a plain increment.
    repeat(a, TIMES / 4, |a| {
        let mut wait = a.create_label();
        a.nop().unwrap();
        a.set_label(&mut wait).unwrap();
        a.mov(eax, 1).unwrap();
        a.xchg(at(LOCK), rax).unwrap();
        a.test(rax, rax).unwrap();
        a.jnz(wait).unwrap();
        a.mov(rax, plain(UNDER_LOCK)).unwrap();
        a.inc(rax).unwrap();
        a.mov(plain(UNDER_LOCK), rax).unwrap();
        a.mov(at(LOCK), 0).unwrap();
    });
    // A race for bits: each is won once.
    a.xor(r12d, r12d).unwrap();
    a.xor(ecx, ecx).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.lock().bts(at(FIELD), rcx).unwrap();
    a.cmc().unwrap();
    a.adc(r12, 0).unwrap();
    a.inc(ecx).unwrap();
    a.cmp(ecx, u32::try_from(BITS).unwrap()).unwrap();
    a.jne(again).unwrap();
    a.lock().add(plain(BITS_WON), r12).unwrap();
    // What is denied stays denied meanwhile.
    a.lock().inc(at(DENIED)).unwrap();
    end_together(a, processors);
}

/// The last processor to get here ends the guest.
fn end_together(a: &mut CodeAssembler, processors: u64) {
    let mut end = a.create_label();
    let mut spin = a.create_label();
    a.mov(eax, 1).unwrap();
    a.lock().xadd(plain(READY), rax).unwrap();
    a.cmp(rax, i32::try_from(processors - 1).unwrap()).unwrap();
    a.je(end).unwrap();
    a.set_label(&mut spin).unwrap();
    a.pause().unwrap();
    a.jmp(spin).unwrap();
    a.set_label(&mut end).unwrap();
    exit(a, 0);
}

/// A word of the guarded page.
fn at(offset: u64) -> AsmMemoryOperand {
    qword_ptr(rbx + offset)
}

/// A word of the plain page.
fn plain(offset: u64) -> AsmMemoryOperand {
    qword_ptr(rbp + offset)
}

fn repeat(a: &mut CodeAssembler, times: u64, what: impl FnOnce(&mut CodeAssembler)) {
    let mut again = a.create_label();
    a.mov(r15, times).unwrap();
    a.set_label(&mut again).unwrap();
    what(a);
    a.dec(r15).unwrap();
    a.jnz(again).unwrap();
}

/// A guest with processors at these levels.
fn processors(trap: TrapChoice, levels: &[Level], code: fn(&mut CodeAssembler, u64)) -> Guest {
    let cpus = u32::try_from(levels.len()).unwrap();
    let configuration = Configuration { cpus, trap, ..small() };
    let guest = Guest::new(&configuration, |a| code(a, cpus.into()));
    place_all(&guest, levels);
    guest
}

/// A guest whose processors race.
fn racers(trap: TrapChoice, levels: &[Level]) -> Guest {
    let guest = processors(trap, levels, race);
    guest.guard(PAGE + DENIED, 8, Action::Deny);
    guest
}

fn totals(guest: &Guest) -> [u64; 8] {
    let field: [u8; 64] = guest.read(PAGE + FIELD);
    [
        guest.word(PAGE + COUNTER),
        guest.word(PLAIN + TICKET_SUM),
        guest.word(PAGE + LOOP),
        guest.word(PAGE + PAIR),
        guest.word(PAGE + PAIR + 8),
        guest.word(PLAIN + UNDER_LOCK),
        guest.word(PLAIN + BITS_WON),
        field.iter().map(|byte| u64::from(byte.count_ones())).sum(),
    ]
}

fn exact(processors: u64) -> [u64; 8] {
    let all = TIMES * processors;
    let quarter = all / 4;
    [all, all * (all - 1) / 2, all, quarter, quarter.wrapping_neg(), quarter, BITS, BITS]
}

fn nothing_is_lost(levels: &[Level]) {
    let mut guest = racers(TrapChoice::Mprotect, levels);
    guest.run_well();
    check(&guest, levels);
    assert_eq!(guest.events().len(), levels.len(), "one denial for each processor");
}

fn check(guest: &Guest, levels: &[Level]) {
    assert_eq!(totals(guest), exact(levels.len() as u64), "{levels:?}");
    assert_eq!(guest.word(PAGE + DENIED), 0, "{levels:?}");
}

use Level::{Supervisor, User};

#[test]
fn two_processors_lose_nothing() {
    if kvm() {
        nothing_is_lost(&[Supervisor, Supervisor]);
        nothing_is_lost(&[User, User]);
        nothing_is_lost(&[Supervisor, User]);
    }
}

#[test]
fn four_processors_lose_nothing() {
    if kvm() {
        nothing_is_lost(&[Supervisor, User, Supervisor, User]);
        nothing_is_lost(&[User; 4]);
    }
}

/// A word across the end of the guarded page.
const ACROSS: u64 = 0xffc;

/// Increments of each processor to it, where they trap and where they do not.
const SPLIT_TIMES: [u64; 2] = [4_000, 200_000];

/// Offset in the plain page: how often each processor is to count.
const LIMIT: u64 = 0x30;

/// Offset in the plain page: processors that are about to begin.
const BEGUN: u64 = 0x38;

/// The processors count together in a word across a page end.
fn count_across(a: &mut CodeAssembler, processors: u64) {
    let mut wait = a.create_label();
    let mut again = a.create_label();
    a.mov(rbx, PAGE).unwrap();
    a.mov(rbp, PLAIN).unwrap();
    a.mov(r15, plain(LIMIT)).unwrap();
    a.lock().inc(plain(BEGUN)).unwrap();
    a.set_label(&mut wait).unwrap();
    a.cmp(plain(BEGUN), i32::try_from(processors).unwrap()).unwrap();
    a.jne(wait).unwrap();
    a.set_label(&mut again).unwrap();
    a.lock().inc(at(ACROSS)).unwrap();
    a.dec(r15).unwrap();
    a.jnz(again).unwrap();
    end_together(a, processors);
}

/// How many increments of two processors are missing in a word across a page end, of which these pages
/// are guarded.
fn lost_across(level: Level, guarded: &[u64]) -> u64 {
    let times = SPLIT_TIMES[usize::from(guarded.is_empty())];
    let mut guest = processors(TrapChoice::Mprotect, &[level; 2], count_across);
    for page in guarded {
        guest.guard(page + DENIED, 8, Action::Deny);
    }
    guest.write(PLAIN + LIMIT, &times.to_le_bytes());
    guest.run_well();
    2 * times - guest.word(PAGE + ACROSS)
}

/// Where KVM emulates CPL 0 its emulator does a locked instruction across a page end as a read and a
/// plain write: nothing is demanded there (docs/kvm.md).
#[test]
fn locked_instructions_across_a_page_end_lose_nothing_where_the_processor_runs_them() {
    if !kvm() {
        return;
    }
    for level in [User, Supervisor] {
        let unguarded = lost_across(level, &[]);
        let exact = level == User || is_native();
        assert!(!exact || unguarded == 0, "a processor's own split locks");
        for guarded in [&[PAGE][..], &[PAGE + 0x1000], &[PAGE, PAGE + 0x1000]] {
            let lost = lost_across(level, guarded);
            println!("{level:?}, {guarded:x?}: {lost} lost; unguarded: {unguarded}");
            assert!(!exact || lost == 0, "{level:?}, {guarded:x?}: {lost} lost");
        }
    }
}

/// Counts in three ways until the host says stop, and tells how often.
fn count_until_stopped(a: &mut CodeAssembler, processors: u64) {
    let mut again = a.create_label();
    let mut retry = a.create_label();
    a.mov(rbx, PAGE).unwrap();
    a.mov(rbp, PLAIN).unwrap();
    a.xor(r12d, r12d).unwrap();
    a.set_label(&mut again).unwrap();
    a.lock().inc(at(COUNTER)).unwrap();
    a.mov(eax, 1).unwrap();
    a.lock().xadd(at(TICKETS), rax).unwrap();
    a.mov(rax, at(LOOP)).unwrap();
    a.set_label(&mut retry).unwrap();
    a.lea(rdx, ptr(rax + 1)).unwrap();
    a.lock().cmpxchg(at(LOOP), rdx).unwrap();
    a.jne(retry).unwrap();
    a.inc(r12).unwrap();
    a.cmp(plain(STOP), 0).unwrap();
    a.je(again).unwrap();
    a.lock().add(plain(ROUNDS), r12).unwrap();
    end_together(a, processors);
}

#[test]
fn nothing_is_lost_while_permissions_change() {
    const CHANGES: u32 = 200;
    if !kvm() {
        return;
    }
    let levels = [Supervisor, User, User];
    let mut guest = processors(TrapChoice::Mprotect, &levels, count_until_stopped);
    guest.vm.start().unwrap();
    for change in 0..CHANGES {
        // The page opens and closes, and the race continues in both states.
        let map = if change % 2 == 0 { !(1 << 31) } else { u32::MAX };
        let before = guest.word(PAGE + COUNTER);
        guest.vm.set_access(gfn(PAGE), &[AccessMap::from_bits(map)]).unwrap();
        while guest.word(PAGE + COUNTER) == before && guest.vm.wait(Duration::ZERO).is_none() {
            std::thread::yield_now();
        }
    }
    guest.write(PLAIN + STOP, &[1]);
    assert_eq!(guest.end(), Ending::Exited { code: 0 });
    let rounds = guest.word(PLAIN + ROUNDS);
    let counts = [COUNTER, TICKETS, LOOP].map(|offset| guest.word(PAGE + offset));
    assert_eq!(counts, [rounds; 3]);
}

/// Why several processors trap by `mprotect`: with read-only slots KVM computes the result of a locked
/// instruction before the exit. This shows it and demands nothing, for a run may be lucky.
#[test]
fn read_only_slots_may_lose_updates() {
    if !kvm() {
        return;
    }
    let levels = [User, User];
    let mut guest = racers(TrapChoice::Slots, &levels);
    guest.vm.start().unwrap();
    // A lost release of the lock can stop the race for good.
    match guest.vm.wait(Duration::from_secs(2)) {
        Some(ending) => println!("{ending}: {:?} of {:?}", totals(&guest), exact(2)),
        None => println!("not ended: {:?} of {:?}", totals(&guest), exact(2)),
    }
    assert_eq!(guest.word(PAGE + DENIED), 0, "denied bytes are safe all the same");
}

/// Where the second processor starts, in real mode.
const START: u64 = 0x3000;

/// A page that it writes to.
const LOW: u64 = 0x4000;

#[test]
fn a_second_processor_can_be_started_by_the_guest_and_is_guarded_in_real_mode() {
    if !kvm() {
        return;
    }
    let configuration = Configuration { cpus: 2, trap: TrapChoice::Mprotect, ..small() };
    let mut guest = Guest::new(&configuration, |a| {
        let mut wait = a.create_label();
        a.mov(rbx, 0xfee0_0000_u64).unwrap();
        // INIT, then start-up at 0x3000, to all but itself.
        a.mov(dword_ptr(rbx + 0x300), 0x000c_4500).unwrap();
        a.mov(dword_ptr(rbx + 0x300), 0x000c_4600 | i32::try_from(START >> 12).unwrap()).unwrap();
        a.mov(rbx, LOW).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(word_ptr(rbx + 0x10), 0x77).unwrap();
        a.jne(wait).unwrap();
        exit(a, 0);
    });
    let mut a = CodeAssembler::new(16).unwrap();
    let mut spin = a.create_label();
    a.mov(bx, u32::try_from(LOW).unwrap()).unwrap();
    a.mov(word_ptr(bx + 0x80), 0x55).unwrap();
    a.mov(word_ptr(bx + 0x10), 0x77).unwrap();
    a.set_label(&mut spin).unwrap();
    a.jmp(spin).unwrap();
    guest.write(START, &a.assemble(0).unwrap());
    guest.guard(LOW + 0x80, 8, Action::Deny);
    guest.run_well();
    assert_eq!(guest.read(LOW + 0x80), [0; 2]);
    let events = guest.events();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let event = &event.event;
    let (vcpu, gpa) = (event.origin.vcpu, event.gpa.as_u64());
    assert_eq!((vcpu, gpa, event.bytes.as_slice()), (1, LOW + 0x80, &[0x55, 0][..]));
}
