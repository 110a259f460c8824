//! The hypervisor as a guest sees it: its calls, its events, its test hooks.

mod access;
// VMCALL is an instruction, by which the hypervisor writes to memory that it is told.
#[allow(unsafe_code)]
mod call;
mod event;
mod rule;
pub mod test_hooks;
mod tracking;

pub use access::{Access, get_access, set_access, set_maps};
pub use call::{call, call_with_registers};
pub use event::{Events, drain_events};
pub use rule::{Action, Response, Rule, add_rule, add_rule_at, lock_rule, remove_rule};
pub use tracking::{Harvest, Tracking};

use subpage_vmx::abi::{self, Call};

/// Error numbers, negative as calls return them.
pub mod errno {
    /// Not permitted.
    pub const EPERM: i64 = -1;
    /// No such thing.
    pub const ENOENT: i64 = -2;
    /// Out of memory.
    pub const ENOMEM: i64 = -12;
    /// Bad address.
    pub const EFAULT: i64 = -14;
    /// Exists already.
    pub const EEXIST: i64 = -17;
    /// Invalid argument.
    pub const EINVAL: i64 = -22;
    /// No room.
    pub const ENOSPC: i64 = -28;
    /// No such call.
    pub const ENOSYS: i64 = -38;
}

/// Asks for an item of [`abi::query`].
pub fn query(item: u64) -> i64 {
    call(Call::Query.0, [item, 0, 0, 0])
}

/// Whether the processor itself enforces sub-page permissions.
///
/// # Panics
/// If the hypervisor does not say.
pub fn has_spp() -> bool {
    let features = query(abi::query::FEATURES);
    assert!(features >= 0, "the features are refused: {features}");
    features as u64 & u64::from(abi::feature::SPP_HARDWARE) != 0
}

/// Events that were lost for want of room.
pub fn events_lost() -> u64 {
    query(abi::query::EVENTS_LOST) as u64
}
