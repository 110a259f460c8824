//! Live page tables of the guest in pages that trap: the whole machine does what it does unguarded.
//!
//! Where the processor walks the tables itself and each walk counts as a write, every instruction that
//! needs a closed table is stepped over; where KVM walks them, they lie in read-only slots. What the
//! guest sees is the same.

use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rbx, rcx, rdx, rsi, rsp};
use subpage::address::{ByteRange, Gpa};
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, Ending, PageTables, Vm, nowhere};
use subpage_trap::Verdict;

use crate::guest::{CODE, Guest, PAGE, PLAIN, both_ways, exit, kvm};
use crate::privilege::{ENTRY, LEVELS, Level, TABLES, WINDOW, WINDOW_TABLE, place, write_tables};

/// Accessed and dirty.
const FLAGS: u64 = 0x60;

/// Tables of [`write_tables`], from the top one on: top, pointers, identity, directory, window.
pub(crate) const ALL: [u64; 5] = [0, 1, 2, 3, 4];

/// Rounds of the guest's loop.
const ROUNDS: u64 = 20;

/// Loads, stores, pushes, calls, flags and a locked instruction, through the window, in a loop.
fn work(code: &mut CodeAssembler) {
    let mut again = code.create_label();
    let mut function = code.create_label();
    let mut end = code.create_label();
    code.mov(rbx, WINDOW).unwrap();
    code.mov(rcx, ROUNDS).unwrap();
    code.set_label(&mut again).unwrap();
    code.mov(rax, qword_ptr(rbx)).unwrap();
    code.add(qword_ptr(rbx + 0x1000), rax).unwrap();
    code.lock().inc(qword_ptr(rbx + 0x1008)).unwrap();
    code.push(rax).unwrap();
    code.pushfq().unwrap();
    code.pop(rdx).unwrap();
    code.mov(qword_ptr(rbx + 0x1010), rdx).unwrap();
    code.pop(rsi).unwrap();
    code.add(qword_ptr(rbx + 0x1018), rsi).unwrap();
    code.call(function).unwrap();
    code.dec(rcx).unwrap();
    code.jnz(again).unwrap();
    code.mov(qword_ptr(rbx + 0x1020), rsp).unwrap();
    code.jmp(end).unwrap();
    code.set_label(&mut function).unwrap();
    code.inc(qword_ptr(rbx + 0x1028)).unwrap();
    code.ret().unwrap();
    code.set_label(&mut end).unwrap();
    exit(code, 0);
}

/// The words that [`work`] leaves.
const WORDS: usize = 6;

fn guest(configuration: &Configuration, level: Level, clear: bool) -> Guest {
    let guest = Guest::new(configuration, work);
    write_tables(&guest, &[Some(PAGE), Some(PLAIN), None]);
    if clear {
        clear_flags(&guest);
    }
    let levels: Vec<Level> = (0..configuration.cpus).map(|_| level).collect();
    guest.vm.with_processors(|processors| place(processors, CODE, &levels[..1]));
    guest.write(PAGE, &7_u64.to_le_bytes());
    guest
}

fn clear_flags(guest: &Guest) {
    for at in (TABLES..TABLES + 0x5000).step_by(8) {
        let entry = guest.word(at);
        if entry & FLAGS != 0 {
            guest.write(at, &(entry & !FLAGS).to_le_bytes());
        }
    }
}

/// What is to be the same: the words that the guest wrote, and its tables without the flags.
fn seen(guest: &Guest) -> (Vec<u64>, Vec<u64>) {
    let words = (0..WORDS as u64).map(|word| guest.word(PLAIN + word * 8)).collect();
    let tables = (TABLES..TABLES + 0x5000).step_by(8).map(|at| guest.word(at) & !FLAGS).collect();
    (words, tables)
}

/// Guards unused bytes of tables.
pub(crate) fn close(guest: &Guest, tables: &[u64]) {
    for table in tables {
        guest.guard(TABLES + table * 0x1000 + 0xe00, 0x80, Action::Deny);
    }
}

fn compare(configuration: &Configuration, level: Level, clear: bool, tables: &[u64]) {
    let mut plain = guest(configuration, level, clear);
    plain.run_well();
    let mut guarded = guest(configuration, level, clear);
    close(&guarded, tables);
    let ending = guarded.run();
    let context =
        format!("{:?} at {level:?}, clear {clear}, tables {tables:?}", configuration.trap);
    assert_eq!(ending, Ending::Exited { code: 0 }, "{context}: {ending}");
    assert_eq!(seen(&guarded), seen(&plain), "{context}");
    assert!(guarded.events().is_empty(), "a walk is no write: {context}");
}

/// A rule on unused bytes of one table, of each level, and of all at once.
#[test]
fn a_guest_with_guarded_tables_does_what_it_does_without() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            for clear in [false, true] {
                for table in ALL {
                    compare(&configuration, level, clear, &[table]);
                }
                compare(&configuration, level, clear, &ALL);
            }
        }
    }
}

/// Two processors count in the same words behind guarded tables, one of which the first changes.
#[test]
fn two_processors_share_guarded_tables_that_one_changes() {
    const BOTH: u64 = 200;
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let configuration = Configuration { cpus: 2, ..configuration };
        let mut guest = Guest::new(&configuration, |code| {
            let mut again = code.create_label();
            let mut wait = code.create_label();
            code.mov(rbx, WINDOW).unwrap();
            code.mov(rcx, BOTH).unwrap();
            code.set_label(&mut again).unwrap();
            code.lock().inc(qword_ptr(rbx + 0x1000)).unwrap();
            // An entry next to the guarded ones: there, gone, there.
            code.mov(rax, qword_ptr(WINDOW_TABLE + 16)).unwrap();
            code.xor(rax, 0x40).unwrap();
            code.mov(qword_ptr(WINDOW_TABLE + 16), rax).unwrap();
            code.dec(rcx).unwrap();
            code.jnz(again).unwrap();
            code.lock().inc(qword_ptr(rbx + 0x1008)).unwrap();
            code.set_label(&mut wait).unwrap();
            code.pause().unwrap();
            code.cmp(qword_ptr(rbx + 0x1008), 2).unwrap();
            code.jne(wait).unwrap();
            exit(code, 0);
        });
        write_tables(&guest, &[Some(PAGE), Some(PLAIN), Some(PAGE)]);
        guest.vm.with_processors(|processors| {
            place(processors, CODE, &[Level::User, Level::User]);
        });
        guest.guard(WINDOW_TABLE + 0xe00, 0x80, Action::Deny);
        guest.guard(TABLES + 0x3e00, 0x80, Action::Deny);
        let ending = guest.run();
        let context = format!("{:?}", configuration.trap);
        assert_eq!(ending, Ending::Exited { code: 0 }, "{context}: {ending}");
        assert_eq!(guest.word(PLAIN), 2 * BOTH, "{context}");
        assert_eq!(guest.word(WINDOW_TABLE + 16) & !FLAGS, (PAGE | ENTRY) & !FLAGS, "{context}");
        assert!(guest.events().is_empty(), "{context}");
    }
}

/// The tables are guarded before and after (T6).
#[test]
fn a_restored_guest_goes_on_with_its_guarded_tables() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    for configuration in both_ways() {
        for level in LEVELS {
            for clear in [false, true] {
                let guest = guest(&configuration, level, clear);
                close(&guest, &ALL);
                guest.vm.save(&path).unwrap();
                let mut restored =
                    Guest::of(Vm::restore(&path, &configuration, nowhere()).unwrap());
                let ending = restored.run();
                let context = format!("{:?} at {level:?}, clear {clear}", configuration.trap);
                assert_eq!(ending, Ending::Exited { code: 0 }, "{context}: {ending}");
                assert_eq!(restored.word(PLAIN), ROUNDS * 7, "{context}");
            }
        }
    }
}

/// Flags that walks set in tracked tables are harvested, whether the processor or this program sets them (T8).
#[test]
fn flags_set_in_tracked_tables_are_harvested() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = guest(&configuration, level, true);
            let range = ByteRange::new(Gpa::new(TABLES), 0x5000).unwrap();
            let track = guest.vm.track(range).unwrap();
            // Its stores trap, so software walks for them, too.
            guest.guard(PLAIN + 0x800, 8, Action::Deny);
            let before: Vec<u64> =
                (TABLES..TABLES + 0x5000).step_by(8).map(|at| guest.word(at)).collect();
            guest.run_well();
            let context = format!("{:?} at {level:?}", configuration.trap);
            assert_eq!(guest.word(PLAIN), ROUNDS * 7, "{context}");
            let written = guest.vm.harvest(track).unwrap();
            for (at, before) in (TABLES..).step_by(8).zip(before) {
                if guest.word(at) != before {
                    let told = written.iter().any(|page| {
                        page.gfn.gpa().as_u64() == at & !0xfff
                            && page.written.bits() >> (at % 0x1000 / 128) & 1 == 1
                    });
                    assert!(told, "entry at {at:#x} has changed: {context}, {written:?}");
                }
            }
        }
    }
}

/// Tracking of all memory gets on.
#[test]
fn tracking_all_of_memory_gets_on() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = guest(&configuration, level, true);
            let range = ByteRange::new(Gpa::new(0), configuration.memory).unwrap();
            let track = guest.vm.track(range).unwrap();
            guest.run_well();
            let context = format!("{:?} at {level:?}", configuration.trap);
            assert_eq!(guest.word(PLAIN), ROUNDS * 7, "{context}");
            let written = guest.vm.harvest(track).unwrap();
            assert!(written.iter().any(|page| page.gfn.gpa().as_u64() == PLAIN), "{context}");
        }
    }
}

/// An entry that may not be changed is not, and the step puts nothing of it into memory.
#[test]
fn a_denied_entry_is_kept_while_its_table_is_in_use() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let mut guest = Guest::new(&configuration, |code| {
                code.mov(rax, PAGE | ENTRY).unwrap();
                code.mov(rbx, WINDOW_TABLE).unwrap();
                code.mov(qword_ptr(rbx + 0xe00), rax).unwrap();
                code.mov(rcx, WINDOW).unwrap();
                code.mov(qword_ptr(rcx + 0x1000), rax).unwrap();
                exit(code, 0);
            });
            write_tables(&guest, &[Some(PAGE), Some(PLAIN)]);
            guest.vm.with_processors(|processors| place(processors, CODE, &[level]));
            close(&guest, &ALL);
            guest.run_well();
            let context = format!("{:?} at {level:?}", configuration.trap);
            assert_eq!(guest.word(WINDOW_TABLE + 0xe00), 0, "{context}");
            assert_eq!(guest.word(PLAIN), PAGE | ENTRY, "{context}");
            let events = guest.events();
            let [event] = events.as_slice() else { panic!("{context}: {events:?}") };
            let event = &event.event;
            assert_eq!((event.verdict, event.at.as_u64()), (Verdict::Denied, WINDOW_TABLE + 0xe00));
        }
    }
}

/// Refusing names the rule and the table; where KVM walks the tables there is nothing to refuse.
#[test]
fn refusing_names_the_rule_and_the_table() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let configuration =
            Configuration { page_tables: PageTables::Refuse, ..configuration.clone() };
        let mut guest = guest(&configuration, Level::User, false);
        close(&guest, &[4]);
        match guest.run() {
            Ending::Failed(failure) => {
                let text = failure.to_string();
                assert!(text.contains("rule \"rule\""), "{text}");
                assert!(text.contains("page 0x504000"), "{text}");
                assert!(guest.vm.walks_write(), "{text}");
            }
            ending => {
                assert_eq!(ending, Ending::Exited { code: 0 });
                assert!(!guest.vm.walks_write(), "a walk that is a write is refused");
                println!("skipped: on this KVM a walk of a table is no write");
            }
        }
    }
}

/// What is slow is told, once a table, with the rule.
#[test]
fn a_notice_names_the_rule_and_the_table() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = guest(&configuration, Level::User, false);
        close(&guest, &[4]);
        guest.run_well();
        let notices = guest.vm.notices();
        if guest.vm.walks_write() {
            let [notice] = notices.as_slice() else { panic!("{notices:?}") };
            assert_eq!(notice.rule.as_deref(), Some("rule"));
            assert_eq!(notice.table.gpa().as_u64(), WINDOW_TABLE);
            assert!(guest.vm.steps() > 0);
        } else {
            assert!(notices.is_empty() && guest.vm.steps() == 0, "nothing is slow: {notices:?}");
        }
        assert!(guest.vm.notices().is_empty(), "each is told once");
    }
}

/// Where the handlers of [`faulting`] lie.
const HANDLERS: u64 = 0x23_0000;

/// Their interrupt descriptor table.
const IDT: u64 = 0x62_0000;

/// A guest at CPL 0 with handlers for #UD and #PF that tell their frames' RFLAGS, and with its stack's
/// last byte before `stack`. None where KVM emulates the guest's kernel: it delivers nothing to a stack
/// that traps.
fn faulting(configuration: &Configuration, stack: u64) -> Option<Guest> {
    use iced_x86::code_asm::{r8, r9};
    let guest = Guest::new(configuration, |code| {
        code.mov(rcx, WINDOW + 0x2000).unwrap();
        for _ in 0..3 {
            code.ud2().unwrap();
            code.mov(rax, qword_ptr(rcx)).unwrap();
            code.int(0x20).unwrap();
        }
        code.mov(rbx, PLAIN).unwrap();
        code.mov(qword_ptr(rbx), r8).unwrap();
        code.mov(qword_ptr(rbx + 8), r9).unwrap();
        code.mov(qword_ptr(rbx + 16), rsp).unwrap();
        exit(code, 0);
    });
    if guest.vm.traps_by() != subpage_kvm::trap::TrapBy::Mprotect
        || !subpage_kvm::probe::is_native()
    {
        println!(
            "skipped: this KVM emulates a guest's kernel, and delivers nothing to such a stack"
        );
        return None;
    }
    // #UD, #PF, INT 0x20: what the frame points to, and what is to be added to it.
    for (number, (vector, error_code, skip)) in
        [(6_u64, false, 2), (14, true, 3), (0x20, false, 0)].into_iter().enumerate()
    {
        let at = HANDLERS + number as u64 * 0x100;
        let handler = crate::guest::assemble(at, |code| {
            if error_code {
                code.add(rsp, 8).unwrap();
            }
            code.add(qword_ptr(rsp), skip).unwrap();
            code.inc(r8).unwrap();
            code.mov(rdx, qword_ptr(rsp + 16)).unwrap();
            // RF of a software interrupt's frame: QEMU's processor sets it, others do not.
            code.btr(rdx, 16).unwrap();
            code.add(r9, rdx).unwrap();
            code.iretq().unwrap();
        });
        guest.write(at, &handler);
        let low = at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        guest.write(IDT + vector * 16, &low.to_le_bytes());
        guest.write(IDT + vector * 16 + 8, &(at >> 32).to_le_bytes());
    }
    write_tables(&guest, &[Some(PAGE), Some(PLAIN), None]);
    guest.vm.with_processors(|processors| {
        place(processors, CODE, &[Level::Supervisor]);
        let mut special = processors[0].fd.get_sregs().unwrap();
        (special.idt.base, special.idt.limit) = (IDT, 0x20f);
        processors[0].fd.set_sregs(&special).unwrap();
        let mut general = processors[0].fd.get_regs().unwrap();
        general.rsp = stack;
        processors[0].fd.set_regs(&general).unwrap();
    });
    Some(guest)
}

/// Exceptions and software interrupts on a stack in a guarded page (T7), and with guarded tables.
#[test]
fn events_are_delivered_to_guarded_stacks_and_through_guarded_tables() {
    const STACK: u64 = PAGE + 0x1000;
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let Some(mut plain) = faulting(&configuration, STACK) else { return };
        plain.run_well();
        let told = |guest: &Guest| [0, 8, 16].map(|offset| guest.word(PLAIN + offset));
        assert_eq!((told(&plain)[0], told(&plain)[2]), (9, STACK));
        for (stack, tables) in [(true, &[][..]), (false, &ALL), (false, &ALL[4..]), (true, &ALL)] {
            let mut guest = faulting(&configuration, STACK).expect("as before");
            if stack {
                guest.guard(PAGE, 8, Action::Deny);
            }
            close(&guest, tables);
            let context = format!("{:?}, stack {stack}, tables {tables:?}", configuration.trap);
            let ending = guest.run();
            assert_eq!(ending, Ending::Exited { code: 0 }, "{context}: {ending}");
            assert_eq!(told(&guest), told(&plain), "{context}");
            assert!(guest.events().is_empty(), "{context}");
        }
    }
}

/// ICEBP with all tables guarded gives the guest its #DB, behind the instruction.
#[test]
fn icebp_is_delivered_with_guarded_tables() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let Some(mut guest) = faulting(&configuration, PAGE + 0x1000) else { return };
        // ICEBP: #DB, whose handler ends the guest.
        guest.write(CODE, &[0xf1]);
        let handler = crate::guest::assemble(HANDLERS + 0x800, |code| exit(code, 0));
        guest.write(HANDLERS + 0x800, &handler);
        let at = HANDLERS + 0x800;
        let low = at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        guest.write(IDT + 16, &low.to_le_bytes());
        close(&guest, &ALL);
        guest.run_well();
        // The frame: RIP behind ICEBP.
        assert_eq!(guest.word(PAGE + 0x1000 - 40), CODE + 1);
    }
}
