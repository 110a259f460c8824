//! From a linear address to a guest-physical one: the guest's paging structures, and what the
//! processor remembers of them.

use std::collections::BTreeMap;

use arrayvec::ArrayVec;
use subpage::address::{Gpa, Hpa};
use subpage_model::{Access, AccessKind, GuestRights, ept_walk};

use crate::stepped_cpu::{SteppedCpu, Stop};

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Translation {
    /// The guest-physical address.
    pub(crate) gpa: Gpa,
    /// What the guest's paging structures allow.
    pub(crate) rights: GuestRights,
    /// Size of the page, as a power of two: 12, 21 or 30.
    order: u32,
    /// It was remembered: nothing has been read for it.
    remembered: bool,
}

/// A translation of one 4 KiB page and the accesses that it serves.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    translation: Translation,
    /// By privilege (0 supervisor, 1 user) and kind (0 read, 1 write).
    serves: [[bool; 2]; 2],
}

/// Translations that data accesses have left since the guest was entered, by linear page.
///
/// SDM Vol. 3A, "Caching Translation Information", lets a processor use a translation until it is
/// invalidated, whatever software stores to the entries that it came from, and lets it forget one at
/// any time. This is how Bochs chooses: a translation is kept until INVLPG or the next VM exit and
/// serves what it has been used for: reads, and writes if it was made by one; the other privilege
/// only where that cannot matter. A write that the SPPT let pass leaves one for reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Translations(BTreeMap<u64, Remembered>);

impl Translations {
    /// The guest is entered.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// INVLPG: forgets the page of any size that holds `linear`.
    pub(crate) fn invalidate(&mut self, linear: u64) {
        self.0.retain(|page, remembered| {
            let order = remembered.translation.order;
            page << 12 >> order != linear >> order
        });
    }

    fn find(&self, kind: AccessKind, linear: u64, user: bool) -> Option<Translation> {
        let remembered = self.0.get(&(linear >> 12)).filter(|_| kind != AccessKind::Fetch)?;
        let Remembered { translation, serves } = *remembered;
        let serves = serves[usize::from(user)][usize::from(kind.is_write())];
        let gpa = Gpa::new(translation.gpa.gfn().gpa().as_u64() | linear & 0xFFF);
        serves.then_some(Translation { gpa, remembered: true, ..translation })
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const EXECUTE_DISABLE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Address bits that a processor of 40 bits has not.
const BEYOND_WIDTH: u64 = 0x000F_FF00_0000_0000;

/// An entry that a walk has used.
struct Used {
    gpa: Gpa,
    hpa: Hpa,
    entry: u64,
}

impl SteppedCpu {
    /// Translates the address of an access, from memory or by a walk.
    pub(crate) fn translate(&mut self, kind: AccessKind, linear: u64) -> Result<Translation, Stop> {
        match self.translations.find(kind, linear, self.user) {
            Some(translation) => Ok(translation),
            None => self.walk(kind, linear),
        }
    }

    /// Remembers the translation of an access that EPT and SPPT have let pass.
    pub(crate) fn remember(&mut self, kind: AccessKind, linear: u64, translation: Translation) {
        if kind == AccessKind::Fetch || translation.remembered {
            return;
        }
        let write = kind.is_write() && self.ept_allows_writes(translation.gpa);
        let user_page = translation.rights.user;
        // A supervisor's access to a user-mode page depends on RFLAGS.AC then.
        let supervisor = !(user_page && self.mode.smap);
        let user = user_page && self.user;
        let serves = [supervisor, user].map(|privilege| [privilege, privilege && write]);
        self.translations.0.insert(linear >> 12, Remembered { translation, serves });
    }

    /// Whether EPT alone allows writes to a page.
    fn ept_allows_writes(&self, gpa: Gpa) -> bool {
        let start = ept_walk::Start::root(self.roots.ept);
        let (features, deviations) = (self.vcpu.features(), self.vcpu.deviations());
        let walk = ept_walk::walk(&self.arena, start, gpa, features, deviations);
        walk.is_ok_and(|walk| walk.page.rights.write())
    }

    /// Walks the guest's paging structures.
    ///
    /// Accessed and dirty flags are set once the whole walk has succeeded, which the architecture
    /// permits and Bochs does. SDM Vol. 3A, "4-Level Paging and 5-Level Paging" and "Accessed and
    /// Dirty Flags".
    fn walk(&mut self, kind: AccessKind, linear: u64) -> Result<Translation, Stop> {
        let mut table = self.cr3 & ADDRESS;
        let mut rights = GuestRights { user: true, writable: true, execute_disable: false };
        let mut used = ArrayVec::<Used, 4>::new();
        let mut order = 12;
        for shift in [39, 30, 21, 12] {
            let gpa = Gpa::try_new(table | (linear >> shift & 0x1FF) << 3);
            let gpa = gpa.map_err(|_| Stop::Useless)?;
            let read = Access::new(AccessKind::WalkRead, gpa, 8).map_err(|_| Stop::Useless)?;
            let hpa = self.check(&read.at_linear(linear))?.first;
            let mut bytes = [0; 8];
            self.load(&[(hpa, 8)], &mut bytes);
            let entry = u64::from_le_bytes(bytes);
            if entry & PRESENT == 0 {
                return Err(self.page_fault(kind, linear, 0));
            }
            let leaf = shift == 12 || entry & PAGE_SIZE != 0;
            if has_reserved_bits(entry, shift) {
                return Err(self.page_fault(kind, linear, fault::PRESENT | fault::RESERVED));
            }
            rights.user &= entry & USER != 0;
            rights.writable &= entry & WRITABLE != 0;
            rights.execute_disable |= entry & EXECUTE_DISABLE != 0;
            used.push(Used { gpa, hpa, entry });
            table = entry & ADDRESS;
            if leaf {
                order = shift;
                break;
            }
        }
        if !self.allowed(kind, rights) {
            return Err(self.page_fault(kind, linear, fault::PRESENT));
        }
        self.set_flags(kind, linear, &used)?;
        let offset = (1 << order) - 1;
        let gpa = Gpa::try_new(table & !offset | linear & offset).map_err(|_| Stop::Useless)?;
        Ok(Translation { gpa, rights, order, remembered: false })
    }

    /// SDM Vol. 3A, "Determination of Access Rights".
    fn allowed(&self, kind: AccessKind, rights: GuestRights) -> bool {
        let mode = self.mode;
        let privilege = match (self.user, rights.user) {
            (true, user_page) => user_page,
            (false, false) => true,
            (false, true) if kind == AccessKind::Fetch => !mode.smep,
            (false, true) => !mode.smap || mode.alignment_check,
        };
        let right = match kind {
            AccessKind::Fetch => !rights.execute_disable,
            _ if !kind.is_write() => true,
            _ => rights.writable || !self.user && !mode.write_protect,
        };
        privilege && right
    }

    fn set_flags(&mut self, kind: AccessKind, linear: u64, used: &[Used]) -> Result<(), Stop> {
        let leaf = used.len() - 1;
        for (level, &Used { gpa, hpa, entry }) in used.iter().enumerate() {
            let dirty = if kind.is_write() && level == leaf { DIRTY } else { 0 };
            let wanted = entry | ACCESSED | dirty;
            if dirty & !entry != 0 && entry & WRITABLE == 0 && self.shadow_stacks {
                // Bochs stops the machine here.
                return Err(Stop::Useless);
            }
            if wanted != entry {
                let update = Access::new(AccessKind::WalkUpdate, gpa, 8);
                let update = update.map_err(|_| Stop::Useless)?.at_linear(linear);
                self.check(&update)?;
                self.store(&[(hpa, 8)], &wanted.to_le_bytes());
            }
        }
        Ok(())
    }

    /// The error code: `bits`, and what the access was (SDM Vol. 3A, "Page-Fault Exceptions").
    fn page_fault(&self, kind: AccessKind, linear: u64, bits: u32) -> Stop {
        let set = |condition, bit| if condition { bit } else { 0 };
        let error = bits
            | set(kind.is_write(), fault::WRITE)
            | set(self.user, fault::USER)
            | set(kind == AccessKind::Fetch, fault::FETCH);
        Stop::PageFault { linear, error }
    }
}

/// Bits of a page fault's error code.
mod fault {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

/// Whether an entry that maps or names 2^`shift` bytes has a reserved bit set. SDM Vol. 3A, "4-Level
/// Paging and 5-Level Paging", formats of the entries; EFER.NXE is 1.
const fn has_reserved_bits(entry: u64, shift: u32) -> bool {
    let large = match shift {
        39 => PAGE_SIZE,
        // Bit 12 is the PAT bit.
        30 | 21 if entry & PAGE_SIZE != 0 => (1 << shift) - (1 << 13),
        _ => 0,
    };
    entry & (BEYOND_WIDTH | large) != 0
}

#[cfg(test)]
mod tests {
    use subpage_model::Deviations;

    use crate::case::{Case, Mode, Step};
    use crate::instruction::{Instruction, Size};
    use crate::layout::{WINDOW_L2, frame, harness, host, linear, window, window_l3, word};
    use crate::outcome::{EXCEPTION, VMCALL};
    use crate::predict::ModelledProcessor;

    const PROCESSOR: ModelledProcessor = ModelledProcessor {
        sub_page: false,
        advanced_information: true,
        smap: true,
        shadow_stacks: false,
        deviations: Deviations::NONE,
    };

    /// What the data frames 0 and 1 hold.
    const CONTENTS: [u64; 2] = [0x10, 0x11];

    /// A good case: window A is mapped for everything, linear page i to its page i with `flags`.
    fn case(flags: u64, mode: Mode, instructions: Vec<Instruction>) -> Case {
        let mut case = Case::new(false, false);
        let ept = |frame| host(frame) | 0b111;
        let guest = |frame| harness(frame) | 0b111;
        case.stores = vec![
            (word(frame::EPT_L4, 1), ept(frame::EPT_L3)),
            (word(frame::EPT_L3, window_l3(0)), ept(frame::EPT_L2)),
            (word(frame::EPT_L2, WINDOW_L2), ept(frame::EPT_L1)),
            (word(frame::GUEST_L4, 1), guest(frame::GUEST_TABLES)),
            (word(frame::GUEST_TABLES, 0), guest(frame::GUEST_TABLES + 1)),
            (word(frame::GUEST_TABLES + 1, WINDOW_L2), guest(frame::GUEST_TABLES + 2)),
        ];
        for page in 0..2 {
            case.stores.push((word(frame::EPT_L1, page), host(page) | 6 << 3 | 0b111));
            case.stores.push((word(frame::GUEST_TABLES + 2, page), window(0, page) | flags));
            case.stores.push((word(page, 0), CONTENTS[page as usize]));
        }
        case.steps = vec![Step { mode, stores: Vec::new(), instructions }];
        case
    }

    const LOAD: Instruction = Instruction::Load { at: linear(0), size: Size::Quad };
    const STORE: Instruction = Instruction::Store { at: linear(0), size: Size::Quad, value: 0x22 };

    /// Maps linear page 0 to page 1, supervisor, writable, dirty.
    const REMAP: Instruction = Instruction::Store {
        at: harness(frame::GUEST_TABLES + 2),
        size: Size::Quad,
        value: window(0, 1) | 0x63,
    };

    fn ends(case: &Case) -> (u32, Option<u32>, u64) {
        let outcomes = PROCESSOR.predict(case).expect("a sensible case");
        (outcomes[0].reason, outcomes[0].error, outcomes[0].registers[0])
    }

    #[test]
    fn a_translation_lasts_until_invlpg() {
        let invalidate = |page| Instruction::Invalidate { at: linear(page) + 8 };
        let run = |instructions: &[Instruction]| {
            let (reason, _, rax) = ends(&case(0x63, Mode::default(), instructions.to_vec()));
            assert_eq!(reason, VMCALL);
            rax
        };
        assert_eq!(run(&[LOAD, REMAP, LOAD]), CONTENTS[0]);
        assert_eq!(run(&[LOAD, REMAP, invalidate(0), LOAD]), CONTENTS[1]);
        assert_eq!(run(&[LOAD, REMAP, invalidate(1), LOAD]), CONTENTS[0]);
        assert_eq!(run(&[REMAP, LOAD]), CONTENTS[1]);
        // A read leaves nothing for a write, which then leads the next read.
        assert_eq!(run(&[LOAD, REMAP, STORE, LOAD]), 0x22);
    }

    /// Every privilege with every kind of page: what SDM Vol. 3A, "Determination of Access Rights"
    /// has as text.
    #[test]
    fn privilege_decides_page_by_page() {
        let usual = Mode::default();
        let user = Mode { user: true, ..usual };
        let open = Mode { write_protect: false, ..usual };
        let smap = Mode { smap: true, ..usual };
        let exempt = Mode { alignment_check: true, ..smap };
        // Bit 1 is R/W, bit 2 U/S; the fault's error code, or none.
        for (mode, flags, access, fault) in [
            (usual, 0b001, LOAD, None),
            (usual, 0b001, STORE, Some(0b011)),
            (open, 0b001, STORE, None),
            (usual, 0b111, STORE, None),
            (user, 0b001, LOAD, Some(0b101)),
            (user, 0b011, STORE, Some(0b111)),
            (user, 0b101, LOAD, None),
            (user, 0b101, STORE, Some(0b111)),
            (user, 0b111, STORE, None),
            (Mode { write_protect: false, ..user }, 0b101, STORE, Some(0b111)),
            (smap, 0b101, LOAD, Some(0b001)),
            (smap, 0b111, STORE, Some(0b011)),
            (smap, 0b011, STORE, None),
            (exempt, 0b111, STORE, None),
            (exempt, 0b101, STORE, Some(0b011)),
            (usual, 0b111 | 1 << 40, LOAD, Some(0b1001)),
            (user, 0b110, STORE, Some(0b110)),
        ] {
            let (reason, error, _) = ends(&case(flags, mode, vec![access]));
            let expected = if fault.is_some() { EXCEPTION } else { VMCALL };
            assert_eq!((reason, error), (expected, fault), "{mode:?} {flags:#x} {access}");
        }
    }

    #[test]
    fn smep_concerns_fetches_alone() {
        let jump = vec![Instruction::Jump { to: linear(0) }];
        for (smep, flags, fault) in
            [(true, 0b101, Some(0x11)), (true, 0b001, None), (false, 0b101, None)]
        {
            let mode = Mode { smep, ..Mode::default() };
            let mut case = case(flags, mode, jump.clone());
            // VMCALL.
            case.stores.push((word(0, 0), 0x00C1_010F));
            let (_, error, _) = ends(&case);
            assert_eq!(error, fault, "{smep} {flags:#x}");
        }
    }

    #[test]
    fn large_pages_end_the_walk_and_take_the_dirty_flag() {
        for (table, index, order) in
            [(frame::GUEST_TABLES, 0, 30), (frame::GUEST_TABLES + 1, WINDOW_L2, 21)]
        {
            let at = word(table, index);
            let leaf = window(0, 0) >> order << order | 0x83;
            let mut good = case(0x63, Mode::default(), vec![STORE]);
            good.stores.push((at, leaf));
            let outcomes = PROCESSOR.predict(&good).expect("a sensible case");
            assert_eq!(outcomes[0].reason, VMCALL);
            assert!(outcomes[0].changed.contains(&(at, leaf | 0x60)), "{:?}", outcomes[0]);
            assert!(outcomes[0].changed.contains(&(word(0, 0), 0x22)));
            for (bit, fault) in [(12, None), (13, Some(0b1011)), (order - 1, Some(0b1011))] {
                let mut odd = good.clone();
                odd.stores.push((at, leaf | 1 << bit));
                assert_eq!(ends(&odd).1, fault, "bit {bit} of a leaf of 2^{order} bytes");
            }
        }
    }
}
