//! A guest on modelled processors, and the words the tests are written in.

use std::ops::{Deref, DerefMut};

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Domain, EptViolation, HostPage, Observer};
use subpage::exit::{Delivery, EptQualification};
use subpage::frames::{HeapFrames, TableFrames};
use subpage::invalidate::Invalidation;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_model::{
    Access, AccessKind, AccessOutcome, Features, GuestMemory, Machine, Roots, Setup, SparseMemory,
    Staleness, Translation, VmExit,
};

pub(crate) use AddressSpace::{Normal, Smm};

/// First frame of the slot: guest-physical 10000000H, where the series' self-test has its own.
pub(crate) const BASE: u64 = 0x10000;

/// The slot of [`Guest::new`].
pub(crate) const SLOT: SlotId = SlotId(0);

pub(crate) const LOGGING: SlotFlags = SlotFlags { read_only: false, log_dirty: true };

/// Frames of a 2 MiB region.
pub(crate) const REGION: u64 = 512;

/// Every way of remembering translations.
pub(crate) const EVERY_STALENESS: [Staleness; 5] = [
    Staleness::None,
    Staleness::UntilExit,
    Staleness::UntilEvicted,
    Staleness::Longest,
    Staleness::Random(51),
];

pub(crate) fn features() -> Features {
    Features::new(PhysicalWidth::MAX)
}

/// Processors of [`stale`].
pub(crate) const CPUS: usize = 3;

/// Several processors that forget as late as the architecture allows.
pub(crate) fn stale() -> Setup {
    Setup { cpus: CPUS, staleness: Staleness::Longest, ..Setup::new(features()) }
}

/// A machine with a slot of frames from [`BASE`] on.
pub(crate) struct Guest<O: Observer = ()>(Machine<SparseMemory, O>);

impl<O: Observer> Deref for Guest<O> {
    type Target = Machine<SparseMemory, O>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<O: Observer> DerefMut for Guest<O> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Guest {
    pub(crate) fn new(setup: Setup, pages: u64) -> Self {
        Self::around(setup, Domain::new(HeapFrames::new(), PhysicalWidth::MAX), pages)
    }
}

impl<O: Observer> Guest<O> {
    /// A machine around a domain, to which the slot is added.
    pub(crate) fn around(setup: Setup, domain: Domain<HeapFrames, O>, pages: u64) -> Self {
        let mut machine = Machine::new(setup, domain, SparseMemory::new()).expect("memory");
        machine
            .domain_mut()
            .add_slot(Normal, SLOT, gfns(BASE, pages), SlotFlags::default())
            .expect("a free place");
        Self(machine)
    }

    /// Changes the domain and completes the change on every processor.
    pub(crate) fn change(&mut self, call: impl FnOnce(&mut Domain<HeapFrames, O>) -> Invalidation) {
        let token = call(self.domain_mut());
        let _done = self.complete(token);
    }

    pub(crate) fn set(&mut self, first: u64, maps: &[u32]) {
        self.change(|domain| domain.set_access(gfn(first), &of_bits(maps)).expect("a good call"));
    }

    pub(crate) fn add_rule(&mut self, rule: Rule) -> subpage::rules::RuleId {
        let (id, token) = self.domain_mut().add_rule(rule).expect("a good rule");
        let _done = self.complete(token);
        id
    }

    pub(crate) fn get(&self, page: u64) -> u32 {
        get(self.domain(), page)
    }

    /// Writes eight bytes of ones.
    pub(crate) fn write(&mut self, cpu: usize, gpa: u64) -> AccessOutcome {
        self.write_bytes(cpu, gpa, &[0xFF; 8])
    }

    pub(crate) fn write_bytes(&mut self, cpu: usize, gpa: u64, bytes: &[u8]) -> AccessOutcome {
        self.0.write(cpu, Gpa::new(gpa), bytes).expect("a legal access")
    }

    /// The write takes effect and every byte of it is in memory.
    #[track_caller]
    pub(crate) fn permits(&mut self, cpu: usize, gpa: u64) {
        let bytes = self.fresh_bytes(gpa);
        assert_eq!(
            self.write_bytes(cpu, gpa, &bytes),
            AccessOutcome::Done,
            "CPU {cpu} at {gpa:#x}"
        );
        assert_eq!(self.peek::<8>(gpa), bytes);
    }

    /// The write is denied and leaves memory as it was.
    #[track_caller]
    pub(crate) fn denies(&mut self, cpu: usize, gpa: u64) {
        let before = self.peek::<8>(gpa);
        let bytes = self.fresh_bytes(gpa);
        let outcome = self.write_bytes(cpu, gpa, &bytes);
        assert!(matches!(outcome, AccessOutcome::Denied(_)), "CPU {cpu} at {gpa:#x}: {outcome:?}");
        assert_eq!(self.peek::<8>(gpa), before);
    }

    /// Every processor of [`stale`] uses the page, so that those that remember translations remember it.
    pub(crate) fn warm(&mut self, page: u64) {
        for cpu in 0..CPUS {
            let read = Access::new(AccessKind::Read, gfn(page).gpa(), 8).expect("legal");
            assert_eq!(self.touch(cpu, &read), AccessOutcome::Done);
            let _ = self.write(cpu, page << 12);
        }
    }

    /// Eight bytes that are not those in memory.
    fn fresh_bytes(&self, gpa: u64) -> [u8; 8] {
        self.peek::<8>(gpa).map(|byte| byte.wrapping_add(1))
    }

    /// Memory as the host sees it; the run may cross pages.
    pub(crate) fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut at = gpa;
        [(); N].map(|()| {
            let mut byte = [0];
            self.memory().read(Hpa::new(at), &mut byte);
            at += 1;
            byte[0]
        })
    }

    /// The pages that were dirty, and arms them again.
    pub(crate) fn harvest(&mut self) -> Vec<u64> {
        let (pending, token) = self.domain_mut().harvest_dirty(Normal, SLOT).expect("it logs");
        let done = self.complete(token);
        let pages = pending.ready(&done).expect("completed");
        pages.iter().map(|gfn| gfn.as_u64() - BASE).collect()
    }

    /// The tables that a processor in an address space has loaded.
    pub(crate) fn roots(&self, space: AddressSpace) -> Roots {
        Roots {
            ept: self.domain().ept(space).expect("something is mapped").root(),
            ept_accessed_dirty: false,
            sppt: self.domain().sppt().map(subpage::sppt::Sppt::root),
        }
    }

    /// One access of a processor with those tables, with nobody to answer its exit.
    pub(crate) fn raw(
        &mut self,
        cpu: usize,
        space: AddressSpace,
        access: &Access,
    ) -> Result<Translation, VmExit> {
        let roots = self.roots(space);
        let mut vcpu = self.vcpu_mut(cpu).clone();
        let result = vcpu.access(&roots, self.domain_mut().frames_mut(), access);
        *self.vcpu_mut(cpu) = vcpu;
        result
    }
}

pub(crate) fn get<F: TableFrames, O: Observer>(domain: &Domain<F, O>, page: u64) -> u32 {
    let mut maps = [AccessMap::NONE];
    domain.get_access(gfn(page), &mut maps).expect("a good call");
    maps[0].bits()
}

pub(crate) fn of_bits(maps: &[u32]) -> Vec<AccessMap> {
    maps.iter().copied().map(AccessMap::from_bits).collect()
}

pub(crate) fn gfn(number: u64) -> Gfn {
    Gfn::new(number)
}

pub(crate) fn gfns(first: u64, pages: u64) -> GfnRange {
    GfnRange::new(gfn(first), pages).expect("a range")
}

pub(crate) fn bytes(first: u64, length: u64) -> ByteRange {
    ByteRange::new(Gpa::new(first), length).expect("a range")
}

/// Address of a byte of a page of the slot.
pub(crate) fn at(page: u64, offset: u64) -> u64 {
    ((BASE + page) << 12) + offset
}

pub(crate) fn write_of(gpa: u64, length: u64) -> Access {
    Access::new(AccessKind::Write, Gpa::new(gpa), length).expect("a legal access")
}

pub(crate) fn rule(range: ByteRange, action: Action) -> Rule {
    let name = RuleName::new("test").expect("a good name");
    Rule { name, range, owner: Owner(7), action, locked: false }
}

/// The host page at the same address as the guest's.
pub(crate) fn host_page(first: u64, size: PageSize) -> HostPage {
    let hpa = Hpa::new(first << 12);
    HostPage {
        hpa,
        size,
        writable: true,
        executable: true,
        memory_type: subpage::ept::MemoryType::WriteBack,
    }
}

/// The exit of a write to a page whose leaf does not allow it.
pub(crate) fn write_violation(gpa: u64) -> EptViolation {
    EptViolation {
        qualification: EptQualification::new()
            .with_write(true)
            .with_readable(true)
            .with_linear_valid(true)
            .with_final_access(true),
        gpa: Gpa::new(gpa),
        gla: gpa,
        rip: 0x1000,
        length: None,
        space: Normal,
        delivery: Delivery::default(),
    }
}
