//! What a backend brings.

use subpage::address::{Gfn, Gpa};
use subpage::domain::{Domain, WriteParts};
use subpage::frames::TableFrames;
use subpage::rules::RuleId;
use subpage::slots::AddressSpace;
use subpage_emulate::guest::{PhysicalMemory, State};
use subpage_emulate::{Fault, PagingFeatures, Progress, Store, SystemTables, Window};

use crate::{Event, Obstacle, When};

/// What becomes of an instruction whose write is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// It completes as over a ROM: registers and flags change, memory does not.
    Skip,
    /// The guest receives #GP(0); if the write was the frame of an event, a double fault.
    Fault,
}

/// A virtual processor whose write trapped, the memory it wrote to, and the locked domain over that
/// memory.
///
/// Every method is called while the one lock on the domain is held.
pub trait Backend {
    /// The guest's memory.
    type Memory: PhysicalMemory;
    /// Where the engine's tables live.
    type Frames: TableFrames;
    /// The guest's extended registers, or what stands for them where they have not been read.
    type Extended: Clone;
    /// Where the bytes of a located write lie, for [`with_window`](Self::with_window).
    type Place;
    /// What is left of a recorded event, for a caller whose guest a rule has stopped.
    type Told;
    /// Why the backend itself cannot continue.
    type Failure;

    /// Address space of the write. Guests have one unless system-management mode is virtualized.
    const SPACE: AddressSpace = AddressSpace::Normal;

    /// The guest's memory.
    fn memory(&self) -> &Self::Memory;

    /// What page walks go by.
    fn paging(&self) -> PagingFeatures;

    /// Number of the virtual processor.
    fn vcpu(&self) -> u32;

    /// What time it is. Asked once for each event.
    fn when(&self) -> When;

    /// System registers. Only deliveries and few instructions ask.
    fn tables(&self) -> SystemTables;

    /// The domain that decides.
    fn domain(&self) -> &Domain<Self::Frames>;

    /// The domain that decides, to note what happens.
    fn domain_mut(&mut self) -> &mut Domain<Self::Frames>;

    /// Whether writes to a page trap at present.
    fn traps(&self, page: Gfn) -> bool;

    /// Makes the pages of a write ready to be read and written by the host, and tells where they are.
    fn ready(&mut self, write: &WriteParts) -> Result<Self::Place, Obstacle<Self::Failure>>;

    /// Hears of every write before it is decided about, for counts.
    fn checked(&mut self, write: &WriteParts) {
        let _ = write;
    }

    /// Hears of a write in place of [`checked`](Self::checked), if no sub-page that it touches is
    /// restricted.
    fn passed(&mut self, write: &WriteParts) {
        self.checked(write);
    }

    /// Hears of every permitted write after it has happened.
    fn written(&mut self, write: &WriteParts) {
        let _ = write;
    }

    /// The guest's extended registers. Asked for if [`Store::uses_extended`] says so.
    fn extended(&mut self) -> &mut Self::Extended;

    /// Does `work` on the bytes of a write, side by side even where they go to two pages that are
    /// not neighbours.
    fn with_window<T>(
        &mut self,
        write: &WriteParts,
        place: &Self::Place,
        work: impl FnOnce(&mut Self, &mut Window<'_>) -> T,
    ) -> Result<T, Obstacle<Self::Failure>>;

    /// Reads the bytes of a write.
    fn read(
        &mut self,
        write: &WriteParts,
        place: &Self::Place,
        buffer: &mut [u8],
    ) -> Result<(), Obstacle<Self::Failure>> {
        let _ = place;
        let mut rest = buffer;
        for run in write.runs() {
            let bytes = usize::try_from(run.bytes()).expect("a store's bytes");
            let (now, later) = rest.split_at_mut(bytes);
            let at: Gpa = run.first();
            self.memory().read(at, now).map_err(|_| Fault::NotMemory(at.as_u64()))?;
            rest = later;
        }
        Ok(())
    }

    /// Tells which bytes an [open](Store::is_open) store writes, by
    /// [`Executor::settle`](subpage_emulate::Executor::settle), with the extended registers of
    /// [`extended`](Self::extended).
    fn settle(&mut self, store: &Store, state: &State) -> Result<Store, Obstacle<Self::Failure>>;

    /// Carries a store out on `window` and moves `state` behind it, by
    /// [`Executor::complete`](subpage_emulate::Executor::complete), with the extended registers of
    /// [`extended`](Self::extended). If it fails, nothing has changed.
    fn carry_out(
        &mut self,
        store: &Store,
        state: &mut State,
        window: &mut Window<'_>,
    ) -> Result<Progress, Obstacle<Self::Failure>>;

    /// Whether the caller may let the processor take the step that software cannot, and decide about
    /// what it writes. Where not, a denied store that software does not carry out is
    /// [skipped](crate::deny_unknown).
    fn steps(&self) -> bool {
        true
    }

    /// What becomes of an instruction that `rule`, or an access map, denies.
    fn response(&self, rule: Option<RuleId>) -> Response {
        let _ = rule;
        Response::Skip
    }

    /// Qualification of the exit that told of the write, where exits have one.
    fn qualification(&self) -> Option<u64> {
        None
    }

    /// Whether no processor's tables could have decided about the write.
    fn in_software(&self) -> bool {
        true
    }

    /// Numbers, keeps and publishes the event of a write of these bytes, as far as they are known.
    fn record(&mut self, event: &Event<&[u8]>, write: &WriteParts) -> Self::Told;
}
