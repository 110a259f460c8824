//! A guest in memory with a software processor, and the backend over it.
//!
//! | physical | linear | holds |
//! |---|---|---|
//! | 0x1000 to 0x4fff | | page tables, each level one |
//! | 0x5000 | 0x400000 | code |
//! | 0x6000 | 0x406000 | IDT, whose every gate leads to 0x400800 |
//! | 0x7000 | 0x407000 | GDT |
//! | 0x8000, and 0x9000 or 0xa000 | 0x410000, 0x411000 | the two pages that are written |

use std::num::NonZeroUsize;

use super::flat::Flat;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{Domain, WriteParts};
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Owner, Rule, RuleId, RuleName};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_emulate::guest::{PhysicalMemory, Register, Segment, State};
use subpage_emulate::{
    CODE_BYTES, Executor, Extended, FxArea, GuestInstruction, PagingFeatures, Progress, Scratch,
    Store, SystemTables, TableRegister, Trampoline, Window,
};
use subpage_trap::{Backend, Event, Obstacle, Response, StoreOutcome, Trapped, When, store};

pub(crate) const SPACE: AddressSpace = AddressSpace::Normal;
/// When everything happens.
pub(crate) const NOW: When = When::Counter(77);

pub(crate) const CODE: u64 = 0x40_0000;
pub(crate) const HANDLER: u64 = 0x40_0800;
/// Linear address of the first of the two pages that are written.
pub(crate) const DATA: u64 = 0x41_0000;
/// End of the first page.
pub(crate) const EDGE: u64 = DATA + 0x1000;
const PAGES: u64 = 16;
const PAGE_TABLE: u64 = 0x4000;
const RING_0_CODE: u16 = 0x08;
/// The same, never used.
pub(crate) const FRESH_CODE: u16 = 0x18;

fn trampoline() -> Trampoline {
    let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    let length = NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new anonymous mapping at an address of the kernel's choice; it is never unmapped.
    let memory = unsafe { mmap_anonymous(None, length, all, MapFlags::MAP_PRIVATE) }.unwrap();
    let code: *mut [u8; CODE_BYTES] = memory.as_ptr().cast();
    // SAFETY: writable and executable for good, used by this value alone; no instruction of these
    // tests faults in it.
    unsafe { Trampoline::new(code) }
}

pub(crate) struct Guest {
    pub(crate) memory: Flat,
    pub(crate) domain: Domain<HeapFrames>,
    pub(crate) state: State,
    pub(crate) events: Vec<Event<Vec<u8>>>,
    pub(crate) response: Response,
    /// Whether what software does not know may be stepped over.
    pub(crate) steps: bool,
    pub(crate) extended: FxArea,
    /// Calls of `carry_out`.
    pub(crate) executed: u32,
    /// What another processor writes, and where, once a store was rehearsed.
    pub(crate) raced: Option<(u64, u8)>,
    /// First byte and length of the writes that it heard of before the decision, and afterwards.
    pub(crate) checked: Vec<(u64, u64)>,
    pub(crate) written: Vec<(u64, u64)>,
    /// Physical addresses of the two pages.
    pub(crate) pages: [u64; 2],
    trampoline: Trampoline,
}

impl Guest {
    /// A guest whose two pages are neighbours in guest-physical memory, or not.
    pub(crate) fn new(neighbours: bool) -> Self {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().unwrap();
        let pages = GfnRange::new(Gfn::new(0), PAGES).unwrap();
        domain.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).unwrap();
        let memory = Flat::new(usize::try_from(PAGES * 4096).unwrap());
        let entry = |at: u64, value: u64| memory.put(at, &value.to_le_bytes());
        // Present, writable, user, accessed.
        for (table, index, next) in
            [(0x1000, 0, 0x2000), (0x2000, 0, 0x3000), (0x3000, CODE >> 21 & 511, 0x4000)]
        {
            entry(table + 8 * index, next | 0x27);
        }
        let pages = [0x8000, if neighbours { 0x9000 } else { 0xa000 }];
        for (linear, page) in [
            (CODE, 0x5000),
            (CODE + 0x6000, 0x6000),
            (CODE + 0x7000, 0x7000),
            (DATA, pages[0]),
            (EDGE, pages[1]),
        ] {
            entry(PAGE_TABLE + 8 * (linear >> 12 & 511), page | 0x7);
        }
        for vector in 0..256 {
            let gate = u128::from(HANDLER & 0xffff)
                | u128::from(RING_0_CODE) << 16
                | 0xee00 << 32
                | u128::from(HANDLER >> 16) << 48;
            memory.put(0x6000 + 16 * vector, &gate.to_le_bytes());
        }
        // Accessed code of ring 0.
        memory.put(0x7000 + u64::from(RING_0_CODE), &0x00af_9b00_0000_ffff_u64.to_le_bytes());
        memory.put(0x7000 + u64::from(FRESH_CODE), &0x00af_9a00_0000_ffff_u64.to_le_bytes());
        let mut state = State {
            rip: CODE,
            rflags: 0x202,
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: 0x4_06a0,
            efer: 0xd01,
            ..State::default()
        };
        let data = Segment { selector: 0x10, base: 0, limit: !0, access: 0xc093 };
        let segments = &mut state.segments;
        for segment in [
            &mut segments.ds,
            &mut segments.es,
            &mut segments.ss,
            &mut segments.fs,
            &mut segments.gs,
        ] {
            *segment = data;
        }
        segments.cs = Segment { selector: RING_0_CODE, base: 0, limit: !0, access: 0xa09b };
        let mut extended = FxArea([0; 512]);
        extended.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        extended.0[160..176].copy_from_slice(&[0xa7; 16]); // XMM0
        let trampoline = trampoline();
        Self {
            memory,
            domain,
            state,
            events: Vec::new(),
            response: Response::Skip,
            steps: true,
            extended,
            executed: 0,
            raced: None,
            checked: Vec::new(),
            written: Vec::new(),
            pages,
            trampoline,
        }
    }

    pub(crate) fn add_rule(
        &mut self,
        name: &str,
        action: Action,
        first: u64,
        bytes: u64,
    ) -> RuleId {
        let rule = Rule {
            name: RuleName::new(name).unwrap(),
            range: ByteRange::new(Gpa::new(first), bytes).unwrap(),
            owner: Owner(7),
            locked: false,
            action,
        };
        let (id, token) = self.domain.add_rule(rule).unwrap();
        self.domain.finish(&token.without_processors());
        id
    }

    pub(crate) fn deny_by_map(&mut self, page: u64, sub_page: u32) {
        let map = AccessMap::from_bits(!(1 << sub_page));
        let token = self.domain.set_access(Gpa::new(page).gfn(), &[map]).unwrap();
        self.domain.finish(&token.without_processors());
    }

    pub(crate) fn page_table_entry(&self, linear: u64) -> u64 {
        u64::from_le_bytes(self.memory.get(PAGE_TABLE + 8 * (linear >> 12 & 511)))
    }

    pub(crate) fn set_page_table_entry(&mut self, linear: u64, value: u64) {
        self.memory.put(PAGE_TABLE + 8 * (linear >> 12 & 511), &value.to_le_bytes());
    }

    /// Guest-physical address of a linear one in the two pages.
    pub(crate) fn physical(&self, linear: u64) -> u64 {
        self.pages[usize::from(linear >= EDGE)] + linear % 4096
    }

    /// The bytes of the two pages from `linear` on.
    pub(crate) fn bytes(&self, linear: u64, length: u64) -> Vec<u8> {
        (linear..linear + length).map(|at| self.memory.get::<1>(self.physical(at))[0]).collect()
    }

    /// Decodes `code` at RIP.
    pub(crate) fn decode(&mut self, code: &[u8]) -> GuestInstruction {
        self.memory.put(0x5000 + self.state.rip % 4096, code);
        GuestInstruction::fetch(&self.memory, self.paging(), &self.state).unwrap()
    }

    /// Runs `code`, whose store has trapped, through the protocol.
    pub(crate) fn run(&mut self, code: &[u8]) -> Result<StoreOutcome<u64>, Obstacle<()>> {
        let instruction = self.decode(code);
        let made = Store::of(&instruction, &self.state)?;
        let mut state = self.state;
        let trapped = Trapped { instruction: &instruction, store: &made };
        let result = store(self, trapped, &mut state);
        if result.is_err() {
            assert_eq!(state, self.state, "an obstacle leaves the state as it was");
        }
        self.state = state;
        result
    }
}

impl Backend for Guest {
    type Memory = Flat;
    type Frames = HeapFrames;
    type Extended = FxArea;
    type Place = ();
    type Told = u64;
    type Failure = ();

    fn memory(&self) -> &Flat {
        &self.memory
    }

    fn paging(&self) -> PagingFeatures {
        PagingFeatures { physical_width: PhysicalWidth::MAX, gigabyte_pages: true }
    }

    fn vcpu(&self) -> u32 {
        3
    }

    fn when(&self) -> When {
        NOW
    }

    fn tables(&self) -> SystemTables {
        SystemTables {
            gdtr: TableRegister { base: CODE + 0x7000, limit: 0xff },
            idtr: TableRegister { base: CODE + 0x6000, limit: 0xfff },
            ldtr: Segment { access: 1 << 16, ..Segment::default() },
            tr: Segment::default(),
        }
    }

    fn domain(&self) -> &Domain<HeapFrames> {
        &self.domain
    }

    fn domain_mut(&mut self) -> &mut Domain<HeapFrames> {
        &mut self.domain
    }

    fn traps(&self, page: Gfn) -> bool {
        self.domain.next_restricted(page) == Some(page)
    }

    fn ready(&mut self, _: &WriteParts) -> Result<(), Obstacle<()>> {
        Ok(())
    }

    fn checked(&mut self, write: &WriteParts) {
        self.checked.push((write.first().first().as_u64(), write.bytes()));
    }

    fn written(&mut self, write: &WriteParts) {
        self.written.push((write.first().first().as_u64(), write.bytes()));
    }

    fn extended(&mut self) -> &mut FxArea {
        &mut self.extended
    }

    fn with_window<T>(
        &mut self,
        write: &WriteParts,
        (): &(),
        work: impl FnOnce(&mut Self, &mut Window<'_>) -> T,
    ) -> Result<T, Obstacle<()>> {
        let mut bytes = vec![0; usize::try_from(write.bytes()).unwrap()];
        self.read(write, &(), &mut bytes)?;
        let mut copy = Scratch::new(write.first().first().as_u64(), &bytes);
        let result = work(self, &mut copy.window());
        let mut rest = copy.bytes();
        for run in write.runs() {
            let (now, later) = rest.split_at(usize::try_from(run.bytes()).unwrap());
            self.memory.write(run.first(), now).unwrap();
            rest = later;
        }
        Ok(result)
    }

    fn settle(&mut self, store: &Store, state: &State) -> Result<Store, Obstacle<()>> {
        /// x87, SSE and AVX.
        const XCR0: u64 = 7;
        let (tables, paging) = (self.tables(), self.paging());
        let mut executor = Executor {
            memory: &self.memory,
            paging,
            tables: &tables,
            trampoline: &mut self.trampoline,
            extended: Extended::Fx(&mut self.extended),
        };
        Ok(executor.settle(store, state, || XCR0)?)
    }

    fn carry_out(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Obstacle<()>> {
        self.executed += 1;
        if let Some((at, byte)) = self.raced.filter(|_| self.executed == 2) {
            self.memory.put(at, &[byte]);
        }
        let (tables, paging) = (self.tables(), self.paging());
        let mut executor = Executor {
            memory: &self.memory,
            paging,
            tables: &tables,
            trampoline: &mut self.trampoline,
            extended: Extended::Fx(&mut self.extended),
        };
        Ok(executor.complete(store, state, window)?)
    }

    fn steps(&self) -> bool {
        self.steps
    }

    fn response(&self, _: Option<RuleId>) -> Response {
        self.response
    }

    fn record(&mut self, event: &Event<&[u8]>, write: &WriteParts) -> u64 {
        assert_eq!(event.gpa, write.first().first());
        self.events.push(event.clone().map_bytes(<[u8]>::to_vec));
        self.events.len() as u64
    }
}

pub(crate) fn set_stack(guest: &mut Guest, rsp: u64) {
    guest.state.registers[Register::Rsp] = rsp;
}
