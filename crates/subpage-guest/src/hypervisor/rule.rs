//! Rules.

use subpage_vmx::abi::{Call, RuleRequest};
use zerocopy::{FromZeros, IntoBytes};

use super::{call, test_hooks};
use crate::memory::{Bytes, frames};

/// What becomes of a write that touches a byte of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Log,
    AllowOnce,
    Deny,
    Stop,
}

/// What becomes of a denied instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// As the host has set.
    Default,
    /// Its write has no effect, all else of it has.
    Skip,
    /// General protection.
    Fault,
}

/// A rule to add.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'a> {
    /// The bytes it guards.
    pub bytes: Bytes,
    /// What becomes of a write.
    pub action: Action,
    /// What becomes of a denied instruction.
    pub response: Response,
    /// Locked from the first moment on.
    pub locked: bool,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Rule<'a> {
    /// A rule that is not locked, with the host's response.
    pub const fn new(name: &'a str, bytes: Bytes, action: Action) -> Self {
        Self { bytes, action, response: Response::Default, locked: false, name }
    }

    /// Writes the request that adds it into a page of its own.
    pub fn request_page(&self) -> Bytes {
        let mut request = RuleRequest::new_zeroed();
        request.gpa = self.bytes.address().into();
        request.bytes = self.bytes.length().into();
        request.action = (self.action as u32).into();
        request.response = (self.response as u32).into();
        request.flags = u32::from(self.locked).into();
        request.name_length = (self.name.len() as u16).into();
        request.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let page = frames::page();
        page.write_all(request.as_bytes());
        page
    }

    /// Adds it as the host does, through the test hook.
    ///
    /// # Panics
    /// If that is refused.
    pub fn add_as_host(&self) -> u64 {
        let rule = test_hooks::host_rule(self.request_page());
        assert!(rule > 0, "the host's rule {} is refused: {rule}", self.name);
        rule as u64
    }
}

/// Adds a rule; returns its number.
///
/// # Panics
/// If the hypervisor refuses.
pub fn add_rule(rule: &Rule<'_>) -> u64 {
    let number = add_rule_at(rule.request_page().address());
    assert!(number > 0, "the rule {} is refused: {number}", rule.name);
    number as u64
}

/// Adds the rule whose request is at an address; returns the hypervisor's answer.
pub fn add_rule_at(address: u64) -> i64 {
    call(Call::AddRule.0, [address, 0, 0, 0])
}

/// Removes a rule; returns the hypervisor's answer.
pub fn remove_rule(number: u64) -> i64 {
    call(Call::RemoveRule.0, [number, 0, 0, 0])
}

/// Locks a rule; returns the hypervisor's answer.
pub fn lock_rule(number: u64) -> i64 {
    call(Call::LockRule.0, [number, 0, 0, 0])
}
