//! Runs of restricted pages, found without looking at each page where a table tells at a glance.

use super::{Sppt, SpptEntry, stored_vector, uniform_vector};
use crate::address::{Gfn, GfnRange};
use crate::frames::{TableFrame, TableFrames};
use crate::level::Level;

/// What is known of pages without looking at each.
#[derive(Clone, Copy)]
pub(crate) enum Known {
    /// All of them are restricted, or none is.
    Restricted(bool),
    /// The L1 table has to be looked at.
    In(TableFrame),
}

impl Sppt {
    /// What is known of the pages from `range`'s first on, and of how many of the range.
    pub(crate) fn known<F: TableFrames>(self, frames: &F, range: GfnRange) -> (GfnRange, Known) {
        let gfn = range.first();
        let within = |level: Level| {
            let entry = GfnRange::new(level.region_start(gfn), level.frames());
            entry.ok().and_then(|entry| entry.intersection(range)).unwrap_or(range)
        };
        let mut table = self.root();
        for level in [Level::L4, Level::L3, Level::L2] {
            match SpptEntry::from(frames.load(table, level.index(gfn))).table() {
                Some(next) => table = next,
                None => return (within(level), Known::Restricted(false)),
            }
        }
        let known = match uniform_vector(frames, table) {
            Some(vector) => Known::Restricted(!vector.is_unrestricted()),
            None => Known::In(table),
        };
        (within(Level::L2), known)
    }

    /// The runs of restricted pages in a range, ascending; two may adjoin.
    pub(crate) fn restricted_runs<F: TableFrames>(
        self,
        frames: &F,
        range: GfnRange,
    ) -> impl Iterator<Item = GfnRange> {
        let mut rest = Some(range);
        core::iter::from_fn(move || {
            while let Some(now) = rest {
                let (piece, known) = self.known(frames, now);
                let run = match known {
                    Known::Restricted(false) => None,
                    Known::Restricted(true) => Some(piece),
                    Known::In(table) => first_run(frames, table, piece),
                };
                let done = run.map_or(piece.last(), GfnRange::last);
                rest = behind(now, done);
                if run.is_some() {
                    return run;
                }
            }
            None
        })
    }
}

/// The pages of a range behind `gfn`.
pub(crate) fn behind(range: GfnRange, gfn: Gfn) -> Option<GfnRange> {
    let pages = range.last().as_u64() - gfn.as_u64();
    gfn.checked_add(1).and_then(|next| GfnRange::new(next, pages).ok())
}

/// The first run of restricted pages among those of one L1 table.
fn first_run<F: TableFrames>(frames: &F, table: TableFrame, piece: GfnRange) -> Option<GfnRange> {
    let restricted =
        |gfn: &Gfn| !stored_vector(frames.load(table, Level::L1.index(*gfn))).is_unrestricted();
    let first = piece.iter().find(restricted)?;
    let pages = piece.last().as_u64() - first.as_u64() + 1;
    let rest = GfnRange::new(first, pages).ok()?;
    let pages = rest.iter().take_while(restricted).count();
    GfnRange::new(first, pages as u64).ok()
}
