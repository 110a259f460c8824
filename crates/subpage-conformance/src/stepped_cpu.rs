//! A guest on the modelled processor: its accesses, the bytes they move.

use arrayvec::ArrayVec;
use subpage::address::{Gpa, Hpa};
use subpage_model::{Access, AccessKind, GuestRights, Roots, Vcpu, VmExit};

use crate::arena::Arena;
use crate::case::Mode;
use crate::layout::{frame, host};
use crate::translation::Translations;

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
    /// A privileged instruction at CPL 3.
    GeneralProtection,
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
pub(crate) struct SteppedCpu {
    /// Its memory, tables included.
    pub(crate) arena: Arena,
    /// The model.
    pub(crate) vcpu: Vcpu,
    /// Its pointers to EPT and SPPT.
    pub(crate) roots: Roots,
    /// CR3.
    pub(crate) cr3: u64,
    /// What the step's controls are.
    pub(crate) mode: Mode,
    /// Accesses are user-mode ones: CPL is 3, and no event is being delivered.
    pub(crate) user: bool,
    /// The processor has shadow stacks.
    pub(crate) shadow_stacks: bool,
    /// What it remembers of its own paging structures.
    pub(crate) translations: Translations,
}

impl SteppedCpu {
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
        let one = self.translate(kind, linear)?;
        let in_second = length - in_first;
        let mut pieces = Located::new();
        if in_second == 0 || self.vcpu.deviations().pages_one_by_one {
            let at = self.check(&access(kind, one.gpa, in_first, linear, one.rights)?)?;
            self.remember(kind, linear, one);
            pieces.push((at.first, in_first));
        }
        if in_second != 0 {
            let two = self.translate(kind, second)?;
            if self.vcpu.deviations().pages_one_by_one {
                let kind = self.kind_in_second_page(kind);
                let at = self.check(&access(kind, two.gpa, in_second, second, two.rights)?)?;
                pieces.push((at.first, in_second));
            } else {
                let across = Access::across(kind, one.gpa, two.gpa, length);
                let across = across.map_err(|_| Stop::Useless)?.at_linear(linear);
                let at = self.check(&across.with_guest_rights(one.rights))?;
                self.remember(kind, linear, one);
                let second = at.second.expect("an access across a page end has two pieces");
                pieces.extend([(at.first, in_first), (second, in_second)]);
            }
            self.remember(kind, second, two);
        }
        // A guest that writes the tables of its own hypervisor proves nothing.
        let of_host = Hpa::new(host(frame::EPT_L4))..Hpa::new(host(frame::CODE));
        if kind.is_write() && pieces.iter().any(|(hpa, _)| of_host.contains(hpa)) {
            return Err(Stop::Useless);
        }
        Ok(pieces)
    }

    /// What the second page of an access is asked for.
    #[cfg(feature = "mutations")]
    fn kind_in_second_page(&self, kind: AccessKind) -> AccessKind {
        let wrong = Some(subpage_model::Mutation::PartialPages);
        if kind.is_write() && self.vcpu.deviations().mutation == wrong {
            AccessKind::Read
        } else {
            kind
        }
    }

    /// What the second page of an access is asked for.
    #[cfg(not(feature = "mutations"))]
    #[allow(clippy::unused_self)] // A wrong model looks at it.
    const fn kind_in_second_page(&self, kind: AccessKind) -> AccessKind {
        kind
    }

    /// Lets EPT and SPPT decide an access.
    pub(crate) fn check(&mut self, access: &Access) -> Result<subpage_model::Translation, VmExit> {
        self.vcpu.access(&self.roots, &mut self.arena, access)
    }

    pub(crate) fn load(&self, located: &[(Hpa, u64)], bytes: &mut [u8]) {
        for (byte, hpa) in bytes.iter_mut().zip(addresses(located)) {
            *byte = self.arena.byte(hpa);
        }
    }

    pub(crate) fn store(&mut self, located: &[(Hpa, u64)], bytes: &[u8]) {
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
