//! What this hypervisor brings to the protocol of a trapped write.
//!
//! Unsafe because guest memory is reached by pointers.
#![allow(unsafe_code)]

use subpage::address::{Gfn, Hpa, PAGE_BYTES};
use subpage::domain::{Domain, WriteParts};
use subpage::rules::RuleId;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Executor, Extended, FxArea, PagingFeatures, Progress, Store, SystemTables, Window,
};
use subpage_trap as trap;
use subpage_trap::{Response, When};

use crate::machine::Shared;
use crate::memory::frames::PhysicalFrames;
use crate::memory::ram::GuestRam;
use crate::processor::control;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

/// Why a write is not done, here.
pub(super) type Obstacle = trap::Obstacle<Stop>;

/// A virtual processor whose write trapped, and what the lock of its machine guards.
pub(super) struct Locked<'a> {
    pub(super) vcpu: &'a mut Vcpu,
    pub(super) shared: &'a mut Shared,
    /// Qualification of the exit.
    pub(super) qualification: Option<u64>,
}

/// Host pages of a write: the first, and the second if it goes on there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    first: Hpa,
    second: Option<Hpa>,
}

impl Place {
    /// A write within the page at `first`.
    pub(super) const fn of_page(first: Hpa) -> Self {
        Self { first, second: None }
    }
}

impl Locked<'_> {
    /// Does `work` on the first byte of a write in the hypervisor's address space, where the others
    /// follow.
    fn with_pointer<T>(
        &mut self,
        write: &WriteParts,
        place: &Place,
        work: impl FnOnce(&mut Self, *mut u8) -> T,
    ) -> T {
        let offset = usize::from(write.first().first().page_offset());
        let apart = place.second.filter(|hpa| hpa.as_u64() != place.first.as_u64() + PAGE_BYTES);
        if apart.is_none() {
            // Memory is mapped to itself.
            #[allow(clippy::cast_possible_truncation)] // Both have 64 bits.
            let page = place.first.as_u64() as usize as *mut u8;
            return work(self, page.wrapping_add(offset));
        }
        let page = self.vcpu.window.open(place.first, apart);
        let result = work(self, page.wrapping_add(offset));
        self.vcpu.window.close();
        result
    }
}

impl trap::Backend for Locked<'_> {
    type Memory = GuestRam;
    type Frames = PhysicalFrames;
    type Extended = FxArea;
    type Place = Place;
    type Told = Stop;
    type Failure = Stop;

    fn memory(&self) -> &GuestRam {
        &self.vcpu.machine.ram
    }

    fn paging(&self) -> PagingFeatures {
        self.vcpu.machine.paging
    }

    #[allow(clippy::cast_possible_truncation)] // There are at most 16.
    fn vcpu(&self) -> u32 {
        self.vcpu.index as u32
    }

    fn when(&self) -> When {
        When::Counter(control::time_stamp())
    }

    fn tables(&self) -> SystemTables {
        self.vcpu.system_tables()
    }

    fn domain(&self) -> &Domain<PhysicalFrames> {
        &self.shared.domain
    }

    fn domain_mut(&mut self) -> &mut Domain<PhysicalFrames> {
        &mut self.shared.domain
    }

    fn traps(&self, _: Gfn) -> bool {
        true
    }

    fn ready(&mut self, write: &WriteParts) -> Result<Place, Obstacle> {
        let (first, last) = (write.first().first(), write.last().last());
        let (vcpu, shared) = (&mut *self.vcpu, &mut *self.shared);
        let mut page = |gpa| vcpu.ready_page(shared, gpa).map_err(Obstacle::Failed);
        Ok(Place {
            first: page(first)?,
            second: if first.gfn() == last.gfn() { None } else { Some(page(last)?) },
        })
    }

    fn extended(&mut self) -> &mut FxArea {
        &mut self.vcpu.context.fx
    }

    fn with_window<T>(
        &mut self,
        write: &WriteParts,
        place: &Place,
        work: impl FnOnce(&mut Self, &mut Window<'_>) -> T,
    ) -> Result<T, Obstacle> {
        let length = usize::try_from(write.bytes()).expect("a store's bytes");
        Ok(self.with_pointer(write, place, |locked, first| {
            // SAFETY: one or two pages of the guest's memory, mapped until the work is done, hold the
            // bytes, and no reference covers guest memory.
            let mut window = unsafe { Window::new(first, length) };
            work(locked, &mut window)
        }))
    }

    fn read(
        &mut self,
        write: &WriteParts,
        place: &Place,
        buffer: &mut [u8],
    ) -> Result<(), Obstacle> {
        assert_eq!(buffer.len() as u64, write.bytes(), "a buffer is as long as its write");
        self.with_pointer(write, place, |_, first| {
            for (at, byte) in buffer.iter_mut().enumerate() {
                // SAFETY: of the bytes of the write, as above; volatile, since the guest may write
                // meanwhile.
                *byte = unsafe { first.wrapping_add(at).read_volatile() };
            }
        });
        Ok(())
    }

    fn settle(&mut self, store: &Store, state: &State) -> Result<Store, Obstacle> {
        Ok(self.execute(store, |executor| executor.settle(store, state, control::xcr0))?)
    }

    fn carry_out(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Obstacle> {
        match store.complete_moved(state, window) {
            Some(progress) => Ok(progress),
            None => self.carry_out_executed(store, state, window),
        }
    }

    fn steps(&self) -> bool {
        false
    }

    fn response(&self, rule: Option<RuleId>) -> Response {
        self.shared.response(rule)
    }

    fn qualification(&self) -> Option<u64> {
        self.qualification
    }

    fn in_software(&self) -> bool {
        self.vcpu.machine.tables.sppt.is_none()
    }

    fn record(&mut self, event: &trap::Event<&[u8]>, _: &WriteParts) -> Stop {
        let (vcpu, settings) = (&*self.vcpu, self.vcpu.machine.settings);
        self.shared.record(event, settings, || vcpu.named(event.origin.rip));
        event.rule.map_or(Stop::NoMemory(event.at.as_u64()), Stop::Rule)
    }
}

impl Locked<'_> {
    /// Carries a store out that has to be executed.
    #[inline(never)]
    fn carry_out_executed(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Obstacle> {
        Ok(self.execute(store, |executor| executor.complete(store, state, window))?)
    }

    /// Work with the processor's registers and trampoline.
    fn execute<T>(
        &mut self,
        store: &Store,
        work: impl FnOnce(&mut Executor<'_, crate::memory::ram::GuestRam>) -> T,
    ) -> T {
        // Reading them takes a dozen fields of the control structure.
        let tables = store.needs_system_tables().then(|| self.vcpu.system_tables());
        let machine = self.vcpu.machine;
        work(&mut Executor {
            memory: &machine.ram,
            paging: machine.paging,
            tables: &tables.unwrap_or_default(),
            trampoline: &mut self.vcpu.trampoline,
            extended: Extended::Fx(&mut self.vcpu.context.fx),
        })
    }
}
