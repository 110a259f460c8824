//! The thread of a processor: into the guest, out again, and what the exit asks for.

use std::sync::Arc;

use arrayvec::ArrayVec;
use kvm_ioctls::VcpuExit;

use super::VmShared;
use crate::devices::PortEffect;
use crate::ending::{Ending, Failure};
use crate::metrics::ExitKind;
use crate::step::step;
use crate::store::{Cause, Next, finish, mmio_store, trapped};
use crate::vcpu::{Activity, Kick, Processor};

/// Suberrors of `KVM_EXIT_INTERNAL_ERROR`.
const EMULATION: u32 = 1;
const DELIVERY: u32 = 3;

/// Runs processor `number` until the machine ends.
pub(super) fn run(machine: &Arc<VmShared>, number: usize) {
    machine.vcpus.enlist(number);
    while let Some(mut processor) = machine.vcpus.enter(number) {
        let next = turns(machine, &mut processor, number);
        let given = processor.give_back();
        // Whoever changes slots takes all processors, this one too.
        drop(processor);
        match next.and_then(|next| given.map(|()| next).map_err(Failure::from)) {
            Ok(None | Some(Next::Enter)) => {}
            Ok(Some(Next::Settle)) => machine.settle(),
            Ok(Some(Next::Step(_))) => unreachable!("a step is made where it is asked for"),
            Ok(Some(Next::HoldTables(pages))) => machine.hold_tables(&pages),
            Ok(Some(Next::Reset)) => machine.reset(),
            Ok(Some(Next::End(ending))) => machine.end(ending),
            Err(failure) => machine.end(Ending::Failed(failure)),
        }
    }
    machine.vcpus.delist(number);
}

/// Runs a processor until it has to be let go of.
fn turns(
    machine: &VmShared,
    processor: &mut Processor,
    number: usize,
) -> Result<Option<Next>, Failure> {
    machine.vcpus.enter_turns(number);
    let kick = machine.vcpus.kick_of(number);
    let result = enter_again(machine, processor, number)
        .and_then(|next| finish(machine.stores(), processor, kick).map(|()| next));
    store_ended(machine, processor);
    machine.vcpus.leave_turns(number);
    result
}

/// Has a processor enter the guest again and again.
fn enter_again(
    machine: &VmShared,
    processor: &mut Processor,
    number: usize,
) -> Result<Option<Next>, Failure> {
    let kick = machine.vcpus.kick_of(number);
    while machine.vcpus.may_run(number) {
        if machine.vcpus.is_waited_for() {
            finish(machine.stores(), processor, kick)?;
            if let Ok(at) = processor.interrupted() {
                machine.vcpus.leave_state(number, &at.state);
            }
        }
        if !std::mem::take(&mut processor.store_may_go_on) {
            store_ended(machine, processor);
            machine.vcpus.pass(number);
        }
        match turn(machine, processor, kick)? {
            Next::Enter => {}
            next => return Ok(Some(next)),
        }
    }
    Ok(None)
}

/// The processor is between two stores: changes need not wait for it.
fn store_ended(machine: &VmShared, processor: &mut Processor) {
    if std::mem::take(&mut processor.in_pieces) {
        machine.guard().store_ended(processor.number);
    }
}

/// What an exit was, when KVM's buffer is no longer borrowed.
pub(crate) enum Exit {
    /// KVM tells of a store that it has carried out but for memory.
    Store { address: u64, data: ArrayVec<u8, 8> },
    /// An instruction has not happened.
    Trapped(Cause),
    /// A port was read or written.
    Port(PortEffect),
    /// Nothing is left to be done.
    Nothing(ExitKind),
    /// A breakpoint or single step, with what DR6 would say.
    Debug { dr6: u64 },
    /// A signal got the processor out.
    Interrupted,
    /// The guest has ended.
    End(Ending),
    /// Something that this program does not know.
    Strange(String),
}

/// One stay in the guest.
pub(crate) fn enter(
    machine: &VmShared,
    processor: &mut Processor,
    kick: Kick,
) -> Result<Exit, Failure> {
    processor.entered();
    Ok(match processor.fd.run() {
        Ok(VcpuExit::MmioWrite(address, data)) => {
            Exit::Store { address, data: data.iter().copied().take(8).collect() }
        }
        Ok(VcpuExit::MmioRead(_, data)) => {
            // A device that is not there.
            data.fill(0xff);
            Exit::Nothing(ExitKind::Mmio)
        }
        Ok(VcpuExit::IoOut(port, data)) => Exit::Port(port_write(machine, kick, port, data)),
        Ok(VcpuExit::IoIn(port, data)) => {
            let mut ports = machine.ports();
            // A string instruction reads several times.
            data.chunks_mut(kick.port_bytes()).for_each(|access| ports.read(port, access));
            Exit::Port(PortEffect::None)
        }
        // Kernels from 6.8 on may say so beside EFAULT.
        Ok(VcpuExit::MemoryFault { .. }) => Exit::Trapped(Cause::Fault),
        Ok(VcpuExit::InternalError) => internal_error(processor),
        Ok(VcpuExit::Debug(debug)) => Exit::Debug { dr6: debug.dr6 },
        Ok(VcpuExit::Hlt) => Exit::Nothing(ExitKind::Hlt),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Exit::Nothing(ExitKind::Interrupted),
        Ok(VcpuExit::Shutdown) => {
            let rip = processor.interrupted()?.state.rip;
            Exit::End(Ending::TripleFault { rip })
        }
        Ok(VcpuExit::SystemEvent(..)) => Exit::End(Ending::PoweredOff),
        Ok(VcpuExit::FailEntry(reason, _)) => {
            Exit::Strange(format!("the processor refuses the entry, hardware reason {reason:#x}"))
        }
        Ok(other) => Exit::Strange(format!("KVM left the guest for {other:?}")),
        Err(error) => match error.errno() {
            libc::EFAULT => Exit::Trapped(Cause::Fault),
            libc::EINTR | libc::EAGAIN => Exit::Interrupted,
            _ => Exit::Strange(format!("KVM cannot run the processor: {error}")),
        },
    })
}

/// One stay in the guest, and what it asks for.
fn turn(machine: &VmShared, processor: &mut Processor, kick: Kick) -> Result<Next, Failure> {
    let vcpu = processor.number;
    match enter(machine, processor, kick)? {
        Exit::Interrupted => interrupted(machine, processor),
        Exit::Debug { .. } => {
            machine.metrics.exit(ExitKind::Other);
            Ok(Next::Enter)
        }
        Exit::Store { address, data } => {
            let began = machine.clock.now();
            machine.metrics.exit(ExitKind::Mmio);
            let next = mmio_store(machine.stores(), processor, kick, address, &data);
            machine.metrics.write_trapped(machine.clock.since(began));
            next
        }
        Exit::Trapped(cause) => {
            let began = machine.clock.now();
            let kind = if cause == Cause::Fault { ExitKind::Fault } else { ExitKind::Emulation };
            machine.metrics.exit(kind);
            let next = match trapped(machine.stores(), processor, cause) {
                Ok(Next::Step(why)) => step(machine, processor, kick, &why),
                next => next,
            };
            machine.metrics.write_trapped(machine.clock.since(began));
            next
        }
        Exit::Port(effect) => {
            machine.metrics.exit(ExitKind::Io);
            Ok(after_port(effect))
        }
        Exit::Nothing(kind) => {
            machine.metrics.exit(kind);
            Ok(Next::Enter)
        }
        Exit::End(ending) => {
            machine.metrics.exit(ExitKind::Other);
            Ok(Next::End(ending))
        }
        Exit::Strange(reason) => {
            machine.metrics.exit(ExitKind::Other);
            let rip = processor.interrupted().ok().map(|at| at.state.rip);
            Err(Failure { vcpu, rip, instruction: Vec::new(), reason })
        }
    }
}

/// Writes to a port, several times for a string instruction; the last effect counts.
fn port_write(machine: &VmShared, kick: Kick, port: u16, data: &[u8]) -> PortEffect {
    let mut ports = machine.ports();
    data.chunks(kick.port_bytes())
        .map(|access| ports.write(port, access))
        .filter(|effect| *effect != PortEffect::None)
        .last()
        .unwrap_or(PortEffect::None)
}

/// What an access to a port asks for.
pub(crate) const fn after_port(effect: PortEffect) -> Next {
    match effect {
        PortEffect::None => Next::Enter,
        PortEffect::Reset => Next::Reset,
        PortEffect::PowerOff => Next::End(Ending::PoweredOff),
        PortEffect::Exit { code } => Next::End(Ending::Exited { code }),
    }
}

fn internal_error(processor: &mut Processor) -> Exit {
    match processor.internal_error() {
        EMULATION => Exit::Trapped(Cause::Emulation),
        DELIVERY => Exit::Trapped(Cause::Delivery),
        other => Exit::Strange(format!("KVM has an internal error, suberror {other}")),
    }
}

/// A signal got the processor out: somebody wants it, or the watch asks whether it gets on.
fn interrupted(machine: &VmShared, processor: &mut Processor) -> Result<Next, Failure> {
    machine.metrics.exit(ExitKind::Interrupted);
    if !machine.watch.asks(processor.number) {
        return Ok(Next::Enter);
    }
    let at = processor.interrupted()?;
    match processor.activity(&at)? {
        Activity::Halted if machine.watch.halted(processor.number) => Ok(Next::End(Ending::Halted)),
        // KVM's emulator starts some stores over and over (SGDT to a page that traps). Where a
        // processor is found twice at the same store to such a page, it is carried out here.
        Activity::Running if processor.found_again(at.state.rip) => {
            trapped(machine.stores(), processor, Cause::Stuck)
        }
        // One that waits for an interrupt is at the next instruction already.
        Activity::Running | Activity::Waiting | Activity::Halted => Ok(Next::Enter),
    }
}
