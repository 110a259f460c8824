//! Every call, on a guest whose memory is a vector.

mod access;
mod calls;
mod random;
mod results;
mod rules;
mod tracking;

use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Domain, HostPage};
use subpage::ept::MemoryType;
use subpage::frames::{EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleId, RuleName};
use subpage::slots::{SlotFlags, SlotId};
use zerocopy::IntoBytes;

use super::buffer::SPACE;
use super::{CallContext, CallOutcome, Errno, Ledger, MachineInformation, Request, dispatch};
use crate::abi::{Call, RuleRequest, feature};
use crate::policy::HostMaps;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};
use subpage_trap::{Event, Origin, When};

const PAGE: u64 = 4096;

/// Pages of the slots, and what is special about some.
const RAM: u64 = 40;
/// Mapped, but not writable on the host's side.
const SHARED: u64 = 36;
/// In a slot, but not mapped.
const UNMAPPED: u64 = 38;
/// Beyond a hole of 8 pages: a read-only slot of 4 pages.
const ROM: u64 = 48;
/// Where memory ends.
const END: u64 = 52;

/// Where the tests put requests and take results, unless they say otherwise.
const REQUEST: u64 = 0x1000;
const RESULT: u64 = 0x8000;

/// Guest memory: the slots' pages. Counts how often each byte is read.
pub(super) struct VecMemory {
    bytes: RefCell<Vec<u8>>,
    reads: RefCell<Vec<u8>>,
}

impl VecMemory {
    fn new() -> Self {
        let length = usize::try_from(END * PAGE).expect("small");
        Self { bytes: RefCell::new(vec![0; length]), reads: RefCell::new(vec![0; length]) }
    }

    fn place(gpa: Gpa, length: usize) -> Result<core::ops::Range<usize>, NotMemory> {
        let start = usize::try_from(gpa.as_u64()).map_err(|_| NotMemory)?;
        let end = start.checked_add(length).ok_or(NotMemory)?;
        let page = |at: usize| at as u64 / PAGE;
        let held = |page| page < RAM || (ROM..END).contains(&page);
        let inside = length == 0 || (page(start)..=page(end - 1)).all(held);
        if inside { Ok(start..end) } else { Err(NotMemory) }
    }

    fn at(&self, gpa: u64, length: usize) -> Vec<u8> {
        let start = usize::try_from(gpa).expect("small");
        self.bytes.borrow()[start..start + length].to_vec()
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        let start = usize::try_from(gpa).expect("small");
        self.bytes.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl PhysicalMemory for VecMemory {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let place = Self::place(gpa, buffer.len())?;
        for count in &mut self.reads.borrow_mut()[place.clone()] {
            *count = count.saturating_add(1);
        }
        buffer.copy_from_slice(&self.bytes.borrow()[place]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        let place = Self::place(gpa, bytes.len())?;
        self.bytes.borrow_mut()[place].copy_from_slice(bytes);
        Ok(())
    }

    fn set_bits(&self, _: Gpa, _: u64, _: u64) -> Result<Result<(), u64>, NotMemory> {
        unreachable!("no hypercall sets accessed and dirty flags")
    }
}

/// Heap frames that can run out.
#[derive(Default)]
pub(super) struct ScarceFrames {
    heap: HeapFrames,
    /// How many more requests succeed; unlimited if none.
    left: Cell<Option<usize>>,
}

impl ScarceFrames {
    fn request(&self) -> Result<(), OutOfFrames> {
        match self.left.get() {
            Some(0) => Err(OutOfFrames),
            left => {
                self.left.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

impl TableFrames for ScarceFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.request()?;
        self.heap.allocate()
    }

    fn release(&mut self, frame: TableFrame) {
        self.heap.release(frame);
    }

    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        self.request()?;
        self.heap.make_room(frame, stores)
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.heap.load(frame, index)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
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

    fn fill(&mut self, frame: TableFrame, value: u64) {
        self.heap.fill(frame, value);
    }
}

/// A guest with all that its hypercalls work on.
pub(super) struct Guest {
    domain: Domain<ScarceFrames>,
    memory: VecMemory,
    ledger: Ledger,
    heard: Vec<(u64, Event<Vec<u8>>)>,
    cpl: u8,
}

const MACHINE: MachineInformation =
    MachineInformation { features: feature::SPP_HARDWARE, processors: 2, memory: RAM * PAGE };

const ORIGIN: Origin =
    Origin { vcpu: 1, rip: Some(0x20_0040), rip_exact: true, cr3: Some(0x5000), cpl: Some(0) };

fn range(first: u64, bytes: u64) -> ByteRange {
    ByteRange::new(Gpa::new(first), bytes).expect("a range")
}

impl Guest {
    fn new() -> Self {
        let mut domain = Domain::new(ScarceFrames::default(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        let slots = [(0, 0, RAM, false), (1, ROM, END - ROM, true)];
        for (number, first, pages, read_only) in slots {
            let pages = GfnRange::new(Gfn::new(first), pages).expect("pages");
            let flags = SlotFlags { read_only, log_dirty: false };
            domain.add_slot(SPACE, SlotId(number), pages, flags).expect("a slot");
        }
        for gfn in (0..UNMAPPED).chain(ROM..END) {
            let page = HostPage {
                hpa: Hpa::new((0x1000 + gfn) * PAGE),
                size: PageSize::Size4K,
                writable: !(SHARED..UNMAPPED).contains(&gfn),
                executable: true,
                memory_type: MemoryType::WriteBack,
            };
            domain.map(SPACE, Gfn::new(gfn), page).expect("a page");
        }
        let ledger = Ledger::new(HostMaps::default()).expect("memory");
        Self { domain, memory: VecMemory::new(), ledger, heard: Vec::new(), cpl: 0 }
    }

    fn dispatch(&mut self, call: Call, arguments: &[u64]) -> CallOutcome {
        let mut all = [0; 4];
        all[..arguments.len()].copy_from_slice(arguments);
        let origin = Origin { cpl: Some(self.cpl), ..ORIGIN };
        self.with_context(|context| dispatch(&Request { call, arguments: all, origin }, context))
    }

    fn with_context<T>(
        &mut self,
        run: impl FnOnce(&mut CallContext<'_, ScarceFrames, (), VecMemory>) -> T,
    ) -> T {
        let Self { domain, memory, ledger, heard, .. } = self;
        run(&mut CallContext {
            domain,
            memory,
            ledger,
            machine: &MACHINE,
            when: When::Counter(9),
            heard: &mut |sequence, event, _| {
                heard.push((sequence, event.clone().map_bytes(<[u8]>::to_vec)));
            },
        })
    }

    /// Makes a call and lets it come to its end; the result as the guest reads it.
    fn call(&mut self, call: Call, arguments: &[u64]) -> i64 {
        match self.dispatch(call, arguments) {
            CallOutcome::Done { rax } => rax.cast_signed(),
            CallOutcome::Invalidate { token, then } => {
                let done = token.without_processors();
                self.with_context(|context| then.finish(&done, context)).cast_signed()
            }
            CallOutcome::Stop { rule } => panic!("rule {rule:?} stopped the guest"),
        }
    }

    /// Expects a call to fail and to change nothing.
    #[track_caller]
    fn fails(&mut self, call: Call, arguments: &[u64], errno: Errno) {
        let before = self.state();
        let memory = self.memory.bytes.borrow().clone();
        assert_eq!(self.call(call, arguments), error(errno), "{call:?} {arguments:x?}");
        assert!(self.state() == before, "a failed call has changed something");
        assert!(*self.memory.bytes.borrow() == memory, "a failed call has written memory");
    }

    /// What no failed call may change.
    fn state(&self) -> (Vec<u8>, Vec<u64>, usize) {
        let held = self.ledger.tracked.iter().map(|id| id.0).collect();
        (self.domain.export().expect("memory"), held, self.ledger.responses.count())
    }

    /// The guest itself writes, through exits or not.
    fn write(&mut self, first: u64, bytes: u64) -> bool {
        let write = range(first, bytes);
        self.domain.authorize_write(SPACE, write).expect("memory").permits()
    }

    /// The host adds a rule.
    fn host_rule(&mut self, first: u64, bytes: u64, action: Action) -> RuleId {
        self.host_rule_of(first, bytes, action, Owner::HOST)
    }

    fn host_rule_of(&mut self, first: u64, bytes: u64, action: Action, owner: Owner) -> RuleId {
        let name = RuleName::new("host").expect("a name");
        let rule = Rule { name, range: range(first, bytes), owner, action, locked: false };
        let (id, token) = self.domain.add_rule(rule).expect("memory");
        self.domain.finish(&token.without_processors());
        id
    }

    /// Puts a request for a rule into guest memory and makes it.
    fn add(&mut self, request: &RuleRequest) -> i64 {
        self.memory.put(REQUEST, request.as_bytes());
        self.call(Call::AddRule, &[REQUEST])
    }
}

const fn error(errno: Errno) -> i64 {
    errno.to_result()
}

/// A request for a rule that denies.
fn rule(gpa: u64, bytes: u64) -> RuleRequest {
    let mut name = [0; 64];
    name[..5].copy_from_slice(b"guest");
    RuleRequest {
        gpa: gpa.into(),
        bytes: bytes.into(),
        action: 2.into(),
        response: 0.into(),
        flags: 0.into(),
        reserved: 0.into(),
        name_length: 5.into(),
        name,
    }
}
