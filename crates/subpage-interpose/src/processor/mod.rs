//! A processor of the guest: what comes back from `KVM_RUN`.

mod page;
mod reported;
mod seat;
mod trampoline;
mod trapped;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use subpage::address::PhysicalWidth;
use subpage_emulate::PagingFeatures;

use crate::kvm;
use crate::machine::Machine;
pub(crate) use page::Given;
use page::Page;
pub(crate) use trampoline::{OwnTrampoline, recovery};

/// A processor.
pub(crate) struct Processor {
    machine: Arc<Machine>,
    /// For its thread while it is in `KVM_RUN`.
    inner: Mutex<Inner>,
}

/// What only the processor's thread uses.
struct Inner {
    page: Page,
    number: u32,
    trampoline: OwnTrampoline,
    components: u64,
    stuck: Stuck,
}

/// How often a processor came back to the same place for the same reason.
#[derive(Debug, Default)]
struct Stuck {
    at: (u64, u64),
    times: u32,
}

impl Stuck {
    /// Counts a visit; 1 the first time in a row, and the first time after what is closed has changed.
    fn visit(&mut self, rip: u64, changes: u64) -> u32 {
        if self.at != (rip, changes) {
            *self = Self { at: (rip, changes), times: 0 };
        }
        self.times = self.times.saturating_add(1);
        self.times
    }

    fn reset(&mut self) {
        self.times = 0;
    }
}

/// What comes after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The guest goes on.
    Enter,
    /// Another exit has come up meanwhile, to be looked at as if it were new.
    Look,
    /// The exit is the VMM's.
    Yours,
    /// A rule stops the guest.
    Stop,
}

impl Processor {
    /// A processor that the VMM has just made; `bytes`: of the area that it shares with KVM.
    pub(crate) fn new(machine: &Arc<Machine>, fd: i32, bytes: usize) -> io::Result<Self> {
        subpage_emulate::prepare();
        let inner = Inner {
            page: Page::new(fd, bytes)?,
            number: machine.count_processor(),
            trampoline: OwnTrampoline::new()?,
            components: subpage_guard::vcpu::trampoline::components(),
            stuck: Stuck::default(),
        };
        Ok(Self { machine: Arc::clone(machine), inner: Mutex::new(inner) })
    }

    /// Its machine.
    pub(crate) const fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// `KVM_RUN`: as KVM would have given it, but for exits that are about guarded memory, which are
    /// handled and not given. `enter` is the call itself.
    #[inline]
    pub(crate) fn run(&self, enter: impl Fn() -> Given) -> Given {
        let machine = &*self.machine;
        machine.enter();
        if machine.is_stopped() {
            // Another thread in this processor: KVM has callers wait, too.
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            return stop(&mut inner);
        }
        let given = enter();
        // What is closed now may have been opened since, but not the other way round without `guards`.
        if !machine.guards() {
            return given;
        }
        self.look(given)
    }

    fn look(&self, mut given: Given) -> Given {
        let machine = &*self.machine;
        // Two threads in one processor: KVM lets only one in, and so does this.
        let Ok(mut inner) = self.inner.try_lock() else { return given };
        let inner = &mut *inner;
        let mut stuck = 0;
        loop {
            if machine.is_stopped() {
                return stop(inner);
            }
            let reason = inner.page.reason();
            let next = match (given.result, given.errno, reason) {
                (-1, libc::EFAULT, _) => trapped::trapped(machine, inner, true),
                (0, _, kvm::KVM_EXIT_MMIO) => reported::reported(machine, inner),
                (0, _, kvm::KVM_EXIT_INTERNAL_ERROR)
                    if inner.page.internal_error() == kvm::KVM_INTERNAL_ERROR_EMULATION =>
                {
                    trapped::trapped(machine, inner, false)
                }
                _ => return given,
            };
            match next {
                Next::Enter => given = inner.page.enter(),
                // Bounded, in case that KVM reports the same for ever.
                Next::Look if stuck < 16 => {
                    stuck += 1;
                    given = Given { result: 0, errno: 0 };
                }
                Next::Look => return Given { result: 0, errno: 0 },
                Next::Yours => {
                    inner.page.set_reason(reason);
                    return given;
                }
                Next::Stop => return stop(inner),
            }
        }
    }
}

/// The address space that a processor sees: 1 in system-management mode.
fn space(inner: &Inner) -> u32 {
    u32::from(inner.page.mode() & 1)
}

/// A rule has stopped the guest: for the VMM, KVM has failed.
fn stop(inner: &mut Inner) -> Given {
    // KVM takes the registers that wait for an entry: the VMM may ask for them.
    let _ = inner.page.complete();
    inner.page.set_failed();
    Given { result: 0, errno: 0 }
}

/// What page walks go by on this host, for guests that are told nothing else.
pub(crate) fn host_paging() -> PagingFeatures {
    let widest = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    let leaf = |function: u32| (widest >= function).then(|| core::arch::x86_64::__cpuid(function));
    let bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
    let gigabyte = leaf(0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 26 != 0);
    paging(bits, gigabyte)
}

/// What page walks go by, as the VMM tells a processor.
pub(crate) fn told_paging(entries: &[kvm::kvm_cpuid_entry2]) -> PagingFeatures {
    let leaf = |function: u32| entries.iter().find(|entry| entry.function == function);
    let bits = leaf(0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
    paging(bits, leaf(0x8000_0001).is_some_and(|leaf| leaf.edx & 1 << 26 != 0))
}

/// The widest addresses.
pub(crate) fn widest_paging() -> PagingFeatures {
    paging(52, true)
}

fn paging(bits: u32, gigabyte_pages: bool) -> PagingFeatures {
    let physical_width = PhysicalWidth::try_new(bits.clamp(32, 52)).expect("32 to 52 bits");
    PagingFeatures { physical_width, gigabyte_pages }
}
