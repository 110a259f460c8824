//! Single steps over instructions whose page tables lie in pages that trap. Where KVM walks the tables
//! itself nothing is stepped over, and what the guest sees is the same.

use std::time::{Duration, Instant};

use iced_x86::code_asm::{qword_ptr, rax, rbx, rcx, rdx};
use subpage::rules::Action;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::Ending;

use crate::guest::{CODE, Guest, PAGE, PLAIN, both_ways, exit, kvm};
use crate::live_tables::{ALL, close};
use crate::privilege::{LEVELS, Level, WINDOW, place, write_tables};

/// Longer than any of these guests takes.
const LIMIT: Duration = Duration::from_secs(120);

fn ready(guest: &Guest, level: Level) {
    write_tables(guest, &[Some(PAGE), Some(PLAIN), None]);
    guest.vm.with_processors(|processors| place(processors, CODE, &[level]));
    close(guest, &ALL);
}

/// One store of which some bytes change and some between them do not is one write: what allows it once
/// allows all of it, and the next one nothing.
#[test]
fn allow_once_allows_all_bytes_of_one_store() {
    const FIRST: u64 = 0x0011_0022;
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| {
                code.mov(rbx, WINDOW).unwrap();
                code.mov(rax, FIRST).unwrap();
                code.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
                code.mov(rax, 0x0033_0044_0055_0066_u64).unwrap();
                code.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
                exit(code, 0);
            });
            ready(&guest, level);
            guest.guard(PLAIN, 8, Action::AllowOnce);
            guest.run_well();
            let context = format!("{:?} at {level:?}", configuration.trap);
            assert_eq!(guest.word(PLAIN), FIRST, "{context}");
            assert!(!guest.vm.walks_write() || guest.vm.steps() > 0, "{context}");
        }
    }
}

/// A processor that is called out of the guest all the time makes each of its steps once, those that
/// end at a breakpoint among them, and sees no flag of theirs.
#[test]
fn steps_that_are_interrupted_are_made_once() {
    const ROUNDS: u64 = 300;
    const TRAP_FLAG: u64 = 1 << 8;
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            let mut again = code.create_label();
            code.mov(rbx, WINDOW).unwrap();
            code.mov(rcx, ROUNDS).unwrap();
            code.set_label(&mut again).unwrap();
            code.pushfq().unwrap();
            code.pop(rdx).unwrap();
            code.or(qword_ptr(rbx + 0x1008), rdx).unwrap();
            code.inc(qword_ptr(rbx + 0x1000)).unwrap();
            code.dec(rcx).unwrap();
            code.jnz(again).unwrap();
            exit(code, 0);
        });
        ready(&guest, Level::User);
        guest.vm.start().expect("threads");
        let began = Instant::now();
        let ending = loop {
            guest.vm.with_processors(|_| ());
            if let Some(ending) = guest.vm.wait(Duration::from_micros(100)) {
                break ending;
            }
            assert!(began.elapsed() < LIMIT, "the guest does not end");
        };
        assert_eq!(ending, Ending::Exited { code: 0 }, "{:?}: {ending}", configuration.trap);
        assert_eq!(guest.word(PLAIN), ROUNDS);
        assert_eq!(guest.word(PLAIN + 8) & TRAP_FLAG, 0);
        let steps = guest.vm.steps();
        assert!(!guest.vm.walks_write() || steps >= ROUNDS, "{:?}: {steps}", configuration.trap);
    }
}

/// Where the processor walks the guest's tables, none of them gets into a read-only slot: KVM would take
/// an entry's address for the operand's.
#[test]
fn live_tables_stay_out_of_slots_where_the_processor_walks() {
    if !kvm() {
        return;
    }
    if !is_native() {
        println!("skipped: this KVM walks a guest's tables itself");
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| {
                let mut again = code.create_label();
                code.mov(rbx, WINDOW).unwrap();
                code.mov(rcx, 20_u64).unwrap();
                code.set_label(&mut again).unwrap();
                code.mov(rax, qword_ptr(rbx)).unwrap();
                code.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
                code.dec(rcx).unwrap();
                code.jnz(again).unwrap();
                exit(code, 0);
            });
            ready(&guest, level);
            let slots = guest.vm.slot_count();
            guest.run_well();
            assert_eq!(guest.vm.slot_count(), slots, "{level:?}");
            assert!(!guest.vm.walks_write() || guest.vm.steps() > 0, "{level:?}");
        }
    }
}
