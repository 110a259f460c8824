//! The scenario of the KVM series' own self-test (`docs/spp.md` 2.2), which tested nothing else.

use subpage::access::{AccessMap, SUB_PAGE_BYTES, SUB_PAGES};
use subpage_model::{AccessOutcome, Features, Setup};

use crate::guest::{BASE, EVERY_STALENESS, Guest, at, features};

/// The guest's 32 writes, four bytes at the start of each sub-page of page 0.
fn writes(guest: &mut Guest, value: u32) -> Vec<AccessOutcome> {
    (0..u64::from(SUB_PAGES))
        .map(|sub| guest.write_bytes(0, at(0, sub * SUB_PAGE_BYTES), &value.to_le_bytes()))
        .collect()
}

fn contents(guest: &Guest) -> Vec<u32> {
    let words = (0..u64::from(SUB_PAGES)).map(|sub| guest.peek::<4>(at(0, sub * SUB_PAGE_BYTES)));
    words.map(u32::from_le_bytes).collect()
}

fn scenario(setup: Setup) {
    let mut guest = Guest::new(setup, 16);
    // The series' guest has run before sub-page permissions are enabled.
    assert!(writes(&mut guest, 0x1111_1111).iter().all(|outcome| *outcome == AccessOutcome::Done));

    guest.set(BASE, &[0]);
    assert_eq!(guest.get(BASE), 0);
    let skipped = writes(&mut guest, 0x2222_2222);
    for (sub, outcome) in (0..).zip(&skipped) {
        let gpa = at(0, sub * SUB_PAGE_BYTES);
        let AccessOutcome::Denied(denial) = outcome else { panic!("{gpa:#x}: {outcome:?}") };
        assert_eq!((denial.gpa.as_u64(), denial.at.as_u64()), (gpa, gpa));
    }
    assert_eq!(guest.traps().denied, 32, "one exit for each write");
    assert_eq!(guest.domain().counters().denied, 32);
    assert_eq!(contents(&guest), [0x1111_1111; 32]);

    guest.set(BASE, &[AccessMap::ALL.bits()]);
    let before = guest.traps();
    assert!(writes(&mut guest, 0x3333_3333).iter().all(|outcome| *outcome == AccessOutcome::Done));
    assert_eq!((guest.traps().denied, guest.traps().emulated), (32, before.emulated));
    assert_eq!(contents(&guest), [0x3333_3333; 32]);
}

#[test]
fn thirty_two_denials_and_then_none() {
    for sub_page_write_permissions in [true, false] {
        for staleness in EVERY_STALENESS {
            let features = Features { sub_page_write_permissions, ..features() };
            scenario(Setup { staleness, ..Setup::new(features) });
        }
    }
}
