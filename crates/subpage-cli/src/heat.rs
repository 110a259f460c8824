//! How often each sub-page around the rules was written.

use std::collections::HashMap;

use subpage::access::{AccessMap, SUB_PAGE_BYTES, SubPage};
use subpage::address::{ByteRange, Gfn, Gpa, PAGE_BYTES};

/// Sub-pages in a page, as an array length.
pub const CELLS: usize = 32;

/// Most pages that are counted.
const MAX_PAGES: usize = 512;

/// Most guarded pages of one rule that are counted, from its first on.
const MAX_PAGES_PER_RULE: usize = 64;

/// Pages before and after a guarded page that are counted too.
const NEIGHBOURS: u64 = 1;

/// Most pages that are taken because they were written much; the others are for those that rules guard.
const MAX_HOT_PAGES: usize = MAX_PAGES * 3 / 4;

/// Bits of the frame number that the filter distinguishes.
const FILTER_BITS: u32 = 12;

/// The writes to one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageHeat {
    /// The page.
    pub gfn: Gfn,
    /// Writes that touched each sub-page, denied ones included.
    pub writes: [u64; CELLS],
    /// Of these, the denied.
    pub denied: [u64; CELLS],
    /// For each rule with bytes in the page: its index in the policy and its sub-pages.
    pub rules: Vec<(usize, AccessMap)>,
    /// The sub-pages that an access map denies, whatever rules say.
    pub maps: AccessMap,
}

impl PageHeat {
    /// The sub-pages that at least one rule, or an access map, guards.
    pub fn guarded(&self) -> AccessMap {
        self.rules.iter().fold(self.maps, |all, (_, map)| all | *map)
    }
}

/// Counts of the pages around the rules; all other writes are passed over quickly.
#[derive(Debug, Clone)]
pub struct Heat {
    pages: Vec<PageHeat>,
    index: HashMap<u64, usize>,
    /// One bit for each value of a frame number's low bits: most writes hit no counted page, and
    /// one load tells so.
    filter: Vec<u64>,
    omitted: u64,
}

impl Heat {
    /// Prepares the pages of `rules`, in the order of the policy, and their neighbours.
    ///
    /// At most 64 pages of a rule and 512 in all; [`Heat::omitted`] says how many guarded pages
    /// are missing.
    pub fn around(rules: &[ByteRange]) -> Self {
        let mut heat = Self {
            pages: Vec::new(),
            index: HashMap::new(),
            filter: vec![0; 1 << (FILTER_BITS - 6)],
            omitted: 0,
        };
        heat.guard(0, rules);
        let guarded: Vec<Gfn> = heat.pages.iter().map(|page| page.gfn).collect();
        for gfn in guarded {
            for distance in 1..=NEIGHBOURS {
                let below = gfn.as_u64().checked_sub(distance).map(Gfn::new);
                for neighbour in [below, gfn.checked_add(distance)].into_iter().flatten() {
                    heat.page(neighbour);
                }
            }
        }
        heat
    }

    /// The pages of a guest whose writes were counted elsewhere, the hottest first, and those of `rules`,
    /// in the order of their indices.
    ///
    /// At most 384 hot pages, then at most 64 more of a rule and 512 in all; [`Heat::omitted`] as for
    /// [`around`](Self::around).
    pub fn counted<'a>(
        hottest: impl Iterator<Item = (Gfn, &'a [u64; CELLS], &'a [u64; CELLS])>,
        rules: &[ByteRange],
    ) -> Self {
        let mut heat = Self::around(&[]);
        for (gfn, writes, denied) in hottest.take(MAX_HOT_PAGES) {
            let page = heat.page(gfn).expect("there is room for so many");
            (heat.pages[page].writes, heat.pages[page].denied) = (*writes, *denied);
        }
        heat.guard(0, rules);
        heat
    }

    /// Adds the pages of rules, of which the first has the index `first`.
    fn guard(&mut self, first: usize, rules: &[ByteRange]) {
        for (rule, range) in (first..).zip(rules) {
            let mut counted = 0;
            for page in &mut self.pages {
                if let Some(bytes) = bytes_in(*range, page.gfn) {
                    page.rules.push((rule, AccessMap::touched_by(bytes)));
                    counted += 1;
                }
            }
            for bytes in range.pages().take(MAX_PAGES_PER_RULE) {
                let gfn = bytes.first().gfn();
                if self.index.contains_key(&gfn.as_u64()) {
                    continue;
                }
                let Some(page) = self.page(gfn) else { break };
                self.pages[page].rules.push((rule, AccessMap::touched_by(bytes)));
                counted += 1;
            }
            self.omitted = self.omitted.saturating_add(range.gfns().pages() - counted);
        }
    }

    /// Adds the sub-pages that access maps deny, by page.
    pub fn deny_by_maps(&mut self, denied: &[(Gfn, AccessMap)]) {
        for (gfn, map) in denied {
            match self.page(*gfn) {
                Some(page) => self.pages[page].maps = *map,
                None => self.omitted = self.omitted.saturating_add(1),
            }
        }
    }

    /// The counted page of a frame, added if there is room.
    fn page(&mut self, gfn: Gfn) -> Option<usize> {
        if let Some(page) = self.index.get(&gfn.as_u64()) {
            return Some(*page);
        }
        if self.pages.len() == MAX_PAGES {
            return None;
        }
        let page = self.pages.len();
        self.pages.push(PageHeat {
            gfn,
            writes: [0; CELLS],
            denied: [0; CELLS],
            rules: Vec::new(),
            maps: AccessMap::NONE,
        });
        self.index.insert(gfn.as_u64(), page);
        let (word, bit) = filter_place(gfn.as_u64());
        self.filter[word] |= bit;
        Some(page)
    }

    /// Counts a write to every counted sub-page that it touches.
    #[inline]
    pub fn count(&mut self, bytes: ByteRange, denied: bool) {
        let (first, last) = (bytes.first().gfn().as_u64(), bytes.last().gfn().as_u64());
        let hit = |gfn| {
            let (word, bit) = filter_place(gfn);
            self.filter[word] & bit != 0
        };
        if hit(first) || hit(last) {
            self.count_slowly(bytes, denied);
        }
    }

    fn count_slowly(&mut self, bytes: ByteRange, denied: bool) {
        for piece in bytes.pages() {
            let Some(page) = self.index.get(&piece.first().gfn().as_u64()) else { continue };
            let page = &mut self.pages[*page];
            for sub_page in AccessMap::touched_by(piece).iter() {
                let cell = usize::from(sub_page.index());
                page.writes[cell] += 1;
                page.denied[cell] += u64::from(denied);
            }
        }
    }

    /// How many pages of rules are not counted.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// The guarded pages, and their neighbours that were written, in ascending order.
    pub fn into_pages(self) -> Vec<PageHeat> {
        let mut pages = self.pages;
        pages.retain(|page| {
            !page.rules.is_empty()
                || !page.maps.is_empty()
                || page.writes.iter().any(|count| *count > 0)
        });
        pages.sort_by_key(|page| page.gfn);
        pages
    }
}

/// How many classes of counts there are.
pub const CLASSES: usize = 7;

/// The class of a count: 0 for none, then one for each power of ten, the last open.
pub const fn class_of(count: u64) -> usize {
    match count.checked_ilog10() {
        None => 0,
        Some(log) if log as usize >= CLASSES - 2 => CLASSES - 1,
        Some(log) => log as usize + 1,
    }
}

/// The bytes of a range in a page.
fn bytes_in(range: ByteRange, gfn: Gfn) -> Option<ByteRange> {
    let start = gfn.gpa().as_u64();
    let first = range.first().as_u64().max(start);
    let last = range.last().as_u64().min(start + (PAGE_BYTES - 1));
    let length = last.checked_sub(first)? + 1;
    ByteRange::new(Gpa::new(first), length).ok()
}

fn filter_place(gfn: u64) -> (usize, u64) {
    let low = gfn & ((1 << FILTER_BITS) - 1);
    #[allow(clippy::cast_possible_truncation)]
    ((low >> 6) as usize, 1 << (low & 63))
}

/// The addresses of a cell: first byte and the byte after the last.
pub fn cell_bytes(gfn: Gfn, cell: SubPage) -> (u64, u64) {
    let start = gfn.as_u64() * PAGE_BYTES + u64::from(cell.index()) * SUB_PAGE_BYTES;
    (start, start + SUB_PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(start), length).expect("a range")
    }

    #[test]
    fn writes_are_counted_per_touched_sub_page() {
        let mut heat = Heat::around(&[range(0x5080, 0x80)]);
        heat.count(range(0x507f, 2), true);
        heat.count(range(0x4fff, 2), false);
        heat.count(range(0x6000, 8), false);
        heat.count(range(0x7000, 8), false);
        // Same low bits of the frame number, another page.
        heat.count(range(0x5080 + (1 << (FILTER_BITS + 12)), 8), false);
        let pages = heat.into_pages();
        let gfns: Vec<_> = pages.iter().map(|page| page.gfn.as_u64()).collect();
        assert_eq!(gfns, [4, 5, 6]);
        assert_eq!(pages[0].writes[31], 1);
        assert_eq!(pages[1].writes[..3], [2, 1, 0]);
        assert_eq!(pages[1].denied[..3], [1, 1, 0]);
        assert_eq!(pages[1].guarded(), AccessMap::from_bits(0b10));
        assert_eq!(pages[2].writes[0], 1);
    }

    #[test]
    fn a_huge_rule_stays_bounded_and_says_so() {
        let heat = Heat::around(&[range(0, 1 << 48), range(0x10_0000, 0x1000)]);
        assert!(heat.pages.len() <= MAX_PAGES);
        assert_eq!(heat.omitted(), (1 << 36) - 64);
        let many: Vec<_> = (0..10_000).map(|index| range(index << 20, 128)).collect();
        let heat = Heat::around(&many);
        assert_eq!(heat.pages.len(), MAX_PAGES);
        assert_eq!(heat.omitted(), 10_000 - MAX_PAGES as u64);
    }

    /// Rules that came while the guest ran, and maps, too.
    #[test]
    fn what_was_counted_elsewhere_is_drawn_with_all_that_guards_it() {
        let cells = |cell: usize, count| {
            let mut cells = [0; CELLS];
            cells[cell] = count;
            cells
        };
        let (hot, denied, none) = (cells(31, 9), cells(31, 1), [0; CELLS]);
        // The second page of the first rule, which has more pages than are drawn of one.
        let counted = [(Gfn::new(0x200), &hot, &denied), (Gfn::new(0x150), &hot, &none)];
        let rules = [range(0x10_0f80, 0x10_0000), range(0x20_0fff, 2), range(0x5080, 0x80)];
        let mut heat = Heat::counted(counted.into_iter(), &rules);
        heat.deny_by_maps(&[(Gfn::new(0x300), AccessMap::from_bits(0b100))]);
        assert_eq!(heat.omitted(), 0x101 - 64 - 2);
        let pages = heat.into_pages();
        let of = |gfn: u64| pages.iter().find(|page| page.gfn.as_u64() == gfn).expect("drawn");
        assert_eq!(of(0x100).rules, [(0, AccessMap::from_bits(1 << 31))]);
        assert_eq!((&of(0x150).rules[..], of(0x150).writes[31]), (&[(0, AccessMap::ALL)][..], 9));
        let both = [(0, !AccessMap::from_bits(1 << 31)), (1, AccessMap::from_bits(1 << 31))];
        assert_eq!((&of(0x200).rules[..], of(0x200).denied[31]), (&both[..], 1));
        assert_eq!(of(0x201).rules, [(1, AccessMap::from_bits(1))]);
        assert_eq!(of(5).rules, [(2, AccessMap::from_bits(0b10))]);
        assert_eq!(of(0x300).guarded(), AccessMap::from_bits(0b100));
    }

    #[test]
    fn hot_pages_leave_room_for_guarded_ones() {
        let writes = [1; CELLS];
        let counted = (0..10_000).map(|gfn| (Gfn::new(gfn), &writes, &writes));
        let heat = Heat::counted(counted, &[range(0x8000_0000, 128)]);
        let pages = heat.into_pages();
        assert_eq!((pages.len(), pages[MAX_HOT_PAGES].rules.len()), (MAX_HOT_PAGES + 1, 1));
    }

    #[test]
    fn pages_at_both_ends_of_the_address_space_have_one_neighbour() {
        let heat = Heat::around(&[range(0, 1), range((1 << 48) - 1, 1)]);
        assert_eq!(heat.pages.len(), 4);
    }
}
