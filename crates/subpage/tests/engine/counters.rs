//! What a domain counts, and what its observer hears.

use std::cell::RefCell;
use std::rc::Rc;

use subpage::access::AccessMap;
use subpage::address::{GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{
    Answer, AtOnce, Counters, Decision, Denial, Domain, EptViolation, Observer, ProcessorUse,
    RetryState, SppEvent,
};
use subpage::exit::{Delivery, EptQualification, SppQualification};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{BASE, Normal, bytes, gfn, gfns, host_page, map, rule};

const PAGE: u64 = BASE * 4096;

#[derive(Default)]
struct Heard {
    maps: Vec<(GfnRange, Vec<AccessMap>)>,
    events: Vec<(Gpa, SppQualification)>,
    denials: Vec<Denial>,
}

/// Shared with the test.
struct Listener(Rc<RefCell<Heard>>);

impl Observer for Listener {
    fn maps_set(&mut self, pages: GfnRange, maps: &[AccessMap]) {
        self.0.borrow_mut().maps.push((pages, maps.to_vec()));
    }

    fn spp_event(&mut self, gpa: Gpa, qualification: SppQualification) {
        self.0.borrow_mut().events.push((gpa, qualification));
    }

    fn denied(&mut self, denial: &Denial) {
        self.0.borrow_mut().denials.push(*denial);
    }
}

fn write(gpa: u64) -> EptViolation {
    EptViolation {
        qualification: EptQualification::new()
            .with_write(true)
            .with_readable(true)
            .with_linear_valid(true)
            .with_final_access(true),
        gpa: Gpa::new(gpa),
        gla: gpa,
        rip: 1,
        length: Some(4),
        space: Normal,
        delivery: Delivery::default(),
    }
}

/// Every call adds one to what it is counted as, and nothing to anything else.
#[test]
fn each_event_is_counted_once_where_it_belongs() {
    let heard = Rc::<RefCell<Heard>>::default();
    let listener = Listener(Rc::clone(&heard));
    let mut domain = Domain::with_observer(HeapFrames::new(), PhysicalWidth::MAX, listener);
    domain.enable().expect("memory");
    let slot = gfns(BASE, 8);
    domain.add_slot(Normal, SlotId(0), slot, SlotFlags::default()).expect("a free place");
    for page in slot.iter() {
        domain.map(Normal, page, host_page(page, PageSize::Size4K)).expect("memory");
    }
    let mut expected = Counters::default();
    assert_eq!(*domain.counters(), expected);

    for (page, bits) in [(BASE, !1), (BASE + 1, !2)] {
        let token = domain.set_access(gfn(page), &[map(bits)]).expect("memory");
        domain.finish(&token.without_processors());
        expected.sets += 1;
        assert_eq!(*domain.counters(), expected);
    }

    let retry = &mut RetryState::default();
    for gpa in [PAGE + 8, PAGE + 4096 + 200] {
        let (answer, _) = domain.ept_violation(retry, &write(gpa));
        let Answer::Deny(denial) = answer else { panic!("{answer:?}") };
        assert_eq!((denial.rule, denial.at), (None, Gpa::new(gpa)));
        expected.ept_violations += 1;
        expected.denied += 1;
        assert_eq!(*domain.counters(), expected);
    }
    let decision = domain.check_write(Normal, bytes(PAGE + 4096 + 120, 16));
    // Where the denied sub-page begins, not the write.
    let at = Gpa::new(PAGE + 4096 + 128);
    assert_eq!(decision, Decision::Denied { rule: None, at, stop: false });

    domain.note_violation();
    expected.ept_violations += 1;
    assert_eq!(*domain.counters(), expected);

    // A processor without sub-page permissions: the page cannot be opened for the write.
    domain
        .set_processor_use(ProcessorUse { sub_page_permissions: false, ept_accessed_dirty: false });
    let permitted = bytes(PAGE + 256, 4);
    let at_once = domain.decide_at_once(&write(PAGE + 256), permitted);
    assert_eq!(at_once, Some(AtOnce::Permitted(host_page(gfn(BASE), PageSize::Size4K).hpa)));
    expected.ept_violations += 1;
    expected.emulations += 1;
    assert_eq!(*domain.counters(), expected);

    let gpa = Gpa::new(PAGE + 256);
    for (miss, retried) in [(true, true), (true, false), (false, false)] {
        let qualification = SppQualification::new().with_miss(miss);
        let exit =
            SppEvent { qualification, gpa, rip: 2, space: Normal, delivery: Delivery::default() };
        let (answer, _) = domain.spp_event(retry, &exit);
        assert_eq!(answer, if retried { Answer::Retry } else { Answer::Emulate });
        expected.spp_misses += u64::from(miss);
        expected.spp_misconfigurations += u64::from(!miss);
        expected.retries += u64::from(retried);
        expected.emulations += u64::from(!retried);
        assert_eq!(*domain.counters(), expected);
    }

    let logged = bytes(PAGE + 3 * 4096, 8);
    let (id, token) = domain.add_rule(rule(logged, Action::Log)).expect("memory");
    domain.finish(&token.without_processors());
    for _ in 0..2 {
        let decision = domain.authorize_write(Normal, logged).expect("memory");
        assert_eq!(decision, Decision::Reported { rule: id, at: logged.first() });
        expected.reported += 1;
        assert_eq!(*domain.counters(), expected);
    }

    let heard = heard.borrow();
    assert_eq!(heard.maps.len(), 2);
    assert_eq!(heard.maps[1], (gfns(BASE + 1, 1), vec![map(!2)]));
    assert_eq!(heard.events.len(), 3);
    assert!(heard.events.iter().all(|(at, _)| *at == gpa));
    let told: Vec<u64> = heard.denials.iter().map(|denial| denial.gpa.as_u64()).collect();
    assert_eq!(told, [PAGE + 8, PAGE + 4096 + 200]);
}
