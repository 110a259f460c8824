//! The guest's page tables: both pages before any mark, and marks that the engine hears of.

use subpage::address::{ByteRange, Gpa};
use subpage::rules::Action;
use subpage_emulate::guest::Register;
use subpage_trap::{Obstacle, StoreOutcome};

use crate::guest::{DATA, EDGE, Guest};

const MOV: [u8; 3] = [0x48, 0x89, 0x03];
const ACCESSED_DIRTY: u64 = 0x60;

/// T12: a store whose second page is absent faults there, and marks nothing, writes nothing, reports
/// nothing; whatever the rules in its first page say.
#[test]
fn a_fault_in_the_second_page_leaves_no_mark_in_the_first() {
    for action in [Action::Log, Action::AllowOnce, Action::Deny, Action::Stop] {
        let mut guest = Guest::new(true);
        let once = guest.add_rule("first", action, guest.pages[0], 4096);
        let before = guest.memory.0.borrow().clone();
        let entry = guest.page_table_entry(EDGE);
        guest.set_page_table_entry(EDGE, 0);
        guest.state.registers[Register::Rbx] = EDGE - 3;
        let Err(Obstacle::Exception(exception)) = guest.run(&MOV) else { panic!("no fault") };
        assert_eq!((exception.vector, exception.address), (14, Some(EDGE)));
        guest.set_page_table_entry(EDGE, entry);
        let mut after = guest.memory.0.borrow().clone();
        after[0x5000..0x5010].copy_from_slice(&before[0x5000..0x5010]); // the code
        assert!(after == before, "{action:?}");
        assert_eq!(guest.events, []);
        let counters = guest.domain.counters();
        assert_eq!((counters.denied, counters.reported), (0, 0));
        let spent = guest.domain.rules().get(once).unwrap().effect() != action;
        assert!(!spent);
    }
}

/// A store that goes through marks both its pages, one that is not of interest neither.
#[test]
fn marks_follow_the_write() {
    let mut guest = Guest::new(false);
    guest.add_rule("far away", Action::Deny, guest.pages[1] + 0x800, 8);
    guest.state.registers[Register::Rbx] = EDGE - 3;
    assert_eq!(guest.run(&MOV), Ok(StoreOutcome::Done));
    for linear in [EDGE - 1, EDGE] {
        assert_eq!(guest.page_table_entry(linear) & ACCESSED_DIRTY, ACCESSED_DIRTY);
    }
    let mut guest = Guest::new(false);
    guest.state.registers[Register::Rbx] = DATA;
    assert_eq!(guest.run(&MOV), Err(Obstacle::NotOurs));
    assert_eq!(guest.page_table_entry(DATA) & ACCESSED_DIRTY, 0);
}

/// T8: flags that are set in a tracked page-table entry are in the harvest.
#[test]
fn marks_in_tracked_tables_are_harvested() {
    let mut guest = Guest::new(true);
    guest.add_rule("data", Action::Deny, guest.pages[0] + 8, 8);
    let tables = ByteRange::new(Gpa::new(0x4000), 4096).unwrap();
    let (id, token) = guest.domain.track(tables).unwrap();
    guest.domain.finish(&token.without_processors());
    guest.state.registers[Register::Rbx] = DATA;
    assert_eq!(guest.run(&MOV), Ok(StoreOutcome::Done));
    let (pending, token) = guest.domain.harvest_written(id).unwrap();
    let written = pending.ready(&token.without_processors()).unwrap();
    let pages: Vec<(u64, u32)> =
        written.iter().map(|page| (page.gfn.as_u64(), page.written.bits())).collect();
    // The entry of the page is number 0x10 of its table.
    assert_eq!(pages, [(4, 1 << (0x10 * 8 / 128))]);
}
