//! What an access map denies underneath a rule.
//!
//! A page's permission is (what access maps permit) AND (what rules permit). Where no rule holds a
//! sub-page its SPPT bit *is* the access map's, so nothing else is kept. Where a rule holds it the
//! SPPT bit is 0 either way, and only here is it recorded that the access map denies it too, so that
//! it stays denied when the rule goes. Most domains have no entry.

use alloc::vec::Vec;

use crate::access::AccessMap;
use crate::address::{Gfn, GfnRange};
use crate::frames::OutOfFrames;

/// Sub-pages that are denied by both a rule and the access map; pages ascending, no empty map.
#[derive(Debug, Default)]
pub(crate) struct MaskedDenials {
    pages: Vec<(Gfn, AccessMap)>,
}

impl MaskedDenials {
    /// The sub-pages of a page that the access map denies underneath a rule.
    pub(crate) fn of(&self, gfn: Gfn) -> AccessMap {
        match self.pages.binary_search_by_key(&gfn, |(page, _)| *page) {
            Ok(at) => self.pages[at].1,
            Err(_) => AccessMap::NONE,
        }
    }

    /// The same record with the pages of `ranges` (ascending, disjoint) replaced.
    pub(crate) fn replaced(
        &self,
        ranges: &[GfnRange],
        new: impl Fn(Gfn) -> AccessMap,
    ) -> Result<Self, OutOfFrames> {
        let mut pages = Vec::new();
        let mut push = |page: (Gfn, AccessMap)| {
            pages.try_reserve(1).map_err(|_| OutOfFrames)?;
            pages.push(page);
            Ok(())
        };
        let mut old = self.pages.iter().copied().peekable();
        for range in ranges {
            while let Some(page) = old.next_if(|(gfn, _)| *gfn < range.first()) {
                push(page)?;
            }
            while old.next_if(|(gfn, _)| *gfn <= range.last()).is_some() {}
            for gfn in range.iter() {
                let map = new(gfn);
                if !map.is_empty() {
                    push((gfn, map))?;
                }
            }
        }
        for page in old {
            push(page)?;
        }
        Ok(Self { pages })
    }
}
