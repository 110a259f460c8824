//! What this VMM brings to the protocol of a trapped write.

use std::sync::Arc;

use subpage::address::Gfn;
use subpage::domain::{Domain, WriteParts};
use subpage::frames::HeapFrames;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Executor, Extended, PagingFeatures, Progress, Store, SystemTables, Window, XsaveArea,
};
use subpage_trap as trap;
use subpage_trap::{Record, When};

use super::StoreContext;
use crate::failure::Failure;
use crate::guard::Guard;
use crate::memory::GuestMemory;
use crate::vcpu::Processor;

/// Why a write is not done, here.
pub(super) type Obstacle = trap::Obstacle<HostFailure>;

/// Why the host cannot do a write.
#[derive(Debug)]
pub(super) enum HostFailure {
    /// KVM fails.
    Processor(Failure),
    /// The instruction needs XSAVE.
    NoXsave,
    /// There is no address space, or no memory, to map the guest's bytes side by side.
    NoWindow,
}

impl std::fmt::Display for HostFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Processor(failure) => f.write_str(&failure.reason),
            Self::NoXsave => f.write_str("this host has no XSAVE"),
            Self::NoWindow => f.write_str("the host cannot map the guest's bytes"),
        }
    }
}

/// The registers before the write.
#[derive(Clone, Copy)]
pub(super) enum Before<'a> {
    Known(&'a State),
    /// Of a plain store: as the processor still shares them.
    Shared,
}

/// A processor whose write trapped, and the locked guard.
pub(super) struct Backend<'a, M> {
    pub(super) context: StoreContext<'a, M>,
    pub(super) guard: &'a mut Guard,
    pub(super) processor: &'a mut Processor,
    pub(super) tables: &'a SystemTables,
    pub(super) before: Before<'a>,
    /// Extended registers, once an instruction needs them.
    pub(super) extended: &'a mut Option<Box<XsaveArea>>,
    /// A page traps that need not, and is to be opened where no processor is in the guest.
    pub(super) settle: bool,
}

impl<M: GuestMemory> trap::Backend for Backend<'_, M> {
    type Memory = M;
    type Frames = HeapFrames;
    type Extended = Option<Box<XsaveArea>>;
    type Place = ();
    type Told = Arc<Record>;
    type Failure = HostFailure;

    fn memory(&self) -> &M {
        self.context.ram
    }

    fn paging(&self) -> PagingFeatures {
        self.context.paging
    }

    fn vcpu(&self) -> u32 {
        self.processor.number
    }

    fn when(&self) -> When {
        self.context.events.when()
    }

    fn tables(&self) -> SystemTables {
        *self.tables
    }

    fn domain(&self) -> &Domain<HeapFrames> {
        self.guard.domain()
    }

    fn domain_mut(&mut self) -> &mut Domain<HeapFrames> {
        self.guard.domain_mut()
    }

    fn traps(&self, page: Gfn) -> bool {
        self.guard.traps().traps(page)
    }

    fn ready(&mut self, write: &WriteParts) -> Result<(), Obstacle> {
        match write.runs().iter().find(|run| !self.context.ram.holds(**run)) {
            None => Ok(()),
            Some(run) => Err(Obstacle::NotMemory(run.first().as_u64())),
        }
    }

    fn passed(&mut self, write: &WriteParts) {
        self.guard.count_open(write);
        self.context.metrics.checks(1);
    }

    fn checked(&mut self, write: &WriteParts) {
        self.guard.count_trapped(write);
        self.context.metrics.checks(1);
    }

    fn written(&mut self, write: &WriteParts) {
        self.guard.note_write(self.processor.number, write);
        self.settle |= self.guard.after_write(self.context.ram, write);
    }

    fn extended(&mut self) -> &mut Option<Box<XsaveArea>> {
        self.extended
    }

    fn with_window<T>(
        &mut self,
        write: &WriteParts,
        (): &(),
        work: impl FnOnce(&mut Self, &mut Window<'_>) -> T,
    ) -> Result<T, Obstacle> {
        let ram = self.context.ram;
        ram.with_window(write, |window| work(self, window))
            .map_err(|_| Obstacle::Failed(HostFailure::NoWindow))
    }

    fn settle(&mut self, store: &Store, state: &State) -> Result<Store, Obstacle> {
        // Not guessed where KVM does not tell: without XCR0 nothing is enabled but x87.
        let xcr0 = if store.needs_xcr0() {
            self.processor.xcr0().map_err(super::trapped::failed)?
        } else {
            1
        };
        Ok(self.execute(|executor| executor.settle(store, state, || xcr0))??)
    }

    fn carry_out(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Obstacle> {
        Ok(self.execute(|executor| executor.complete(store, state, window))??)
    }

    fn record(&mut self, event: &trap::Event<&[u8]>, write: &WriteParts) -> Arc<Record> {
        let mut shared = State::default();
        let state = match self.before {
            Before::Known(state) => state,
            Before::Shared => {
                let is_plain = self.processor.at_plain_exit(&mut shared);
                assert!(is_plain, "it was when the store was located");
                &shared
            }
        };
        self.context.events.record(self.context, self.guard, state, event, write)
    }
}

impl<M: GuestMemory> Backend<'_, M> {
    /// Work with the processor's extended registers and trampoline.
    fn execute<T>(&mut self, work: impl FnOnce(&mut Executor<'_, M>) -> T) -> Result<T, Obstacle> {
        let components = self.processor.xstate;
        let extended = match self.extended {
            Some(area) if components != 0 => Extended::Xsave { area, components },
            Some(_) => return Err(Obstacle::Failed(HostFailure::NoXsave)),
            None => Extended::Unused,
        };
        let (memory, paging, tables) = (self.context.ram, self.context.paging, self.tables);
        Ok(self.processor.trampoline.with(|trampoline| {
            work(&mut Executor { memory, paging, tables, trampoline, extended })
        }))
    }
}
