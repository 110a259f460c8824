//! What Bochs 3.0 was seen to do, case by case. The deviations are on; where a case does not
//! need one, the architecture must say the same, and is asked too.

use subpage::address::Gpa;
use subpage::level::Level;
use subpage_model::{AccessKind, GuestRights};

use crate::guest::{
    DENIED, Exit, Guest, LARGE, MISCONFIGURATION, MISS, P, PASSES, R, SPP, W, WB, X, access,
    denial, seen, write,
};

const SUB_3: u64 = P + 0x180;
const SUB_4: u64 = P + 0x200;
/// Sub-page 3 permitted, nothing else.
const ONLY_3: u32 = 1 << 3;

/// Runs a case on Bochs and on the architecture.
fn on_both(case: impl Fn(&mut Guest)) {
    case(&mut Guest::bochs());
    case(&mut Guest::plain());
}

#[test]
fn basic_writes_and_reads() {
    on_both(|guest| {
        guest.restrict(P, ONLY_3);
        for _ in 0..2 {
            assert_eq!(guest.write_bytes(SUB_3, 8, 0x11), PASSES);
            assert_eq!(guest.peek(SUB_3, 8), [0x11; 8]);
            let exit = guest.try_write(&write(SUB_4, 8), &[1; 8]);
            assert_eq!(exit, Err(denial(SUB_4)));
            assert_eq!(guest.peek(SUB_4, 8), [0; 8]);
        }
        // Reads in between leave no way round the vector.
        for (kind, gpa) in [
            (AccessKind::Read, SUB_4),
            (AccessKind::Write, SUB_3),
            (AccessKind::Read, SUB_3),
            (AccessKind::Write, SUB_3),
            (AccessKind::Read, SUB_4),
        ] {
            assert_eq!(guest.kind(kind, gpa), PASSES);
        }
        assert_eq!(guest.write(SUB_4), DENIED);
        // Without X, bit 5 is clear.
        guest.set_leaf(P, R | SPP);
        assert_eq!(guest.write(SUB_4), Some((48, 0x58a)));
    });
}

#[test]
fn only_the_permitted_sub_page_passes() {
    on_both(|guest| {
        guest.restrict(P, ONLY_3);
        for sub in [0, 1, 2, 3, 4, 30, 31] {
            let expected = if sub == 3 { PASSES } else { DENIED };
            assert_eq!(guest.write(P + sub * 128 + 120), expected, "sub-page {sub}");
        }
        // Three pushes from P+0x190.
        assert_eq!(guest.write(P + 0x188), PASSES);
        assert_eq!(guest.write(P + 0x180), PASSES);
        assert_eq!(guest.try_write(&write(P + 0x178, 8), &[0; 8]), Err(denial(P + 0x178)));
    });
}

#[test]
fn a_user_mode_address_reports_bit_9() {
    on_both(|guest| {
        guest.restrict(P, ONLY_3);
        let user = GuestRights { user: true, writable: true, execute_disable: false };
        let access = write(SUB_4, 8).with_guest_rights(user);
        assert_eq!(seen(guest.access(0, &access)), Some((48, 0x7aa)));
    });
}

#[test]
fn sppt_errors() {
    // (level, bits to set, bits to clear, address written, seen)
    let cases: [(Level, u64, u64, u64, Exit); 7] = [
        (Level::L2, 0, 1, SUB_3, MISS),
        (Level::L4, 0, u64::MAX, SUB_4, MISS),
        (Level::L1, 1 << 1, 0, SUB_3, MISCONFIGURATION),
        (Level::L3, 1 << 2, 0, SUB_3, MISCONFIGURATION),
        (Level::L3, 1 << 52, 0, SUB_3, MISCONFIGURATION),
        (Level::L3, 1 << 40, 0, SUB_3, MISCONFIGURATION),
        (Level::L3, 1 << 2, 1, SUB_3, MISS),
    ];
    for (level, set, clear, gpa, expected) in cases {
        on_both(|guest| {
            guest.restrict(P, ONLY_3);
            let good = guest.sppt(P, level);
            guest.set_sppt(P, level, good & !clear | set);
            let exit = guest.try_write(&write(gpa, 8), &[1; 8]).expect_err("broken tables");
            assert_eq!(Some((exit.reason.0, exit.qualification)), expected, "{level:?}");
            assert_eq!((exit.gpa, exit.gla), (Gpa::new(gpa), Some(gpa)));
            guest.set_sppt(P, level, good);
            let retried = if gpa == SUB_3 { PASSES } else { DENIED };
            assert_eq!(guest.write(gpa), retried);
        });
    }
}

/// Changes by the guest itself, with no exit between the two accesses.
#[test]
fn staleness_within_one_entry() {
    let stale = |kind: AccessKind, before: fn(&mut Guest), change: fn(&mut Guest)| {
        let mut guest = Guest::bochs();
        before(&mut guest);
        assert_eq!(guest.kind(kind, SUB_3), PASSES);
        change(&mut guest);
        guest.kind(kind, SUB_3)
    };
    let spp: fn(&mut Guest) = |guest| guest.restrict(P, ONLY_3);
    let open: fn(&mut Guest) = |guest| guest.set_leaf(P, R | W | X);
    let write = AccessKind::Write;
    assert_eq!(stale(write, spp, |guest| guest.set_vector(P, 0)), DENIED);
    assert_eq!(stale(write, spp, |guest| guest.set_leaf(P, R | X)), DENIED);
    assert_eq!(stale(write, open, |guest| guest.restrict(P, 0)), PASSES);
    assert_eq!(stale(write, open, |guest| guest.set_leaf(P, R | X)), PASSES);
    assert_eq!(stale(AccessKind::Read, open, |guest| guest.set_ept(P, Level::L1, 0)), PASSES);
}

/// Changes between an exit and the next entry: an exit empties what Bochs remembers.
#[test]
fn no_staleness_after_an_exit_and_only_on_its_cpu() {
    let mut guest = Guest::bochs();
    for cpu in 0..2 {
        assert_eq!(seen(guest.access(cpu, &write(SUB_3, 8))), PASSES);
    }
    guest.restrict(P, 0);
    guest.cpus[0].other_exit();
    assert_eq!(seen(guest.access(0, &write(SUB_3, 8))), DENIED);
    assert_eq!(seen(guest.access(1, &write(SUB_3, 8))), PASSES);
    // INVEPT on the first CPU does not reach the second; an interrupt to the second does.
    guest.invept(0);
    assert_eq!(seen(guest.access(1, &write(SUB_3, 8))), PASSES);
    guest.cpus[1].other_exit();
    assert_eq!(seen(guest.access(1, &write(SUB_3, 8))), DENIED);
}

#[test]
fn crossing_sub_pages_checks_the_first_byte_only() {
    let mut guest = Guest::bochs();
    guest.restrict(P, ONLY_3);
    assert_eq!(guest.write(P + 0x1fc), PASSES);
    assert_eq!(guest.peek(P + 0x1fc, 8), [0x11; 8]);
    assert_eq!(guest.write_bytes(P + 0x1f8, 16, 2), PASSES);
    assert_eq!(guest.try_write(&write(P + 0x17c, 8), &[3; 8]), Err(denial(P + 0x17c)));
    // The architecture denies all three, at the first byte of the access.
    let mut guest = Guest::plain();
    guest.restrict(P, ONLY_3);
    assert_eq!(guest.try_write(&write(P + 0x1fc, 8), &[1; 8]), Err(denial(P + 0x1fc)));
    assert_eq!(guest.write_bytes(P + 0x1f8, 16, 2), DENIED);
    assert_eq!(guest.write(P + 0x17c), DENIED);
    assert_eq!(guest.peek(P + 0x100, 0x200), vec![0; 0x200]);
}

#[test]
fn fxsave_leaves_its_first_bytes_behind() {
    let parts: Vec<_> = (0..8).map(|part| write(SUB_3 + part * 64, 64)).collect();
    for (mut guest, left) in [(Guest::bochs(), 0xAA), (Guest::plain(), 0)] {
        guest.restrict(P, ONLY_3);
        let (cpu, bytes) = (&mut guest.cpus[0], [0xAA; 512]);
        let exit =
            cpu.write_parts(&guest.roots, &mut guest.frames, &mut guest.memory, &parts, &bytes);
        assert_eq!(exit.map_err(|exit| exit.gpa), Err(Gpa::new(SUB_4)));
        assert_eq!(guest.peek(SUB_3, 128), [left; 128]);
        assert_eq!(guest.peek(SUB_4, 384), [0; 384]);
        guest.set_vector(P, u32::MAX);
        guest.set_vector(P + 0x1000, u32::MAX);
        let (cpu, bytes) = (&mut guest.cpus[0], [0xBB; 512]);
        cpu.write_parts(&guest.roots, &mut guest.frames, &mut guest.memory, &parts, &bytes)
            .expect("all permitted");
        assert_eq!(guest.peek(SUB_3, 512), [0xBB; 512]);
    }
}

#[test]
fn crossing_pages_is_all_or_nothing() {
    const FIRST: u64 = P + 0xffc;
    const SECOND: u64 = P + 0x1000;
    // Pages and their maps; which address is denied.
    type Case = (&'static [(u64, u32)], Option<u64>);
    let cases: [Case; 4] = [
        (&[(P, u32::MAX), (SECOND, 0)], Some(SECOND)),
        (&[(P, 0), (SECOND, u32::MAX)], Some(FIRST)),
        (&[(P, u32::MAX), (SECOND, u32::MAX)], None),
        // The first page is plain writable.
        (&[(SECOND, 0)], Some(SECOND)),
    ];
    for (pages, denied) in cases {
        for kind in [AccessKind::Write, AccessKind::ReadModifyWrite] {
            on_both(|guest| {
                for (page, map) in pages {
                    guest.restrict(*page, *map);
                }
                let access = access(kind, FIRST, 8);
                let (frames, memory) = (&mut guest.frames, &mut guest.memory);
                let result = match kind {
                    AccessKind::ReadModifyWrite => {
                        guest.cpus[0].modify(&guest.roots, frames, memory, &access, |bytes| {
                            for byte in bytes {
                                *byte += 1;
                            }
                        })
                    }
                    _ => guest.cpus[0].write(&guest.roots, frames, memory, &access, &[1; 8]),
                };
                assert_eq!(result, denied.map_or(Ok(()), |gpa| Err(denial(gpa))));
                let expected = u8::from(denied.is_none());
                assert_eq!(guest.peek(FIRST, 8), [expected; 8]);
            });
        }
    }
}

#[test]
fn leaf_variants() {
    let cases: [(u64, u32, AccessKind, Exit); 8] = [
        (R | W | X | SPP, 0, AccessKind::Write, PASSES),
        (X | SPP, u32::MAX, AccessKind::Write, Some((48, 0x5a2))),
        (X | SPP, u32::MAX, AccessKind::Read, Some((48, 0x5a1))),
        (W | SPP, u32::MAX, AccessKind::Write, Some((49, 0))),
        (SPP, u32::MAX, AccessKind::Write, Some((48, 0x582))),
        (R | X, u32::MAX, AccessKind::Write, DENIED),
        (R | X | SPP, u32::MAX, AccessKind::Write, PASSES),
        (R | X | SPP, 0, AccessKind::Write, DENIED),
    ];
    for (leaf, map, kind, expected) in cases {
        on_both(|guest| {
            guest.restrict(P, map);
            guest.set_leaf(P, leaf);
            assert_eq!(guest.kind(kind, SUB_3), expected, "leaf {leaf:#x}, map {map:#x}");
        });
    }
    on_both(|guest| {
        // W = 1: an odd bit in the vector is never seen.
        guest.set_leaf(P, R | W | X | SPP);
        guest.set_sppt(P, Level::L1, 2);
        assert_eq!(guest.write(SUB_3), PASSES);
    });
    on_both(|guest| {
        // Bit 61 of a 2 MiB leaf is ignored, and so is bit 61 of an entry that names a table.
        guest.set_vector(P, u32::MAX);
        let table = guest.ept(P, Level::L2);
        guest.set_ept(P, Level::L2, table | SPP);
        guest.set_leaf(P, R | X);
        assert_eq!(guest.write(SUB_3), DENIED);
        guest.set_ept(P, Level::L2, P | LARGE | WB | R | X | SPP);
        assert_eq!(guest.write(SUB_3), DENIED);
    });
    on_both(|guest| {
        // Rights count over all levels: W = 0 above makes a leaf with W = 1 eligible.
        guest.restrict(P, ONLY_3);
        let table = guest.ept(P, Level::L2);
        guest.set_ept(P, Level::L2, table & !W);
        guest.set_leaf(P, R | W | X | SPP);
        assert_eq!(guest.write(SUB_3), PASSES);
        assert_eq!(guest.write(SUB_4), DENIED);
    });
}

#[test]
fn instructions_that_modify_count_as_writes() {
    on_both(|guest| {
        guest.restrict(P, ONLY_3);
        assert_eq!(guest.kind(AccessKind::ReadModifyWrite, SUB_3), PASSES);
        assert_eq!(guest.kind(AccessKind::ReadModifyWrite, SUB_4), DENIED);
    });
    on_both(|guest| {
        // REP STOSB of 256 bytes stops behind 128.
        guest.restrict(P, ONLY_3);
        let done = (0..256).take_while(|at| guest.write_bytes(SUB_3 + at, 1, 7) == PASSES).count();
        assert_eq!(done, 128);
        // Without the control the vector plays no part.
        guest.roots.sppt = None;
        assert_eq!(guest.write(SUB_3), DENIED);
    });
}

/// Guest page tables in protected pages, EPTP bit 6 off: Bochs writes the guest's flags there.
#[test]
fn page_walks_without_flags() {
    for map in [0, u32::MAX] {
        let mut guest = Guest::bochs();
        guest.restrict(P, map);
        assert_eq!(guest.kind(AccessKind::WalkRead, P), PASSES);
        assert_eq!(guest.kind(AccessKind::WalkUpdate, P), PASSES);
        // The architecture takes the update as a write, which the vector does not decide.
        let mut guest = Guest::plain();
        guest.restrict(P, map);
        assert_eq!(guest.kind(AccessKind::WalkRead, P), PASSES);
        assert_eq!(guest.kind(AccessKind::WalkUpdate, P), Some((48, 0xaa)));
    }
}

/// EPTP bit 6 on: every step of a walk exits, whatever the vector says and whether or not it sets
/// a flag; the linear address is the one being translated.
#[test]
fn page_walks_with_flags() {
    for (mut guest, qualification) in [(Guest::bochs(), 0xaa), (Guest::plain(), 0xab)] {
        guest.roots.ept_accessed_dirty = true;
        for map in [0, u32::MAX] {
            for kind in [AccessKind::WalkRead, AccessKind::WalkUpdate] {
                guest.restrict(P, map);
                let access = access(kind, P + 0x20, 8).at_linear(0x1234_5678);
                let exit = guest.access(0, &access).expect_err("W = 0");
                assert_eq!((exit.reason.0, exit.qualification), (48, qualification));
                assert_eq!((exit.gpa, exit.gla), (Gpa::new(P + 0x20), Some(0x1234_5678)));
            }
        }
    }
}

/// The first page's flags are set before the second page is looked at; no byte is written.
#[test]
fn flags_of_the_first_page_come_before_the_second() {
    const FLAGS: u64 = 1 << 8 | 1 << 9;
    const SECOND: u64 = P + 0x1000;
    for (mut guest, expected) in [(Guest::bochs(), FLAGS), (Guest::plain(), 0)] {
        guest.roots.ept_accessed_dirty = true;
        guest.restrict(P, u32::MAX);
        guest.restrict(SECOND, 0);
        let exit = guest.try_write(&write(P + 0xffc, 8), &[1; 8]);
        assert_eq!(exit, Err(denial(SECOND)));
        assert_eq!(guest.peek(P + 0xffc, 8), [0; 8]);
        assert_eq!(guest.ept(P, Level::L1) & FLAGS, expected);
        assert_eq!(guest.ept(SECOND, Level::L1) & FLAGS, 0);
    }
}

/// Bit 12 of a large leaf: nothing to Bochs, reserved by the architecture; bit 13 is reserved by
/// both.
#[test]
fn bit_12_of_a_large_leaf() {
    for (mut guest, expected) in [(Guest::bochs(), PASSES), (Guest::plain(), Some((49, 0)))] {
        for (bits, expected) in [(0, PASSES), (1 << 12, expected), (1 << 13, Some((49, 0)))] {
            guest.set_ept(P, Level::L2, P | LARGE | WB | R | W | X | bits);
            guest.invept(0);
            assert_eq!(guest.write_bytes(P + 0x10, 8, 0x22), expected, "{bits:#x}");
        }
        // The page is the one that the address without the bit names.
        assert_eq!(guest.peek(P + 0x10, 8), [0x22; 8]);
        assert_eq!(guest.peek(P + 0x1010, 8), [0; 8]);
    }
}
