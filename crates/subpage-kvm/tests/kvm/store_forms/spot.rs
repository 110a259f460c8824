//! Where stores go: pairs of pages that are neighbours for the guest and lie far apart in memory.

use subpage::rules::Action;

use super::form::{Form, Quirk};
use crate::guest::{Guest, rule};
use crate::privilege::WINDOW;

/// Two pages and a hole behind them.
const PAIR: u64 = 0x3000;

const MEMORY: u64 = 0x80_0000;

/// How deep in its page [`Pair::Deep`] is guarded: further than a vector register reaches.
const DEEP: u64 = 0x64;

/// Which bytes of the pair are not to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pair {
    /// Both pages trap; what stores go to is permitted.
    Open,
    /// The first page traps, the start of the second is denied.
    Second,
    /// The end of the first page is denied, the second traps.
    First,
    /// The first does not trap, the start of the second is denied.
    PlainSecond,
    /// The end of the first page is denied, the second does not trap.
    FirstPlain,
    /// The first page traps and the second does not; all is permitted.
    OpenPlain,
    /// Neighbours in memory, too; the first byte of the second is denied.
    Neighbours,
    /// 0x400..0x800 and the byte 0xdff of the first are denied.
    Within,
    /// Neighbours in memory; only bytes well behind the start of the second are denied.
    Deep,
}

const PAIRS: [Pair; 9] = [
    Pair::Open,
    Pair::Second,
    Pair::First,
    Pair::PlainSecond,
    Pair::FirstPlain,
    Pair::OpenPlain,
    Pair::Neighbours,
    Pair::Within,
    Pair::Deep,
];

impl Pair {
    fn number(self) -> u64 {
        self as u64
    }

    /// Linear address of the first page.
    pub(super) fn linear(self) -> u64 {
        WINDOW + self.number() * PAIR
    }

    /// Where a page of the pair lies in memory.
    pub(super) fn page(self, number: u64) -> u64 {
        match self {
            Self::Neighbours => MEMORY + 0x10_0000 + number * 0x1000,
            Self::Deep => MEMORY + 0x12_0000 + number * 0x1000,
            // The second pages lie far from the first, some below and some above.
            _ => MEMORY + (self.number() * 2 + number) * 7 % 16 * 0x2000,
        }
    }

    /// Which page traps, if only one does.
    pub(super) fn half(self) -> Option<u64> {
        match self {
            Self::PlainSecond => Some(1),
            Self::FirstPlain | Self::OpenPlain => Some(0),
            _ => None,
        }
    }

    /// Guest-physical address of a linear one in the pair.
    pub(super) fn gpa(self, linear: u64) -> u64 {
        let offset = linear - self.linear();
        self.page(offset >> 12) + offset % 0x1000
    }
}

/// The window for all pairs.
pub(super) fn window() -> Vec<Option<u64>> {
    PAIRS.iter().flat_map(|pair| [Some(pair.page(0)), Some(pair.page(1)), None]).collect()
}

/// Guards the pairs.
pub(super) fn guard(guest: &Guest) {
    const UNUSED: u32 = !(1 << 16);
    for page in [
        Pair::Open.page(0),
        Pair::Open.page(1),
        Pair::Second.page(0),
        Pair::First.page(1),
        Pair::OpenPlain.page(0),
        Pair::Neighbours.page(0),
    ] {
        guest.map(page, UNUSED);
    }
    guest.map(Pair::Second.page(1), !1);
    guest.map(Pair::First.page(0), !(1 << 31));
    let deny = |name: &str, start, bytes| rule(name, start, bytes, Action::Deny);
    let rules = [
        deny("second", Pair::PlainSecond.page(1), 128),
        deny("first", Pair::FirstPlain.page(0) + 0xf80, 128),
        deny("neighbour", Pair::Neighbours.page(1), 1),
        deny("deep", Pair::Deep.page(1) + DEEP, 128),
        deny("middle", Pair::Within.page(0) + 0x400, 0x400),
        deny("byte", Pair::Within.page(0) + 0xdff, 1),
    ];
    guest.vm.add_rules(&rules).expect("memory of the guest");
}

/// Where one store goes, and what is to become of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) pair: Pair,
    /// Linear address of the first byte.
    pub(super) linear: u64,
    /// Linear address of the first byte that is denied.
    pub(super) denied: Option<u64>,
}

/// All spots that a form can store to.
pub(super) fn spots(form: &Form) -> Vec<Spot> {
    let bytes = form.bytes;
    let mut spots = Vec::new();
    let mut add = |pair: Pair, offset: u64, denied: Option<u64>| {
        let linear = pair.linear() + offset;
        let denied = denied.map(|offset| pair.linear() + offset);
        if linear.is_multiple_of(form.alignment()) {
            spots.push(Spot { pair, linear, denied });
        }
    };
    add(Pair::Open, 0x200, None);
    add(Pair::Open, 0x3fd, None);
    add(Pair::Within, 0x600, Some(0x600));
    add(Pair::Within, 0xe00 - bytes, Some(0xdff));
    // The first byte is the last one of a rule.
    add(Pair::Within, 0x7ff, Some(0x7ff));
    if form.quirk == Quirk::Slow {
        return spots;
    }
    if bytes / 2 > DEEP {
        add(Pair::Deep, 0x1000 - bytes / 2, Some(0x1000 + DEEP));
    }
    // One byte in the second page; all but one; and for what KVM cuts into pieces, half.
    let cuts = [bytes - 1, 1, if bytes < 16 { 0 } else { bytes / 2 }];
    for (number, cut) in cuts.into_iter().enumerate() {
        if !(1..bytes).contains(&cut) || cuts[..number].contains(&cut) {
            continue;
        }
        let offset = 0x1000 - cut;
        let to_end = 0xf80.max(offset);
        add(Pair::Open, offset, None);
        add(Pair::OpenPlain, offset, None);
        add(Pair::Second, offset, Some(0x1000));
        add(Pair::First, offset, Some(to_end));
        add(Pair::PlainSecond, offset, Some(0x1000));
        add(Pair::FirstPlain, offset, Some(to_end));
        add(Pair::Neighbours, offset, Some(0x1000));
    }
    spots
}
