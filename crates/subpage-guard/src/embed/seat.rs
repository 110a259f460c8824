//! Between a processor's `KVM_RUN` and what the VMM does about its exits.
//!
//! Unsafe because exits are read from the page that the processor shares with KVM.
#![allow(unsafe_code)]

use std::sync::{Arc, PoisonError};

use arrayvec::ArrayVec;
use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MMIO};
use subpage::address::{ByteRange, Gpa};
use subpage_trap::Record;

use super::machine::Shared;
use crate::failure::Failure;
use crate::memory::{GuestMemory as _, HostSlots};
use crate::metrics::ExitKind;
use crate::store::{Cause, Next, finish, mmio_store, trapped};
use crate::vcpu::{Kick, Processor};

/// Suberrors of `KVM_EXIT_INTERNAL_ERROR`.
const EMULATION: u32 = 1;
const DELIVERY: u32 = 3;

/// Flags of `kvm_run`: the processor is in system-management mode, or runs a guest of its guest.
const IN_SMM: u16 = 1 << 0;
const IN_NESTED_GUEST: u16 = 1 << 2;

/// What the software that walks page tables and carries stores out does not know, in CR4.
const UNKNOWN_CR4: [(u64, &str); 6] = [
    (1 << 12, "five-level paging (LA57)"),
    (1 << 22, "protection keys (PKU)"),
    (1 << 23, "shadow stacks (CET)"),
    (1 << 27, "linear-address-space separation (LASS)"),
    (1 << 28, "tagged addresses (LAM_SUP)"),
    (1 << 32, "FRED"),
];

/// LAM of user addresses, in CR3.
const LAM: u64 = 0b11 << 61;

/// What an exit was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum After {
    /// A store to guarded memory, which has been done or denied: enter the guest again at once.
    GoOn,
    /// Something else. The shared page is as KVM left it.
    Yours,
    /// A rule with the action `stop` was met: the processor must not run on.
    Stop(Arc<Record>),
    /// A triple fault while an event was delivered here: what `KVM_EXIT_SHUTDOWN` tells.
    Shutdown,
}

/// The guard's place at one processor. It belongs to the processor's thread.
pub struct Seat {
    shared: Arc<Shared>,
    kick: Kick,
    processor: Processor,
}

/// An exit that may be the guard's.
enum Exit {
    Store { address: Gpa, data: ArrayVec<u8, 8> },
    Trapped(Cause),
}

impl Seat {
    pub(super) fn new(shared: Arc<Shared>, mut processor: Processor) -> Self {
        // SAFETY: both belong to this value, and the byte is used by it alone.
        let kick = unsafe { Kick::new(&mut processor.fd) };
        Self { shared, kick, processor }
    }

    /// To be called right before each `KVM_RUN` of the VMM: what the last store has changed of the
    /// registers goes with it. Nobody sets or asks for registers between a [`GoOn`](After::GoOn) and that.
    pub fn before_run(&mut self) {
        self.processor.share_registers();
        self.processor.entered();
    }

    /// To be called right after it, with its error number if it failed. Until it says
    /// [`Yours`](After::Yours) the exit is not looked at.
    ///
    /// An error is a processor that cannot continue, with its instruction and the reason.
    pub fn after_run(&mut self, errno: Option<i32>) -> Result<After, Failure> {
        let Some(exit) = self.exit(errno) else { return Ok(After::Yours) };
        let shared = Arc::clone(&self.shared);
        let memory = shared.memory();
        let began = shared.clock.now();
        let next = match exit {
            Exit::Store { address, data } => {
                let first = ByteRange::new(address, 1).expect("a byte");
                if !memory.holds(first) {
                    return Ok(After::Yours);
                }
                shared.metrics.exit(ExitKind::Mmio);
                self.reported(&memory, address, &data)
            }
            Exit::Trapped(cause) => {
                // As long as nothing was ever closed, nothing trapped.
                if shared.guard().traps().changes() == 0 {
                    return Ok(After::Yours);
                }
                if let Some(reason) = self.unknown() {
                    let reason =
                        format!("it uses {reason}, which the guard does not know: hide it");
                    return Err(Failure::new(self.processor.number, reason));
                }
                let kind =
                    if cause == Cause::Fault { ExitKind::Fault } else { ExitKind::Emulation };
                shared.metrics.exit(kind);
                trapped(shared.stores(&memory), &mut self.processor, cause)
            }
        };
        shared.metrics.write_trapped(shared.clock.since(began));
        match next? {
            Next::Enter => Ok(After::GoOn),
            Next::Settle => {
                shared.guard().settle_idle(&*memory);
                Ok(After::GoOn)
            }
            Next::Stopped(event) => {
                self.rest()?;
                Ok(After::Stop(event))
            }
            Next::TripleFault { .. } => Ok(After::Shutdown),
            Next::HoldTables(_) => Err(self.failed("page tables lie in guarded pages")),
            Next::Step(unsolved) => Err(self.failed(&unsolved.reason)),
        }
    }

    /// Has KVM take over the registers that wait for the next entry. To be called after
    /// [`GoOn`](After::GoOn) if the processor is not to enter now: to be paused, saved or looked at.
    pub fn rest(&mut self) -> Result<(), Failure> {
        self.kick.raise();
        self.before_run();
        let result = self.processor.fd.run().map(|exit| format!("{exit:?}"));
        self.kick.lower();
        match result {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(()),
            Err(error) => Err(self.failed(&format!("KVM cannot complete its exit: {error}"))),
            Ok(exit) => {
                Err(self.failed(&format!("KVM leaves the guest for {exit} in place of rest")))
            }
        }
    }

    /// A store that KVM reports, all pieces of it.
    fn reported(&mut self, memory: &HostSlots, address: Gpa, data: &[u8]) -> Result<Next, Failure> {
        let shared = Arc::clone(&self.shared);
        let stores = shared.stores(memory);
        let next = mmio_store(stores, &mut self.processor, self.kick, address.as_u64(), data);
        let next = next.and_then(|next| {
            finish(stores, &mut self.processor, self.kick)?;
            Ok(next)
        });
        self.kick.lower();
        if std::mem::take(&mut self.processor.in_pieces) {
            shared.guard().store_ended(self.processor.number);
        }
        next
    }

    fn failed(&self, reason: &str) -> Failure {
        Failure::new(self.processor.number, reason.to_owned())
    }

    /// What the exit was, if it may be the guard's.
    fn exit(&mut self, errno: Option<i32>) -> Option<Exit> {
        match errno {
            None => {}
            // KVM has left the guest for a page that the host does not let it write.
            Some(libc::EFAULT) => return Some(Exit::Trapped(Cause::Fault)),
            Some(_) => return None,
        }
        let run = self.processor.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_MMIO => {
                // SAFETY: of this exit, KVM has filled in this part of the union; plain numbers.
                let store = unsafe { run.__bindgen_anon_1.mmio };
                let data = store.data.get(..usize::try_from(store.len).ok()?)?;
                let address = Gpa::try_new(store.phys_addr).ok()?;
                (store.is_write != 0)
                    .then(|| Exit::Store { address, data: data.iter().copied().collect() })
            }
            KVM_EXIT_INTERNAL_ERROR => match self.processor.internal_error() {
                EMULATION => Some(Exit::Trapped(Cause::Emulation)),
                DELIVERY => Some(Exit::Trapped(Cause::Delivery)),
                _ => None,
            },
            _ => None,
        }
    }

    /// What the processor does that is not known here.
    fn unknown(&mut self) -> Option<&'static str> {
        let flags = self.processor.fd.get_kvm_run().flags;
        if flags & IN_SMM != 0 {
            return Some("system-management mode");
        }
        if flags & IN_NESTED_GUEST != 0 {
            return Some("nested virtualization");
        }
        let special = self.processor.fd.sync_regs_mut().sregs;
        if special.cr3 & LAM != 0 {
            return Some("linear-address masking (LAM)");
        }
        let unknown = UNKNOWN_CR4.iter().find(|(bit, _)| special.cr4 & bit != 0);
        unknown.map(|(_, name)| *name)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.shared.processors.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}
