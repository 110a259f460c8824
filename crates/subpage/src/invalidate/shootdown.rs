//! Acknowledged invalidation on every processor.

use alloc::vec::Vec;

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Completed, Epoch, Invalidation};
use crate::frames::OutOfFrames;

/// Acknowledgement of a processor that is not in the guest and will invalidate before it enters.
const OUTSIDE: u64 = u64::MAX;

/// Who has invalidated up to which change: issue, acknowledge, wait.
///
/// The initiator [`request`](Self::request)s, kicks every processor in the guest (NMI, IPI or what
/// the backend has), and [`poll`](Self::poll)s. A processor [`enter`](Self::enter)s before each VM
/// entry that follows time outside, [`acknowledge`](Self::acknowledge)s from its kick, and
/// [`leave`](Self::leave)s when it stops running the guest. It must execute INVEPT between taking a
/// number and acknowledging it.
///
/// The two sides each write their own word and then read the other's; the fence between is what
/// makes at least one of them see the other (the order the SDM's "Delayed Invalidation" leaves to
/// software).
#[derive(Debug)]
pub struct Shootdown {
    requested: AtomicU64,
    acknowledged: Vec<AtomicU64>,
}

impl Shootdown {
    /// A board for `processors` processors, all outside the guest.
    pub fn new(processors: usize) -> Result<Self, OutOfFrames> {
        let mut acknowledged = Vec::new();
        acknowledged.try_reserve_exact(processors).map_err(|_| OutOfFrames)?;
        acknowledged.resize_with(processors, || AtomicU64::new(OUTSIDE));
        Ok(Self { requested: AtomicU64::new(0), acknowledged })
    }

    /// Initiator: publishes the change. Kick the processors after this.
    pub fn request(&self, token: &Invalidation) {
        self.requested.fetch_max(token.epoch.0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Processor `cpu`: it is about to enter the guest. Invalidate, then
    /// [`acknowledge`](Self::acknowledge) the returned number, then enter.
    ///
    /// # Panics
    /// If there is no such processor (as do all methods that take one).
    pub fn enter(&self, cpu: usize) -> Epoch {
        self.acknowledged[cpu].store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Epoch(self.requested.load(Ordering::Acquire))
    }

    /// Processor `cpu`: the change up to which it has to invalidate now; `None` if it already has.
    pub fn pending(&self, cpu: usize) -> Option<Epoch> {
        let wanted = self.requested.load(Ordering::Acquire);
        (self.acknowledged[cpu].load(Ordering::Relaxed) < wanted).then_some(Epoch(wanted))
    }

    /// Processor `cpu`: it has invalidated everything since it was told `epoch`.
    ///
    /// A later acknowledgement stays: a kick can be served between taking a number and this.
    pub fn acknowledge(&self, cpu: usize, epoch: Epoch) {
        self.acknowledged[cpu].fetch_max(epoch.0, Ordering::Release);
    }

    /// Processor `cpu`: it is outside the guest until it [`enter`](Self::enter)s again.
    pub fn leave(&self, cpu: usize) {
        self.acknowledged[cpu].store(OUTSIDE, Ordering::Release);
    }

    /// Initiator: whether every processor has acknowledged; gives the token back while not.
    pub fn poll(&self, token: Invalidation) -> Result<Completed, Invalidation> {
        if !token.required
            || self.acknowledged.iter().all(|a| a.load(Ordering::Acquire) >= token.epoch.0)
        {
            return Ok(Completed { epoch: token.epoch });
        }
        Err(token)
    }
}
