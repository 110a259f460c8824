//! The processor's walk of the sub-page permission table.
//!
//! SDM Vol. 3C, "Sub-Page Permission Table"; `docs/spp.md` 1.3 to 1.5.

use arrayvec::ArrayVec;
use subpage::access::{AccessMap, SppVector};
use subpage::address::Gfn;
use subpage::frames::{TableFrame, TableFrames};
use subpage::level::Level;
use subpage::sppt::SpptEntry;

use crate::features::Features;

/// Where a walk begins, or continues: a table and the level of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpptStart {
    /// Level of the entries in `table`.
    pub level: Level,
    /// The table to read.
    pub table: TableFrame,
}

impl SpptStart {
    /// At the table that SPPTP names.
    pub const fn root(table: TableFrame) -> Self {
        Self { level: Level::L4, table }
    }
}

/// What the SPPT says about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpptOutcome {
    /// The page's permissions, bit i for sub-page i.
    Vector(AccessMap),
    /// SPP miss: an L4, L3 or L2 entry is not valid.
    Miss,
    /// SPP misconfiguration: an entry has a reserved bit set.
    Misconfiguration,
}

/// A walk's answer, and the tables that it passed below the one it began in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpptWalk {
    /// What the SPPT says.
    pub outcome: SpptOutcome,
    /// Each table that an upper entry named, in walk order.
    pub passed: ArrayVec<SpptStart, 3>,
}

/// Walks from `start` to the vector of `gfn`.
///
/// Per entry the valid bit is tested before the reserved bits, unless the processor
/// [checks invalid entries](Features::checks_invalid_sppt_entries). An L1 entry has no valid bit:
/// zero denies all 32 sub-pages. An odd bit anywhere in it is a misconfiguration, though it belong
/// to another sub-page than the one written.
///
/// # Panics
/// If a table named by an entry is not an allocated frame.
pub fn walk<F: TableFrames>(
    frames: &F,
    start: SpptStart,
    gfn: Gfn,
    features: &Features,
) -> SpptWalk {
    let mut passed = ArrayVec::new();
    let mut at = start;
    let outcome = loop {
        let bits = frames.load(at.table, at.level.index(gfn));
        let Some(below) = at.level.below() else {
            break match SppVector::try_from_bits(bits) {
                Ok(vector) => SpptOutcome::Vector(vector.to_map()),
                Err(_) => SpptOutcome::Misconfiguration,
            };
        };
        let entry = SpptEntry::from(bits);
        let reserved = entry.has_reserved_bits(features.width);
        let Some(table) = entry.table() else {
            let checked = features.checks_invalid_sppt_entries && reserved;
            break if checked { SpptOutcome::Misconfiguration } else { SpptOutcome::Miss };
        };
        if reserved {
            break SpptOutcome::Misconfiguration;
        }
        at = SpptStart { level: below, table };
        passed.push(at);
    };
    SpptWalk { outcome, passed }
}
