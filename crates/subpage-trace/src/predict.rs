//! The predictor that encoder and decoder run in step.
//!
//! Stores come from static *sites* (instruction, size). Which site stores next is guessed from
//! the three sites before it, and where it stores is guessed in four ways; a site keeps to the
//! way that was right for it last. Both sides update the same state after every write, so the
//! file needs to hold only what was guessed wrong. `docs/trace-format.md` fixes every number
//! here: a change of any is a change of the format.

use crate::write::ADDRESS_LIMIT;

/// Sites that are remembered; the oldest gives way to a new one.
pub(crate) const SITES: usize = 1 << 16;
/// Ways to guess an address.
pub(crate) const GUESSES: usize = 4;
/// The way a new site starts with: at a fixed distance from the write before.
const FIRST_WAY: u8 = 1;
/// 2^64 divided by the golden ratio, made odd: spreads keys over the high bits (Knuth, TAOCP
/// volume 3, section 6.4, multiplicative hashing).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const ADDRESS_MASK: u64 = ADDRESS_LIMIT - 1;

/// Number of a site. All 2^16 values are in range, so no lookup can miss.
pub(crate) type SiteId = u16;

/// A static store and what is known about where it stores.
#[derive(Clone, Copy, Default)]
pub(crate) struct Site {
    /// Address of the instruction.
    pub(crate) pc: u64,
    /// Address of its latest write.
    pub(crate) last: u64,
    /// Latest write minus the one before, wrapping.
    stride: u64,
    /// Latest write minus the write of any site just before it, wrapping.
    offset: u64,
    /// Shifted strides before the latest.
    stride_history: u16,
    /// Site that wrote next, when it was last seen.
    next: SiteId,
    /// Bytes written.
    pub(crate) size: u8,
    /// Which guess was right last, below [`GUESSES`].
    pub(crate) way: u8,
}

/// State shared by both sides.
pub(crate) struct Predictor {
    sites: Box<[Site; SITES]>,
    /// Next site, by hash of the three sites before.
    successors: Box<[SiteId; 1 << 16]>,
    /// Next stride, by hash of site and strides before; low 32 bits, sign-extended on use.
    strides: Box<[i32; 1 << 16]>,
    /// The latest sites, 16 bits each, newest lowest; the top 16 bits are zero.
    history: u64,
    previous_address: u64,
    next_id: SiteId,
    defined: u32,
}

/// A boxed array made on the heap, as it is too large for the stack.
fn boxed<T: Clone, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("the vector has N elements"),
    }
}

fn hash(key: u64) -> usize {
    // The 16 high bits, so the index is in range for a table of 2^16.
    (key.wrapping_mul(SPREAD) >> 48) as usize
}

impl Predictor {
    /// The state before the first write: site 0 is defined as pc 0, size 8.
    pub(crate) fn new() -> Self {
        let mut sites = boxed(Site::default());
        sites[0] = Site { size: 8, way: FIRST_WAY, ..Site::default() };
        Self {
            sites,
            successors: boxed(0),
            strides: boxed(0),
            history: 0,
            previous_address: 0,
            next_id: 1,
            defined: 1,
        }
    }

    pub(crate) fn site(&self, id: SiteId) -> &Site {
        &self.sites[usize::from(id)]
    }

    /// Whether a site of this number has been defined.
    pub(crate) fn is_defined(&self, id: SiteId) -> bool {
        u32::from(id) < self.defined
    }

    /// The number that [`Self::define`] gives out next.
    pub(crate) fn next_id(&self) -> SiteId {
        self.next_id
    }

    /// Makes a new site; once all numbers are taken, in place of the oldest.
    pub(crate) fn define(&mut self, pc: u64, size: u8) -> SiteId {
        let id = self.next_id;
        self.sites[usize::from(id)] = Site { pc, size, way: FIRST_WAY, ..Site::default() };
        self.next_id = id.wrapping_add(1);
        self.defined = self.defined.max(u32::from(id) + 1);
        id
    }

    /// The latest site.
    #[allow(clippy::cast_possible_truncation, reason = "the low 16 bits are the newest site")]
    pub(crate) fn previous_site(&self) -> SiteId {
        self.history as SiteId
    }

    pub(crate) fn previous_address(&self) -> u64 {
        self.previous_address
    }

    /// The site that followed the same three sites last time.
    #[inline]
    pub(crate) fn guess_site(&self) -> SiteId {
        self.successors[hash(self.history)]
    }

    /// The site that followed the latest site last time.
    pub(crate) fn second_guess_site(&self) -> SiteId {
        self.site(self.previous_site()).next
    }

    /// Where `id` may write now, by each way, below [`ADDRESS_LIMIT`].
    #[inline]
    pub(crate) fn guess_address(&self, id: SiteId) -> [u64; GUESSES] {
        let site = self.site(id);
        let stride = i64::from(self.strides[stride_key(id, site)]).cast_unsigned();
        [
            site.last.wrapping_add(site.stride) & ADDRESS_MASK,
            self.previous_address.wrapping_add(site.offset) & ADDRESS_MASK,
            site.last.wrapping_add(stride) & ADDRESS_MASK,
            site.last,
        ]
    }

    /// Learns a write as [`Self::update`] does, if its site and its address are as guessed; else changes
    /// nothing. Most writes are, so everything is looked up once.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "tables keep the low bits by definition")]
    pub(crate) fn take_as_guessed(&mut self, pc: u64, address: u64, size: u8) -> bool {
        let id = self.successors[hash(self.history)];
        let before = usize::from(self.previous_site());
        let previous_address = self.previous_address;
        let site = &mut self.sites[usize::from(id)];
        if site.pc != pc || site.size != size {
            return false;
        }
        let stride_guess = &mut self.strides[stride_key(id, site)];
        let guess = match site.way {
            0 => site.last.wrapping_add(site.stride) & ADDRESS_MASK,
            1 => previous_address.wrapping_add(site.offset) & ADDRESS_MASK,
            2 => site.last.wrapping_add(i64::from(*stride_guess).cast_unsigned()) & ADDRESS_MASK,
            _ => site.last,
        };
        if guess != address {
            return false;
        }
        let stride = address.wrapping_sub(site.last);
        *stride_guess = stride as i32;
        site.stride_history = (site.stride_history << 5) ^ site.stride as u16;
        site.stride = stride;
        site.offset = address.wrapping_sub(previous_address);
        site.last = address;
        self.previous_address = address;
        self.history = ((self.history << 16) | u64::from(id)) & ADDRESS_MASK;
        self.sites[before].next = id;
        true
    }

    /// Learns that `id` wrote at `address`, which `way` guesses.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "tables keep the low bits by definition")]
    pub(crate) fn update(&mut self, id: SiteId, address: u64, way: u8) {
        let before = usize::from(self.previous_site());
        self.successors[hash(self.history)] = id;
        self.sites[before].next = id;
        let site = &mut self.sites[usize::from(id)];
        let stride = address.wrapping_sub(site.last);
        self.strides[stride_key(id, site)] = stride as i32;
        site.stride_history = (site.stride_history << 5) ^ site.stride as u16;
        site.stride = stride;
        site.offset = address.wrapping_sub(self.previous_address);
        site.last = address;
        site.way = way;
        self.previous_address = address;
        self.history = ((self.history << 16) | u64::from(id)) & ADDRESS_MASK;
    }
}

#[inline]
fn stride_key(id: SiteId, site: &Site) -> usize {
    hash((site.stride << 1) ^ (u64::from(site.stride_history) << 32) ^ (u64::from(id) << 48))
}
