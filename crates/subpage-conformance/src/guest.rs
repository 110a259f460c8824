//! A guest on the modelled processor: its page walks, its accesses, the bytes they move.

use arrayvec::ArrayVec;
use subpage::address::{Gpa, Hpa};
use subpage_model::{Access, AccessKind, GuestRights, Roots, Translation, Vcpu, VmExit};

use crate::arena::Arena;

/// Why an access does not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The model exits.
    Exit(VmExit),
    /// The guest's own paging structures forbid the access.
    PageFault {
        /// The linear address.
        linear: u64,
        /// Error code of #PF.
        error: u32,
    },
    /// An address is none that the model takes: the case is of no use.
    Useless,
}

impl From<VmExit> for Stop {
    fn from(exit: VmExit) -> Self {
        Self::Exit(exit)
    }
}

/// Runs of host memory that an access has been allowed.
type Located = ArrayVec<(Hpa, u64), 2>;

/// A virtual processor in the middle of a step.
pub(crate) struct Guest {
    /// Its memory, tables included.
    pub(crate) arena: Arena,
    /// The model.
    pub(crate) vcpu: Vcpu,
    /// Its pointers to EPT and SPPT.
    pub(crate) roots: Roots,
    /// CR3.
    pub(crate) cr3: u64,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const EXECUTE_DISABLE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

impl Guest {
    /// Reads bytes.
    pub(crate) fn read(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let located = self.locate(AccessKind::Read, linear, bytes.len() as u64)?;
        self.load(&located, bytes);
        Ok(())
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Stop> {
        let located = self.locate(AccessKind::Write, linear, bytes.len() as u64)?;
        self.store(&located, bytes);
        Ok(())
    }

    /// Writes `bytes` as accesses of the given lengths, each at its own address.
    ///
    /// All are checked before the first byte moves, unless the processor deviates.
    pub(crate) fn write_parts(&mut self, parts: &[(u64, &[u8])]) -> Result<(), Stop> {
        if !self.vcpu.deviations().parts_not_atomic {
            for (linear, bytes) in parts {
                self.locate(AccessKind::Write, *linear, bytes.len() as u64)?;
            }
        }
        parts.iter().try_for_each(|(linear, bytes)| self.write(*linear, bytes))
    }

    /// Lets `change` edit bytes in place.
    pub(crate) fn modify(
        &mut self,
        linear: u64,
        length: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Stop> {
        let located = self.locate(AccessKind::ReadModifyWrite, linear, length)?;
        let mut buffer = [0; 16];
        let bytes = &mut buffer[..usize::try_from(length).expect("at most 16")];
        self.load(&located, bytes);
        change(bytes);
        self.store(&located, bytes);
        Ok(())
    }

    /// Fetches bytes of an instruction in one page.
    pub(crate) fn fetch(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let located = self.locate(AccessKind::Fetch, linear, bytes.len() as u64)?;
        self.load(&located, bytes);
        Ok(())
    }

    /// Translates and checks an access, with all its effects but the moving of bytes.
    fn locate(&mut self, kind: AccessKind, linear: u64, length: u64) -> Result<Located, Stop> {
        let in_first = length.min(0x1000 - linear % 0x1000);
        let second = linear + in_first;
        let (gpa, rights) = self.walk(kind, linear)?;
        if in_first == length {
            let at = self.check(&access(kind, gpa, length, linear, rights)?)?;
            return Ok([(at.first, length)].into_iter().collect());
        }
        let in_second = length - in_first;
        let pieces = if self.vcpu.deviations().pages_one_by_one {
            let first = self.check(&access(kind, gpa, in_first, linear, rights)?)?;
            let (gpa, rights) = self.walk(kind, second)?;
            let second = self.check(&access(kind, gpa, in_second, second, rights)?)?;
            [(first.first, in_first), (second.first, in_second)]
        } else {
            let (second, _) = self.walk(kind, second)?;
            let across = Access::across(kind, gpa, second, length).map_err(|_| Stop::Useless)?;
            let at = self.check(&across.at_linear(linear).with_guest_rights(rights))?;
            let second = at.second.expect("an access across a page end has two pieces");
            [(at.first, in_first), (second, in_second)]
        };
        Ok(pieces.into_iter().collect())
    }

    fn check(&mut self, access: &Access) -> Result<Translation, VmExit> {
        self.vcpu.access(&self.roots, &mut self.arena, access)
    }

    /// Walks the guest's paging structures.
    ///
    /// Accessed and dirty flags are set once the whole walk has succeeded, which the architecture
    /// permits and Bochs does. SDM Vol. 3A, "4-Level Paging and 5-Level Paging" and "Accessed and
    /// Dirty Flags".
    fn walk(&mut self, kind: AccessKind, linear: u64) -> Result<(Gpa, GuestRights), Stop> {
        let write = kind.is_write();
        let mut table = self.cr3 & ADDRESS;
        let mut rights = GuestRights { user: true, writable: true, execute_disable: false };
        let mut used = ArrayVec::<(Gpa, Hpa, u64), 4>::new();
        let fault = |present: bool| {
            let fetch = if kind == AccessKind::Fetch { 1 << 4 } else { 0 };
            let error = u32::from(present) | u32::from(write) << 1 | fetch;
            Stop::PageFault { linear, error }
        };
        for shift in [39, 30, 21, 12] {
            let gpa = Gpa::try_new(table | (linear >> shift & 0x1FF) << 3);
            let gpa = gpa.map_err(|_| Stop::Useless)?;
            let read = Access::new(AccessKind::WalkRead, gpa, 8).map_err(|_| Stop::Useless)?;
            let hpa = self.check(&read.at_linear(linear))?.first;
            let mut bytes = [0; 8];
            self.load(&[(hpa, 8)], &mut bytes);
            let entry = u64::from_le_bytes(bytes);
            if entry & PRESENT == 0 {
                return Err(fault(false));
            }
            // Larger pages and reserved bits are no matter of this comparison.
            if entry & !EXECUTE_DISABLE & !ADDRESS & !0x7F != 0 {
                return Err(Stop::Useless);
            }
            rights.user &= entry & USER != 0;
            rights.writable &= entry & WRITABLE != 0;
            rights.execute_disable |= entry & EXECUTE_DISABLE != 0;
            used.push((gpa, hpa, entry));
            table = entry & ADDRESS;
        }
        let forbidden =
            write && !rights.writable || kind == AccessKind::Fetch && rights.execute_disable;
        if forbidden {
            return Err(fault(true));
        }
        for (level, (gpa, hpa, entry)) in used.into_iter().enumerate() {
            let dirty = if write && level == 3 { DIRTY } else { 0 };
            let wanted = entry | ACCESSED | dirty;
            if wanted != entry {
                let update = Access::new(AccessKind::WalkUpdate, gpa, 8);
                let update = update.map_err(|_| Stop::Useless)?.at_linear(linear);
                self.check(&update)?;
                self.store(&[(hpa, 8)], &wanted.to_le_bytes());
            }
        }
        let gpa = Gpa::try_new(table | linear & 0xFFF).map_err(|_| Stop::Useless)?;
        Ok((gpa, rights))
    }

    fn load(&self, located: &[(Hpa, u64)], bytes: &mut [u8]) {
        for (byte, hpa) in bytes.iter_mut().zip(addresses(located)) {
            *byte = self.arena.byte(hpa);
        }
    }

    fn store(&mut self, located: &[(Hpa, u64)], bytes: &[u8]) {
        for (byte, hpa) in bytes.iter().zip(addresses(located)) {
            self.arena.set_byte(hpa, *byte);
        }
    }
}

fn access(
    kind: AccessKind,
    gpa: Gpa,
    length: u64,
    linear: u64,
    rights: GuestRights,
) -> Result<Access, Stop> {
    let access = Access::new(kind, gpa, length).map_err(|_| Stop::Useless)?;
    Ok(access.at_linear(linear).with_guest_rights(rights))
}

fn addresses(located: &[(Hpa, u64)]) -> impl Iterator<Item = Hpa> {
    located.iter().flat_map(|(hpa, length)| (0..*length).map(|at| Hpa::new(hpa.as_u64() + at)))
}
