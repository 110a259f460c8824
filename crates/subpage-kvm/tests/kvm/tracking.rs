//! Which sub-pages were written: each harvest tells, once.

use kvm_bindings::kvm_regs;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::Action;
use subpage_emulate::XsaveArea;
use subpage_kvm::vm::Configuration;

use crate::guest::{Guest, PAGE, PLAIN, assemble, both_ways, kvm};
use crate::privilege::{FLAGS, LEVELS, Level, place_first};
use crate::stepper::{Registers, Stepper};

const CODE_AT: u64 = 0x21_0000;

fn range(bytes: u64) -> ByteRange {
    ByteRange::new(Gpa::new(PAGE), bytes).unwrap()
}

/// Has the guest store a word at each address.
fn store(stepper: &Stepper, addresses: &[u64]) {
    use iced_x86::code_asm::{qword_ptr, rax, rbx};
    let code = assemble(CODE_AT, |code| {
        for address in addresses {
            code.mov(rbx, *address).unwrap();
            code.mov(qword_ptr(rbx), rax).unwrap();
        }
    });
    let general = kvm_regs { rip: CODE_AT, rax: 0x77, rflags: FLAGS, ..kvm_regs::default() };
    stepper.step(&code, &Registers { general, extended: Box::new(XsaveArea::INITIAL) }).unwrap();
}

fn harvest(guest: &Guest, track: subpage::track::TrackId) -> Vec<(u64, u32)> {
    let pages = guest.vm.harvest(track).unwrap();
    pages.iter().map(|page| (page.gfn.as_u64() - (PAGE >> 12), page.written.bits())).collect()
}

fn tells_each_once(configuration: &Configuration, level: Level) {
    let stepper = Stepper::new(configuration, level, &[]);
    let guest = &stepper.guest;
    // Before tracking.
    store(&stepper, &[PAGE + 0x700]);
    let track = guest.vm.track(range(0x3000)).unwrap();
    assert_eq!(harvest(guest, track), [], "nothing yet");
    // Twice the same, one across sub-pages, one across pages, one outside.
    let first = [0x0, 0x8, 0x17c, 0xffc, 0x3000].map(|offset| PAGE + offset);
    store(&stepper, &first);
    assert_eq!(first.map(|at| guest.word(at)), [0x77; 5], "tracked writes take effect");
    assert_eq!(harvest(guest, track), [(0, 1 << 31 | 0b1101), (1, 1)]);
    assert_eq!(harvest(guest, track), [], "each is told once");
    // Armed again: the same and another.
    store(&stepper, &[PAGE + 0x10, PAGE + 0x2080]);
    assert_eq!(harvest(guest, track), [(0, 1), (2, 0b10)]);
    // What is denied is not written.
    guest.guard(PAGE + 0x1800, 8, Action::Deny);
    store(&stepper, &[PAGE + 0x1800, PAGE + 0x1880]);
    assert_eq!(harvest(guest, track), [(1, 1 << 17)]);
    assert_eq!(guest.events().len(), 1);
    guest.vm.untrack(track).unwrap();
    assert_eq!(guest.vm.trapped_pages(), 1, "the rule's page is left");
    assert!(guest.vm.harvest(track).is_err(), "it is not tracked any more");
    let trapped = guest.vm.trap_counts().writes();
    store(&stepper, &[PAGE, PAGE + 0x2000]);
    assert_eq!(guest.vm.trap_counts().writes(), trapped, "untracked pages do not trap");
}

#[test]
fn a_harvest_tells_exactly_what_was_written_and_arms_it_again() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            tells_each_once(&configuration, level);
        }
    }
}

#[test]
fn a_page_of_which_all_is_written_traps_no_more() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let stepper = Stepper::new(&configuration, Level::User, &[]);
        let guest = &stepper.guest;
        let track = guest.vm.track(range(0x1000)).unwrap();
        let all: Vec<u64> = (0..32).map(|sub_page| PAGE + sub_page * 128).collect();
        store(&stepper, &all);
        // Where opening it means stopping the guest, that waits until it is worth it.
        for _ in 0..10 {
            if guest.vm.trapped_pages() != 0 {
                store(&stepper, &all);
            }
        }
        assert_eq!(guest.vm.trapped_pages(), 0, "{:?}", configuration.trap);
        assert_eq!(harvest(guest, track), [(0, u32::MAX)]);
        assert_eq!(guest.vm.trapped_pages(), 1, "armed again");
    }
}

/// How often the guest writes all sub-pages before it waits for the host.
const ROUNDS: i32 = 40;

/// Bursts of writes that are compared.
const BURSTS: u64 = 20;

/// Offsets in the plain page: the last burst that has ended, and the last that may begin.
const ENDED: u64 = 0;
const ALLOWED: u64 = 8;

/// Writes growing numbers to the start of each sub-page, over and over, in bursts.
fn bursts(a: &mut iced_x86::code_asm::CodeAssembler) {
    use iced_x86::code_asm::{ecx, edx, ptr, qword_ptr, r8, rax, rbp, rbx};
    let mut burst = a.create_label();
    let mut round = a.create_label();
    let mut sub_page = a.create_label();
    let mut wait = a.create_label();
    a.mov(rbp, PLAIN).unwrap();
    a.set_label(&mut burst).unwrap();
    a.mov(ecx, ROUNDS).unwrap();
    a.set_label(&mut round).unwrap();
    a.mov(rbx, PAGE).unwrap();
    a.mov(edx, 32).unwrap();
    a.set_label(&mut sub_page).unwrap();
    a.inc(rax).unwrap();
    a.mov(qword_ptr(rbx), rax).unwrap();
    a.lea(rbx, ptr(rbx + 128)).unwrap();
    a.dec(edx).unwrap();
    a.jnz(sub_page).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(round).unwrap();
    a.inc(r8).unwrap();
    a.mov(qword_ptr(rbp + ENDED), r8).unwrap();
    a.set_label(&mut wait).unwrap();
    a.pause().unwrap();
    a.cmp(qword_ptr(rbp + ALLOWED), r8).unwrap();
    a.jb(wait).unwrap();
    a.jmp(burst).unwrap();
}

/// Harvests while the guest writes, and copies what it is told of: the copy is whole in the end.
///
/// A write between what a harvest tells and the moment from which writes are seen again would be
/// missing.
#[test]
fn a_copy_by_harvests_is_whole() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, bursts);
        place_first(&guest, Level::User);
        let track = guest.vm.track(range(0x1000)).unwrap();
        let mut copy = [0; 0x1000];
        let harvest = |guest: &Guest, copy: &mut [u8; 0x1000]| {
            for page in guest.vm.harvest(track).unwrap() {
                let now: [u8; 0x1000] = guest.read(PAGE);
                for sub_page in page.written.iter() {
                    let bytes = usize::from(sub_page.index()) * 128..;
                    copy[bytes.clone()][..128].copy_from_slice(&now[bytes][..128]);
                }
            }
        };
        guest.vm.start().unwrap();
        for burst in 1..=BURSTS {
            while guest.word(PLAIN + ENDED) < burst {
                harvest(&guest, &mut copy);
                assert_eq!(guest.vm.wait(std::time::Duration::ZERO), None);
            }
            harvest(&guest, &mut copy);
            assert!(copy == guest.read(PAGE), "burst {burst}, {:?}", configuration.trap);
            guest.write(PLAIN + ALLOWED, &burst.to_le_bytes());
        }
    }
}
