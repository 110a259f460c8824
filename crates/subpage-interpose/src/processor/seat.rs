//! What a processor of the guest brings to the protocol of a trapped write.

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

use super::page::Page;
use super::trampoline::OwnTrampoline;
use crate::machine::{Core, Publisher};
use crate::memory::Memory;

/// Why a write is not done, here.
pub(super) type Obstacle = trap::Obstacle<HostFailure>;

/// Why the host cannot do a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostFailure {
    /// KVM does not give or take extended registers.
    NoExtended,
    /// There is no address space, or no memory, to map the guest's bytes side by side.
    NoWindow,
}

impl std::fmt::Display for HostFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoExtended => "KVM does not give this thread the processor's extended registers",
            Self::NoWindow => "the host cannot map the guest's bytes",
        })
    }
}

/// A processor whose write trapped, and the locked guard.
///
/// Page walks go by guest-physical addresses, decisions and windows by places.
pub(super) struct Seat<'a> {
    pub(super) core: &'a mut Core,
    pub(super) publisher: &'a Publisher,
    pub(super) page: &'a Page,
    pub(super) trampoline: &'a mut OwnTrampoline,
    pub(super) number: u32,
    pub(super) paging: PagingFeatures,
    pub(super) tables: SystemTables,
    /// The registers before the write.
    pub(super) before: State,
    /// Extended registers, once an instruction needs them.
    pub(super) extended: &'a mut Option<Box<XsaveArea>>,
    /// Components of extended state of this host.
    pub(super) components: u64,
}

impl trap::Backend for Seat<'_> {
    type Memory = Memory;
    type Frames = HeapFrames;
    type Extended = Option<Box<XsaveArea>>;
    type Place = ();
    type Told = Arc<Record>;
    type Failure = HostFailure;

    fn memory(&self) -> &Memory {
        &self.core.memory
    }

    fn paging(&self) -> PagingFeatures {
        self.paging
    }

    fn vcpu(&self) -> u32 {
        self.number
    }

    fn when(&self) -> When {
        self.publisher.when()
    }

    fn tables(&self) -> SystemTables {
        self.tables
    }

    fn domain(&self) -> &Domain<HeapFrames> {
        &self.core.domain
    }

    fn domain_mut(&mut self) -> &mut Domain<HeapFrames> {
        &mut self.core.domain
    }

    fn traps(&self, page: Gfn) -> bool {
        self.core.traps(page)
    }

    fn ready(&mut self, write: &WriteParts) -> Result<(), Obstacle> {
        let memory = &self.core.memory;
        match write.runs().iter().find(|run| memory.at_place(run.first().as_u64()).is_none()) {
            None => Ok(()),
            Some(run) => Err(Obstacle::NotMemory(run.first().as_u64())),
        }
    }

    fn checked(&mut self, _: &WriteParts) {
        self.core.writes += 1;
    }

    fn written(&mut self, write: &WriteParts) {
        self.core.note_dirty(write.runs());
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
        let window = self.core.memory.window(write);
        let window = window.ok_or(Obstacle::Failed(HostFailure::NoWindow))?;
        Ok(window.with(|window| work(self, window)))
    }

    fn read(&mut self, write: &WriteParts, (): &(), buffer: &mut [u8]) -> Result<(), Obstacle> {
        let mut rest = buffer;
        for run in write.runs() {
            let bytes = usize::try_from(run.bytes()).expect("a store's bytes");
            let (now, later) = rest.split_at_mut(bytes);
            let place = run.first().as_u64();
            if !self.core.memory.read_places(place, now) {
                return Err(Obstacle::NotMemory(place));
            }
            rest = later;
        }
        Ok(())
    }

    fn settle(&mut self, store: &Store, state: &State) -> Result<Store, Obstacle> {
        let xcr0 = if store.needs_xcr0() { self.page.xcr0() } else { 1 };
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

    /// A foreign VMM's processor is not stepped: what is denied and not known is skipped.
    fn steps(&self) -> bool {
        false
    }

    fn record(&mut self, event: &trap::Event<&[u8]>, _: &WriteParts) -> Arc<Record> {
        self.publisher.record(self.core, Some(&self.before), event)
    }
}

impl Seat<'_> {
    /// Work with the processor's extended registers and trampoline.
    fn execute<T>(
        &mut self,
        work: impl FnOnce(&mut Executor<'_, Memory>) -> T,
    ) -> Result<T, Obstacle> {
        let components = self.components;
        let extended = match self.extended {
            Some(area) if components != 0 => Extended::Xsave { area, components },
            Some(_) => return Err(Obstacle::Failed(HostFailure::NoExtended)),
            None => Extended::Unused,
        };
        let (memory, paging, tables) = (&self.core.memory, self.paging, &self.tables);
        Ok(self.trampoline.with(|trampoline| {
            work(&mut Executor { memory, paging, tables, trampoline, extended })
        }))
    }
}
