//! Guest page tables in restricted pages: stepping over a walk.
//!
//! With accessed and dirty flags for EPT on, the processor treats each read of a guest page table as
//! a write, so a table in a write-protected page traps on every walk. The flags are set in software
//! and one instruction is run with EPT's flags off, for this virtual processor alone: nothing is
//! opened, for nobody (C1), and every store of the instruction is judged as always.
//!
//! Unsafe for the EPTP and the monitor trap flag.
#![allow(unsafe_code)]

use super::violation::SPACE;
use crate::machine::Shared;
use crate::processor::console;
use crate::vcpu::Vcpu;
use crate::vmx::field::ControlField;
use subpage_emulate::Access;
use subpage_emulate::guest::State;

/// More attempts at a walk than any sequence of changes by other processors is worth.
const ATTEMPTS: u32 = 8;

/// As many steps as no guest makes that has no rule on a table that is in use.
const MANY: u64 = 100_000;

/// What is said once, when so many steps are done as `count` tells; `None` at other times.
fn what_costs(count: u64) -> Option<&'static str> {
    let told = "walks of guarded page tables have cost 100,000 single steps: a rule or map covers a table \
                that the processor uses all the time; without EPT's flags (ept-ad=off) it costs none";
    (count == MANY).then_some(told)
}

/// Tells what so many steps are due to, once.
pub(super) fn tell(count: u64) {
    if let Some(told) = what_costs(count) {
        console::print_line(format_args!("hypervisor: {told}"));
    }
}

impl Vcpu {
    /// Sets the flags of the walk for `linear` and lets the instruction pass.
    pub(super) fn step_over_walk(&mut self, shared: &mut Shared, linear: u64) {
        let state = self.state();
        if self.stepping {
            // The second time, with EPT's flags off, it can only be a flag that the processor wants
            // to set: that of a write too, and at CPL 3 also that of an access to a system table or
            // to the stack of a handler, which are not made with the guest's privilege.
            self.mark_walk(shared, &state, linear, Access::write_by(&state));
            let system = Access { write: true, ..Access::SYSTEM_READ };
            self.mark_walk(shared, &state, linear, system);
        } else {
            self.mark_walk(shared, &state, linear, Access::read_by(&state));
        }
        if !self.stepping {
            self.stepping = true;
            self.set_eptp(false);
            self.set_monitor_trap(true);
        }
    }

    fn mark_walk(&self, shared: &mut Shared, state: &State, linear: u64, access: Access) {
        for _ in 0..ATTEMPTS {
            // Whatever is wrong with the walk, the processor will find out itself; until then it
            // marks what it has used.
            let marks = subpage_emulate::walk_marks(
                &self.machine.ram,
                self.paging(),
                state,
                linear,
                access,
            );
            // Without memory for the record nothing is set here; the processor sets it itself.
            if marks.iter().any(|mark| shared.domain.note_marked(SPACE, mark.entry).is_err()) {
                break;
            }
            let walk = subpage_emulate::Translation { gpa: subpage::address::Gpa::new(0), marks };
            if walk.mark_accessed(&self.machine.ram) != Ok(false) {
                break;
            }
        }
    }

    /// The instruction has passed.
    pub(super) fn step_done(&mut self) {
        // Whatever traps now is not what was retried before.
        self.retry = subpage::domain::RetryState::default();
        if self.stepping {
            self.stepping = false;
            self.set_eptp(self.machine.tables.accessed_dirty);
        }
        self.set_monitor_trap(false);
    }

    fn set_eptp(&mut self, accessed_dirty: bool) {
        let eptp = self.machine.tables.eptp(accessed_dirty);
        // SAFETY: the same tables, with or without flags.
        unsafe { self.vmcs.set_control(ControlField::EPTP, eptp) };
        self.vmcs.invalidate_ept();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_steps_are_told_of_once() {
        let told = (1..3 * MANY).filter_map(what_costs).count();
        assert_eq!(told, 1);
        assert!(what_costs(MANY).is_some_and(|told| told.contains("100,000")));
    }
}
