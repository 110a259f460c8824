//! Hypercalls: what a guest may ask for, `docs/hypercalls.md`.
//!
//! Every argument, and every byte of guest memory, is hostile and changes at any moment: it is read
//! once into memory of the hypervisor and only that copy is checked and used. What is written into
//! guest memory for the caller passes [`Domain::authorize_write`] like any other write (contract
//! C4). A call that fails has changed nothing (C2) but counters and the event that tells of it.
//!
//! [`dispatch`] does a call as far as it can without waiting. Where a permission has become tighter,
//! it hands back the [`Invalidation`] and what remains: the caller completes the token on every
//! processor and then lets [`Continuation::finish`] give the result, all under the one lock that
//! holds domain and [`Ledger`].

mod access;
mod buffer;
mod ledger;
mod response;
mod rules;
mod stream;
mod tracking;

#[cfg(test)]
mod tests;

pub use ledger::Ledger;
pub use response::Responses;
#[cfg(feature = "test-hooks")]
pub(crate) use rules::rule_of;
pub use rules::{GUEST, MAX_RULES};
pub use subpage::errno::Errno;
pub use tracking::MAX_TRACKED;

use subpage::domain::{Domain, Observer};
use subpage::frames::TableFrames;
use subpage::invalidate::{Completed, Invalidation};
use subpage::rules::RuleId;

use crate::abi::{Call, VERSION, query};
use crate::event::Event;
use subpage_emulate::guest::PhysicalMemory;
use subpage_trap::{Origin, When};

use tracking::Harvest;

/// What a guest can learn about its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineInformation {
    /// [`feature`](crate::abi::feature) bits.
    pub features: u32,
    /// Virtual processors.
    pub processors: u32,
    /// Bytes of guest memory from address 0 on.
    pub memory: u64,
}

/// A hypercall as the guest made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// RAX.
    pub call: Call,
    /// RBX, RCX, RDX, RSI.
    pub arguments: [u64; 4],
    /// Who calls; only CPL 0 may.
    pub origin: Origin,
}

/// What a call works on.
pub struct CallContext<'a, F, O, M> {
    /// The guest's protection domain.
    pub domain: &'a mut Domain<F, O>,
    /// The guest's memory: at least what the slots hold that the domain maps writable.
    pub memory: &'a M,
    /// What the guest holds by hypercalls.
    pub ledger: &'a mut Ledger,
    /// What it may learn.
    pub machine: &'a MachineInformation,
    /// The time of the call.
    pub when: When,
    /// Hears of each event that a call causes, with what [`Ledger::record`] says of it: a result was
    /// to be written where a rule has something to say. The event is in the ring already.
    pub heard: &'a mut dyn FnMut(u64, &Event<'_>, Option<u64>),
}

/// How a call ended, or what it still needs.
#[must_use = "the guest waits for its result"]
#[derive(Debug)]
pub enum CallOutcome {
    /// The call is done.
    Done {
        /// For RAX.
        rax: u64,
    },
    /// Complete the token, then [`finish`](Continuation::finish); nothing else may touch domain or
    /// ledger meanwhile. Tokens that require nothing come here too.
    Invalidate {
        /// What processors must do first.
        token: Invalidation,
        /// The rest of the call.
        then: Continuation,
    },
    /// The call would have written where a rule wants the guest stopped.
    Stop {
        /// That rule.
        rule: RuleId,
    },
}

/// The rest of a call whose change is being put into force.
#[must_use = "the guest waits for its result"]
#[derive(Debug)]
pub struct Continuation {
    rax: u64,
    harvest: Option<Harvest>,
}

impl Continuation {
    /// Frees what the change left, writes what the guest is to get, and gives the value for RAX.
    ///
    /// # Panics
    /// If `done` is not the completed token of this call, or domain or ledger have changed since.
    pub fn finish<F, O, M>(self, done: &Completed, context: &mut CallContext<'_, F, O, M>) -> u64
    where
        F: TableFrames,
        O: Observer,
        M: PhysicalMemory,
    {
        context.domain.finish(done);
        if let Some(harvest) = self.harvest {
            harvest.deliver(done, context);
        }
        self.rax
    }
}

/// Why a call gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The guest gets the number.
    Error(Errno),
    /// The guest is to be stopped.
    Stop(RuleId),
}

impl<E: Into<Errno>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Does one call, all but the test hooks.
pub fn dispatch<F, O, M>(request: &Request, context: &mut CallContext<'_, F, O, M>) -> CallOutcome
where
    F: TableFrames,
    O: Observer,
    M: PhysicalMemory,
{
    match context.answer(request) {
        Ok(outcome) => outcome,
        Err(Refusal::Error(errno)) => CallOutcome::Done { rax: errno.to_result().cast_unsigned() },
        Err(Refusal::Stop(rule)) => CallOutcome::Stop { rule },
    }
}

const fn done(rax: u64) -> CallOutcome {
    CallOutcome::Done { rax }
}

const fn after(token: Invalidation, rax: u64) -> CallOutcome {
    CallOutcome::Invalidate { token, then: Continuation { rax, harvest: None } }
}

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    fn answer(&mut self, request: &Request) -> Result<CallOutcome, Refusal> {
        if request.origin.cpl != Some(0) {
            return Err(Errno::NotPermitted.into());
        }
        let [first, second, third, _] = request.arguments;
        match request.call {
            Call::Query => Ok(done(self.query(first)?)),
            Call::GetAccess => self.get_access(first, request.origin),
            Call::SetAccess => self.set_access(first),
            Call::AddRule => self.add_rule(first),
            Call::RemoveRule => self.remove_rule(first),
            Call::LockRule => self.lock_rule(first),
            Call::Track => self.track(first, second),
            Call::Harvest => self.harvest(first, second, third, request.origin),
            Call::Untrack => self.untrack(first),
            Call::ReadEvents => self.read_events(first, second, request.origin),
            _ => Err(Errno::NoCall.into()),
        }
    }

    fn query(&self, item: u64) -> Result<u64, Errno> {
        match item {
            query::VERSION => Ok(VERSION.into()),
            query::FEATURES => Ok(self.machine.features.into()),
            query::PROCESSORS => Ok(self.machine.processors.into()),
            query::EVENTS_LOST => Ok(self.ledger.events.lost()),
            query::MEMORY => Ok(self.machine.memory),
            _ => Err(Errno::Invalid),
        }
    }
}
