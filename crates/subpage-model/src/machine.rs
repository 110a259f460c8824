//! The model as a backend: virtual CPUs, memory, and the loop that answers their exits by the
//! engine.
//!
//! This is what a hypervisor does, with nothing left out but the instructions: it maps on demand,
//! retries stale translations, emulates what tables cannot express, invalidates on every CPU before
//! a change counts as made.

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa};
use subpage::domain::{
    Answer, AtOnce, Decision, Denial, Domain, EptViolation, HostError, HostPage, Observer,
    ProcessorUse, RetryState, SppEvent,
};
use subpage::exit::{Delivery, EptQualification, ExitReason, SppQualification};
use subpage::frames::{HeapFrames, OutOfFrames};
use subpage::invalidate::{Completed, Invalidation, Shootdown};
use subpage::level::PageSize;
use subpage::rules::RuleId;
use subpage::slots::{AddressSpace, Slot};

use crate::access::{Access, AccessError, AccessKind};
use crate::cache::Staleness;
use crate::deviations::Deviations;
use crate::exit::VmExit;
use crate::features::{Features, Roots};
use crate::memory::GuestMemory;
use crate::vcpu::Vcpu;

/// More exits of one access than any sequence of answers needs; reaching it is a livelock.
const MAX_EXITS: u32 = 64;

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// What its processors can do. Without sub-page write permissions every write to a restricted
    /// page traps.
    pub features: Features,
    /// How they differ from the architecture.
    pub deviations: Deviations,
    /// How long they remember translations.
    pub staleness: Staleness,
    /// How many there are.
    pub cpus: usize,
    /// EPTP bit 6: accessed and dirty flags for EPT.
    pub accessed_dirty: bool,
    /// The backend decodes instructions, so that the engine knows the length of a trapped write.
    pub decodes: bool,
    /// The largest page that is mapped on demand.
    pub page_size: PageSize,
}

impl Setup {
    /// One CPU of the given abilities, with caches of fixed size, mapping in 2 MiB pages.
    pub const fn new(features: Features) -> Self {
        Self {
            features,
            deviations: Deviations::NONE,
            staleness: Staleness::UntilEvicted,
            cpus: 1,
            accessed_dirty: false,
            decodes: true,
            page_size: PageSize::Size2M,
        }
    }
}

/// What became of an access.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessOutcome {
    /// It took effect.
    Done,
    /// It took effect and a rule wants it reported.
    Reported {
        /// The rule.
        rule: RuleId,
        /// The first byte of the rule that it touched.
        at: Gpa,
    },
    /// It was denied; memory is as it was.
    Denied(Denial),
    /// A byte of it belongs to no slot.
    NoSlot(Gpa),
    /// It wrote to a read-only slot.
    ReadOnlySlot(Gpa),
    /// The guest fetched from a page it may not execute.
    NotExecutable(Gpa),
    /// The host could not continue.
    Failed(HostError),
}

/// Exits by what they were for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traps {
    /// Exits that mapped a page on demand: their number says nothing about protection.
    pub demand: u64,
    /// Exits of writes that were denied.
    pub denied: u64,
    /// Exits of writes that were let through by emulation.
    pub emulated: u64,
    /// Exits that a retry or a change of tables cured: stale translations, dirty log, tracking.
    pub cured: u64,
}

struct Cpu {
    vcpu: Vcpu,
    retry: RetryState,
}

/// A guest on modelled processors. Host-physical addresses equal guest-physical ones.
pub struct Machine<M, O = ()> {
    domain: Domain<HeapFrames, O>,
    memory: M,
    cpus: Vec<Cpu>,
    board: Shootdown,
    roots: Option<Roots>,
    setup: Setup,
    traps: Traps,
}

impl<M: GuestMemory, O: Observer> Machine<M, O> {
    /// A machine whose domain has sub-page permissions enabled.
    ///
    /// # Panics
    /// If the domain has slots mapped already with other processors in mind; give it a fresh one.
    pub fn new(
        setup: Setup,
        mut domain: Domain<HeapFrames, O>,
        memory: M,
    ) -> Result<Self, OutOfFrames> {
        domain.enable().map_err(|_| OutOfFrames)?;
        domain.set_processor_use(ProcessorUse {
            sub_page_permissions: setup.features.sub_page_write_permissions,
            ept_accessed_dirty: setup.accessed_dirty,
        });
        let vcpu = Vcpu::new(setup.features, setup.deviations, setup.staleness);
        let cpus = (0..setup.cpus)
            .map(|_| Cpu { vcpu: vcpu.clone(), retry: RetryState::default() })
            .collect();
        let board = Shootdown::new(setup.cpus)?;
        for cpu in 0..setup.cpus {
            let epoch = board.enter(cpu);
            board.acknowledge(cpu, epoch);
        }
        Ok(Self { domain, memory, cpus, board, roots: None, setup, traps: Traps::default() })
    }

    /// The domain, to ask.
    pub const fn domain(&self) -> &Domain<HeapFrames, O> {
        &self.domain
    }

    /// The domain, to change; give the token to [`complete`](Self::complete).
    pub const fn domain_mut(&mut self) -> &mut Domain<HeapFrames, O> {
        &mut self.domain
    }

    /// Guest memory, as the host sees it.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Guest memory, for the host's own writes and for those of devices, which ask
    /// [`Domain::authorize_write`] first.
    pub const fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// How many exits there were.
    pub const fn traps(&self) -> Traps {
        self.traps
    }

    /// One CPU, to look at its log or to let it execute INVEPT.
    pub fn vcpu_mut(&mut self, cpu: usize) -> &mut Vcpu {
        &mut self.cpus[cpu].vcpu
    }

    /// Invalidates on every CPU that has to, and frees what the change left.
    ///
    /// A token that requires nothing is completed without disturbing any CPU: their stale
    /// translations stay, as on hardware.
    pub fn complete(&mut self, token: Invalidation) -> Completed {
        let mut token = token;
        if token.is_required() {
            self.board.request(&token);
        }
        for (number, cpu) in self.cpus.iter_mut().enumerate() {
            if let Some(epoch) = self.board.pending(number) {
                cpu.vcpu.invept();
                self.board.acknowledge(number, epoch);
            }
        }
        let done = loop {
            match self.board.poll(token) {
                Ok(done) => break done,
                Err(back) => token = back,
            }
        };
        self.domain.finish(&done);
        self.roots = None;
        done
    }

    /// Writes guest memory as an instruction of CPU `cpu` does, with all that follows.
    ///
    /// Fails if `bytes` is empty, longer than 64 or beyond 48 bits.
    pub fn write(
        &mut self,
        cpu: usize,
        gpa: Gpa,
        bytes: &[u8],
    ) -> Result<AccessOutcome, AccessError> {
        let access = Access::new(AccessKind::Write, gpa, bytes.len() as u64)?;
        Ok(self.perform(cpu, &access, Some(bytes)))
    }

    /// Performs an access whose data do not matter: a read, a fetch, or the write of a trace.
    #[inline]
    pub fn touch(&mut self, cpu: usize, access: &Access) -> AccessOutcome {
        if let Some(roots) = self.roots {
            let vcpu = &mut self.cpus[cpu].vcpu;
            if vcpu.access(&roots, self.domain.frames_mut(), access).is_ok() {
                return AccessOutcome::Done;
            }
        }
        self.perform(cpu, access, None)
    }

    #[inline(never)]
    fn perform(&mut self, cpu: usize, access: &Access, bytes: Option<&[u8]>) -> AccessOutcome {
        for _ in 0..MAX_EXITS {
            let Some(roots) = self.current_roots() else {
                match self.map_page(access.first().gpa()) {
                    Ok(()) => continue,
                    Err(outcome) => return outcome,
                }
            };
            let vcpu = &mut self.cpus[cpu].vcpu;
            let frames = self.domain.frames_mut();
            let result = match bytes {
                Some(bytes) => vcpu.write(&roots, frames, &mut self.memory, access, bytes),
                None => vcpu.access(&roots, frames, access).map(|_| ()),
            };
            let Err(exit) = result else { return AccessOutcome::Done };
            if let Some(outcome) = self.handle(cpu, access, bytes, exit) {
                return outcome;
            }
        }
        panic!("{access:?} of CPU {cpu} makes no progress (contract C8)");
    }

    /// Answers one exit; the access is over if there is an outcome.
    fn handle(
        &mut self,
        cpu: usize,
        access: &Access,
        bytes: Option<&[u8]>,
        exit: VmExit,
    ) -> Option<AccessOutcome> {
        let length = access.length() as u64;
        // An access is told from the next by its address here, where a processor has RIP.
        let rip = access.first().gpa().as_u64();
        let delivery = Delivery::default();
        let space = AddressSpace::Normal;
        let answer = match exit.reason {
            ExitReason::EPT_VIOLATION => {
                let violation = EptViolation {
                    qualification: EptQualification::from(exit.qualification),
                    gpa: exit.gpa,
                    gla: exit.gla.unwrap_or(0),
                    rip,
                    // The decoder gives the length of the whole access; what lies beyond the end of
                    // the page at which the exit happened is decided with it.
                    length: self.setup.decodes.then(|| {
                        let done = exit.gpa.as_u64() - access.first().gpa().as_u64();
                        if access.second().is_some_and(|piece| piece.gpa() == exit.gpa) {
                            access.second().map_or(length, |piece| u64::from(piece.length()))
                        } else {
                            length - done.min(length - 1)
                        }
                    }),
                    space,
                    delivery,
                };
                if let Some(outcome) = self.answer_at_once(&violation, access, bytes) {
                    return Some(outcome);
                }
                let retry = &mut self.cpus[cpu].retry;
                self.domain.ept_violation(retry, &violation).0
            }
            ExitReason::SPP_EVENT => {
                let qualification = SppQualification::from(exit.qualification);
                let event = SppEvent { qualification, gpa: exit.gpa, rip, space, delivery };
                let retry = &mut self.cpus[cpu].retry;
                self.domain.spp_event(retry, &event).0
            }
            ExitReason::PAGE_MODIFICATION_LOG_FULL => {
                self.drain_log(cpu);
                self.traps.cured += 1;
                return None;
            }
            other => panic!("the engine's tables caused {other:?}"),
        };
        match answer {
            Answer::Resume => self.traps.cured += 1,
            Answer::Retry => {
                self.traps.cured += 1;
                self.cpus[cpu].vcpu.invept();
            }
            Answer::Map(gpa) => {
                self.traps.demand += 1;
                return self.map_page(gpa).err();
            }
            Answer::MakeWritable(gpa) => return self.make_writable(gpa).err(),
            Answer::Emulate | Answer::PageWalk { .. } => {
                self.traps.emulated += 1;
                return Some(self.emulate(access, bytes));
            }
            Answer::Deny(denial) => {
                self.traps.denied += 1;
                return Some(AccessOutcome::Denied(denial));
            }
            Answer::NoSlot(gpa) => return Some(AccessOutcome::NoSlot(gpa)),
            Answer::ReadOnlySlot(gpa) => return Some(AccessOutcome::ReadOnlySlot(gpa)),
            Answer::NotExecutable(gpa) => return Some(AccessOutcome::NotExecutable(gpa)),
            Answer::Host(error) => return Some(AccessOutcome::Failed(error)),
        }
        self.roots = None;
        None
    }

    /// Answers the exit of a write in one page at one look, as the hypervisor does first; `None` if it
    /// takes a closer one.
    fn answer_at_once(
        &mut self,
        violation: &EptViolation,
        access: &Access,
        bytes: Option<&[u8]>,
    ) -> Option<AccessOutcome> {
        let qualification = violation.qualification;
        let plain = qualification.write() && !qualification.is_page_walk();
        if !plain || !self.setup.decodes || access.second().is_some() {
            return None;
        }
        let first = access.first().gpa();
        let write = ByteRange::new(first, access.length() as u64).expect("bytes of one page");
        match self.domain.decide_at_once(violation, write)? {
            AtOnce::Permitted(page) => {
                self.traps.emulated += 1;
                if let Some(bytes) = bytes {
                    let at = Hpa::new(page.as_u64() + u64::from(first.page_offset()));
                    self.memory.write(at, bytes);
                }
                Some(AccessOutcome::Done)
            }
            AtOnce::Denied(denial) => {
                self.traps.denied += 1;
                Some(AccessOutcome::Denied(denial))
            }
        }
    }

    /// Completes a write in software: decides about every byte, then stores all or none.
    fn emulate(&mut self, access: &Access, bytes: Option<&[u8]>) -> AccessOutcome {
        if !access.kind().is_write() || access.kind().is_page_walk() {
            return AccessOutcome::Done;
        }
        let range = ByteRange::new(access.first().gpa(), access.length() as u64)
            .expect("an access lies in the address space");
        // The host side of an emulated write needs the pages, like the processor's.
        let permitted = self.domain.check_write(AddressSpace::Normal, range).permits();
        for piece in access.pieces() {
            let gpa = piece.gpa();
            let ready = match self.domain.mapping(AddressSpace::Normal, gpa.gfn()) {
                None => self.map_page(gpa),
                Some(place) if permitted && !place.entry.host_writable() => self.make_writable(gpa),
                Some(_) => Ok(()),
            };
            if let Err(outcome) = ready {
                return outcome;
            }
        }
        let outcome = match self.domain.authorize_write(AddressSpace::Normal, range) {
            Ok(Decision::Allowed) => AccessOutcome::Done,
            Ok(Decision::Reported { rule, at }) => AccessOutcome::Reported { rule, at },
            Ok(Decision::Denied { rule, at, stop }) => {
                return AccessOutcome::Denied(Denial {
                    gpa: range.first(),
                    gla: None,
                    length: Some(range.bytes()),
                    at,
                    rule,
                    stop,
                    during_delivery: false,
                });
            }
            Ok(Decision::NotEligible { at }) => return AccessOutcome::ReadOnlySlot(at),
            Ok(Decision::NotMapped { at }) => return AccessOutcome::NoSlot(at),
            Err(_) => return AccessOutcome::Failed(HostError::OutOfMemory),
        };
        self.roots = None;
        if let Some(mut rest) = bytes {
            for piece in access.pieces() {
                let (now, later) = rest.split_at(piece.length().into());
                rest = later;
                let gfn = piece.gpa().gfn();
                let place = self.domain.mapping(AddressSpace::Normal, gfn).expect("just mapped");
                let offset = u64::from(piece.gpa().page_offset());
                let hpa = Hpa::new(place.host_frame(gfn).as_u64() + offset);
                self.memory.write(hpa, now);
            }
        }
        outcome
    }

    /// Gives the addresses that a CPU logged to the domain.
    pub fn drain_log(&mut self, cpu: usize) {
        let log = self.cpus[cpu].vcpu.log_mut();
        let pages: Vec<_> = log.logged().map(Gpa::gfn).collect();
        log.clear();
        self.domain.note_logged(AddressSpace::Normal, pages.into_iter());
    }

    fn current_roots(&mut self) -> Option<Roots> {
        if self.roots.is_none() {
            let ept = self.domain.ept(AddressSpace::Normal)?.root();
            let sppt = self.domain.sppt().map(subpage::sppt::Sppt::root);
            self.roots = Some(Roots {
                ept,
                ept_accessed_dirty: self.setup.accessed_dirty,
                sppt: sppt.filter(|_| self.setup.features.sub_page_write_permissions),
            });
        }
        self.roots
    }

    /// Does what a host does to let the guest write a page: breaks its sharing, copies it.
    fn make_writable(&mut self, gpa: Gpa) -> Result<(), AccessOutcome> {
        self.traps.demand += 1;
        let page = GfnRange::one(gpa.gfn());
        let token = self
            .domain
            .protect(AddressSpace::Normal, page, true)
            .map_err(|_| AccessOutcome::Failed(HostError::OutOfMemory))?;
        let _done = self.complete(token);
        Ok(())
    }

    /// The frame of host memory, which has the addresses of the guest's original frames, behind the
    /// frames of a page; `None` if they are not contiguous or begin inside a page of the size.
    fn host_frame(&self, first: Gfn, size: PageSize) -> Option<Gfn> {
        let pages = GfnRange::new(first, size.frames()).ok()?;
        let host = self.domain.original(first);
        let slots = self.domain.slots(AddressSpace::Normal);
        let original = |slot: &Slot| self.domain.original(slot.pages().first());
        let aliased = |slot: &Slot| original(slot) != slot.pages().first();
        let mut held = slots.iter().filter(|slot| slot.pages().intersection(pages).is_some());
        let contiguous = slots.find(first).is_some_and(|slot| slot.pages().covers(pages))
            || held.all(|slot| !aliased(slot));
        (contiguous && size.level().region_start(host) == host).then_some(host)
    }

    /// Maps the largest page around `gpa` that its slot and what is mapped already allow.
    fn map_page(&mut self, gpa: Gpa) -> Result<(), AccessOutcome> {
        let space = AddressSpace::Normal;
        if self.domain.slots(space).find(gpa.gfn()).is_none() {
            return Err(AccessOutcome::NoSlot(gpa));
        }
        self.roots = None;
        for size in [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K] {
            if size > self.setup.page_size {
                continue;
            }
            let first = size.level().region_start(gpa.gfn());
            let Some(host) = self.host_frame(first, size) else { continue };
            let page = HostPage {
                hpa: Hpa::new(host.gpa().as_u64()),
                size,
                writable: true,
                executable: true,
                memory_type: subpage::ept::MemoryType::WriteBack,
            };
            match self.domain.map(space, first, page) {
                Ok(()) => return Ok(()),
                Err(subpage::domain::DomainError::OutOfMemory) => {
                    return Err(AccessOutcome::Failed(HostError::OutOfMemory));
                }
                // Part of the region belongs to no slot or is mapped: try a smaller page.
                Err(_) => {}
            }
        }
        panic!("{gpa:?} trapped as unmapped but cannot be mapped");
    }
}
