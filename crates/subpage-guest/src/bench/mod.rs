//! Measurements: `bench: KEY VALUE UNIT`, a line each.
//!
//! Time is the time-stamp counter, which on Bochs counts the instructions of guest and hypervisor
//! alike, so that a result is the same every time. Keys of what depends on it end in the number of
//! processors that run, or name the way in which the hypervisor enforces.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::test_hooks::{self, Counter};
use crate::hypervisor::{Action, Rule, add_rule, drain_events, has_spp, remove_rule, set_access};
use crate::memory::{Bytes, frames};
use crate::processor::registers::{cpuid, time_stamp};
use crate::processor::start::{give, processors, start};
use crate::say;

/// How often a thing is done to measure it.
const ROUNDS: u64 = 1000;

/// How often a thing is done that leaves an event: no more than the ring holds, so that none is lost,
/// which would take less.
const EVENT_ROUNDS: u64 = 200;

/// Writes of the headline.
const HEADLINE: u64 = 1_000_000;

/// Counts that `rounds` calls of `body` take, each, above those of an empty loop.
fn counts_each(rounds: u64, mut body: impl FnMut()) -> u64 {
    let measure = |body: &mut dyn FnMut()| {
        let begin = time_stamp();
        for _ in 0..rounds {
            body();
        }
        time_stamp() - begin
    };
    // Once unmeasured: the first time may split a page or fill a cache.
    body();
    let empty = measure(&mut || ());
    measure(&mut body).saturating_sub(empty) / rounds
}

/// The way in which permissions are enforced here.
fn means() -> &'static str {
    if has_spp() { "spp" } else { "software" }
}

/// An exit about which there is nothing to do: the unit of the others.
fn empty_exit() {
    let counts = counts_each(ROUNDS, || {
        cpuid(0, 0);
    });
    say!("bench: cpuid_exit {counts} instructions");
}

/// A denied write, with its event; and of that, the decision.
fn denied_write() {
    let page = frames::page();
    set_access(page, !1);
    drain_events();
    let counts = counts_each(EVENT_ROUNDS, || page.write(0, 1_u64));
    say!("bench: denied_write {counts} instructions");
    say!("bench: denied_decision {} instructions", test_hooks::last_decision());
    set_access(page, !0);
    let rule = add_rule(&Rule::new("bench", page.part(0, 8), Action::Deny));
    drain_events();
    let counts = counts_each(EVENT_ROUNDS, || page.write(0, 1_u64));
    say!("bench: denied_write_by_rule {counts} instructions");
    say!("bench: denied_decision_by_rule {} instructions", test_hooks::last_decision());
    assert_eq!(page.read::<u64>(0), 0);
    assert_eq!(remove_rule(rule), 0);
    drain_events();
}

/// A permitted write next to a closed sub-page, and its exits.
fn permitted_write() {
    let page = frames::page();
    set_access(page, !1);
    let exits = Counter::AllExits.get();
    let counts = counts_each(ROUNDS, || page.write(0x80, 1_u64));
    // But the call that reads the counter.
    let exits = Counter::AllExits.get() - exits - 1;
    say!("bench: permitted_write_{} {counts} instructions", means());
    say!("bench: permitted_write_{}_exits {exits} per-{}-writes", means(), ROUNDS + 1);
    set_access(page, !0);
}

/// A write next to the bytes of a rule in the same sub-page, which software lets through.
fn write_beside_a_rule() {
    let page = frames::page();
    let rule = add_rule(&Rule::new("bench", page.part(0, 8), Action::Deny));
    let counts = counts_each(ROUNDS, || page.write(8, 1_u64));
    say!("bench: write_beside_a_rule {counts} instructions");
    assert_eq!(remove_rule(rule), 0);
}

/// Closing and opening one page while the other processors run.
fn set_one_page() {
    static SPINS: AtomicU64 = AtomicU64::new(0);
    let page = frames::page();
    // The region stays in small pages.
    set_access(frames::page(), !1);
    let running = processors();
    for number in 1..running {
        start(number);
        give(number, |_| {
            loop {
                SPINS.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut open = true;
    let counts = counts_each(100, || {
        open = !open;
        set_access(page, if open { !0 } else { !1 });
    });
    // With several processors Bochs's counter goes by the mean of what they execute meanwhile.
    let unit = if running == 1 { "instructions" } else { "instructions-per-processor" };
    say!("bench: set_one_page_{running}_processors {counts} {unit}");
    set_access(page, !0);
}

/// The headline: counters next to 128 protected bytes.
fn headline() {
    let page = frames::page();
    let protected = page.sub_page(7);
    protected.fill(0x77);
    let rule = Rule::new("protected", protected, Action::Deny);
    add_rule(&rule);
    let counters: [Bytes; 4] =
        [page.part(0, 8), page.part(0x300, 8), page.part(0x400, 8), page.part(0xff8, 8)];
    let before = Counter::AllExits.get();
    for index in 0..HEADLINE {
        counters[(index % 4) as usize].increment(0);
    }
    let exits = Counter::AllExits.get() - before - 1;
    let counted: u64 = counters.iter().map(|counter| counter.read::<u64>(0)).sum();
    assert_eq!(counted, HEADLINE, "increments are lost");
    let means = if has_spp() { "spp" } else { "page" };
    say!("bench: headline_exits_{means} {exits} exits");
    assert_eq!(protected.read::<u64>(0), 0x7777_7777_7777_7777);
}

/// Prints all measurements. On more than one processor, only what depends on their number.
pub fn run() {
    if processors() == 1 {
        empty_exit();
        denied_write();
        permitted_write();
        write_beside_a_rule();
        headline();
    }
    set_one_page();
}
