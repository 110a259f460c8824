//! Random cases: tables that are mostly good and here and there odd, and accesses to where they
//! matter.

mod accesses;
mod entries;
mod guest_tables;

use fastrand::Rng;

use crate::case::{Case, Mode, Step, Word};
use crate::layout::{DATA_PAGES, PAGES, WINDOW_L2, WINDOWS, frame, host, window_l3, word};
use crate::outcome::Observed;
use crate::predict::ModelledProcessor;
use entries::{ept_leaf, ept_link, sppt_link, vector};
use guest_tables::GuestTables;

/// Makes cases for one processor; the same seed makes the same cases.
pub(crate) struct Generator {
    random: Rng,
    processor: ModelledProcessor,
}

/// A case and what the model says about each of its steps.
pub(crate) struct Predicted {
    /// The case.
    pub(crate) case: Case,
    /// One for each step.
    pub(crate) outcomes: Vec<Observed>,
}

impl Predicted {
    /// Instructions that are begun.
    pub(crate) fn accesses(&self) -> usize {
        self.outcomes.iter().map(|outcome| outcome.performed).sum()
    }
}

/// A case in the making.
struct Draft {
    case: Case,
    /// Per linear page the window's page that the guest maps there.
    mapped: Vec<(u32, u32)>,
    /// Where the guest's own tables are.
    guest: GuestTables,
    /// The processor has SMAP.
    smap: bool,
    /// Per window and page the frame that the last leaf named.
    frames: [[u32; PAGES as usize]; WINDOWS as usize],
}

impl Generator {
    /// A generator of cases for `processor`.
    pub(crate) fn new(seed: u64, processor: ModelledProcessor) -> Self {
        Self { random: Rng::with_seed(seed), processor }
    }

    /// The next case; those of no use are passed over.
    pub(crate) fn case(&mut self) -> Predicted {
        loop {
            let case = self.draft();
            if let Ok(outcomes) = self.processor.predict(&case) {
                return Predicted { case, outcomes };
            }
        }
    }

    fn draft(&mut self) -> Case {
        let random = &mut self.random;
        let sub_page = self.processor.sub_page && chance(random, 90);
        let mut draft = Draft {
            case: Case::new(sub_page, random.bool()),
            mapped: (0..PAGES).map(|_| (random.u32(..WINDOWS), random.u32(..DATA_PAGES))).collect(),
            guest: GuestTables::new(random),
            smap: self.processor.smap,
            frames: [[0; PAGES as usize]; WINDOWS as usize],
        };
        let walks = chance(random, 35);
        draft.tables(random, walks);
        draft.guest_tables(random, walks);
        for frame in 0..DATA_PAGES {
            let index = random.u32(..512);
            draft.case.stores.push((word(frame, index), random.u64(..)));
        }
        for _ in 0..random.u32(5..16) {
            let step = draft.step(random);
            draft.case.steps.push(step);
        }
        draft.case
    }
}

/// True in so many of a hundred cases.
fn chance(random: &mut Rng, percent: u32) -> bool {
    random.u32(..100) < percent
}

impl Draft {
    fn tables(&mut self, random: &mut Rng, walks: bool) {
        let stores = &mut self.case.stores;
        stores.push((word(frame::EPT_L4, 1), ept_link(random, host(frame::EPT_L3), 90)));
        stores.push((word(frame::SPPT_L4, 1), sppt_link(random, host(frame::SPPT_L3))));
        for window in 0..WINDOWS {
            for place in 0..4 {
                let store = Self::upper(random, window, place);
                self.case.stores.push(store);
            }
            for page in 0..PAGES {
                let leaf = self.leaf(random, window, page, walks);
                self.case.stores.push(leaf);
                self.case.stores.push((word(frame::SPPT_L1 + window, page), vector(random)));
            }
        }
    }

    /// An upper entry of a window: of the EPT level 3 and 2, of the SPPT level 3 and 2.
    fn upper(random: &mut Rng, window: u32, place: u32) -> Word {
        match place {
            0 => {
                let value = if chance(random, 4) {
                    // 1 GiB at host-physical 0: the low 30 bits of the window are the arena's.
                    ept_leaf(random, 0, 30)
                } else {
                    ept_link(random, host(frame::EPT_L2 + window), 92)
                };
                (word(frame::EPT_L3, window_l3(window)), value)
            }
            1 => {
                let value = if chance(random, 10) {
                    ept_leaf(random, host(0), 21)
                } else {
                    ept_link(random, host(frame::EPT_L1 + window), 90)
                };
                (word(frame::EPT_L2 + window, WINDOW_L2), value)
            }
            2 => {
                let value = sppt_link(random, host(frame::SPPT_L2 + window));
                (word(frame::SPPT_L3, window_l3(window)), value)
            }
            _ => {
                let value = sppt_link(random, host(frame::SPPT_L1 + window));
                (word(frame::SPPT_L2 + window, WINDOW_L2), value)
            }
        }
    }

    fn leaf(&mut self, random: &mut Rng, window: u32, page: u32, walks: bool) -> Word {
        let table = page >= DATA_PAGES;
        let target = if table || chance(random, 60) { page } else { random.u32(..DATA_PAGES) };
        self.frames[window as usize][page as usize] = target;
        let value = if table && (!walks || chance(random, 50)) {
            host(target) | 0x37
        } else {
            ept_leaf(random, host(target), 12)
        };
        (word(frame::EPT_L1 + window, page), value)
    }

    fn step(&mut self, random: &mut Rng) -> Step {
        let mut step = Step { mode: self.mode(random), ..Step::default() };
        while chance(random, 30) {
            let change = self.change(random);
            step.stores.push(change);
        }
        if chance(random, 12) {
            self.guest_changes_tables(random, &mut step);
            return step;
        }
        for number in 0..random.u32(1..4) {
            let instruction = self.access(random, number == 0, &mut step.stores);
            step.instructions.push(instruction);
            if !instruction.continues() {
                break;
            }
        }
        step
    }

    fn mode(&self, random: &mut Rng) -> Mode {
        Mode {
            // Most often what the pages are made for.
            user: chance(random, if self.guest.has_user_pages() { 60 } else { 15 }),
            write_protect: chance(random, 75),
            smep: chance(random, 30),
            smap: self.smap && chance(random, 30),
            alignment_check: chance(random, 60),
        }
    }

    /// A change of tables between two entries.
    fn change(&mut self, random: &mut Rng) -> Word {
        let (window, page) = self.mapped[random.usize(..self.mapped.len())];
        match random.u32(..11) {
            0..5 => self.leaf(random, window, page, true),
            5..9 => (word(frame::SPPT_L1 + window, page), vector(random)),
            9 => self.guest_change(random).0,
            _ => {
                let place = random.u32(..4);
                Self::upper(random, window, place)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use subpage_model::Deviations;

    use super::*;
    use crate::layout::linear;

    const TIGER_LAKE: ModelledProcessor = ModelledProcessor {
        sub_page: true,
        advanced_information: true,
        smap: true,
        shadow_stacks: true,
        deviations: Deviations::BOCHS,
    };

    #[test]
    fn a_seed_makes_its_cases_again() {
        let cases = |seed| {
            let mut generator = Generator::new(seed, TIGER_LAKE);
            (0..20).map(move |_| generator.case()).collect::<Vec<_>>()
        };
        let (first, second, other) = (cases(1), cases(1), cases(2));
        for (first, second) in first.iter().zip(&second) {
            assert_eq!(first.case, second.case);
            assert_eq!(first.outcomes, second.outcomes);
        }
        assert!(first.iter().zip(&other).all(|(first, other)| first.case != other.case));
    }

    /// Every way a step can end is reached, by every kind of instruction that can end so.
    #[test]
    fn the_mixture_reaches_everything() {
        let mut generator = Generator::new(7, TIGER_LAKE);
        let (mut endings, mut kinds) = (HashSet::new(), HashSet::new());
        let (mut walks, mut delivery, mut large) = (0, 0, 0);
        let mut faults = HashSet::new();
        for _ in 0..3000 {
            let Predicted { case, outcomes } = generator.case();
            for (step, outcome) in case.steps.iter().zip(outcomes) {
                endings.insert((outcome.reason, outcome.qualification));
                faults.extend(outcome.error.filter(|_| outcome.event == Some(0x8000_0B0E)));
                walks += u32::from(outcome.qualification.is_some_and(|bits| bits & 0x180 == 0x80));
                delivery += u32::from(outcome.vectoring != 0);
                if let Some(last) = outcome.performed.checked_sub(1) {
                    kinds.insert((step.instructions[last].name(), outcome.reason));
                }
                large += u32::from(step.instructions.iter().any(|instruction| {
                    matches!(instruction, crate::instruction::Instruction::Store { at, size, .. }
                        if at % 4096 + size.bytes() > 4096 && *at >= linear(0))
                }));
            }
        }
        for reason in [0, 18, 48, 49, 66] {
            let found = kinds.iter().filter(|(_, found)| *found == reason).count();
            assert!(found >= 10, "reason {reason} with {found} kinds of instruction");
        }
        assert!(endings.contains(&(66, Some(0))) && endings.contains(&(66, Some(0x800))));
        assert!(walks > 100 && delivery > 20 && large > 100, "{walks} {delivery} {large}");
        assert!(endings.len() > 60, "{} endings", endings.len());
        // Every error code of #PF: absent, forbidden, reserved; read, write, fetch; both privileges.
        for error in [0, 1, 2, 3, 9, 0xB, 0x10, 0x11, 0x19] {
            for user in [0, 4] {
                assert!(faults.contains(&(error | user)), "no #PF with {:#x}", error | user);
            }
        }
        // Violations through user-mode pages.
        assert!(
            endings
                .iter()
                .any(|(reason, bits)| *reason == 48 && bits.is_some_and(|it| it & 0x200 != 0))
        );
    }
}
