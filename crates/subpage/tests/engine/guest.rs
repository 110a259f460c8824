//! A small guest to test with, on frames that can be told to fail.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Domain, HostPage};
use subpage::frames::{ENTRIES, EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};
use subpage::invalidate::Invalidation;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};

pub(crate) use AddressSpace::Normal;

/// Where the self-test of the KVM series has its slot.
pub(crate) const BASE: u64 = 0x10000;

/// Counts requests for memory and fails the one it is told to.
#[derive(Clone, Default)]
pub(crate) struct Failure {
    requests: Rc<Cell<usize>>,
    fail_at: Rc<Cell<Option<usize>>>,
}

impl Failure {
    /// Lets the request that follows `after` others fail, and every later one.
    pub(crate) fn after(&self, after: Option<usize>) {
        self.requests.set(0);
        self.fail_at.set(after);
    }

    /// How many requests there were since the last call of `after`.
    pub(crate) fn requests(&self) -> usize {
        self.requests.get()
    }

    fn request(&self) -> Result<(), OutOfFrames> {
        let now = self.requests.get();
        self.requests.set(now + 1);
        if self.fail_at.get().is_some_and(|at| now >= at) { Err(OutOfFrames) } else { Ok(()) }
    }
}

/// Heap frames whose requests for memory can fail.
pub(crate) struct TestFrames {
    pub(crate) heap: HeapFrames,
    failure: Failure,
    /// Tables can be seen to be uniform, and read in place.
    pub(crate) glances: bool,
    /// Entries that were stored one by one or in runs.
    pub(crate) stores: usize,
}

impl TableFrames for TestFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.failure.request()?;
        self.heap.allocate()
    }

    fn release(&mut self, frame: TableFrame) {
        self.heap.release(frame);
    }

    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        self.failure.request()?;
        self.heap.make_room(frame, stores)
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.heap.load(frame, index)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        self.stores += 1;
        self.heap.store(frame, index, value);
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        self.heap.compare_exchange(frame, index, current, new)
    }

    fn load_run(&self, frame: TableFrame, first: EntryIndex, out: &mut [u64]) {
        self.heap.load_run(frame, first, out);
    }

    fn store_run(&mut self, frame: TableFrame, first: EntryIndex, values: &[u64]) {
        self.stores += values.len();
        self.heap.store_run(frame, first, values);
    }

    fn plain(&self, frame: TableFrame) -> Option<&[u64; ENTRIES]> {
        self.heap.plain(frame).filter(|_| self.glances)
    }

    fn uniform(&self, frame: TableFrame) -> Option<u64> {
        self.heap.uniform(frame).filter(|_| self.glances)
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        self.heap.fill(frame, value);
    }
}

pub(crate) type TestDomain = Domain<TestFrames>;

/// An empty domain, not enabled.
pub(crate) fn bare() -> (TestDomain, Failure) {
    let failure = Failure::default();
    let heap = HeapFrames::new();
    let frames = TestFrames { heap, failure: failure.clone(), glances: true, stores: 0 };
    (Domain::new(frames, PhysicalWidth::MAX), failure)
}

/// An enabled domain with one slot of `pages` pages at frame `BASE`.
pub(crate) fn guest(pages: u64) -> (TestDomain, Failure) {
    let (mut domain, failure) = bare();
    domain.enable().expect("memory");
    domain
        .add_slot(Normal, SlotId(0), gfns(BASE, pages), SlotFlags::default())
        .expect("a free place");
    (domain, failure)
}

/// A guest whose slot is mapped, one to one, in pages of the given size.
pub(crate) fn mapped(pages: u64, size: PageSize) -> (TestDomain, Failure) {
    let (mut domain, failure) = guest(pages);
    for at in (0..pages).step_by(usize::try_from(size.frames()).expect("small")) {
        let gfn = gfn(BASE + at);
        domain.map(Normal, gfn, host_page(gfn, size)).expect("memory");
    }
    (domain, failure)
}

/// The host page that backs a frame: the one at the same address.
pub(crate) fn host_page(gfn: Gfn, size: PageSize) -> HostPage {
    HostPage {
        hpa: Hpa::new(gfn.gpa().as_u64()),
        size,
        writable: true,
        executable: true,
        memory_type: subpage::ept::MemoryType::WriteBack,
    }
}

pub(crate) fn gfn(number: u64) -> Gfn {
    Gfn::new(number)
}

pub(crate) fn gfns(first: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(first), pages).expect("a range")
}

pub(crate) fn bytes(first: u64, length: u64) -> ByteRange {
    ByteRange::new(Gpa::new(first), length).expect("a range")
}

pub(crate) fn map(bits: u32) -> AccessMap {
    AccessMap::from_bits(bits)
}

/// Completes a token as a backend without processors does.
pub(crate) fn done(domain: &mut TestDomain, token: Invalidation) {
    let completed = token.without_processors();
    domain.finish(&completed);
}

pub(crate) fn set(domain: &mut TestDomain, first: u64, maps: &[u32]) {
    let maps: Vec<AccessMap> = maps.iter().copied().map(AccessMap::from_bits).collect();
    let token = domain.set_access(gfn(first), &maps).expect("a good call");
    done(domain, token);
}

pub(crate) fn get(domain: &TestDomain, page: u64) -> u32 {
    let mut maps = [AccessMap::NONE];
    domain.get_access(gfn(page), &mut maps).expect("a good call");
    maps[0].bits()
}

pub(crate) fn rule(range: ByteRange, action: Action) -> Rule {
    let name = RuleName::new("test").expect("a good name");
    Rule { name, range, owner: Owner(7), action, locked: false }
}

/// Everything that a failed call must leave as it was, as text.
pub(crate) fn picture(domain: &TestDomain) -> String {
    let mut text = String::new();
    let mut from = Some(gfn(0));
    while let Some(page) = from.and_then(|from| domain.next_restricted(from)) {
        writeln!(text, "{page:?} {:?}", domain.permitted(page)).expect("a string grows");
        from = page.checked_add(1);
    }
    for space in AddressSpace::BOTH {
        for slot in domain.slots(space).iter() {
            writeln!(text, "{space:?} {slot:?}").expect("a string grows");
            for page in slot.pages().iter().step_by(64).chain([slot.pages().last()]) {
                let place = domain.mapping(space, page);
                let leaf = place.map(|p| (p.level, p.entry));
                writeln!(text, "{page:?} {leaf:?}").expect("a string grows");
            }
        }
    }
    for active in domain.rules().iter() {
        writeln!(text, "{active:?}").expect("a string grows");
    }
    writeln!(text, "{:?}", domain.export()).expect("a string grows");
    writeln!(text, "{} frames", domain.frames().heap.frames_in_use()).expect("a string grows");
    text
}
