//! What was written: tracked sub-pages and dirty pages, taken in one call and read in another.
//!
//! A processor may still write through an old translation after a harvest was taken, and such a write
//! belongs to it. So a harvest can be read only after its change is in force.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use subpage::address::GfnRange;
use subpage::domain::Pending;
use subpage::errno::Errno;
use subpage::invalidate::Completed;
use subpage::slots::{DirtyBitmap, SlotId};
use subpage::track::{TrackId, WrittenPage};

use crate::buffers;
use crate::domain::{Domain, space_of};
use crate::rules::bytes_at;
use crate::status::{Failed, done, given, status};

/// Harvests that wait to be read in one domain; one more gives -ENOSPC.
pub const SUBPAGE_MOST_HARVESTS: usize = 64;

/// A page with written sub-pages.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Written {
    /// Frame number of the page.
    pub gfn: u64,
    /// Bit i: one of bytes 128 i to 128 i + 127 was written since the harvest before.
    pub sub_pages: u32,
}

/// What a harvest holds.
enum Harvest {
    Written(Reading<Vec<WrittenPage>>),
    Dirty(Reading<DirtyBitmap>),
}

/// The contents of a harvest, which can be looked at from some time on.
enum Reading<T> {
    Waiting(Pending<T>),
    Ready(T),
}

impl<T> Reading<T> {
    /// The contents, or themselves back while a processor may still add to them.
    fn ready(self, newest: Option<&Completed>) -> Result<T, Self> {
        match (self, newest) {
            (Self::Ready(contents), _) => Ok(contents),
            (waiting, None) => Err(waiting),
            (Self::Waiting(pending), Some(newest)) => pending.ready(newest).map_err(Self::Waiting),
        }
    }
}

/// Harvests that were taken and not read yet, in the order of their numbers.
#[derive(Default)]
pub(crate) struct Harvests {
    last: u64,
    kept: Vec<(u64, Harvest)>,
}

/// There is room for one more harvest: one that is taken cannot be put back.
#[must_use]
struct Room(());

impl Harvests {
    fn room(&mut self) -> Result<Room, Failed> {
        if self.kept.len() >= SUBPAGE_MOST_HARVESTS {
            return Err(Failed(Errno::NoSpace));
        }
        self.kept.try_reserve(1).map_err(|_| Failed(Errno::NoMemory))?;
        Ok(Room(()))
    }

    fn keep(&mut self, _: Room, harvest: Harvest) -> u64 {
        self.last += 1;
        self.kept.push((self.last, harvest));
        self.last
    }

    fn place_of(&self, number: u64) -> Result<usize, Failed> {
        self.kept
            .binary_search_by_key(&number, |(kept, _)| *kept)
            .map_err(|_| Failed(Errno::NoEntry))
    }

    /// Hands the contents of a harvest of the right kind to `read`, which tells whether they were read:
    /// then the harvest is forgotten, and its number free of meaning.
    fn read<T>(
        &mut self,
        number: u64,
        newest: Option<&Completed>,
        open: impl FnOnce(Harvest) -> Result<Reading<T>, Harvest>,
        close: impl FnOnce(Reading<T>) -> Harvest,
        read: impl FnOnce(&T) -> Result<(i64, bool), Failed>,
    ) -> Result<i64, Failed> {
        let place = self.place_of(number)?;
        let (_, harvest) = self.kept.remove(place);
        let (result, left) = match open(harvest) {
            Err(other) => (Err(Failed(Errno::NoEntry)), Some(other)),
            Ok(reading) => match reading.ready(newest) {
                Err(waiting) => (Err(Failed(Errno::Busy)), Some(close(waiting))),
                Ok(contents) => match read(&contents) {
                    Ok((count, true)) => (Ok(count), None),
                    Ok((count, false)) => (Ok(count), Some(close(Reading::Ready(contents)))),
                    Err(failed) => (Err(failed), Some(close(Reading::Ready(contents)))),
                },
            },
        };
        if let Some(left) = left {
            // It stood here a moment ago, so there is room.
            self.kept.insert(place, (number, left));
        }
        result
    }
}

/// Starts to track which sub-pages of `length` bytes from `gpa` on are written. `*track` becomes the
/// number of the range.
///
/// -ENODEV: sub-page permissions are not enabled. -EBUSY: a page of it is tracked already.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_track(
    domain: Option<&mut Domain>,
    gpa: u64,
    length: u64,
    track: Option<&mut MaybeUninit<u64>>,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (range, track) = (bytes_at(gpa, length)?, given(track)?);
        let id = given(domain)?.change(change, |engine| Ok(engine.track(range)?))?;
        track.write(id.0);
        Ok(())
    })())
}

/// Stops tracking a range. What it has not told is lost; harvests that were taken can still be read.
///
/// -ENOENT: no such range.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_untrack(
    domain: Option<&mut Domain>,
    track: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| given(domain)?.change(change, |engine| Ok(((), engine.untrack(TrackId(track))?))))())
}

/// Takes the pages of a tracked range that were written since the harvest before, and tracks them anew.
/// `*harvest` becomes the number for `subpage_read_written`. Returns how many pages were written by now.
///
/// -ENOENT: no such range. -ENOSPC: SUBPAGE_MOST_HARVESTS wait to be read.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_harvest_written(
    domain: Option<&mut Domain>,
    track: u64,
    harvest: Option<&mut MaybeUninit<u64>>,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    status((|| {
        let (domain, harvest) = (given(domain)?, given(harvest)?);
        let room = domain.harvests.room()?;
        let track = TrackId(track);
        let pages = i64::try_from(domain.engine.written_pages(track)?)
            .map_err(|_| Failed(Errno::NoSpace))?;
        let pending = domain.change(change, |engine| Ok(engine.harvest_written(track)?))?;
        let kept = Harvest::Written(Reading::Waiting(pending));
        harvest.write(domain.harvests.keep(room, kept));
        Ok(pages)
    })())
}

/// Takes the dirty pages of a slot with SUBPAGE_SLOT_LOG_DIRTY, and logs them anew. `*harvest` becomes the
/// number for `subpage_read_dirty`.
///
/// -EINVAL: no such slot, or it does not log. -ENOSPC: SUBPAGE_MOST_HARVESTS wait to be read.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_harvest_dirty(
    domain: Option<&mut Domain>,
    space: u32,
    id: u16,
    harvest: Option<&mut MaybeUninit<u64>>,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (space, domain, harvest) = (space_of(space)?, given(domain)?, given(harvest)?);
        let room = domain.harvests.room()?;
        let pending =
            domain.change(change, |engine| Ok(engine.harvest_dirty(space, SlotId(id))?))?;
        let kept = Harvest::Dirty(Reading::Waiting(pending));
        harvest.write(domain.harvests.keep(room, kept));
        Ok(())
    })())
}

/// Reads a harvest of `subpage_harvest_written`: its pages in ascending order, and forgets it. Returns
/// their number; if it is greater than `capacity`, nothing is written and the harvest stays.
///
/// -EBUSY: its change is not in force yet: call subpage_invalidated first. -ENOENT: no such harvest.
///
/// # Safety
/// `pages` is NULL or has `capacity` elements, which may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_read_written(
    domain: Option<&mut Domain>,
    harvest: u64,
    pages: *mut Written,
    capacity: usize,
) -> i64 {
    status((|| {
        let Domain { harvests, completed, .. } = given(domain)?;
        let open = |harvest| match harvest {
            Harvest::Written(reading) => Ok(reading),
            other @ Harvest::Dirty(_) => Err(other),
        };
        harvests.read(harvest, completed.as_ref(), open, Harvest::Written, |written| {
            let elements = written
                .iter()
                .map(|page| Written { gfn: page.gfn.as_u64(), sub_pages: page.written.bits() });
            // SAFETY: the caller's promise.
            unsafe { buffers::write_out(elements, pages, capacity) }
        })
    })())
}

/// Reads a harvest of `subpage_harvest_dirty` and forgets it: a bit a page, from the first page of the
/// slot on, the lowest bit of each word first, as KVM_GET_DIRTY_LOG has them. Returns the number of
/// words; if it is greater than `capacity`, nothing is written and the harvest stays.
///
/// -EBUSY: its change is not in force yet: call subpage_invalidated first. -ENOENT: no such harvest.
///
/// # Safety
/// `words` is NULL or has `capacity` elements, which may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_read_dirty(
    domain: Option<&mut Domain>,
    harvest: u64,
    words: *mut u64,
    capacity: usize,
) -> i64 {
    status((|| {
        let Domain { harvests, completed, .. } = given(domain)?;
        let open = |harvest| match harvest {
            Harvest::Dirty(reading) => Ok(reading),
            other @ Harvest::Written(_) => Err(other),
        };
        harvests.read(harvest, completed.as_ref(), open, Harvest::Dirty, |dirty| {
            // SAFETY: the caller's promise.
            unsafe { buffers::write_out(words_of(dirty), words, capacity) }
        })
    })())
}

/// The bits of a bitmap, 64 a word, from its first page on.
fn words_of(dirty: &DirtyBitmap) -> impl ExactSizeIterator<Item = u64> + '_ {
    let pages: GfnRange = dirty.pages();
    let first = pages.first();
    let words = usize::try_from(pages.pages().div_ceil(64)).expect("the bitmap is in memory");
    let mut rest = dirty.iter().map(move |gfn| gfn.as_u64() - first.as_u64()).peekable();
    (0..words).map(move |word| {
        let mut bits = 0;
        while let Some(page) = rest.next_if(|page| page / 64 == word as u64) {
            bits |= 1 << (page % 64);
        }
        bits
    })
}
