//! The virtual machine: what all its processors share.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;
use spin::mutex::{TicketMutex, TicketMutexGuard};
use subpage::address::{Gfn, Hpa};
use subpage::domain::{Counters, Domain, DomainError};
use subpage::exit::ExitReason;
use subpage::invalidate::{Completed, Invalidation, Shootdown};
use subpage::rules::RuleId;

use crate::abi::feature;
use crate::boot::MAX_PROCESSORS;
use crate::devices::Devices;
use crate::event::{Event, Line, Named};
use crate::hypercall::{self, Ledger};
use crate::linux::Costs;
use crate::memory::frames::PhysicalFrames;
use crate::memory::ram::GuestRam;
use crate::policy::Waiting;
use crate::processor::local_apic::{LocalApic, Message};
use crate::processor::{console, control, interrupts, port};
use crate::smp::mailbox::Mailboxes;
use crate::smp::nmis::Nmis;
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
    /// Rules that wait for the guest's first program.
    pub waiting: Option<Waiting>,
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
    /// `named` tells what the line says besides.
    pub fn record<'n>(
        &mut self,
        event: &Event<'_>,
        settings: Settings,
        named: impl FnOnce() -> Named<'n>,
    ) {
        if let Some(waiting) = &mut self.waiting {
            waiting.look(event.rule, event.bytes);
        }
        let (sequence, met) = self.ledger.record(self.domain.rules(), event);
        if settings.print_events || met.is_some() {
            let met = met.filter(|_| !settings.print_events);
            let active = event.rule.and_then(|rule| self.domain.rules().get(rule));
            let name = active.map(|active| &active.rule.name);
            console::print_line(format_args!(
                "{}",
                Line { sequence, event, name, met, named: named() }
            ));
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

    /// Counts an exit, and gives how many of its reason there are now; reasons that no processor has yet
    /// are counted together as the last one.
    pub fn count(&self, reason: ExitReason) -> u64 {
        let index = usize::from(reason.0).min(Self::REASONS - 1);
        self.0[index].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Exits of a reason on all processors since the start.
    pub fn of(&self, reason: ExitReason) -> u64 {
        self.0.get(usize::from(reason.0)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The reasons for which there were any, with how many.
    pub fn each(&self) -> impl Iterator<Item = (ExitReason, u64)> {
        let counts = (0..)
            .zip(&self.0)
            .map(|(reason, count)| (ExitReason(reason), count.load(Ordering::Relaxed)));
        counts.filter(|&(_, count)| count > 0)
    }

    /// All exits on all processors.
    pub fn all(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl fmt::Display for ExitCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "all {}", self.all())?;
        self.each().try_for_each(|(ExitReason(reason), count)| write!(f, ", {reason}: {count}"))
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
    /// What else a guest with devices costs.
    pub costs: Costs,
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
    /// The machine's devices, if the guest has them.
    pub devices: Option<Devices>,
    /// NMIs of the machine's, which are such a guest's.
    pub nmis: Nmis,
    /// Processors of such a guest that no interrupt ends the wait of.
    pub dead: AtomicU32,
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
        devices: Option<Devices>,
        bitmaps: Bitmaps,
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
            costs: Costs::new(),
            ram,
            tables,
            capabilities,
            paging,
            bitmaps,
            devices,
            nmis: Nmis::new(),
            // All but the first wait for a start-up message.
            dead: AtomicU32::new((1 << processors) - 2),
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

    /// Puts the rules in force that have waited for the first program, if its moment has come, on all
    /// processors; `cpu` is this one.
    pub fn arm(&self, shared: &mut Shared, cpu: usize) -> Result<(), DomainError> {
        let Some(waiting) = shared.waiting.take_if(|waiting| waiting.over) else { return Ok(()) };
        let token = shared.domain.arm_rules(&waiting.rules)?;
        self.complete(shared, cpu, token);
        console::print_line(format_args!(
            "hypervisor: the first program starts; {} rules more are in force",
            waiting.rules.len()
        ));
        Ok(())
    }

    /// Makes processor `cpu` exit, if it is in the guest.
    pub fn kick(&self, cpu: usize) {
        let id = self.apic_ids[cpu].load(Ordering::Acquire);
        if id != UNKNOWN && (self.devices.is_none() || self.nmis.sends(cpu)) {
            self.local_apic().send(id, Message::Nmi);
        }
    }

    /// This processor's, which a guest that has the devices may have changed the mode of.
    fn local_apic(&self) -> LocalApic {
        if self.devices.is_some() { LocalApic::as_found() } else { self.apic }
    }

    /// An NMI has come to processor `cpu`, in the guest or in the hypervisor. Does not return once the
    /// machine stops.
    pub fn nmi(&self, cpu: usize) {
        if STOPPING.load(Ordering::Acquire) {
            loop {
                control::halt();
            }
        }
        if self.devices.is_some() {
            self.nmis.comes(cpu);
        }
        self.serve_invalidation(cpu);
    }

    /// Processor `cpu` of a guest with devices waits with interrupts off. Gives whether all do.
    pub fn dies(&self, cpu: usize) -> bool {
        let all = (1_u32 << self.processors) - 1;
        let own = 1 << cpu;
        self.dead.fetch_or(own, Ordering::AcqRel) | own == all
    }

    /// It does not any longer.
    pub fn lives(&self, cpu: usize) {
        self.dead.fetch_and(!(1 << cpu), Ordering::AcqRel);
    }

    /// Tells how often the guest has exited, and what the engine has counted.
    fn print_exits(&self) {
        let awaited = self.devices.as_ref().and_then(|devices| devices.awaited.try_lock());
        if awaited.is_some_and(|awaited| awaited.is_some()) {
            console::print_line(format_args!(
                "hypervisor: the kernel has not begun where it was linked for: no rule was in force"
            ));
        }
        console::print_line(format_args!("hypervisor: exits by basic reason: {}", self.exits));
        console::print_line(format_args!("hypervisor: besides: {}", self.costs));
        // A processor that stopped with the lock held has other things to tell.
        if let Some(shared) = self.shared.try_lock() {
            if let Some(waiting) = &shared.waiting {
                console::print_line(format_args!(
                    "hypervisor: no first program was seen: {} rules were never in force",
                    waiting.rules.len()
                ));
            }
            let Counters { denied, reported, emulations, retries, spp_misses, .. } =
                shared.domain.counters();
            console::print_line(format_args!(
                "hypervisor: writes that trapped: {denied} denied, {reported} reported, {emulations} \
                 completed in software; {retries} retried, {spp_misses} SPP misses; time-stamp counter {}",
                control::time_stamp()
            ));
        }
    }

    /// Prints the last line, and ends; a machine whose devices the guest has is then reset if `reset`.
    pub fn stop(&self, reason: fmt::Arguments<'_>, reset: bool) -> ! {
        if STOPPING.swap(true, Ordering::AcqRel) {
            // Another processor is at it.
            loop {
                control::halt();
            }
        }
        let apic = self.local_apic();
        let own = apic.id();
        let silence = || {
            // Only those that have said how they are reached: others have no handler for NMIs.
            for id in &self.apic_ids[..self.processors] {
                let id = id.load(Ordering::Acquire);
                if id != own && id != UNKNOWN {
                    apic.send(id, Message::Nmi);
                }
            }
        };
        if self.devices.is_some() {
            self.print_exits();
        }
        console::print_last_line(format_args!("hypervisor: stopped: {reason}"), silence);
        if reset && self.devices.is_some() {
            console::end_emulator();
            port::reset_machine();
        }
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
    if let Some(machine) = MACHINE.get()
        && cpu < machine.processors
    {
        machine.nmi(cpu);
    }
}
