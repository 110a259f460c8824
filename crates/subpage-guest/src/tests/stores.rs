//! Every form of store, at every kind of place: permitted ones take effect exactly, denied ones have
//! no effect but on registers, and are reported with what they would have written (contract C3).

use crate::hypervisor::test_hooks::Counter;
use crate::hypervisor::{self, Access, Events, drain_events, has_spp, set_maps};
use crate::memory::{Bytes, PAGE, SUB_PAGE, frames};
use crate::processor::registers::{has_avx, has_avx512};
use crate::processor::tables;
use crate::store::{
    AVX, AVX512, ENTER_ROOM, FAR_CALLS, Form, INTEGER, LOCKED, Registers, SSE, STACK, STRING, X87,
};
use crate::test;

/// What memory holds before: the comparand of the forms that compare.
const OLD: u8 = 0x5a;

/// Sub-pages 3, 4 and 8 to 15 may be written.
const ISLANDS: Access = 0x0000_ff18;

/// The pages of a test, and the same without any restriction.
struct Stage {
    pages: Bytes,
    reference: Bytes,
    source: Bytes,
    maps: [Access; 2],
    events: Events,
    spp: bool,
}

impl Stage {
    fn new() -> Self {
        let [pages, reference, source] = core::array::from_fn(|_| frames::pages(2));
        source.fill_pattern(0xc3);
        let events = Events::with_room(300);
        Self { pages, reference, source, maps: [!0; 2], events, spp: has_spp() }
    }

    fn set(&mut self, maps: [Access; 2]) {
        self.maps = maps;
        self.reset(0, self.pages.length());
    }

    /// Gives some bytes their old value, for which the pages are open for a moment.
    fn reset(&self, offset: u64, length: u64) {
        assert_eq!(set_maps(self.pages.gfn(), &[!0, !0]), 2);
        self.pages.part(offset, length).fill(OLD);
        assert_eq!(set_maps(self.pages.gfn(), &self.maps), 2);
    }

    /// Whether sub-page `index`, counted over both pages, may be written.
    fn permits(&self, index: u64) -> bool {
        self.maps[(index / 32) as usize] >> (index % 32) & 1 == 1
    }

    /// The first byte of a store that is denied.
    fn denied(&self, form: &Form, offset: u64) -> Option<u64> {
        let mut written = (0..form.length).filter(|at| form.writes(*at)).map(|at| offset + at);
        written.find(|byte| !self.permits(byte / SUB_PAGE))
    }

    /// Whether the processor judges the store by all its bytes. Bochs, the only processor with SPP
    /// that these tests meet, looks at the first byte in each page (`docs/conformance.md`).
    fn judged_exactly(&self, form: &Form, offset: u64) -> bool {
        if !self.spp {
            return true;
        }
        let Some(denied) = self.denied(form, offset) else { return true };
        if form.last_first {
            return (offset..offset + form.length).all(|byte| !self.permits(byte / SUB_PAGE));
        }
        let first_byte_in_page = denied == offset || denied % PAGE == 0;
        first_byte_in_page && !(form.in_pieces && denied != offset)
    }

    fn check(&self, form: &Form, offset: u64) {
        let place = self.pages.part(offset, form.span());
        if !place.address().is_multiple_of(form.alignment) {
            return;
        }
        let starts = || (0..form.count).map(|index| offset + index * form.length);
        if !starts().all(|start| self.judged_exactly(form, start)) {
            return;
        }
        let same = self.reference.part(offset, form.span());
        same.fill(OLD);
        let expected = form.run(same, self.source);
        assert!(
            form.name.contains("different")
                || (0..form.span()).any(|at| same.read::<u8>(at) != OLD),
            "{} stores nothing that can be seen",
            form.name
        );
        self.reset(offset, form.span());
        drain_events();
        let violations = Counter::Exits(48).get();
        let denials = Counter::Denied.get();
        let actual = form.run(place, self.source);
        let violations = Counter::Exits(48).get() - violations;
        let denials = Counter::Denied.get() - denials;

        let denied = starts().filter(|start| self.denied(form, *start).is_some()).count();
        let what = (form.name, offset, self.maps);
        assert_eq!(denials, denied as u64, "denials of {what:x?}");
        if self.spp {
            assert_eq!(violations, denied as u64, "EPT violations of {what:x?}");
        }
        assert_eq!(actual, expected, "registers after {what:x?}");
        for start in starts() {
            let permitted = self.denied(form, start).is_none();
            for at in start - offset..start - offset + form.length {
                let wanted = if permitted { same.read(at) } else { OLD };
                assert_eq!(place.read::<u8>(at), wanted, "byte {at:#x} of {what:x?}");
            }
        }
        if form.count == 1 {
            self.check_event(form, offset, same);
        } else {
            assert_eq!(self.events.take(), denied.min(256) as u64, "events of {what:x?}");
        }
    }

    /// The event of one store tells what was done.
    fn check_event(&self, form: &Form, offset: u64, stored: Bytes) {
        let what = (form.name, offset, self.maps);
        let count = self.events.take();
        let Some(denied) = self.denied(form, offset) else {
            assert_eq!(count, 0, "events of {what:x?}");
            return;
        };
        assert_eq!(count, 1, "events of {what:x?}");
        let event = self.events.get(0);
        let first = self.pages.address();
        assert_eq!(event.at.get(), first + denied, "first denied byte of {what:x?}");
        assert_eq!(event.outcome.get(), 1, "outcome of {what:x?}");
        assert_eq!(event.rule.get(), 0, "rule of {what:x?}");
        assert!(form.has_instruction(event.rip.get()), "RIP {:#x} of {what:x?}", event.rip);
        assert_eq!(u64::from(event.length), form.length, "length of {what:x?}");
        assert_eq!(event.gpa.get(), first + offset, "address of {what:x?}");
        let known = form.length.min(64);
        assert_eq!(u64::from(event.data_length), known, "bytes known of {what:x?}");
        for at in 0..known {
            let byte = event.data[at as usize];
            assert_eq!(byte, stored.read::<u8>(at), "data byte {at} of {what:x?}");
        }
    }
}

fn check_all(forms: &[Form]) {
    let mut stage = Stage::new();
    for form in forms {
        let span = form.span();
        stage.set([ISLANDS, !0]);
        for offset in [
            0x180,
            0x200 - form.length,
            0x200 - form.length / 2,
            0x280,
            0x300 - form.length,
            0x280 - form.length / 2,
            0x400 - form.length / 2,
            0x400,
            0x400 - span / 2,
            0x800 - span,
            0x800 - span / 2,
            0xa00,
        ] {
            stage.check(form, offset);
        }
        for maps in [[!0 << 31, !0 - 2], [!0 << 31, !1], [!0 >> 1, !0 - 2], [!0 >> 1, !1]] {
            stage.set(maps);
            stage.check(form, PAGE - span.div_ceil(2));
            if form.length > 1 && form.count > 1 {
                stage.set(maps);
                stage.check(form, PAGE - span / 2 - form.length / 2);
            }
        }
    }
}

fn store_integer() {
    check_all(INTEGER);
}
test!(store_integer; limit = 60);

fn store_locked() {
    check_all(LOCKED);
}
test!(store_locked; limit = 60);

fn store_stack() {
    check_all(STACK);
}
test!(store_stack; limit = 60);

fn store_far_calls() {
    check_all(FAR_CALLS);
}
test!(store_far_calls; limit = 60);

/// A far call that has to mark a descriptor is not known to software. Denied, it is reported and skipped.
fn store_of_a_denied_far_call() {
    let events = Events::with_room(8);
    for form in FAR_CALLS {
        let pages = frames::pages(2);
        pages.fill(OLD);
        hypervisor::set_access(pages.page(0), 0);
        let denials = Counter::Denied.get();
        tables::forget_use_of_code();
        form.run(pages.part(0x200, form.length), frames::page());
        assert!((0..PAGE).all(|at| pages.read::<u8>(at) == OLD), "{}", form.name);
        assert_eq!(Counter::Denied.get() - denials, 1, "{}", form.name);
        assert_eq!(events.take(), 1, "{}", form.name);
        let event = events.get(0);
        assert!(form.has_instruction(event.rip.get()), "{}", form.name);
        assert_eq!(event.gpa.get(), pages.address() + 0x200, "{}", form.name);
        assert_eq!((u64::from(event.length), event.data_length), (form.length, 0), "{}", form.name);
        // The processor itself marks it where nothing is in its way.
        form.run(pages.part(PAGE + 0x200, form.length), frames::page());
    }
}
test!(store_of_a_denied_far_call);

/// The page where ENTER's room ends may be one that traps, although nothing is written there.
fn store_enter_room() {
    let pages = frames::pages(2);
    pages.fill(OLD);
    hypervisor::set_access(pages.page(0), 0);
    let denials = Counter::Denied.get();
    let counted = || [Counter::Exits(48), Counter::EptViolations].map(Counter::get);
    let before = counted();
    let after = ENTER_ROOM.run(pages.part(PAGE + 0x40, 8), frames::page());
    let [exits, violations] = [0, 1].map(|of| counted()[of] - before[of]);
    assert!(exits > 0 && violations == exits, "{violations} of {exits} are counted");
    assert_eq!(pages.read::<u64>(PAGE + 0x40), after.rbx);
    assert!((0..PAGE).all(|at| pages.read::<u8>(at) == OLD));
    assert_eq!(Counter::Denied.get(), denials);
}
test!(store_enter_room);

fn store_string() {
    check_all(STRING);
}
test!(store_string; limit = 60);

fn store_sse() {
    check_all(SSE);
}
test!(store_sse; limit = 60);

fn store_avx() {
    assert!(has_avx(), "the hypervisor hides AVX");
    check_all(AVX);
}
test!(store_avx; limit = 60);

fn store_avx512() {
    assert!(has_avx512(), "the hypervisor hides AVX-512, which both models of Bochs have");
    check_all(AVX512);
}
test!(store_avx512; limit = 120);

fn store_x87() {
    check_all(X87);
}
test!(store_x87; limit = 60);

/// A sub-page that may be written, next to others that may not, costs an exit only where the
/// processor does not know sub-pages.
fn permitted_writes_cost_no_exit_with_spp() {
    let page = frames::page();
    hypervisor::set_access(page, !1);
    // Whatever the first write after a change costs.
    page.write(SUB_PAGE, 0_u64);
    let before = Counter::AllExits.get();
    for value in 1..=1000_u64 {
        page.write(SUB_PAGE, value);
    }
    let exits = Counter::AllExits.get() - before;
    assert_eq!(page.read::<u64>(SUB_PAGE), 1000);
    // The second call to read the counter.
    assert_eq!(exits, if has_spp() { 1 } else { 1001 });
}
test!(permitted_writes_cost_no_exit_with_spp);

/// The registers of a form that was denied and one that was not are comparable at all.
fn forms_leave_registers() {
    let scratch = frames::pages(2);
    let run = |form: &Form| -> Registers { form.run(scratch, scratch.page(1)) };
    let exchange = INTEGER.iter().find(|form| form.name == "xchg m64, r64").expect("it is there");
    scratch.write(0, 0x1122_3344_5566_7788_u64);
    assert_eq!(run(exchange).rbx, 0x1122_3344_5566_7788);
    assert_eq!(scratch.read::<u64>(0), 0xfedc_ba98_7654_3210);
    let repeated = STRING.iter().find(|form| form.name == "rep stosb").expect("it is there");
    let after = run(repeated);
    assert_eq!((after.rcx, after.rdi), (0, 300));
}
test!(forms_leave_registers);
