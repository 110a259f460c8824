//! The virtual machine: what all its processors share.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;
use spin::mutex::{TicketMutex, TicketMutexGuard};
use subpage::address::{Gfn, Hpa};
use subpage::domain::Domain;
use subpage::exit::ExitReason;
use subpage::invalidate::{Completed, Invalidation, Shootdown};
use subpage::rules::RuleId;

use crate::abi::feature;
use crate::boot::MAX_PROCESSORS;
use crate::event::{Event, Line};
use crate::hypercall::{self, Ledger};
use crate::memory::frames::PhysicalFrames;
use crate::memory::ram::GuestRam;
use crate::processor::local_apic::{LocalApic, Message};
use crate::processor::{console, control, interrupts};
use crate::smp::mailbox::Mailboxes;
use crate::vmx::Capabilities;
use crate::vmx::structure::invalidate_ept_here;
use crate::vmx::{Bitmaps, TableRoots};
use subpage_emulate::PagingFeatures;
use subpage_trap::Response;

/// TableRoots, rules, events: everything that is changed under the one lock.
pub struct Shared {
    /// The engine's domain.
    pub domain: Domain<PhysicalFrames>,
    /// Events, and what becomes of denied writes.
    pub ledger: Ledger,
    /// What becomes of a denied instruction if its rule does not say.
    pub denied: Response,
    /// Memory of slots besides the guest's own, which only tests have.
    #[cfg(feature = "test-hooks")]
    pub hooks: crate::test_hooks::Hooks,
}

impl Shared {
    /// Host page of a guest frame, if a slot holds it.
    pub fn host_page(&self, ram: &GuestRam, gfn: Gfn) -> Option<Hpa> {
        #[cfg(feature = "test-hooks")]
        if let Some(hpa) = self.hooks.host_page(gfn) {
            return Some(hpa);
        }
        ram.host(gfn.gpa())
    }

    /// What becomes of an instruction that `rule`, or an access map, denies.
    pub fn response(&self, rule: Option<RuleId>) -> Response {
        rule.and_then(|rule| self.ledger.responses.of(rule)).unwrap_or(self.denied)
    }

    /// Takes an event into the ring, and prints it if that is wanted, or if it is one of the host's
    /// that the guest must not be able to read away.
    pub fn record(&mut self, event: &Event<'_>, settings: Settings) {
        let (sequence, met) = self.ledger.record(self.domain.rules(), event);
        if settings.print_events || met.is_some() {
            let met = met.filter(|_| !settings.print_events);
            let active = event.rule.and_then(|rule| self.domain.rules().get(rule));
            let name = active.map(|active| &active.rule.name);
            console::print_line(format_args!("{}", Line { sequence, event, name, met }));
        }
    }
}

/// How a machine is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Print a line for each event.
    pub print_events: bool,
}

/// How many exits there were, by basic reason.
#[derive(Debug)]
pub struct ExitCounters([AtomicU64; Self::REASONS]);

impl ExitCounters {
    const REASONS: usize = 128;

    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Self::REASONS])
    }

    /// Counts an exit; reasons that no processor has yet are counted together as the last one.
    pub fn count(&self, reason: ExitReason) {
        let index = usize::from(reason.0).min(Self::REASONS - 1);
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Exits of a reason on all processors since the start.
    pub fn of(&self, reason: ExitReason) -> u64 {
        self.0.get(usize::from(reason.0)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All exits on all processors.
    pub fn all(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// A virtual machine.
pub struct VirtualMachine {
    /// A ticket lock, first in, first out: no virtual processor can keep another from making progress
    /// (contract C8).
    shared: TicketMutex<Shared>,
    board: Shootdown,
    /// Messages between virtual processors.
    pub mail: Mailboxes,
    /// Exits by reason.
    pub exits: ExitCounters,
    /// The guest's memory.
    pub ram: GuestRam,
    /// The tables that processors walk.
    pub tables: TableRoots,
    /// What the processors' VMX can do.
    pub capabilities: Capabilities,
    /// What their paging can do.
    pub paging: PagingFeatures,
    /// Bitmaps of ports and MSRs.
    pub bitmaps: Bitmaps,
    /// How it is set up.
    pub settings: Settings,
    /// What guests are told about it.
    pub told: hypercall::MachineInformation,
    processors: usize,
    apic: LocalApic,
    apic_ids: [AtomicU32; MAX_PROCESSORS],
    /// Virtual processor that invalidations leave out, for the test that shows that they are needed.
    left_out: AtomicU32,
}

/// NMI handlers have no argument to find the machine by.
static MACHINE: Once<&'static VirtualMachine> = Once::new();
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Number of a local APIC that has not started yet; no APIC has it, since it means all.
const UNKNOWN: u32 = u32::MAX;

/// No processor is left out of invalidations.
const NOBODY: u32 = u32::MAX;

impl VirtualMachine {
    /// Makes the machine; `ram`, `tables` and the domain belong together.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        shared: Shared,
        ram: GuestRam,
        tables: TableRoots,
        capabilities: Capabilities,
        paging: PagingFeatures,
        settings: Settings,
        processors: usize,
        apic: LocalApic,
    ) -> Result<Self, subpage::frames::OutOfFrames> {
        let told = hypercall::MachineInformation {
            features: features(&tables),
            #[allow(clippy::cast_possible_truncation)] // At most 16.
            processors: processors as u32,
            memory: ram.bytes(),
        };
        Ok(Self {
            shared: TicketMutex::new(shared),
            board: Shootdown::new(processors)?,
            mail: Mailboxes::new(processors),
            exits: ExitCounters::new(),
            ram,
            tables,
            capabilities,
            paging,
            bitmaps: Bitmaps::new(),
            settings,
            told,
            processors,
            apic,
            apic_ids: [const { AtomicU32::new(UNKNOWN) }; MAX_PROCESSORS],
            left_out: AtomicU32::new(NOBODY),
        })
    }

    /// Makes NMIs mean "invalidate" from now on.
    pub fn publish(&'static self) {
        MACHINE.call_once(|| self);
        interrupts::on_nmi(on_nmi);
    }

    /// How many virtual processors there are, each on a processor of its own.
    pub const fn processors(&self) -> usize {
        self.processors
    }

    /// Tells by which number the local APICs reach processor `cpu`.
    pub fn set_apic_id(&self, cpu: usize, id: u32) {
        self.apic_ids[cpu].store(id, Ordering::Release);
    }

    /// Takes the lock. NMIs, and so invalidations that others ask for, are served meanwhile.
    pub fn lock(&self) -> TicketMutexGuard<'_, Shared> {
        self.shared.lock()
    }

    /// Processor `cpu` begins to run the guest: it invalidates and takes part from then on.
    pub fn join(&self, cpu: usize) {
        let epoch = self.board.enter(cpu);
        invalidate_ept_here();
        self.board.acknowledge(cpu, epoch);
    }

    /// Processor `cpu` will not run the guest until it [`join`](Self::join)s again.
    pub fn leave(&self, cpu: usize) {
        self.board.leave(cpu);
    }

    /// Invalidates on this processor if somebody waits for it; from NMI handlers too.
    pub fn serve_invalidation(&self, cpu: usize) {
        if let Some(epoch) = self.board.pending(cpu) {
            invalidate_ept_here();
            self.board.acknowledge(cpu, epoch);
        }
    }

    /// Makes a change that processor `cpu` has made in the tables hold on all processors, and frees
    /// what it left. When this returns, no processor completes a write that the change forbids (C1).
    ///
    /// Called with the lock held, so that nobody decides by the old tables meanwhile.
    pub fn complete(&self, shared: &mut Shared, cpu: usize, token: Invalidation) {
        let done = self.invalidate(cpu, token);
        shared.domain.finish(&done);
    }

    /// The first half of [`complete`](Self::complete): invalidates, and gives the proof.
    pub fn invalidate(&self, cpu: usize, token: Invalidation) -> Completed {
        let mut token = token;
        if token.is_required() {
            self.board.request(&token);
            self.serve_invalidation(cpu);
            self.skip_left_out();
            for other in (0..self.processors).filter(|&other| other != cpu) {
                if self.board.pending(other).is_some() {
                    self.kick(other);
                }
            }
        }
        loop {
            match self.board.poll(token) {
                Ok(done) => return done,
                Err(waiting) => token = waiting,
            }
            core::hint::spin_loop();
        }
    }

    /// Acknowledges for the processor that a test wants left out.
    fn skip_left_out(&self) {
        let cpu = self.left_out.load(Ordering::Relaxed);
        if cpu != NOBODY
            && let Some(epoch) = self.board.pending(cpu as usize)
        {
            self.board.acknowledge(cpu as usize, epoch);
        }
    }

    /// Leaves one processor out of invalidations: breaks contract C1, for the test that shows it.
    #[cfg(feature = "test-hooks")]
    pub fn leave_out(&self, cpu: Option<u32>) {
        self.left_out.store(cpu.unwrap_or(NOBODY), Ordering::Relaxed);
    }

    /// Makes processor `cpu` exit, if it is in the guest.
    pub fn kick(&self, cpu: usize) {
        let id = self.apic_ids[cpu].load(Ordering::Acquire);
        if id != UNKNOWN {
            self.apic.send(id, Message::Nmi);
        }
    }

    /// Prints the last line, and ends.
    pub fn stop(&self, reason: fmt::Arguments<'_>) -> ! {
        if STOPPING.swap(true, Ordering::AcqRel) {
            // Another processor is at it.
            loop {
                control::halt();
            }
        }
        let own = self.apic.id();
        let silence = || {
            // Only those that have said how they are reached: others have no handler for NMIs.
            for id in &self.apic_ids[..self.processors] {
                let id = id.load(Ordering::Acquire);
                if id != own && id != UNKNOWN {
                    self.apic.send(id, Message::Nmi);
                }
            }
        };
        console::print_last_line(format_args!("hypervisor: stopped: {reason}"), silence);
        console::end_machine()
    }
}

/// The features word that guests see.
const fn features(tables: &TableRoots) -> u32 {
    let mut word = 0;
    if tables.sppt.is_some() {
        word |= feature::SPP_HARDWARE;
    }
    if tables.accessed_dirty {
        word |= feature::EPT_ACCESSED_DIRTY;
    }
    if cfg!(feature = "test-hooks") {
        word |= feature::TEST_HOOKS;
    }
    word
}

fn on_nmi(cpu: usize) {
    if STOPPING.load(Ordering::Acquire) {
        loop {
            control::halt();
        }
    }
    if let Some(machine) = MACHINE.get()
        && cpu < machine.processors
    {
        machine.serve_invalidation(cpu);
    }
}
