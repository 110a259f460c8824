//! What stays in force after the tables have changed, and what ends it.

use subpage::frames::{HeapFrames, TableFrames};
use subpage::level::Level;
use subpage_model::{AccessKind, Roots, Staleness, Vcpu};

use crate::guest::{
    DENIED, Guest, LARGE, MISS, P, PASSES, R, SPP, W, WB, X, access, seen, table, write,
};

/// The policies that keep a translation across an exit.
const KEEPING: [Staleness; 2] = [Staleness::UntilEvicted, Staleness::Longest];

#[test]
fn a_permissive_translation_passes_until_invept_on_its_own_cpu() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        for cpu in 0..2 {
            assert_eq!(seen(guest.access(cpu, &write(P, 8))), PASSES);
        }
        guest.restrict(P, 0);
        guest.cpus[0].other_exit();
        for cpu in 0..2 {
            assert_eq!(seen(guest.access(cpu, &write(P, 8))), PASSES);
        }
        guest.invept(0);
        assert_eq!(seen(guest.access(0, &write(P, 8))), DENIED);
        assert_eq!(seen(guest.access(1, &write(P, 8))), PASSES, "the other CPU needs its own");
        guest.invept(1);
        assert_eq!(seen(guest.access(1, &write(P, 8))), DENIED);
    }
}

#[test]
fn a_permissive_vector_passes_until_invept() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        guest.restrict(P, 1);
        assert_eq!(guest.write(P), PASSES);
        guest.set_vector(P, 0);
        assert_eq!(guest.write(P), PASSES);
        // Neither bit 61 nor the whole table is looked at.
        guest.set_leaf(P, R | X);
        guest.set_sppt(P, Level::L4, 0);
        assert_eq!(guest.write(P), PASSES);
        guest.invept(0);
        assert_eq!(guest.write(P), DENIED);
    }
}

/// A violation forgets what it used, so the same access looks at the tables when it is repeated.
#[test]
fn a_restrictive_translation_costs_one_exit() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        guest.set_leaf(P, R | X);
        assert_eq!(guest.kind(AccessKind::Read, P), PASSES);
        guest.set_leaf(P, R | W | X);
        assert_eq!(guest.write(P), DENIED, "stale");
        assert_eq!(guest.write(P), PASSES);
        // The same with a vector that permitted less.
        guest.invept(0);
        guest.restrict(P, 1);
        assert_eq!(guest.write(P), PASSES);
        guest.set_vector(P, 3);
        assert_eq!(guest.write(P + 0x80), DENIED, "stale");
        assert_eq!(guest.write(P + 0x80), PASSES);
    }
}

#[test]
fn a_violation_elsewhere_forgets_nothing_here() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        assert_eq!(guest.write(P), PASSES);
        guest.restrict(P, 0);
        guest.restrict(P + 0x1000, 0);
        assert_eq!(guest.write(P + 0x1000), DENIED);
        assert_eq!(guest.write(P), PASSES);
    }
}

/// A 2 MiB translation used for one page stays good for its neighbours after a split.
#[test]
fn a_large_translation_outlives_its_split() {
    let mut guest = Guest::with(Staleness::Longest);
    let split = guest.ept(P, Level::L2);
    guest.restrict(P + 0x3000, 0);
    guest.set_ept(P, Level::L2, P | LARGE | WB | R | W | X);
    assert_eq!(guest.write(P + 0x7000), PASSES);
    guest.set_ept(P, Level::L2, split);
    let translation = guest.access(0, &write(P + 0x3010, 8)).expect("stale");
    assert_eq!(translation.first.as_u64(), P + 0x3010);
    guest.invept(0);
    assert_eq!(guest.write(P + 0x3010), DENIED);
}

/// A violation on a page inside a stale large translation forgets all of it.
#[test]
fn a_violation_forgets_a_large_translation() {
    let mut guest = Guest::with(Staleness::Longest);
    let split = guest.ept(P, Level::L2);
    guest.set_ept(P, Level::L2, P | LARGE | WB | R | X);
    for page in 0..3 {
        assert_eq!(guest.kind(AccessKind::Read, P + (page << 12)), PASSES);
    }
    guest.set_ept(P, Level::L2, split);
    guest.set_ept(P + 0x2000, Level::L1, 0);
    assert_eq!(guest.kind(AccessKind::Read, P + 0x2000), PASSES, "stale");
    assert_eq!(guest.write(P), DENIED, "stale");
    for page in 0..2 {
        assert_eq!(guest.write(P + (page << 12)), PASSES);
    }
    assert_eq!(guest.kind(AccessKind::Read, P + 0x2000), Some((48, 0x581)));
}

/// A violation forgets the upper entries of both tables too: a page that a stale one leads astray
/// finds its way at the second try.
#[test]
fn a_violation_forgets_upper_entries() {
    let mut guest = Guest::with(Staleness::Longest);
    for page in 0..4 {
        guest.set_leaf(P + (page << 12), R | X);
    }
    assert_eq!(guest.kind(AccessKind::Read, P), PASSES);
    let new = table(&mut guest.frames);
    guest.set_ept(P, Level::L2, new.hpa().as_u64() | R | W | X);
    for page in 0..4 {
        guest.set_leaf(P + (page << 12), R | W | X);
    }
    assert_eq!(guest.write(P + 0x1000), DENIED, "stale");
    assert_eq!(guest.write(P + 0x1000), PASSES);

    let mut guest = Guest::with(Staleness::Longest);
    guest.restrict(P, 1);
    guest.restrict(P + 0x1000, 0);
    assert_eq!(guest.write(P), PASSES);
    let new = table(&mut guest.frames);
    guest.set_sppt(P, Level::L2, new.hpa().as_u64() | 1);
    guest.set_vector(P + 0x1000, 1);
    assert_eq!(guest.write(P + 0x1000), DENIED, "stale");
    assert_eq!(guest.write(P + 0x1000), PASSES);
}

/// The vector goes with the translation, and does not come back with the next one.
#[test]
fn a_violation_forgets_the_vector() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        guest.restrict(P, 1);
        assert_eq!(guest.write(P), PASSES);
        guest.set_vector(P, 2);
        assert_eq!(guest.write(P + 0x80), DENIED, "stale");
        assert_eq!(guest.kind(AccessKind::Read, P), PASSES);
        assert_eq!(guest.write(P + 0x80), PASSES);
        assert_eq!(guest.write(P), DENIED);
    }
}

/// Upper entries are remembered: a page never touched is translated through a table that has been
/// taken out.
#[test]
fn an_upper_entry_outlives_its_removal() {
    let mut guest = Guest::with(Staleness::Longest);
    assert_eq!(guest.write(P), PASSES);
    guest.set_ept(P, Level::L2, 0);
    assert_eq!(guest.write(P + 0x9000), PASSES);
    guest.invept(0);
    assert_eq!(guest.write(P + 0x9000), Some((48, 0x582)));
    // The SPPT's likewise.
    let mut guest = Guest::with(Staleness::Longest);
    for page in 0..2 {
        guest.restrict(P + (page << 12), 1);
    }
    assert_eq!(guest.write(P), PASSES);
    guest.set_sppt(P, Level::L2, 0);
    assert_eq!(guest.write(P + 0x1000), PASSES);
    guest.invept(0);
    assert_eq!(guest.write(P + 0x1000), MISS);
}

/// A table that is freed while a CPU still remembers it is found out.
#[test]
#[should_panic(expected = "released table frame")]
fn a_table_freed_too_early_is_found_out() {
    let mut guest = Guest::with(Staleness::Longest);
    assert_eq!(guest.write(P), PASSES);
    let table = guest.ept(P, Level::L2) & !0xFFF;
    guest.set_ept(P, Level::L2, 0);
    let hpa = subpage::address::Hpa::new(table);
    guest.frames.release(subpage::frames::TableFrame::try_new(hpa).expect("aligned"));
    guest.write(P + 0x9000);
}

/// An SPP miss need not forget the translation that led to it: bit 61 outlives the table entry.
#[test]
fn a_miss_forgets_nothing() {
    let mut guest = Guest::with(Staleness::Longest);
    guest.set_leaf(P, R | X | SPP);
    guest.set_sppt(P, Level::L4, 0);
    assert_eq!(guest.write(P), MISS);
    guest.set_leaf(P, R | W | X);
    assert_eq!(guest.write(P), MISS);
    guest.invept(0);
    assert_eq!(guest.write(P), PASSES);
}

/// With flags, an entry is remembered only once its accessed flag is set, and a miss sets none.
#[test]
fn a_miss_on_entries_not_accessed_remembers_nothing() {
    let mut guest = Guest::with(Staleness::Longest);
    guest.roots.ept_accessed_dirty = true;
    guest.set_leaf(P, R | X | SPP);
    guest.set_sppt(P, Level::L4, 0);
    assert_eq!(guest.write(P), MISS);
    guest.set_leaf(P, R | W | X);
    assert_eq!(guest.write(P), PASSES);
}

#[test]
fn absent_and_misconfigured_entries_are_not_remembered() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        for (broken, exit) in [(0, (48, 0x582)), (P | WB | W, (49, 0))] {
            guest.set_ept(P, Level::L1, broken);
            assert_eq!(guest.write(P), Some(exit));
            guest.set_leaf(P, R | W | X);
            assert_eq!(guest.write(P), PASSES);
            guest.invept(0);
        }
        // Nor is a vector with reserved bits.
        guest.restrict(P, 1);
        guest.set_sppt(P, Level::L1, 0b11);
        assert_eq!(guest.write(P), Some((66, 0)));
        guest.set_vector(P, 1);
        assert_eq!(guest.write(P), PASSES);
    }
}

#[test]
fn another_ept_context_uses_its_own_translations() {
    for staleness in KEEPING {
        let mut guest = Guest::with(staleness);
        assert_eq!(guest.write(P), PASSES);
        let empty = table(&mut guest.frames);
        guest.roots.ept = empty;
        assert_eq!(guest.write(P), Some((48, 0x582)));
    }
}

/// Pages whose numbers share a slot of the array push each other out, and nothing else happens.
#[test]
fn pages_that_share_a_slot() {
    let (mut frames, mut cpu) = (HeapFrames::new(), {
        let guest = Guest::with(Staleness::UntilEvicted);
        Vcpu::new(*guest.cpus[0].features(), guest.cpus[0].deviations(), Staleness::UntilEvicted)
    });
    let (root, l3) = (table(&mut frames), table(&mut frames));
    let roots = Roots { ept: root, ept_accessed_dirty: false, sppt: None };
    let index = |at| subpage::frames::EntryIndex::truncate(at);
    frames.store(root, index(0), l3.hpa().as_u64() | R | W | X);
    for gigabyte in 0..4 {
        frames.store(l3, index(gigabyte), gigabyte << 30 | LARGE | WB | R | W | X);
    }
    for round in 0..3 {
        for at in 0..64 {
            // 16 MiB apart: 4096 frames.
            let gpa = (at << 24) + 0x123;
            let translation = cpu
                .access(&roots, &mut frames, &access(AccessKind::Write, gpa, 8))
                .expect("mapped");
            assert_eq!(translation.first.as_u64(), gpa, "round {round}");
        }
    }
}
