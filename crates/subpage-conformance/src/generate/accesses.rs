//! Single accesses: every kind, at every kind of offset.

use fastrand::Rng;

use super::{Draft, chance};
use crate::case::Word;
use crate::code::VMCALL;
use crate::instruction::{Instruction, Modify, Size, Wide};
use crate::layout::{PAGES, linear, word};

/// A linear address in the window for an access of `length` bytes.
fn address(random: &mut Rng, length: u64) -> u64 {
    linear(random.u32(..PAGES)) + offset(random, length)
}

/// An offset in a page for an access of `length` bytes.
fn offset(random: &mut Rng, length: u64) -> u64 {
    let inside = random.u64(1..length.max(2));
    match random.u32(..20) {
        // Across the end of a page.
        0..3 => 0x1000 - inside,
        // Across the end of a sub-page.
        3..7 => (random.u64(1..32) * 128).saturating_sub(inside),
        // The first and the last bytes of a sub-page.
        7..9 => random.u64(..32) * 128,
        9..11 => random.u64(1..33) * 128 - length.min(128),
        11..16 => random.u64(..512) * 8,
        _ => random.u64(..0x1000),
    }
}

/// The same, a multiple of 16.
fn aligned(random: &mut Rng, length: u64) -> u64 {
    address(random, length) & !0xF
}

fn size(random: &mut Rng) -> Size {
    Size::ALL[random.usize(..4)]
}

fn value(random: &mut Rng, size: Size) -> u64 {
    random.u64(..) & size.mask()
}

impl Draft {
    /// One instruction; what it needs in memory is added to `stores`.
    pub(super) fn access(
        &self,
        random: &mut Rng,
        first: bool,
        stores: &mut Vec<Word>,
    ) -> Instruction {
        let mut instruction = Self::any_instruction(random);
        if instruction.needs_initial_flags() && !first {
            instruction = Instruction::Push { stack: address(random, 8) + 8, value: 1 };
        }
        match instruction {
            Instruction::Jump { to } => self.put(to, &VMCALL, stores),
            Instruction::Load { at, .. } | Instruction::LoadWide { at, .. } => {
                self.put(at, &random.u64(..).to_le_bytes(), stores);
            }
            Instruction::Modify { at, size, compare, .. } if random.bool() => {
                self.put(at, &compare.to_le_bytes()[..1 << size as usize], stores);
            }
            _ => {}
        }
        instruction
    }

    /// An access to one linear page, which may reach the next.
    pub(super) fn access_to(random: &mut Rng, page: u32) -> Instruction {
        let size = size(random);
        let at = linear(page) + offset(random, size.bytes());
        match random.u32(..10) {
            0..3 => Instruction::Load { at, size },
            3..7 => Instruction::Store { at, size, value: value(random, size) },
            7 => {
                let (kind, value) = (Modify::LockAdd, value(random, size));
                Instruction::Modify { at, size, kind, value, compare: 0 }
            }
            8 => Instruction::Push { stack: at + 8, value: random.u64(..) },
            _ => Instruction::Fill {
                at,
                size,
                count: 3,
                value: value(random, size),
                backward: false,
            },
        }
    }

    fn any_instruction(random: &mut Rng) -> Instruction {
        let size = size(random);
        let wide = if random.bool() { Wide::Xmm } else { Wide::Ymm };
        let backward = chance(random, 25);
        let count = if chance(random, 10) { random.u16(..3) } else { random.u16(..50) };
        let length = size.bytes();
        match random.u32(..32) {
            0..3 => Instruction::Load { at: address(random, length), size },
            3..12 => {
                Instruction::Store { at: address(random, length), size, value: value(random, size) }
            }
            12..18 => {
                let kinds =
                    [Modify::Add, Modify::LockAdd, Modify::Exchange, Modify::CompareExchange];
                Instruction::Modify {
                    at: address(random, length),
                    size,
                    kind: kinds[random.usize(..4)],
                    value: value(random, size),
                    compare: if random.bool() { 0 } else { value(random, size) },
                }
            }
            18 => Instruction::CompareExchange16 { at: aligned(random, 16), value: random.u64(..) },
            19 => Instruction::LoadWide { at: address(random, wide.bytes()), size: wide },
            20..23 => Instruction::StoreWide {
                at: address(random, wide.bytes()),
                size: wide,
                source: random.u16(..0xD00),
            },
            23 => Instruction::SaveState { at: aligned(random, 400) },
            24..26 => Instruction::Push { stack: address(random, 8) + 8, value: random.u64(..) },
            26 => Instruction::Call { stack: address(random, 8) + 8 },
            27 => Instruction::Interrupt { stack: address(random, 40) + 40 },
            28 => Instruction::Fill {
                at: address(random, length * 20),
                size,
                count,
                value: value(random, size),
                backward,
            },
            29 => Instruction::Copy {
                from: address(random, length * 20),
                to: address(random, length * 20),
                size,
                count,
                backward,
            },
            _ => Instruction::Jump { to: address(random, 3) },
        }
    }

    /// Puts bytes where linear addresses lead to if the leaves in use map 4 KiB, and where they lead
    /// to if they map more.
    fn put(&self, at: u64, bytes: &[u8], stores: &mut Vec<Word>) {
        let mut words = std::collections::BTreeMap::<u32, u64>::new();
        for (at, byte) in (at..).zip(bytes) {
            // Behind the last page nothing is mapped.
            let page = usize::try_from((at - linear(0)) >> 12).unwrap_or(usize::MAX);
            let Some((window, page)) = self.mapped.get(page) else { continue };
            let frame = self.frames[*window as usize][*page as usize];
            let (index, shift) = (at >> 3 & 0x1FF, at % 8 * 8);
            for frame in [frame, *page] {
                let index = u32::try_from(index).expect("nine bits");
                *words.entry(word(frame, index)).or_default() |= u64::from(*byte) << shift;
            }
        }
        stores.extend(words);
    }
}
