//! Accessed and dirty flags, and the page-modification log.

use subpage::address::Gpa;
use subpage::frames::{EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};
use subpage::level::Level;
use subpage_model::{AccessKind, Deviations, Features, PML_ENTRIES, Staleness};

use crate::guest::{
    ACCESSED, DENIED, DIRTY, Guest, MISS, P, PASSES, R, SPP, W, WB, X, access, denial, seen, width,
    write,
};

const EVERY: [Staleness; 5] = [
    Staleness::None,
    Staleness::UntilExit,
    Staleness::UntilEvicted,
    Staleness::Longest,
    Staleness::Random(1),
];

fn with_flags(staleness: Staleness) -> Guest {
    let features = Features { page_modification_logging: true, ..Features::new(width()) };
    let mut guest = Guest::new(features, Deviations::NONE, staleness);
    guest.roots.ept_accessed_dirty = true;
    guest
}

fn logged(guest: &Guest) -> Vec<u64> {
    guest.cpus[0].log().logged().map(Gpa::as_u64).collect()
}

const FLAGS: u64 = ACCESSED | DIRTY;

#[test]
fn a_permitted_write_sets_flags_and_logs_and_a_denied_one_does_neither() {
    for staleness in EVERY {
        let mut guest = with_flags(staleness);
        guest.restrict(P, 1);
        assert_eq!(guest.write(P + 0x80), DENIED);
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            assert_eq!(guest.ept(P, level) & FLAGS, 0, "{level:?} after a denial");
        }
        assert_eq!(logged(&guest), []);
        assert_eq!(guest.write(P + 8), PASSES);
        assert_eq!(guest.ept(P, Level::L1), P | 0x335 | SPP, "R, X, WB, accessed, dirty, bit 61");
        for level in [Level::L4, Level::L3, Level::L2] {
            assert_eq!(guest.ept(P, level) & FLAGS, ACCESSED);
        }
        assert_eq!(logged(&guest), [P]);
        // A dirty page is logged once.
        assert_eq!(guest.write(P + 8), PASSES);
        assert_eq!(logged(&guest), [P]);
    }
}

#[test]
fn a_miss_sets_no_flag() {
    let mut guest = with_flags(Staleness::None);
    guest.restrict(P, 1);
    guest.set_sppt(P, Level::L3, 0);
    assert_eq!(guest.write(P), MISS);
    assert_eq!(guest.ept(P, Level::L1) & FLAGS, 0);
    assert_eq!(logged(&guest), []);
}

#[test]
fn reads_set_accessed_and_the_write_that_follows_sets_dirty() {
    for staleness in EVERY {
        let mut guest = with_flags(staleness);
        assert_eq!(guest.kind(AccessKind::Read, P), PASSES);
        assert_eq!(guest.ept(P, Level::L1) & FLAGS, ACCESSED);
        assert_eq!(logged(&guest), []);
        assert_eq!(guest.write(P), PASSES);
        assert_eq!(guest.ept(P, Level::L1) & FLAGS, FLAGS);
        assert_eq!(logged(&guest), [P]);
    }
}

#[test]
fn without_eptp_bit_6_nothing_is_set_or_logged() {
    for staleness in EVERY {
        let mut guest = with_flags(staleness);
        guest.roots.ept_accessed_dirty = false;
        assert_eq!(guest.write(P), PASSES);
        assert_eq!(guest.ept(P, Level::L1) & FLAGS, 0);
        assert_eq!(logged(&guest), []);
    }
}

#[test]
fn large_pages_have_one_dirty_flag() {
    let mut guest = with_flags(Staleness::Longest);
    assert_eq!(guest.write(0x1000), PASSES);
    assert_eq!(guest.write(0x5000), PASSES);
    assert_eq!(guest.ept(0, Level::L2) & FLAGS, FLAGS);
    assert_eq!(logged(&guest), [0x1000]);
}

#[test]
fn guest_page_walks_are_writes_to_their_pages() {
    let mut guest = with_flags(Staleness::UntilEvicted);
    assert_eq!(guest.kind(AccessKind::WalkRead, P + 0x5008), PASSES);
    assert_eq!(guest.ept(P + 0x5000, Level::L1) & FLAGS, FLAGS);
    assert_eq!(logged(&guest), [P + 0x5000]);
    // Loading a PDPTE register is a read.
    assert_eq!(guest.kind(AccessKind::PdpteLoad, P + 0x6000), PASSES);
    assert_eq!(guest.ept(P + 0x6000, Level::L1) & FLAGS, ACCESSED);
}

#[test]
fn a_full_log_exits_before_the_access() {
    let mut guest = with_flags(Staleness::UntilEvicted);
    for page in 0..PML_ENTRIES as u64 {
        assert_eq!(guest.write(P + (page << 12)), PASSES);
    }
    assert_eq!(guest.cpus[0].log().index(), 0xFFFF);
    // A dirty page still takes writes; a page without flags takes not even a read.
    assert_eq!(guest.write(P), PASSES);
    guest.set_leaf(P, R | W | X);
    guest.invept(0);
    for kind in [AccessKind::Write, AccessKind::Read] {
        assert_eq!(guest.kind(kind, P), Some((62, 0)));
        assert_eq!(guest.ept(P, Level::L1) & FLAGS, 0);
    }
    // Permission comes first.
    guest.restrict(P, 0);
    assert_eq!(guest.write(P), DENIED);
    guest.set_vector(P, 1);
    assert_eq!(guest.write(P), Some((62, 0)));
    guest.cpus[0].log_mut().clear();
    assert_eq!(guest.write(P), PASSES);
    assert_eq!(logged(&guest), [P]);
}

#[test]
fn two_pages_are_both_checked_before_either_has_a_flag() {
    let mut guest = with_flags(Staleness::Longest);
    guest.restrict(P + 0x1000, 0);
    let exit = guest.try_write(&write(P + 0xffc, 8), &[1; 8]);
    assert_eq!(exit, Err(denial(P + 0x1000)));
    assert_eq!(guest.ept(P, Level::L1) & FLAGS, 0);
    assert_eq!(logged(&guest), []);
    guest.set_vector(P + 0x1000, 1);
    assert_eq!(guest.write(P + 0xffc), PASSES);
    assert_eq!(logged(&guest), [P, P + 0x1000]);
}

/// "The processor may remember that the flag is set": software that clears it invalidates.
#[test]
fn a_cleared_dirty_flag_stays_clear_until_invept() {
    let mut guest = with_flags(Staleness::Longest);
    assert_eq!(guest.write(P), PASSES);
    guest.set_leaf(P, R | W | X);
    assert_eq!(guest.write(P), PASSES);
    assert_eq!(guest.ept(P, Level::L1) & FLAGS, 0);
    guest.invept(0);
    assert_eq!(guest.write(P), PASSES);
    assert_eq!(guest.ept(P, Level::L1) & FLAGS, FLAGS);
}

/// A stale translation that says "writable, not dirty" is checked against the table when the flag
/// must be set: the processor does not make a read-only entry dirty.
#[test]
fn setting_dirty_reads_the_entry_again() {
    let mut guest = with_flags(Staleness::Longest);
    assert_eq!(guest.kind(AccessKind::Read, P), PASSES);
    guest.set_ept(P, Level::L1, P | WB | R | X | ACCESSED);
    assert_eq!(seen(guest.access(0, &access(AccessKind::Write, P, 8))), DENIED);
    assert_eq!(guest.ept(P, Level::L1) & DIRTY, 0);
}

/// Tables in which someone else changes an entry just before this processor sets a flag in it.
struct Contended<'a> {
    frames: &'a mut HeapFrames,
    /// What the leaf turns into.
    leaf: Option<u64>,
}

impl TableFrames for Contended<'_> {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.frames.allocate()
    }

    fn release(&mut self, frame: TableFrame) {
        self.frames.release(frame);
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.frames.load(frame, index)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        self.frames.store(frame, index, value);
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        if new & DIRTY != 0
            && let Some(leaf) = self.leaf.take()
        {
            self.frames.store(frame, index, leaf);
        }
        self.frames.compare_exchange(frame, index, current, new)
    }
}

/// The leaf changes between the walk and the update of its flags: the access is judged by what the
/// leaf says now, and a change is never overwritten.
#[test]
fn a_leaf_that_changes_under_the_walk_is_read_again() {
    let page = P + 0x4000;
    for staleness in EVERY {
        for (leaf, expected, left) in [
            (page | WB | R | X, DENIED, page | WB | R | X),
            (page | WB | R | W, PASSES, page | WB | R | W | FLAGS),
            (0, Some((48, 0x582)), 0),
        ] {
            let mut guest = with_flags(staleness);
            let mut contended = Contended { frames: &mut guest.frames, leaf: Some(leaf) };
            let result = guest.cpus[0].access(&guest.roots, &mut contended, &write(page, 8));
            assert_eq!(seen(result), expected);
            assert_eq!(contended.leaf, None, "the leaf was contended");
            assert_eq!(guest.ept(page, Level::L1), left);
            assert_eq!(logged(&guest).len(), usize::from(expected.is_none()));
        }
    }
}
