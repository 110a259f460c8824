//! Where a write goes: from a linear address to guest-physical bytes.

use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage::domain::WriteParts;
use subpage_emulate::guest::State;
use subpage_emulate::{Access, Part, Translation, translate_marked, translate_span};

use crate::{Backend, Obstacle};

/// Which writes are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those of which some byte goes to a page that traps. Others are [`Obstacle::NotOurs`].
    InTraps,
    /// All.
    Anywhere,
}

/// The bytes of a write that has not happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Linear address of the first byte.
    pub linear: u64,
    /// The bytes.
    pub parts: WriteParts,
}

impl Located {
    /// Whether some byte goes to the page of `gpa`.
    pub fn touches_page_of(&self, gpa: Gpa) -> bool {
        self.parts.runs().iter().any(|run| run.in_page(gpa.gfn()).is_some())
    }
}

/// Attempts at a walk whose entries other processors change meanwhile.
const ATTEMPTS: u32 = 8;

/// Where `length` bytes from `linear` on go; marks the page tables as a processor's walk would.
///
/// Both pages of a write that crosses a page end are translated before either is marked, so a fault in
/// the second leaves no mark. What is not wanted leaves none either. The marks are no writes of the
/// guest, so rules do not forbid them, wherever the tables lie.
///
/// Other processors may change the entries between the walk and the marks, again and again. They must
/// not keep the lock that way: after some attempts the guest runs on ([`Obstacle::Again`]).
///
/// `length` is 1 to 4096.
pub fn locate<B: Backend>(
    backend: &mut B,
    state: &State,
    linear: u64,
    length: usize,
    access: Access,
    wanted: Wanted,
) -> Result<Located, Obstacle<B::Failure>> {
    if let Some(run) = locate_marked(backend, state, linear, length, access) {
        if wanted == Wanted::InTraps && !backend.traps(run.first().gfn()) {
            return Err(Obstacle::NotOurs);
        }
        return Ok(Located { linear, parts: WriteParts::one(run) });
    }
    locate_and_mark(backend, state, linear, length, access, wanted)
}

/// The common case of [`locate`]: the bytes lie in one page, and its entries are marked already. `None`
/// if it is another case.
#[inline]
pub fn locate_marked<B: Backend>(
    backend: &B,
    state: &State,
    linear: u64,
    length: usize,
    access: Access,
) -> Option<ByteRange> {
    if linear % PAGE_BYTES + length as u64 > PAGE_BYTES {
        return None;
    }
    let gpa = translate_marked(backend.memory(), backend.paging(), state, linear, access)?;
    ByteRange::new(gpa, length as u64).ok()
}

/// [`locate`] where flags have to be set, or two pages to be looked at.
fn locate_and_mark<B: Backend>(
    backend: &mut B,
    state: &State,
    linear: u64,
    length: usize,
    access: Access,
    wanted: Wanted,
) -> Result<Located, Obstacle<B::Failure>> {
    for _ in 0..ATTEMPTS {
        let paging = backend.paging();
        let pages = translate_span(backend.memory(), paging, state, linear, length, access)?;
        let traps = |page: &Part| backend.traps(page.translation.gpa.gfn());
        if wanted == Wanted::InTraps && !pages.iter().any(traps) {
            return Err(Obstacle::NotOurs);
        }
        if mark_all(backend, &pages)? {
            return Ok(Located { linear, parts: parts_of(&pages)? });
        }
    }
    Err(Obstacle::Again)
}

/// Sets the flags that a walk would set; false if an entry is no longer what it was.
///
/// The engine notes them as writes of the processor: the entry's page is dirty and its sub-page
/// written.
pub fn mark<B: Backend>(backend: &mut B, walk: &Translation) -> Result<bool, Obstacle<B::Failure>> {
    if walk.marks.is_empty() {
        return Ok(true);
    }
    for entry in walk.marks.iter().map(|mark| mark.entry) {
        let noted = backend.domain_mut().note_marked(B::SPACE, entry);
        noted.map_err(|_| Obstacle::OutOfMemory)?;
    }
    Ok(walk.mark_accessed(backend.memory())?)
}

fn mark_all<B: Backend>(backend: &mut B, pages: &[Part]) -> Result<bool, Obstacle<B::Failure>> {
    for page in pages {
        if !mark(backend, &page.translation)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn parts_of<F>(pages: &[Part]) -> Result<WriteParts, Obstacle<F>> {
    let run = |page: &Part| {
        let gpa = page.translation.gpa;
        ByteRange::new(gpa, page.bytes).map_err(|_| Obstacle::NotMemory(gpa.as_u64()))
    };
    Ok(match pages {
        [one] => WriteParts::one(run(one)?),
        [first, second] => WriteParts::two(run(first)?, run(second)?),
        _ => unreachable!("a write goes to one or two pages"),
    })
}
