//! Whose an NMI is: the hypervisor's, which means "invalidate", or the machine's, for a guest that has its
//! devices.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::boot::MAX_PROCESSORS;

/// Whose NMIs are.
#[derive(Debug)]
pub struct Nmis {
    /// One that means "invalidate" is on its way.
    sent: [AtomicBool; MAX_PROCESSORS],
    /// One of the machine's has come.
    waiting: [AtomicBool; MAX_PROCESSORS],
}

impl Nmis {
    /// None has been sent, and none has come.
    pub const fn new() -> Self {
        Self {
            sent: [const { AtomicBool::new(false) }; MAX_PROCESSORS],
            waiting: [const { AtomicBool::new(false) }; MAX_PROCESSORS],
        }
    }

    /// One is about to be sent to processor `cpu`. False if one is on its way already: it will find what
    /// was asked for.
    pub fn sends(&self, cpu: usize) -> bool {
        !self.sent[cpu].swap(true, Ordering::AcqRel)
    }

    /// One has come to processor `cpu`: if none was sent, it is the machine's.
    pub fn comes(&self, cpu: usize) {
        if !self.sent[cpu].swap(false, Ordering::AcqRel) {
            self.waiting[cpu].store(true, Ordering::Release);
        }
    }

    /// Whether one of the machine's waits for processor `cpu` of the guest.
    pub fn waits(&self, cpu: usize) -> bool {
        self.waiting[cpu].load(Ordering::Acquire)
    }

    /// It has been delivered.
    pub fn delivered(&self, cpu: usize) {
        self.waiting[cpu].store(false, Ordering::Release);
    }
}

impl Default for Nmis {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_is_the_machines() {
        let nmis = Nmis::new();
        assert!(nmis.sends(1));
        assert!(!nmis.sends(1), "one is on its way");
        nmis.comes(1);
        assert!(!nmis.waits(1), "it was ours");
        nmis.comes(1);
        assert!(nmis.waits(1) && !nmis.waits(0));
        assert!(nmis.sends(1), "ours and theirs are apart");
        nmis.comes(1);
        nmis.delivered(1);
        assert!(!nmis.waits(1));
    }
}
