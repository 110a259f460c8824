//! The guest's memory: whose bytes lie where.
//!
//! Memory has an address of its own here, its *place*, and guest-physical addresses are names of it:
//! rules, and the decision about a write, go by places. So what a VMM does with its slots changes
//! nothing about a rule, and memory with two names is guarded under both. Memory that a slot shows for
//! the first time gets the guest-physical address there as its place, if that is not taken.

pub(crate) mod host;
pub(crate) mod maps;
mod names;
mod physical;
pub(crate) mod raw;

use std::io;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa};
use subpage::domain::WriteParts;
use subpage_emulate::Window;

use host::PAGE;
pub(crate) use names::{Name, Names};
use raw::Raw;

/// Bytes of the VMM's that some slot has shown, mapped twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where the VMM has them.
    pub(crate) host: u64,
    /// How many.
    pub(crate) bytes: u64,
    /// Where this library has them, writable.
    pub(crate) alias: u64,
    /// Where KVM has them: where the VMM has them, or, if devices are trusted, in a mapping that is
    /// closed in its stead.
    pub(crate) view: u64,
    /// Their place.
    pub(crate) place: u64,
    /// They were private memory of the VMM.
    pub(crate) was_private: bool,
}

/// Places of memory whose first name's address was taken, from here on.
const ELSEWHERE: u64 = 1 << 45;

/// The guest's memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// By where the VMM has them.
    pieces: Vec<Piece>,
    /// What slots show.
    pub(crate) names: Names,
    /// KVM reaches memory by mappings of its own.
    separate_view: bool,
}

/// A guest-physical address of pages as the engine has it.
pub(crate) fn gpa(address: u64) -> Option<Gpa> {
    Gpa::try_new(address).ok()
}

impl Memory {
    /// No memory. `separate_view`: the VMM's mappings stay open.
    pub(crate) fn new(separate_view: bool) -> Self {
        Self { separate_view, ..Self::default() }
    }

    /// The pieces.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Takes in the bytes that a slot shows: those that are new are mapped a second time. Gives the
    /// new pieces.
    pub(crate) fn learn(&mut self, gpa: u64, bytes: u64, host: u64) -> io::Result<Vec<Piece>> {
        let mut fresh = Vec::new();
        let mut at = host;
        while at < host + bytes {
            if let Some(piece) = self.at_host(at) {
                at = piece.host + piece.bytes;
                continue;
            }
            let next = self.pieces.iter().map(|piece| piece.host).find(|start| *start > at);
            let end = next.unwrap_or(u64::MAX).min(host + bytes);
            for piece in self.learn_run(gpa + (at - host), at, end)? {
                self.pieces.push(piece);
                self.pieces.sort_unstable_by_key(|piece| piece.host);
                fresh.push(piece);
            }
            at = end;
        }
        Ok(fresh)
    }

    /// Bytes of which none is known.
    fn learn_run(&self, gpa: u64, start: u64, end: u64) -> io::Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        for mut mapping in maps::mappings(start, end)? {
            (mapping.start, mapping.end) = (mapping.start.max(start), mapping.end.min(end));
            if mapping.huge {
                return Err(io::Error::other(
                    "memory of hugetlbfs is protected by 2 MiB or more; start the VMM without it",
                ));
            }
            let (host, bytes) = (mapping.start, mapping.end - mapping.start);
            if !mapping.shared {
                host::share(&mapping)?;
            }
            let alias = host::second(host, bytes)?;
            let view = if self.separate_view { host::second(host, bytes)? } else { host };
            let named = gpa + (host - start);
            let place = self.free_place(named, bytes, &pieces);
            let was_private = !mapping.shared;
            pieces.push(Piece { host, bytes, alias, view, place, was_private });
        }
        let covered: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        if covered != end - start {
            return Err(io::Error::other("the slot's memory is not all mapped"));
        }
        Ok(pieces)
    }

    /// A place for so many bytes: `wanted`, if it is free.
    fn free_place(&self, wanted: u64, bytes: u64, more: &[Piece]) -> u64 {
        let all = || self.pieces.iter().chain(more);
        let is_free = |place: u64| {
            all().all(|piece| piece.place + piece.bytes <= place || place + bytes <= piece.place)
        };
        if is_free(wanted) && wanted + bytes <= ELSEWHERE {
            return wanted;
        }
        let after = all().map(|piece| piece.place + piece.bytes).max().unwrap_or(0);
        after.max(ELSEWHERE)
    }

    /// The VMM's mapping of these bytes is another now, or none. Gives the pieces that are gone; the
    /// rest of a piece of which a part is gone stays.
    pub(crate) fn forget(&mut self, host: u64, bytes: u64) -> Vec<Piece> {
        let end = host.saturating_add(bytes);
        let mut gone = Vec::new();
        let mut kept = Vec::new();
        for piece in std::mem::take(&mut self.pieces) {
            let part = |from: u64, to: u64| {
                let skip = from - piece.host;
                Piece {
                    host: from,
                    bytes: to - from,
                    alias: piece.alias + skip,
                    view: piece.view + skip,
                    place: piece.place + skip,
                    was_private: piece.was_private,
                }
            };
            let piece_end = piece.host + piece.bytes;
            let (from, to) = (host.clamp(piece.host, piece_end), end.clamp(piece.host, piece_end));
            if from >= to {
                kept.push(piece);
                continue;
            }
            if piece.host < from {
                kept.push(part(piece.host, from));
            }
            if to < piece_end {
                kept.push(part(to, piece_end));
            }
            gone.push(part(from, to));
        }
        self.pieces = kept;
        for piece in &gone {
            host::unmap(piece.alias, piece.bytes);
            if piece.view != piece.host {
                host::unmap(piece.view, piece.bytes);
            }
        }
        gone
    }

    /// The pieces of which some of these bytes of the VMM are a part.
    pub(crate) fn touched(&self, host: u64, bytes: u64) -> impl Iterator<Item = &Piece> {
        let end = host.saturating_add(bytes);
        self.pieces.iter().filter(move |piece| piece.host < end && host < piece.host + piece.bytes)
    }

    /// The piece that has the byte at an address of the VMM.
    pub(crate) fn at_host(&self, host: u64) -> Option<&Piece> {
        let after = self.pieces.partition_point(|piece| piece.host <= host);
        self.pieces[..after].last().filter(|piece| host - piece.host < piece.bytes)
    }

    /// The piece that has the byte at a place.
    pub(crate) fn at_place(&self, place: u64) -> Option<&Piece> {
        self.pieces.iter().find(|piece| place >= piece.place && place - piece.place < piece.bytes)
    }

    /// The place of a guest-physical byte, and how many bytes behind it, with it, lie side by side in
    /// one piece and one slot.
    pub(crate) fn place(&self, gpa: u64) -> Option<(u64, u64)> {
        let (host, rest) = self.names.host(gpa)?;
        let piece = self.at_host(host)?;
        let skip = host - piece.host;
        Some((piece.place + skip, rest.min(piece.bytes - skip)))
    }

    /// The places of a range of guest-physical bytes; none if they are not all memory, or do not lie
    /// side by side.
    pub(crate) fn places(&self, range: ByteRange) -> Option<ByteRange> {
        let (first, mut have) = self.place(range.first().as_u64())?;
        while have < range.bytes() {
            let (next, more) = self.place(range.first().as_u64() + have)?;
            if next != first + have {
                return None;
            }
            have += more;
        }
        ByteRange::new(gpa(first)?, range.bytes()).ok()
    }

    /// The places of a write.
    pub(crate) fn places_of(&self, write: &WriteParts) -> Option<WriteParts> {
        // The usual case: nothing has a second name.
        let same = |run: &ByteRange| self.places(*run) == Some(*run);
        if write.runs().iter().all(same) {
            return Some(write.clone());
        }
        let mut places = Vec::new();
        for run in write.runs() {
            let mut at = run.first().as_u64();
            let end = at + run.bytes();
            while at < end {
                let (place, have) = self.place(at)?;
                let bytes = have.min(end - at);
                places.push(ByteRange::new(gpa(place)?, bytes).ok()?);
                at += bytes;
            }
        }
        match *places.as_slice() {
            [one] => Some(WriteParts::one(one)),
            [first, second] => Some(WriteParts::two(first, second)),
            _ => None,
        }
    }

    /// The lowest name of a place; the place itself if it has none now.
    pub(crate) fn name(&self, place: Gpa) -> Gpa {
        let named = self
            .at_place(place.as_u64())
            .and_then(|piece| self.names.gpa(piece.host + (place.as_u64() - piece.place)));
        named.and_then(gpa).unwrap_or(place)
    }

    /// Places as this library reaches them; none if they are not of one piece.
    #[allow(unsafe_code)]
    pub(crate) fn alias(&self, place: u64, bytes: u64) -> Option<Raw> {
        let piece = self.at_place(place)?;
        let skip = place - piece.place;
        if bytes > piece.bytes - skip {
            return None;
        }
        // SAFETY: inside of a mapping of this library's own, which is writable; it stays until the
        // piece is forgotten, for which the caller's lock is needed.
        Some(unsafe { Raw::new(piece.alias + skip, bytes) })
    }

    /// The bytes of a write, by places, side by side; none if they are no memory, or the host cannot map
    /// them. The caller holds the lock of this memory as long as it uses them.
    #[allow(unsafe_code)]
    pub(crate) fn window(&self, write: &WriteParts) -> Option<Bytes> {
        if let &[run] = write.runs()
            && let Some(raw) = self.alias(run.first().as_u64(), run.bytes())
        {
            return Some(Bytes { raw, joined: None });
        }
        let first = write.first().first().as_u64();
        let last = write.last().last().as_u64();
        let page = |place: u64| Some(self.alias(place & !(PAGE - 1), PAGE)?.at());
        let both = host::side_by_side(page(first)?, page(last)?).ok()?;
        // SAFETY: two pages that were mapped above; the bytes begin in the first and end in the second.
        let raw = unsafe { Raw::new(both + first % PAGE, write.bytes()) };
        Some(Bytes { raw, joined: Some(both) })
    }

    /// Reads bytes by their place; false if they are not all memory.
    pub(crate) fn read_places(&self, place: u64, buffer: &mut [u8]) -> bool {
        let mut from = 0;
        while from < buffer.len() {
            let Some(piece) = self.at_place(place + from as u64) else { return false };
            let have = piece.bytes - (place + from as u64 - piece.place);
            let to =
                usize::try_from(have).map_or(buffer.len(), |have| buffer.len().min(from + have));
            let Some(raw) = self.alias(place + from as u64, (to - from) as u64) else {
                return false;
            };
            raw.read(&mut buffer[from..to]);
            from = to;
        }
        true
    }

    /// Writes bytes, about which it was decided, to their place; false if they are not all memory.
    pub(crate) fn write_places(&self, place: u64, bytes: &[u8]) -> bool {
        let mut from = 0;
        while from < bytes.len() {
            let Some(piece) = self.at_place(place + from as u64) else { return false };
            let have = piece.bytes - (place + from as u64 - piece.place);
            let to = usize::try_from(have).map_or(bytes.len(), |have| bytes.len().min(from + have));
            let Some(raw) = self.alias(place + from as u64, (to - from) as u64) else {
                return false;
            };
            raw.write(&bytes[from..to]);
            from = to;
        }
        true
    }

    /// Lets pages, by places, be written by KVM (and the VMM, if devices are judged), or not.
    pub(crate) fn set_writable(&self, pages: GfnRange, writable: bool) -> io::Result<()> {
        let mut at = pages.first().gpa().as_u64();
        let end = at + pages.pages() * PAGE;
        while at < end {
            // Memory that is gone has no protection.
            let Some(piece) = self.at_place(at) else {
                at += PAGE;
                continue;
            };
            let skip = at - piece.place;
            let bytes = (piece.bytes - skip).min(end - at);
            host::set_writable(piece.view + skip, bytes, writable)?;
            at += bytes;
        }
        Ok(())
    }

    /// Where KVM has bytes of the VMM, if they are one mapping there.
    pub(crate) fn view(&self, host: u64, bytes: u64) -> Option<u64> {
        let piece = self.at_host(host)?;
        let skip = host - piece.host;
        (bytes <= piece.bytes - skip).then_some(piece.view + skip)
    }

    /// The page, by place, of an address of the VMM.
    pub(crate) fn page_at_host(&self, host: u64) -> Option<Gfn> {
        let piece = self.at_host(host)?;
        Some(gpa(piece.place + (host - piece.host))?.gfn())
    }

    /// Bytes of memory that slots show.
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

/// Bytes of a write, side by side.
pub(crate) struct Bytes {
    raw: Raw,
    /// Two pages that were mapped for it.
    joined: Option<u64>,
}

impl Bytes {
    /// Does `work` on them.
    pub(crate) fn with<T>(self, work: impl FnOnce(&mut Window<'_>) -> T) -> T {
        self.raw.with_window(work)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(both) = self.joined {
            host::unmap(both, 2 * PAGE);
        }
    }
}
