//! What can happen to a guest.

use proptest::prelude::*;

/// Pages where things happen: around the ends of regions and slots, near each other.
pub(crate) const HOT: [u64; 17] = [
    0x10000, 0x10001, 0x10002, 0x101FF, 0x10200, 0x10201, 0x103FE, 0x103FF, 0x10400, 0x10401,
    0x10480, 0x40000, 0x401FF, 0x40200, 0x6000F, 0x60010, 0x6002F,
];

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Write `length` bytes; `from` picks an offset from an interesting place of the page.
    Write {
        cpu: usize,
        page: usize,
        offset: u16,
        length: u8,
        value: u8,
    },
    /// Software writes for the guest (a device).
    Device {
        page: usize,
        offset: u16,
        length: u8,
        value: u8,
    },
    Set {
        page: usize,
        maps: Vec<u32>,
        repeat: u8,
    },
    AddRules {
        rules: Vec<NewRule>,
    },
    RemoveRule {
        which: u8,
    },
    Track {
        page: usize,
        offset: u16,
        length: u32,
    },
    Harvest {
        which: u8,
    },
    Untrack {
        which: u8,
    },
    Log {
        slot: u8,
        on: bool,
    },
    HarvestDirty {
        slot: u8,
    },
    ReadOnly {
        slot: u8,
        on: bool,
    },
    RemoveSlot {
        slot: u8,
    },
    MoveSlot {
        slot: u8,
        aside: bool,
    },
    AddSlot {
        slot: u8,
    },
    /// A slot that names memory again.
    AddAlias,
    RemoveAlias,
    Unmap {
        page: usize,
        pages: u16,
    },
    Protect {
        page: usize,
        pages: u16,
    },
    Migrate,
}

#[derive(Debug, Clone)]
pub(crate) struct NewRule {
    pub(crate) page: usize,
    pub(crate) offset: u16,
    pub(crate) length: u32,
    pub(crate) action: u8,
    pub(crate) locked: bool,
}

/// Offsets that matter: ends of sub-pages and pages more often than the rest.
fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![
        2 => (0u16..32, 0u16..16).prop_map(|(sub, back)| (sub * 128 + 128 - back) % 4096),
        1 => 4060u16..4096,
        1 => 0u16..4096,
    ]
}

fn page() -> impl Strategy<Value = usize> {
    0..HOT.len()
}

fn map() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(u32::MAX),
        1 => Just(0),
        2 => (0u32..32).prop_map(|bit| !(1 << bit)),
        1 => any::<u32>(),
    ]
}

fn new_rule() -> impl Strategy<Value = NewRule> {
    let length = prop_oneof![3 => 1u32..300, 1 => 1u32..20_000];
    (page(), offset(), length, 0u8..4, prop::bool::weighted(0.02)).prop_map(
        |(page, offset, length, action, locked)| NewRule { page, offset, length, action, locked },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as O;
    let write = (0usize..2, page(), offset(), 1u8..=64, any::<u8>());
    prop_oneof![
        60 => write.prop_map(|(cpu, page, offset, length, value)| O::Write { cpu, page, offset, length, value }),
        6 => (page(), offset(), 1u8..=200, any::<u8>())
            .prop_map(|(page, offset, length, value)| O::Device { page, offset, length, value }),
        10 => (page(), prop::collection::vec(map(), 1..4), prop_oneof![5 => Just(1u8), 1 => Just(200)])
            .prop_map(|(page, maps, repeat)| O::Set { page, maps, repeat }),
        5 => prop::collection::vec(new_rule(), 1..4).prop_map(|rules| O::AddRules { rules }),
        5 => any::<u8>().prop_map(|which| O::RemoveRule { which }),
        2 => (page(), offset(), 1u32..30_000)
            .prop_map(|(page, offset, length)| O::Track { page, offset, length }),
        4 => any::<u8>().prop_map(|which| O::Harvest { which }),
        1 => any::<u8>().prop_map(|which| O::Untrack { which }),
        2 => (0u8..3, any::<bool>()).prop_map(|(slot, on)| O::Log { slot, on }),
        3 => (0u8..3).prop_map(|slot| O::HarvestDirty { slot }),
        1 => (0u8..3, any::<bool>()).prop_map(|(slot, on)| O::ReadOnly { slot, on }),
        1 => (0u8..3).prop_map(|slot| O::RemoveSlot { slot }),
        1 => (0u8..3, any::<bool>()).prop_map(|(slot, aside)| O::MoveSlot { slot, aside }),
        3 => (0u8..3).prop_map(|slot| O::AddSlot { slot }),
        3 => Just(O::AddAlias),
        1 => Just(O::RemoveAlias),
        2 => (page(), 1u16..700).prop_map(|(page, pages)| O::Unmap { page, pages }),
        2 => (page(), 1u16..700).prop_map(|(page, pages)| O::Protect { page, pages }),
        1 => Just(O::Migrate),
    ]
}

pub(crate) fn operations(length: usize) -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..=length)
}
