//! The guest's own tables for the linear window, and how host and guest change them.

use fastrand::Rng;

use super::entries::guest_entry;
use super::{Draft, chance};
use crate::case::{Step, Word};
use crate::instruction::{Instruction, Modify, Size};
use crate::layout::{
    DATA_PAGES, PAGES, WINDOW_L2, WINDOWS, frame, harness, harness_link, linear, window, word,
};

/// Where the tables are, and what they look like.
pub(super) struct GuestTables {
    /// Guest-physical address and frame of the tables of level 4, 3, 2, 1.
    places: [(u64, u32); 4],
    /// Leaves are user-mode pages.
    user: bool,
    /// Size of the pages, as a power of two: 12, 21 or 30. The tables below a large leaf are there
    /// all the same, for when the entry changes.
    order: u32,
    /// The window that a large leaf maps.
    window: u32,
}

/// Order of the entries of level 4, 3, 2 and 1.
const ORDERS: [u32; 4] = [39, 30, 21, 12];

/// Index of the entry on the way to the linear window, in the tables of level 4, 3 and 2.
const INDICES: [u32; 3] = [1, 0, WINDOW_L2];

impl GuestTables {
    pub(super) fn new(random: &mut Rng) -> Self {
        let order = match random.u32(..100) {
            0..13 => 21,
            13..22 => 30,
            _ => 12,
        };
        let window = random.u32(..WINDOWS);
        Self { places: [(0, 0); 4], user: random.bool(), order, window }
    }

    /// Whether leaves are user-mode pages, most of them.
    pub(super) const fn has_user_pages(&self) -> bool {
        self.user
    }
}

impl Draft {
    /// The guest's tables, each in the harness or in a window's page.
    pub(super) fn guest_tables(&mut self, random: &mut Rng, walks: bool) {
        let harness_frames = [
            frame::GUEST_L4,
            frame::GUEST_TABLES,
            frame::GUEST_TABLES + 1,
            frame::GUEST_TABLES + 2,
        ];
        for (level, place) in (0..).zip(&mut self.guest.places) {
            let in_window = walks && chance(random, if level == 0 { 6 } else { 50 });
            *place = if in_window {
                let frame = frame::WINDOW_TABLES + level;
                (window(random.u32(..WINDOWS), frame), frame)
            } else {
                let frame = harness_frames[level as usize];
                (harness(frame), frame)
            };
        }
        let (root, root_frame) = self.guest.places[0];
        self.case.cr3 = root;
        if root_frame != frame::GUEST_L4 {
            // The harness must be reached from this root too.
            self.case.stores.push((word(root_frame, 0), harness_link(frame::GUEST_HARNESS)));
        }
        for level in 0..3 {
            let entry = self.upper_guest_entry(random, level, self.guest.order, 97);
            self.case.stores.push(entry);
        }
        for page in 0..PAGES {
            let (number, target) = self.mapped[page as usize];
            let entry = self.guest_leaf(random, page, (number, target), 80);
            self.case.stores.push(entry);
        }
        if self.guest.order > 12 {
            let window = self.guest.window;
            self.mapped = (0..PAGES).map(|page| (window, page)).collect();
        }
    }

    /// The entry of a table of level 4, 3 or 2 (`level` 0, 1, 2) on the way to the linear window; a
    /// leaf if pages of its size are wanted.
    fn upper_guest_entry(&self, random: &mut Rng, level: usize, order: u32, good: u32) -> Word {
        let GuestTables { places, user, window: number, .. } = self.guest;
        let leaf = ORDERS[level] == order;
        let address = if leaf { window(number, 0) } else { places[level + 1].0 };
        let entry = guest_entry(random, address, (ORDERS[level], leaf), user, good);
        (word(places[level].1, INDICES[level]), entry)
    }

    fn guest_leaf(&self, random: &mut Rng, page: u32, target: (u32, u32), good: u32) -> Word {
        let GuestTables { places, user, .. } = self.guest;
        let address = window(target.0, target.1);
        let entry = guest_entry(random, address, (12, true), user, good);
        // Bits 20:12 of the linear window are 0.
        (word(places[3].1, page), entry)
    }

    /// A new entry for the guest's tables, and the linear page that it matters to.
    pub(super) fn guest_change(&mut self, random: &mut Rng) -> (Word, u32) {
        let page = random.u32(..PAGES);
        let order = self.guest.order;
        let level = match ORDERS[..3].iter().position(|it| *it == order) {
            None if chance(random, 75) => {
                let target = (random.u32(..WINDOWS), random.u32(..DATA_PAGES));
                self.mapped[page as usize] = target;
                return (self.guest_leaf(random, page, target, 60), page);
            }
            Some(level) if chance(random, 75) => level,
            _ => random.usize(..3),
        };
        let leaf = order == ORDERS[level] || chance(random, 20);
        if leaf {
            self.guest.window = random.u32(..WINDOWS);
            self.mapped = (0..PAGES).map(|page| (self.guest.window, page)).collect();
        }
        let order = if leaf { ORDERS[level] } else { 12 };
        (self.upper_guest_entry(random, level, order, 60), page)
    }

    /// A step in which the guest stores to an entry of its own tables, before and after other
    /// accesses to the page, with and without INVLPG.
    pub(super) fn guest_changes_tables(&mut self, random: &mut Rng, step: &mut Step) {
        let ((at, value), page) = self.guest_change(random);
        let instructions = &mut step.instructions;
        if chance(random, 70) {
            instructions.push(Self::access_to(random, page));
        }
        // Tables in a window are not mapped for the guest's own stores.
        let (table, index) = (at / 512, at % 512);
        if table >= frame::CODE {
            let (at, size) = (harness(table) + u64::from(index) * 8, Size::Quad);
            instructions.push(if chance(random, 75) {
                Instruction::Store { at, size, value }
            } else {
                Instruction::Modify { at, size, kind: Modify::Exchange, value, compare: 0 }
            });
        }
        if chance(random, 50) && (!step.mode.user || chance(random, 10)) {
            // Of the page itself, or of another one, which may be part of the same large page.
            let page = if chance(random, 60) { page } else { random.u32(..PAGES) };
            instructions.push(Instruction::Invalidate { at: linear(page) + random.u64(..0x1000) });
        }
        for _ in 0..random.u32(1..4) {
            let page = if chance(random, 85) { page } else { random.u32(..PAGES) };
            instructions.push(Self::access_to(random, page));
        }
    }
}
