//! A virtual CPU: translation, checks, flags, log, and the exits they end in.

use arrayvec::ArrayVec;
use subpage::address::{Hpa, PAGE_BYTES};
use subpage::exit::ExitReason;
use subpage::frames::{TableFrame, TableFrames};

use crate::access::{Access, Piece};
use crate::cache::{Cache, Mapping, Staleness};
use crate::decision::{self, Decision, Demand, sub_pages_permit};
use crate::deviations::Deviations;
use crate::ept_walk::{self, ACCESSED, DIRTY, EptFault, EptWalk, Start};
use crate::exit::VmExit;
use crate::features::{Features, Roots};
use crate::pml::PageModificationLog;
use crate::rights::Rights;
use crate::sppt_walk::{self, SpptOutcome, SpptStart};

/// Where the bytes of an access that may continue are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Host-physical address of the first byte.
    pub first: Hpa,
    /// Host-physical address of the first byte in the second page, if there is one.
    pub second: Option<Hpa>,
}

/// One virtual CPU: its caches and its page-modification log.
///
/// Tables and memory are not owned: every step takes them, so that several CPUs share them and the
/// engine changes them in between.
#[derive(Debug, Clone)]
pub struct Vcpu {
    features: Features,
    deviations: Deviations,
    cache: Cache,
    /// The EPT context that the caches belong to.
    context: Option<TableFrame>,
    log: PageModificationLog,
}

/// A piece that may continue, before it has set a flag.
struct Checked {
    piece: Piece,
    demand: Demand,
    mapping: Mapping,
    /// The walk that found the mapping; `None` if it was remembered.
    walk: Option<EptWalk>,
}

/// Why an attempt at an access did not get through.
enum Stop {
    Exit(VmExit),
    /// An entry changed between the walk that read it and the update of its flags: walk again.
    Changed,
}

impl From<VmExit> for Stop {
    fn from(exit: VmExit) -> Self {
        Self::Exit(exit)
    }
}

impl Vcpu {
    /// A CPU that has run nothing yet.
    pub fn new(features: Features, deviations: Deviations, staleness: Staleness) -> Self {
        Self {
            features,
            deviations,
            cache: Cache::new(staleness),
            context: None,
            log: PageModificationLog::new(),
        }
    }

    /// What the processor can do.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The differences from the architecture that are switched on.
    pub const fn deviations(&self) -> Deviations {
        self.deviations
    }

    /// The page-modification log.
    pub const fn log(&self) -> &PageModificationLog {
        &self.log
    }

    /// The page-modification log, to be emptied by the hypervisor.
    pub const fn log_mut(&mut self) -> &mut PageModificationLog {
        &mut self.log
    }

    /// INVEPT on this CPU, single-context or global: all it remembers of the tables is gone.
    ///
    /// SDM Vol. 3C, "Operations that Invalidate Cached Mappings". Other CPUs are not affected.
    pub fn invept(&mut self) {
        self.cache.invalidate();
    }

    /// A VM exit for a reason outside the model: an interrupt, a VMCALL.
    ///
    /// The architecture keeps guest-physical mappings; only [`Staleness::UntilExit`] does not.
    pub fn other_exit(&mut self) {
        self.cache.vm_exit();
    }

    /// Performs an access up to its effect on memory: translation, permission, accessed and dirty
    /// flags, page-modification log.
    ///
    /// Both pages of an access are checked before either has a flag set, unless
    /// [`pages_one_by_one`](Deviations::pages_one_by_one) is on. The caller has made the
    /// checks of a VM entry ([`Roots::check`]).
    ///
    /// # Panics
    /// If the tables name a frame that is not allocated: a table was freed too early.
    #[inline]
    pub fn access<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        access: &Access,
    ) -> Result<Translation, VmExit> {
        if access.second().is_none() && self.context == Some(roots.ept) {
            let piece = access.first();
            if let Some(slot) = self.cache.slot(piece.gpa().gfn()) {
                let demand =
                    Demand::of(access, roots.ept_accessed_dirty, &self.features, self.deviations);
                // The same answers as `decision::decide` with this mapping, which the slow way
                // gives too.
                if slot.allows(demand)
                    || demand == Demand::Write
                        && roots.sppt.is_some()
                        && access.has_linear()
                        && !access.kind().is_page_walk()
                        && slot
                            .deciding_vector()
                            .is_some_and(|vector| sub_pages_permit(vector, piece, self.deviations))
                {
                    return Ok(Translation { first: byte(slot.frame(), piece), second: None });
                }
            }
        }
        // By value, so that on the fast way the access never has to be in memory.
        self.access_slowly(roots, frames, *access)
    }

    #[inline(never)]
    fn access_slowly<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        access: Access,
    ) -> Result<Translation, VmExit> {
        if self.context != Some(roots.ept) {
            self.cache.invalidate();
            self.context = Some(roots.ept);
        }
        let result = loop {
            match self.attempt(roots, frames, &access) {
                Ok(translation) => break Ok(translation),
                Err(Stop::Exit(exit)) => break Err(exit),
                Err(Stop::Changed) => {}
            }
        };
        if result.is_err() {
            self.cache.vm_exit();
        }
        result
    }

    fn attempt<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        access: &Access,
    ) -> Result<Translation, Stop> {
        let mut checked = ArrayVec::<Checked, 2>::new();
        for piece in access.pieces() {
            let mut piece = self.check(roots, frames, access, piece)?;
            if self.deviations.pages_one_by_one {
                self.set_flags(roots, frames, &mut piece)?;
            }
            checked.push(piece);
        }
        if !self.deviations.pages_one_by_one {
            for piece in &mut checked {
                self.set_flags(roots, frames, piece)?;
            }
        }
        let mut bytes = checked.iter().map(|piece| byte(piece.mapping.frame, piece.piece));
        let first = bytes.next().expect("an access has a first piece");
        Ok(Translation { first, second: bytes.next() })
    }

    /// Translates one piece and decides it, first with what is remembered.
    fn check<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &F,
        access: &Access,
        piece: Piece,
    ) -> Result<Checked, VmExit> {
        let gfn = piece.gpa().gfn();
        let demand = Demand::of(access, roots.ept_accessed_dirty, &self.features, self.deviations);
        if let Some(mut mapping) = self.cache.mapping(gfn, demand) {
            self.decide(roots, frames, access, piece, &mut mapping)?;
            // A write that must set the dirty flag goes to the tables for it, and is then judged by
            // what it finds there: the processor sets no flag in an entry that it has not read.
            if demand != Demand::Write || mapping.dirty {
                return Ok(Checked { piece, demand, mapping, walk: None });
            }
        }
        let start = self.cache.ept_start(gfn, Start::root(roots.ept));
        let walk = match ept_walk::walk(frames, start, piece.gpa(), &self.features, self.deviations)
        {
            Ok(walk) => walk,
            Err(EptFault::Misconfiguration) => return Err(VmExit::ept_misconfiguration(piece)),
            Err(EptFault::NotPresent) => {
                return Err(self.ept_violation(roots, access, piece, Rights::NONE));
            }
        };
        let frame = Hpa::new(walk.hpa.as_u64() & !(PAGE_BYTES - 1));
        let mut mapping = Mapping { frame, page: walk.page, dirty: false, vector: None };
        let decided = self.decide(roots, frames, access, piece, &mut mapping);
        if decided.is_err_and(|exit| exit.reason == ExitReason::SPP_EVENT) {
            self.remember_for_spp_event(roots, piece, &walk, mapping);
        }
        decided?;
        Ok(Checked { piece, demand, mapping, walk: Some(walk) })
    }

    /// Applies [`decision::decide`]; the vector that it read, if it read one, is kept in `mapping`.
    fn decide<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &F,
        access: &Access,
        piece: Piece,
        mapping: &mut Mapping,
    ) -> Result<(), VmExit> {
        let (features, deviations) = (self.features, self.deviations);
        let gfn = piece.gpa().gfn();
        let page = mapping.page;
        let cache = &mut self.cache;
        let sppt = || {
            if let Some(vector) = mapping.vector {
                return SpptOutcome::Vector(vector);
            }
            let root = roots.sppt.expect("only a set control makes a write eligible");
            let start = cache.sppt_start(gfn, SpptStart::root(root));
            let walk = sppt_walk::walk(frames, start, gfn, &features);
            cache.insert_sppt_tables(gfn, &walk.passed);
            if let SpptOutcome::Vector(vector) = walk.outcome {
                mapping.vector = Some(vector);
            }
            walk.outcome
        };
        match decision::decide(roots, access, piece, page, &features, deviations, sppt) {
            Decision::Allowed => Ok(()),
            Decision::EptViolation => Err(self.ept_violation(roots, access, piece, page.rights)),
            Decision::SppMiss => Err(VmExit::spp_event(access, piece, true)),
            Decision::SppMisconfiguration => Err(VmExit::spp_event(access, piece, false)),
        }
    }

    /// Remembers a translation whose write ended in an SPP event: that exit need not forget it, so
    /// bit 61 may outlive a repair of the tables until INVEPT.
    ///
    /// Entries may be remembered only once their accessed flags are set.
    fn remember_for_spp_event(
        &mut self,
        roots: &Roots,
        piece: Piece,
        walk: &EptWalk,
        mapping: Mapping,
    ) {
        let gfn = piece.gpa().gfn();
        let leaf = walk.steps.last().expect("a walk ends at a leaf");
        if roots.ept_accessed_dirty && walk.steps.iter().any(|step| step.bits & ACCESSED == 0) {
            return;
        }
        let dirty = !roots.ept_accessed_dirty || leaf.bits & DIRTY != 0;
        self.cache.insert_ept_tables(gfn, walk);
        self.cache.insert(gfn, &Mapping { dirty, ..mapping });
    }

    fn ept_violation(
        &mut self,
        roots: &Roots,
        access: &Access,
        piece: Piece,
        rights: Rights,
    ) -> VmExit {
        self.cache.ept_violation(piece.gpa().gfn());
        let accessed_dirty = roots.ept_accessed_dirty;
        VmExit::ept_violation(
            access,
            piece,
            rights,
            accessed_dirty,
            &self.features,
            self.deviations,
        )
    }

    /// Sets accessed and dirty flags, logs the page, and remembers the translation.
    ///
    /// SDM Vol. 3C, "Accessed and Dirty Flags for EPT" and "Page-Modification Logging";
    /// `docs/spp.md` 1.8. A write that the SPPT allows is a write like any other here; an access
    /// that exits has set nothing. (The architecture also permits an accessed flag set by an access
    /// that then exits; the model sets none.) If an access to two pages finds the log full at the
    /// second, the first keeps its flags: it is written when the access is repeated.
    fn set_flags<F: TableFrames>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        checked: &mut Checked,
    ) -> Result<(), Stop> {
        let gfn = checked.piece.gpa().gfn();
        let Some(walk) = &checked.walk else {
            self.cache.insert(gfn, &checked.mapping);
            return Ok(());
        };
        let write = checked.demand == Demand::Write;
        #[cfg(feature = "mutations")]
        let write = write
            && (self.deviations.mutation != Some(crate::Mutation::NoDirtyFlag)
                || checked.mapping.page.rights.write());
        if roots.ept_accessed_dirty {
            let wanted = |leaf: bool| if write && leaf { ACCESSED | DIRTY } else { ACCESSED };
            let missing = walk.steps.iter().any(|step| wanted(step.leaf) & !step.bits != 0);
            let logging = self.features.page_modification_logging;
            if missing && logging && self.log.is_full() {
                return Err(VmExit::log_full(checked.piece).into());
            }
            for step in &walk.steps {
                let new = step.bits | wanted(step.leaf);
                if new != step.bits
                    && frames.compare_exchange(step.table, step.index, step.bits, new).is_err()
                {
                    return Err(Stop::Changed);
                }
                if logging && (new & !step.bits) & DIRTY != 0 && step.leaf {
                    self.log.log(checked.piece.gpa());
                }
                if step.leaf {
                    checked.mapping.dirty = new & DIRTY != 0;
                }
            }
        } else {
            checked.mapping.dirty = true;
        }
        self.cache.insert_ept_tables(gfn, walk);
        self.cache.insert(gfn, &checked.mapping);
        Ok(())
    }
}

/// Address of a piece's first byte in its host frame.
#[inline]
fn byte(frame: Hpa, piece: Piece) -> Hpa {
    Hpa::new(frame.as_u64() | u64::from(piece.gpa().page_offset()))
}
