//! Rules, maps and tracking as bytes, and back, bit for bit (contract C7, D50).
//!
//! Format, version 1, all numbers little-endian: a [`Header`], then its counts of [`RuleRecord`],
//! [`MapRecord`] and [`TrackRecord`] with [`WrittenRecord`]s, each list ascending, then a CRC-32
//! (ISO-HDLC) of everything before it. Access maps are those of pages that do not have the initial
//! map, as they are underneath rules. The bytes are hostile input: lengths are checked against the
//! counts and pages against what the caller allows before anything is reserved, so an import never
//! holds more than a small multiple of its input, and tables for the allowed pages.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::change::Repermit;
use super::names::RulesByName;
use super::rules::page_ranges;
use super::{Domain, DomainError, Observer};
use crate::access::AccessMap;
use crate::address::{AddressError, ByteRange, Gfn, GfnRange, Gpa};
use crate::frames::{OutOfFrames, TableFrames};
use crate::invalidate::Invalidation;
use crate::rules::{Action, ActiveRule, Owner, Rule, RuleId, RuleName, RuleNameError, RuleSet};
use crate::track::{Arming, TrackId, Tracking};

/// The first bytes of every exported state.
pub const EXPORT_MAGIC: [u8; 8] = *b"SUBPAGE\0";
const VERSION: u32 = 1;
const LOCKED: u8 = 1;
const SPENT: u8 = 2;
const UNARMED: u8 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    rules: U32,
    maps: U32,
    tracked: U32,
    next_rule: U64,
    next_track: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RuleRecord {
    id: U64,
    first: U64,
    bytes: U64,
    owner: U32,
    action: u8,
    flags: u8,
    name_bytes: u8,
    name: [u8; 62],
    padding: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MapRecord {
    gfn: U64,
    map: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TrackRecord {
    id: U64,
    first: U64,
    bytes: U64,
    written_pages: U64,
}

/// A page of a tracked range with written sub-pages.
type WrittenRecord = MapRecord;

/// Why exported state was not taken in; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImportError {
    /// The bytes do not begin like exported state.
    #[error("this is not exported subpage state")]
    NotState,
    /// The version is one this code does not read.
    #[error("exported state has version {0}; this build reads version 1")]
    Version(u32),
    /// The bytes end early or continue too long.
    #[error("exported state is cut short or too long at byte {at}")]
    Length {
        /// Offset at which the next record should begin.
        at: usize,
    },
    /// The checksum does not match.
    #[error("exported state is damaged: its checksum does not match")]
    Checksum,
    /// A record has a value that cannot be.
    #[error("exported state has a wrong {what} in record {record} of its list")]
    Record {
        /// Which field.
        what: &'static str,
        /// Which record of its list, from 0.
        record: usize,
    },
    /// Its rules, maps and tracked ranges hold more pages than the caller allows.
    #[error("exported state is about more pages than allowed")]
    TooManyPages,
    /// The domain has rules, maps or tracking already; import into a fresh one.
    #[error("the domain is not empty: import into a fresh one")]
    NotEmpty,
    /// The domain refused.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

impl From<OutOfFrames> for ImportError {
    fn from(error: OutOfFrames) -> Self {
        Self::Domain(error.into())
    }
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Writes rules, access maps and tracking state as bytes.
    ///
    /// Equal states give equal bytes. Slots, mappings and dirty logs belong to the VMM and are not
    /// part of it. Fails if permissions are not enabled or memory is short.
    pub fn export(&self) -> Result<Vec<u8>, DomainError> {
        self.enabled()?;
        let mut out = Vec::new();
        put(&mut out, &self.header(0, 0)?)?;
        for active in self.rules.iter() {
            put(&mut out, &RuleRecord::from(active))?;
        }
        let mut maps = 0;
        let everywhere = GfnRange::new(Gfn::new(0), Gfn::MAX.as_u64() + 1)?;
        for gfn in self.denying_pages(everywhere) {
            let map = self.base_map(gfn);
            if !map.is_unrestricted() {
                put(&mut out, &MapRecord { gfn: gfn.as_u64().into(), map: map.bits().into() })?;
                maps += 1;
            }
        }
        let mut tracked = 0;
        for range in self.tracking.iter() {
            put(
                &mut out,
                &TrackRecord {
                    id: range.id.0.into(),
                    first: range.range.first().as_u64().into(),
                    bytes: range.range.bytes().into(),
                    written_pages: (range.written().count() as u64).into(),
                },
            )?;
            for page in range.written() {
                let gfn = page.gfn.as_u64().into();
                put(&mut out, &WrittenRecord { gfn, map: page.written.bits().into() })?;
            }
            tracked += 1;
        }
        let header = self.header(maps, tracked)?;
        out[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        let checksum = U32::from(crc32fast::hash(&out));
        put(&mut out, &checksum)?;
        Ok(out)
    }

    /// Fails only for counts beyond 2^32 - 1, which no memory holds.
    fn header(&self, maps: usize, tracked: usize) -> Result<Header, OutOfFrames> {
        let count = |list: usize| u32::try_from(list).map_err(|_| OutOfFrames);
        Ok(Header {
            magic: EXPORT_MAGIC,
            version: VERSION.into(),
            rules: count(self.rules.len())?.into(),
            maps: count(maps)?.into(),
            tracked: count(tracked)?.into(),
            next_rule: self.next_rule.into(),
            next_track: self.next_track.into(),
        })
    }

    /// Takes in exported state, all or nothing; the domain must be enabled and hold no rule, no
    /// restricted page and no tracked range.
    ///
    /// A locked rule can thus not be shaken off by importing over it. State about more than
    /// `max_pages` pages is refused before anything is reserved for them.
    pub fn import(&mut self, bytes: &[u8], max_pages: u64) -> Result<Invalidation, ImportError> {
        let sppt = self.enabled()?;
        let empty = self.rules.is_empty() && self.tracking.is_empty();
        if !empty || self.next_restricted(Gfn::new(0)).is_some() {
            return Err(ImportError::NotEmpty);
        }
        let state = State::parse(bytes, max_pages)?;
        for range in &state.ranges {
            self.check_width(*range)?;
        }
        let names = &self.names;
        let rules = RulesByName { rules: &state.rules, names };
        let denying = names.originals(&state.denying)?;
        let ranges = names.originals(&state.ranges)?;
        let maps = &state.maps;
        let of_memory = |gfn: Gfn| {
            let by_name = names.all(gfn).map(|name| base(maps, name));
            by_name.fold(AccessMap::ALL, |map, one| map & one)
        };
        let masked =
            self.masked.replaced(&denying, |gfn| !of_memory(gfn) & !rules.permitted(gfn))?;
        let mut tracking = state.tracking;
        for (record, tracked) in tracking.iter().enumerate() {
            if names.original_bytes(tracked.range)? != tracked.range {
                return Err(ImportError::Record { what: "tracked range (an alias here)", record });
            }
        }
        for range in denying.iter() {
            tracking.reserve(*range)?;
        }
        let mut change = Repermit {
            tracking: &mut tracking,
            arming: Arming::Keep,
            permit: |gfn, _| of_memory(gfn) & rules.permitted(gfn),
            // Asked of pages without room for a record, and those that are denied something have it.
            keeps: |_| true,
        };
        let tables = (sppt, &self.slots);
        let token = names.change(&mut self.tables, tables, &ranges, &mut change)?;
        self.rules = state.rules;
        self.masked = masked;
        self.tracking = tracking;
        self.next_rule = state.next_rule;
        self.next_track = state.next_track;
        Ok(token)
    }
}

/// Exported state, read and checked.
struct State {
    rules: RuleSet,
    maps: Vec<(Gfn, AccessMap)>,
    tracking: Tracking,
    /// All pages that the state is about, ascending and disjoint.
    ranges: Vec<GfnRange>,
    /// Of these, the pages of rules and maps.
    denying: Vec<GfnRange>,
    next_rule: u64,
    next_track: u64,
}

fn base(maps: &[(Gfn, AccessMap)], gfn: Gfn) -> AccessMap {
    match maps.binary_search_by_key(&gfn, |(page, _)| *page) {
        Ok(at) => maps[at].1,
        Err(_) => AccessMap::ALL,
    }
}

impl State {
    fn parse(bytes: &[u8], max_pages: u64) -> Result<Self, ImportError> {
        let mut reader = Reader { bytes, at: 0, pages_left: max_pages };
        let header: Header = reader.take().map_err(|_| ImportError::NotState)?;
        if header.magic != EXPORT_MAGIC {
            return Err(ImportError::NotState);
        }
        if header.version.get() != VERSION {
            return Err(ImportError::Version(header.version.get()));
        }
        let (content, checksum) =
            bytes.split_last_chunk::<4>().ok_or(ImportError::Length { at: 0 })?;
        if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
            return Err(ImportError::Checksum);
        }
        reader.bytes = content;
        let (next_rule, next_track) = (header.next_rule.get(), header.next_track.get());
        let rules = reader.rules(header.rules.get(), next_rule)?;
        let maps = reader.maps(header.maps.get().into())?;
        let tracking = reader.tracking(header.tracked.get(), next_track)?;
        if reader.at != content.len() {
            return Err(ImportError::Length { at: reader.at });
        }
        let denying = page_ranges(
            rules
                .iter()
                .map(|active| active.rule.range.gfns())
                .chain(maps.iter().map(|(gfn, _)| GfnRange::one(*gfn))),
        )?;
        let tracked = tracking.iter().map(|tracked| tracked.range.gfns());
        let ranges = page_ranges(denying.iter().copied().chain(tracked))?;
        // Each page once, however many rules it has.
        if ranges.iter().map(|range| range.pages()).sum::<u64>() > max_pages {
            return Err(ImportError::TooManyPages);
        }
        Ok(Self { rules, maps, tracking, ranges, denying, next_rule, next_track })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many more pages may be tracked.
    pages_left: u64,
}

impl Reader<'_> {
    fn take<T: FromBytes>(&mut self) -> Result<T, ImportError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (record, _) =
            T::read_from_prefix(rest).map_err(|_| ImportError::Length { at: self.at })?;
        self.at += size_of::<T>();
        Ok(record)
    }

    fn spend_pages(&mut self, range: GfnRange) -> Result<(), ImportError> {
        let left = self.pages_left.checked_sub(range.pages());
        self.pages_left = left.ok_or(ImportError::TooManyPages)?;
        Ok(())
    }

    fn rules(&mut self, count: u32, next: u64) -> Result<RuleSet, ImportError> {
        let mut set = RuleSet::default();
        let mut last = None;
        for record in 0..count as usize {
            let raw: RuleRecord = self.take()?;
            let active = raw.read(record)?;
            let key = (active.rule.range.first(), active.id);
            if active.id.0 >= next || last.replace(key).is_some_and(|last| last >= key) {
                return Err(ImportError::Record { what: "rule number or order", record });
            }
            set.push(active)?;
        }
        if set.has_twins() {
            return Err(ImportError::Record { what: "rule number (twice)", record: 0 });
        }
        Ok(set)
    }

    fn maps(&mut self, count: u64) -> Result<Vec<(Gfn, AccessMap)>, ImportError> {
        let mut maps: Vec<(Gfn, AccessMap)> = Vec::new();
        for record in 0.. {
            if record as u64 == count {
                break;
            }
            let raw: MapRecord = self.take()?;
            let gfn = Gfn::try_new(raw.gfn.get()).map_err(DomainError::from)?;
            let map = AccessMap::from_bits(raw.map.get());
            let ascending = maps.last().is_none_or(|(last, _)| *last < gfn);
            if !ascending || map.is_unrestricted() {
                return Err(ImportError::Record { what: "map or order of maps", record });
            }
            maps.try_reserve(1).map_err(|_| OutOfFrames)?;
            maps.push((gfn, map));
        }
        Ok(maps)
    }

    fn tracking(&mut self, count: u32, next: u64) -> Result<Tracking, ImportError> {
        let mut tracking = Tracking::default();
        let mut ids = Vec::new();
        let mut last = None;
        for record in 0..count as usize {
            let raw: TrackRecord = self.take()?;
            let range = read_range(raw.first.get(), raw.bytes.get())?;
            self.spend_pages(range.gfns())?;
            let pages = range.gfns();
            let apart = last.replace(pages.last()).is_none_or(|last| last < pages.first());
            let id = TrackId(raw.id.get());
            if !apart || id.0 >= next {
                return Err(ImportError::Record { what: "tracked range", record });
            }
            ids.try_reserve(1).map_err(|_| OutOfFrames)?;
            ids.push(id);
            let written = self.written(raw.written_pages.get(), range, record)?;
            tracking.add(id, range)?;
            for (gfn, written) in written {
                tracking.reserve(GfnRange::one(gfn))?;
                // What is armed follows from the permission, when the tables are changed.
                tracking.note(gfn, AccessMap::NONE, written);
            }
        }
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ImportError::Record { what: "tracked range's number (twice)", record: 0 });
        }
        Ok(tracking)
    }

    fn written(
        &mut self,
        count: u64,
        range: ByteRange,
        record: usize,
    ) -> Result<Vec<(Gfn, AccessMap)>, ImportError> {
        let mut pages: Vec<(Gfn, AccessMap)> = Vec::new();
        for _ in 0..count {
            let raw: WrittenRecord = self.take()?;
            let gfn = Gfn::try_new(raw.gfn.get()).map_err(DomainError::from)?;
            let map = AccessMap::from_bits(raw.map.get());
            let tracked = range.in_page(gfn).map_or(AccessMap::NONE, AccessMap::touched_by);
            let ascending = pages.last().is_none_or(|(last, _)| *last < gfn);
            if map.is_empty() || !tracked.covers(map) || !ascending {
                return Err(ImportError::Record { what: "written sub-page", record });
            }
            pages.try_reserve(1).map_err(|_| OutOfFrames)?;
            pages.push((gfn, map));
        }
        Ok(pages)
    }
}

fn put(out: &mut Vec<u8>, record: &(impl IntoBytes + Immutable)) -> Result<(), OutOfFrames> {
    let bytes = record.as_bytes();
    out.try_reserve(bytes.len()).map_err(|_| OutOfFrames)?;
    out.extend_from_slice(bytes);
    Ok(())
}

fn read_range(first: u64, bytes: u64) -> Result<ByteRange, DomainError> {
    let range = |first| -> Result<ByteRange, AddressError> { ByteRange::new(first, bytes) };
    Ok(Gpa::try_new(first).and_then(range)?)
}

impl From<&ActiveRule> for RuleRecord {
    fn from(active: &ActiveRule) -> Self {
        let text = active.rule.name.as_str().as_bytes();
        let mut name = [0; 62];
        name[..text.len()].copy_from_slice(text);
        Self {
            id: active.id.0.into(),
            first: active.rule.range.first().as_u64().into(),
            bytes: active.rule.range.bytes().into(),
            owner: active.rule.owner.0.into(),
            action: active.rule.action as u8,
            flags: u8::from(active.rule.locked) * LOCKED
                + u8::from(active.spent) * SPENT
                + u8::from(!active.armed) * UNARMED,
            name_bytes: u8::try_from(text.len()).unwrap_or(62),
            name,
            padding: 0,
        }
    }
}

impl RuleRecord {
    fn read(&self, record: usize) -> Result<ActiveRule, ImportError> {
        let wrong = |what| ImportError::Record { what, record };
        let action = match self.action {
            0 => Action::Log,
            1 => Action::AllowOnce,
            2 => Action::Deny,
            3 => Action::Stop,
            _ => return Err(wrong("action")),
        };
        let spent = self.flags & SPENT != 0;
        let armed = self.flags & UNARMED == 0;
        let of_such_a_rule = armed && action == Action::AllowOnce;
        if self.flags & !(LOCKED | SPENT | UNARMED) != 0 || (spent && !of_such_a_rule) {
            return Err(wrong("flag"));
        }
        let length = usize::from(self.name_bytes);
        let (text, rest) = self.name.split_at_checked(length).ok_or(wrong("name length"))?;
        if self.padding != 0 || rest.iter().any(|byte| *byte != 0) {
            return Err(wrong("padding"));
        }
        let text = core::str::from_utf8(text).map_err(|_| wrong("name"))?;
        let name = RuleName::new(text).map_err(|_: RuleNameError| wrong("name"))?;
        let rule = Rule {
            name,
            range: read_range(self.first.get(), self.bytes.get())?,
            owner: Owner(self.owner.get()),
            action,
            locked: self.flags & LOCKED != 0,
        };
        Ok(ActiveRule { id: RuleId(self.id.get()), rule, spent, armed })
    }
}
