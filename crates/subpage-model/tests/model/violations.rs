//! Qualifications of EPT violations, for every right, kind of access and kind of address.

use subpage::level::Level;
use subpage_model::{AccessKind, Deviations, Features, GuestRights, Staleness};

use crate::guest::{Guest, P, WB, access, seen, width};

const KINDS: [AccessKind; 7] = [
    AccessKind::Read,
    AccessKind::Write,
    AccessKind::ReadModifyWrite,
    AccessKind::Fetch,
    AccessKind::WalkRead,
    AccessKind::WalkUpdate,
    AccessKind::PdpteLoad,
];

fn flag(set: bool, bit: u32) -> u64 {
    u64::from(set) << bit
}

/// The table of "Exit Qualification for EPT Violations", bit by bit, in terms of the case alone.
fn qualification(
    kind: AccessKind,
    rights: u64,
    guest: GuestRights,
    flags: bool,
    features: &Features,
) -> u64 {
    use AccessKind as K;
    let walk = matches!(kind, K::WalkRead | K::WalkUpdate);
    let read = matches!(kind, K::Read | K::PdpteLoad) || kind == K::WalkRead || walk && flags;
    let write = matches!(kind, K::Write | K::ReadModifyWrite | K::WalkUpdate) || walk && flags;
    let linear = kind != K::PdpteLoad;
    let last = linear && !walk;
    let advanced = last && features.advanced_information;
    flag(read, 0)
        | flag(write, 1)
        | flag(kind == K::Fetch, 2)
        | (rights & 7) << 3
        | flag(features.mode_based_execute && rights >> 10 & 1 == 1, 6)
        | flag(linear, 7)
        | flag(last, 8)
        | flag(advanced && guest.user, 9)
        | flag(advanced && guest.writable, 10)
        | flag(advanced && guest.execute_disable, 11)
}

/// Whether rights allow an access, in terms of the case alone.
fn allowed(kind: AccessKind, rights: u64, user: bool, flags: bool, mode_based: bool) -> bool {
    use AccessKind as K;
    let bit = match kind {
        K::Read | K::PdpteLoad => 0,
        K::WalkRead if !flags => 0,
        K::Write | K::ReadModifyWrite | K::WalkRead | K::WalkUpdate => 1,
        K::Fetch if mode_based && user => 10,
        K::Fetch => 2,
    };
    rights >> bit & 1 == 1
}

/// Every set of rights at the leaf × every set above it × every kind × every kind of address, with
/// flags on and off and both optional features on and off.
#[test]
fn every_combination() {
    let mut cases = 0;
    for features_at in 0..4 {
        let features = Features {
            advanced_information: features_at & 1 != 0,
            mode_based_execute: features_at & 2 != 0,
            ..Features::new(width())
        };
        for flags in [false, true] {
            let mut guest = Guest::new(features, Deviations::NONE, Staleness::None);
            guest.roots.ept_accessed_dirty = flags;
            let table = guest.ept(P, Level::L2) & !0xFFF;
            for case in 0..256_u64 {
                let rights = |bits: u64| bits & 7 | (bits >> 3 & 1) << 10;
                let (leaf, above) = (rights(case), rights(case >> 4));
                guest.set_ept(P, Level::L2, table | above);
                guest.set_ept(P, Level::L1, P | WB | leaf);
                // The entries above these two have bits 2:0, not bit 10.
                let upper = guest.ept(P, Level::L4);
                guest.set_ept(P, Level::L4, upper | 1 << 10);
                let upper = guest.ept(P, Level::L3);
                guest.set_ept(P, Level::L3, upper | 1 << 10);
                for kind in KINDS {
                    for attributes in 0..8 {
                        let rights_of_guest = GuestRights {
                            user: attributes & 1 != 0,
                            writable: attributes & 2 != 0,
                            execute_disable: attributes & 4 != 0,
                        };
                        let access = access(kind, P, 8).with_guest_rights(rights_of_guest);
                        let seen = seen(guest.access(0, &access));
                        let expected =
                            expected(kind, leaf, above, rights_of_guest, flags, &features);
                        assert_eq!(seen, expected, "{kind:?} leaf {leaf:#x} above {above:#x}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 4 * 2 * 256 * 7 * 8);
}

fn expected(
    kind: AccessKind,
    leaf: u64,
    above: u64,
    guest: GuestRights,
    flags: bool,
    features: &Features,
) -> Option<(u16, u64)> {
    let counted = if features.mode_based_execute { 7 | 1 << 10 } else { 7 };
    for entry in [above, leaf] {
        if entry & counted == 0 {
            return Some((48, qualification(kind, 0, guest, flags, features)));
        }
        if entry & 3 == 2 {
            return Some((49, 0));
        }
    }
    let rights = leaf & above;
    if allowed(kind, rights, guest.user, flags, features.mode_based_execute) {
        return None;
    }
    Some((48, qualification(kind, rights, guest, flags, features)))
}
