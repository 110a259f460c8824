//! What the VMM writes itself, for its devices: it is judged as a write of the guest is.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;
use subpage_emulate::guest::{NotMemory, PhysicalMemory as _, State};
use subpage_trap::{Account, Met, Origin, Response, describe};

use super::Machine;
use crate::guard::{Guard, SPACE};
use crate::memory::{GuestMemory as _, HostSlots};

/// What became of a device's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum DeviceWrite {
    /// All bytes are written.
    Done,
    /// Some bytes are not, because a rule or an access map denies them; all others are.
    Denied,
}

impl Machine {
    /// Writes for a device what no rule denies, byte by byte where a rule lies. The event of what is
    /// denied names processor `vcpu`, which the device serves, and no instruction.
    ///
    /// Fails without having written anything if not all of it is memory, or the engine has no memory
    /// left for its records.
    pub fn device_write(&self, at: Gpa, bytes: &[u8], vcpu: u32) -> Result<DeviceWrite, NotMemory> {
        if bytes.is_empty() {
            return Ok(DeviceWrite::Done);
        }
        let all = ByteRange::new(at, bytes.len() as u64).map_err(|_| NotMemory)?;
        let memory = self.shared.memory();
        if !memory.holds(all) {
            return Err(NotMemory);
        }
        let mut guard = self.shared.guard();
        let mut done = DeviceWrite::Done;
        for page in all.pages() {
            let runs = if guard.domain().is_open(SPACE, page) {
                vec![page]
            } else {
                runs_alike(&guard, page)
            };
            for run in runs {
                let first = run.first().as_u64() - at.as_u64();
                let first = usize::try_from(first).expect("inside of a slice");
                let bytes = &bytes[first..][..usize::try_from(run.bytes()).expect("of a slice")];
                if !self.write_run(&memory, &mut guard, run, bytes, vcpu)? {
                    done = DeviceWrite::Denied;
                }
            }
        }
        Ok(done)
    }

    /// Decides about bytes that are all permitted or all denied; whether they were written.
    fn write_run(
        &self,
        memory: &HostSlots,
        guard: &mut Guard,
        run: ByteRange,
        bytes: &[u8],
        vcpu: u32,
    ) -> Result<bool, NotMemory> {
        let parts = WriteParts::one(run);
        guard.count_untrapped(&parts);
        self.shared.metrics.checks(1);
        let decided = guard.domain_mut().authorize_write_parts(SPACE, &parts);
        let decision = decided.map_err(|_| NotMemory)?;
        if decision.permits() {
            memory.write(run.first(), bytes)?;
            let _ = guard.after_write(memory, &parts);
        }
        if let Some(met) = Met::of(decision) {
            let account = Account {
                origin: Origin { vcpu, rip: None, rip_exact: false, cr3: None, cpl: None },
                when: self.shared.events.when(),
                parts: &parts,
                gla: None,
                length: Some(run.bytes()),
                bytes,
                instruction: &[],
                during_delivery: false,
                qualification: None,
                in_software: true,
            };
            let event = describe(guard.domain(), met, Response::Skip, &account);
            let stores = self.shared.stores(memory);
            let _ = self.shared.events.record(stores, guard, &State::default(), &event, &parts);
        }
        Ok(decision.permits())
    }
}

/// The bytes of a page's piece in runs of which all are permitted, or all denied.
fn runs_alike(guard: &Guard, piece: ByteRange) -> Vec<ByteRange> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for at in piece.first().as_u64()..=piece.last().as_u64() {
        let byte = ByteRange::new(Gpa::new(at), 1).expect("a byte of a range");
        let permits = guard.domain().check_write(SPACE, byte).permits();
        match runs.last_mut() {
            Some((run, before)) if *before == permits => {
                *run = ByteRange::new(run.first(), run.bytes() + 1).expect("inside of a range");
            }
            _ => runs.push((byte, permits)),
        }
    }
    runs.into_iter().map(|(run, _)| run).collect()
}
