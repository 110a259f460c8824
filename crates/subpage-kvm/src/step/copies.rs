//! The pages that are copies in the twin, and what they held before a step.

use subpage::address::{Gfn, GfnRange};
use subpage_emulate::guest::PhysicalMemory as _;

use super::STEP_TABLES;
use crate::memory::{PAGE_WORDS, PageImage, Ram, Twin, ViewError};
use crate::trap::PageSet;

/// Copies that are kept from one step to the next: each is filled anew before every batch of steps.
const KEPT: usize = 8;

/// The copies, the one that was needed last at the end.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pages: Vec<(Gfn, Box<PageImage>)>,
}

impl Copies {
    /// Makes copies of these pages, fills all copies with what the guest's memory holds, and gives
    /// back those that have not been needed for long. The guard's lock is held from here until the
    /// last step that uses them is [settled](super::changes).
    pub(super) fn open(
        &mut self,
        ram: &Ram,
        twin: &Twin,
        wanted: &PageSet,
    ) -> Result<(), ViewError> {
        let copied = twin.copied();
        self.retain(&copied);
        let (mut pages, needed): (Vec<_>, Vec<_>) =
            self.pages.drain(..).partition(|(gfn, _)| !wanted.contains(*gfn));
        let spare = pages.len().saturating_sub(KEPT);
        for (gfn, _) in pages.drain(..spare) {
            twin.share(gfn)?;
        }
        pages.extend(needed);
        self.pages = pages;
        for gfn in wanted.runs().flat_map(GfnRange::iter) {
            if !self.has(gfn) {
                twin.copy(gfn)?;
                self.pages.push((gfn, Box::new([0; PAGE_WORDS])));
            }
        }
        for (gfn, image) in &mut self.pages {
            read(ram, *gfn, image);
            twin.fill(*gfn, image);
        }
        assert!(self.pages.len() <= KEPT + STEP_TABLES, "copies are given back");
        Ok(())
    }

    /// Whether a page is a copy.
    pub(super) fn has(&self, gfn: Gfn) -> bool {
        self.pages.iter().any(|(copy, _)| *copy == gfn)
    }

    /// Whether all of these are.
    pub(super) fn have(&self, pages: &PageSet) -> bool {
        pages.runs().flat_map(GfnRange::iter).all(|gfn| self.has(gfn))
    }

    /// Forgets those that are none any more.
    pub(super) fn retain(&mut self, copied: &[Gfn]) {
        self.pages.retain(|(gfn, _)| copied.contains(gfn));
    }

    /// Calls `differs` with page, number, former and present value of every word that a step has
    /// changed.
    pub(super) fn compare(&self, twin: &Twin, mut differs: impl FnMut(Gfn, usize, u64, u64)) {
        for (gfn, image) in &self.pages {
            twin.compare(*gfn, image, |word, now| differs(*gfn, word, image[word], now));
        }
    }

    /// A word of a copy is so from now on.
    pub(super) fn note(&mut self, gfn: Gfn, word: usize, now: u64) {
        if let Some((_, image)) = self.pages.iter_mut().find(|(copy, _)| *copy == gfn) {
            image[word] = now;
        }
    }
}

fn read(ram: &Ram, gfn: Gfn, image: &mut PageImage) {
    let mut bytes = [0; PAGE_WORDS * 8];
    ram.read(gfn.gpa(), &mut bytes).expect("a page that traps is memory");
    for (word, from) in image.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(from.try_into().expect("eight bytes"));
    }
}
