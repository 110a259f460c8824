//! What a debugger has the machine stop for: its breakpoints, and the bytes that it watches.
//!
//! A breakpoint is an INT3 that is written beside the guard, and is there only while the guest runs: whoever
//! looks at a guest that is held, or saves one, finds the guest's own bytes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use subpage::address::{ByteRange, Gpa};
use subpage_emulate::guest::{PhysicalMemory as _, State};
use subpage_emulate::{Access, translate};

use super::{StopCause, VmShared};
use crate::guard::{ChangeError, Guard};
use crate::memory::Ram;
use crate::trap::{TrapBy, TrapError};
use crate::vcpu::ProcessorError;

const INT3: u8 = 0xcc;

/// Breakpoints that the processor's debug registers hold.
pub(crate) const HARDWARE_BREAKPOINTS: usize = 4;

/// The breakpoints that are in the guest's memory, and the bytes that they replace.
#[derive(Debug, Default)]
pub(crate) struct Placed(BTreeMap<Gpa, u8>);

impl Placed {
    /// Writes INT3 at each of the addresses that is memory.
    fn place(&mut self, ram: &Ram, at: impl Iterator<Item = Gpa>) {
        for gpa in at {
            let mut byte = [0];
            if ram.read(gpa, &mut byte).is_ok() && ram.write(gpa, &[INT3]).is_ok() {
                self.0.insert(gpa, byte[0]);
            }
        }
    }

    /// Takes them out again, but where the guest has written something else meanwhile.
    fn remove(&mut self, ram: &Ram) {
        for (gpa, byte) in std::mem::take(&mut self.0) {
            let mut now = [0];
            if ram.read(gpa, &mut now).is_ok() && now[0] == INT3 {
                let _ = ram.write(gpa, &[byte]);
            }
        }
    }
}

impl VmShared {
    fn placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether RIP of a processor is at a breakpoint of a debugger.
    pub(super) fn is_breakpoint(&self, state: &State) -> bool {
        let walk = translate(&self.ram, self.paging, state, state.rip, Access::fetch_by(state));
        walk.is_ok_and(|walk| self.placed().0.contains_key(&walk.gpa))
    }

    /// Reads memory without breakpoints of a debugger.
    pub(crate) fn read_clean(&self, at: Gpa, bytes: &mut [u8]) -> bool {
        let placed = self.placed();
        if self.ram.read(at, bytes).is_err() {
            return false;
        }
        let Some(last) = at.checked_add((bytes.len() as u64).saturating_sub(1)) else {
            return false;
        };
        for (gpa, byte) in placed.0.range(at..=last) {
            let Ok(offset) = usize::try_from(gpa.as_u64() - at.as_u64()) else { continue };
            if let Some(to) = bytes.get_mut(offset).filter(|to| **to == INT3) {
                *to = *byte;
            }
        }
        true
    }

    /// Does `work` while no breakpoint is in the guest's memory. No processor may be in the guest.
    pub(super) fn without_breakpoints<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut placed = self.placed();
        let at: Vec<Gpa> = placed.0.keys().copied().collect();
        placed.remove(&self.ram);
        let result = work();
        placed.place(&self.ram, at.into_iter());
        result
    }

    /// Puts breakpoints in force: INT3 at guest-physical addresses, and at most
    /// [`HARDWARE_BREAKPOINTS`] at linear ones by the processor's debug registers.
    pub(crate) fn set_breakpoints(
        &self,
        at: impl Iterator<Item = Gpa>,
        hardware: &[u64],
    ) -> Result<(), ProcessorError> {
        let mut paused = self.vcpus.pause();
        let mut placed = self.placed();
        placed.remove(&self.ram);
        placed.place(&self.ram, at);
        let mut debug = kvm_guest_debug::default();
        if !placed.0.is_empty() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
        }
        drop(placed);
        if !hardware.is_empty() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            // Global breakpoints on execution; bit 10 is always set.
            debug.arch.debugreg[7] = 1 << 10;
            for (number, address) in hardware.iter().take(HARDWARE_BREAKPOINTS).enumerate() {
                debug.arch.debugreg[number] = *address;
                debug.arch.debugreg[7] |= 2 << (2 * number);
            }
        }
        for processor in &mut paused.processors {
            if processor.debugging != debug {
                processor.set_guest_debug(&debug)?;
                processor.debugging = debug;
            }
        }
        Ok(())
    }

    /// Takes breakpoints out of the memory of a guest that is held; they count as set no more.
    pub(crate) fn take_breakpoints_out(&self) {
        let _paused = self.vcpus.pause();
        self.placed().remove(&self.ram);
    }

    /// Watches these bytes in place of what was watched before. On an error nothing has changed.
    pub(crate) fn watch_bytes(&self, ranges: &[ByteRange]) -> Result<(), ChangeError> {
        for range in ranges {
            Guard::check_memory(&self.ram, *range)?;
        }
        let paused = self.vcpus.pause();
        let mut guard = self.guard();
        let trapped = guard.traps().trapped().clone();
        guard.watch(&self.ram, ranges).map_err(|error: TrapError| ChangeError::from(error))?;
        self.watches.store(!ranges.is_empty(), Ordering::SeqCst);
        let fresh = guard.traps().trapped().difference(&trapped);
        if guard.traps().by() == TrapBy::Mprotect && !self.native && !fresh.is_empty() {
            let states: Vec<State> = paused
                .processors
                .iter()
                .filter_map(|processor| Some(processor.interrupted().ok()?.state))
                .collect();
            let tables = self.tables_among(&states, &fresh);
            // Where that fails the tables trap as every other page does.
            let _ = guard.traps_mut().hold_tables(&self.ram, &tables);
        }
        Ok(())
    }

    /// Has the machine held if a processor has written watched bytes, whose thread calls this; whether it
    /// has.
    pub(super) fn stop_if_watched(&self, vcpu: u32) -> bool {
        if !self.watches.load(Ordering::Relaxed) {
            return false;
        }
        let noted = self.guard().take_noted(vcpu);
        for range in &noted {
            self.stop_here(vcpu, StopCause::Watch(*range));
        }
        !noted.is_empty()
    }
}
