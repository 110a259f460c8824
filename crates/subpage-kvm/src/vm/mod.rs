//! A virtual machine: memory, processors, devices, and the guard over its memory.

mod arming;
mod between_stores;
mod change;
mod create;
mod debugging;
mod error;
mod hold;
mod news;
mod request_handler;
mod reset;
mod rest;
mod run;
mod save;
mod stop;
mod vcpu_pause;
mod watch;

pub use crate::ending::Ending;
pub use crate::step::{Notice, PageTables};
pub(crate) use create::open;
pub use create::{Configuration, TrapChoice, nowhere};
pub use error::VmError;
pub use news::{DebuggerNews, DebuggerWrite};
pub use request_handler::VmRequestHandler;
pub use stop::{Held, HoldError, OnRuleStop, Stop, StopCause};

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VmFd;
use nix::sys::signal::Signal;
use subpage::access::AccessMap;
use subpage::address::{Gfn, Gpa};
use subpage_emulate::PagingFeatures;
use subpage_emulate::guest::PhysicalMemory as _;

use crate::boot;
use crate::devices::Ports;
use crate::ending::{EndingCell, Failure};
use crate::event::{Subscription, Witness};
use crate::guard::{Guard, TrapCounts};
use crate::memory::Ram;
use crate::metrics::{Clock, Metrics};
use crate::snapshot::Features;
use crate::step::{StepContext, Stepping};
use crate::store::{Recorder, StoreContext};
use crate::trap::TrapBy;
use crate::vcpu::{FeatureChoice, Processor};
pub(crate) use debugging::HARDWARE_BREAKPOINTS;
pub(crate) use hold::Leave;
pub(crate) use vcpu_pause::{PausableVcpus, Paused};
use watch::Watch;

/// What gets a processor's thread out of `KVM_RUN`.
pub(crate) const fn kick_signal() -> Signal {
    Signal::SIGUSR1
}

/// What all threads of a machine share.
pub(crate) struct VmShared {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: Ram,
    pub(crate) paging: PagingFeatures,
    guard: Mutex<Guard>,
    ports: Mutex<Ports>,
    pub(crate) events: Recorder,
    /// Numbers of the model-specific registers that KVM wants saved.
    pub(crate) msrs: Vec<u32>,
    /// What the guest sees of its processors.
    pub(crate) features: Features,
    /// What was asked for and left out of that.
    pub(crate) feature_choice: FeatureChoice,
    pub(crate) metrics: Arc<Metrics>,
    /// For the times in the metrics.
    pub(crate) clock: Clock,
    pub(crate) vcpus: Arc<PausableVcpus>,
    pub(crate) watch: Watch,
    pub(crate) holds: hold::Holds,
    /// Breakpoints of a debugger, while the guest runs.
    pub(crate) placed: Mutex<debugging::Placed>,
    /// Those that wait for debuggers.
    debuggers: Mutex<Vec<JoinHandle<()>>>,
    /// Whether a debugger watches bytes.
    pub(crate) watches: AtomicBool,
    pub(crate) ending: EndingCell,
    pub(crate) start: Mutex<Option<reset::Start>>,
    /// How far the linear addresses of a Linux kernel were moved that was unpacked here, now or before it
    /// was saved.
    pub(crate) kernel_slide: OnceLock<u64>,
    pub(crate) waiting: Mutex<arming::Waiting>,
    pub(crate) reboots: bool,
    /// The processor runs the guest's kernel itself: KVM emulates no store that it need not, and
    /// walks no page tables.
    pub(crate) native: bool,
    pub(crate) stepping: Stepping,
}

impl VmShared {
    /// [`StoreContext::guard`].
    pub(crate) fn guard(&self) -> MutexGuard<'_, Guard> {
        self.stores().guard()
    }

    /// What handling a store needs.
    pub(crate) fn stores(&self) -> StoreContext<'_, Ram> {
        StoreContext {
            ram: &self.ram,
            paging: self.paging,
            guard: &self.guard,
            metrics: &self.metrics,
            events: &self.events,
            native: self.native,
        }
    }

    /// What stepping over an instruction needs.
    pub(crate) fn steps(&self, number: usize) -> StepContext<'_> {
        StepContext {
            stores: self.stores(),
            vm: &self.vm,
            ports: &self.ports,
            stepping: &self.stepping,
            one: self.vcpus.steps(number),
        }
    }

    pub(crate) fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn debugger_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.debuggers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the machine; the first ending counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.set(ending);
        self.vcpus.end();
        self.holds.tell();
    }
}

/// A virtual machine whose memory can be guarded.
///
/// Dropping it ends the guest.
pub struct Vm {
    machine: Arc<VmShared>,
    threads: Vec<JoinHandle<()>>,
}

impl Vm {
    pub(crate) const fn shared(&self) -> &Arc<VmShared> {
        &self.machine
    }

    /// Loads a guest and sets up the processors: the first at its entry, the others waiting to be
    /// started. After a reset of the guest the same is done again.
    pub fn load(&mut self, request: &boot::Request<'_>) -> Result<boot::Boot, VmError> {
        let boot = boot::load(&self.machine.ram, request)?;
        let paused = self.machine.vcpus.pause();
        reset::set_up(&paused.processors, &boot)?;
        let start = reset::Start::new(&self.machine, &paused, request, &boot)?;
        if let Some(kernel) = boot.image.kernel {
            // A guest is loaded once; a reset moves its kernel by the same.
            let _ = self.machine.kernel_slide.set(kernel.slide);
        }
        *self.machine.start.lock().unwrap_or_else(PoisonError::into_inner) = Some(start);
        Ok(boot)
    }

    /// Does `work` on the processors; none of them is in the guest meanwhile.
    pub fn with_processors<T>(&self, work: impl FnOnce(&mut [&mut Processor]) -> T) -> T {
        let mut paused = self.machine.vcpus.pause();
        let mut processors: Vec<&mut Processor> =
            paused.processors.iter_mut().map(|held| &mut **held).collect();
        work(&mut processors)
    }

    /// Starts the processors' threads. The guest runs from then on.
    ///
    /// # Panics
    /// If it was called before.
    pub fn start(&mut self) -> Result<(), VmError> {
        assert!(self.threads.is_empty(), "a guest is started once");
        for number in 0..self.machine.vcpus.processors() {
            let machine = Arc::clone(&self.machine);
            self.spawn(format!("vcpu {number}"), move || {
                // A panic must not leave the others running unguarded, and is told by its hook.
                let run = std::panic::AssertUnwindSafe(|| run::run(&machine, number));
                if std::panic::catch_unwind(run).is_err() {
                    let reason = "this program has a bug: its message is above".to_owned();
                    let vcpu = u32::try_from(number).unwrap_or(0);
                    let failure = Failure::new(vcpu, reason);
                    machine.vcpus.delist(number);
                    machine.end(Ending::Failed(failure));
                }
            })?;
        }
        let machine = Arc::clone(&self.machine);
        self.spawn("watch".to_owned(), move || watch::run(&machine))
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), VmError> {
        let thread = thread::Builder::new().name(name).spawn(work).map_err(VmError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until the guest ends, at most so long; none if it still runs.
    pub fn wait(&self, at_most: Duration) -> Option<Ending> {
        self.machine.ending.wait(at_most).then(|| self.machine.ending.get()).flatten()
    }

    /// Ends the guest, if it has not ended.
    pub fn stop(&self) {
        self.machine.end(Ending::Requested);
    }

    /// Has this name who writes, in events from now on: functions, calls, the task.
    ///
    /// # Panics
    /// If it was called before.
    pub fn name_writers_by(&self, witness: Box<dyn Witness>) {
        assert!(self.machine.events.name_by(witness), "there is one witness");
    }

    /// How far the linear addresses of the guest's kernel were moved, if it is a Linux that was unpacked
    /// here, now or before the guest was saved.
    pub fn kernel_slide(&self) -> Option<u64> {
        self.machine.kernel_slide.get().copied()
    }

    /// Reads the guest's memory from a physical address on; false if some byte is none of it.
    pub fn read_memory(&self, at: Gpa, buffer: &mut [u8]) -> bool {
        self.machine.ram.read(at, buffer).is_ok()
    }

    /// Events from now on; at most `capacity` wait to be taken, others are dropped and counted.
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        self.machine.events.broadcast.subscribe(capacity)
    }

    /// Ends all subscriptions, after what is in them: no event follows.
    pub fn close_events(&self) {
        self.machine.events.broadcast.close();
    }

    /// For the control socket, and for calls from other threads.
    pub fn request_handler(&self) -> VmRequestHandler {
        VmRequestHandler::new(Arc::clone(&self.machine))
    }

    /// Counts of the guest's exits.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.machine.metrics)
    }

    /// What whoever set the rules should know and has not been told yet: guarded bytes that are
    /// slow.
    pub fn notices(&self) -> Vec<Notice> {
        self.machine.stepping.notices.take()
    }

    /// How many pages there is no notice of, because there were too many: at most 4,032, pages beyond
    /// are not counted.
    pub fn notices_dropped(&self) -> u64 {
        self.machine.stepping.notices.dropped()
    }

    /// How many instructions of the guest were stepped over because software does not carry them out.
    pub fn steps(&self) -> u64 {
        self.machine.stepping.steps()
    }

    /// Whether walks of the guest's page tables were found to count as writes of their pages.
    pub fn walks_write(&self) -> bool {
        self.machine.stepping.walks_write()
    }

    /// Counts of what trapped so far.
    pub fn trap_counts(&self) -> TrapCounts {
        self.machine.guard().counted().1.clone()
    }

    /// What access maps deny beside rules now: for each page, ascending, its denied sub-pages.
    pub fn map_denials(&self) -> Vec<(Gfn, AccessMap)> {
        self.machine.guard().map_denials().collect()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.machine.ram
    }

    /// How pages are made to trap.
    pub fn traps_by(&self) -> TrapBy {
        self.machine.guard().traps().by()
    }

    /// How many pages trap.
    pub fn trapped_pages(&self) -> u64 {
        self.machine.guard().traps().trapped().pages()
    }

    /// How many memory slots KVM has of the guest.
    pub fn slot_count(&self) -> usize {
        self.machine.guard().traps().slot_count()
    }

    /// The last lines of the console, if the guest's kernel has said there that it panics.
    pub fn panic_lines(&self) -> Option<Vec<String>> {
        self.machine.ports().panic().map(|report| report.lines)
    }

    /// Puts bytes into the serial port, as many as it has room for; how many.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.machine.ports().input(bytes)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
        self.machine.events.broadcast.close();
        for thread in self.threads.drain(..) {
            // A panic of it has been told.
            let _ = thread.join();
        }
        let debuggers = std::mem::take(&mut *self.machine.debugger_threads());
        for thread in debuggers {
            let _ = thread.join();
        }
    }
}
