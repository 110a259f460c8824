//! A stay of a processor in the guest, and the exit that ended it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use arrayvec::ArrayVec;
use kvm_ioctls::VcpuExit;
use subpage::rules::Moment;

use crate::devices::{PortEffect, Ports};
use crate::ending::{Ending, Failure};
use crate::metrics::ExitKind;
use crate::store::{self, Cause, Unsolved};
use crate::trap::PageSet;
use crate::vcpu::clock::ClockRequest;
use crate::vcpu::{Kick, Processor};

/// Suberrors of `KVM_EXIT_INTERNAL_ERROR`.
const EMULATION: u32 = 1;
const DELIVERY: u32 = 3;

/// How a processor continues after an exit.
#[derive(Debug)]
#[must_use]
pub(crate) enum Next {
    /// Into the guest.
    Enter,
    /// Into the guest, after pages that need not trap any more were opened.
    Settle,
    /// Over the instruction at RIP, with the pages open that it needs: software does not carry it out.
    Step(Unsolved),
    /// Into the guest, after these pages, which hold page tables, were put into read-only slots.
    HoldTables(PageSet),
    /// Into the guest, after the rules were put in force that wait for this.
    Arm(Moment),
    /// From the start: the guest has asked for a reset.
    Reset,
    /// Not at all.
    End(Ending),
}

impl From<store::Next> for Next {
    fn from(next: store::Next) -> Self {
        match next {
            store::Next::Enter => Self::Enter,
            store::Next::Settle => Self::Settle,
            store::Next::Step(unsolved) => Self::Step(unsolved),
            store::Next::HoldTables(pages) => Self::HoldTables(pages),
            store::Next::Stopped(event) => Self::End(Ending::Stopped { event }),
            store::Next::TripleFault { rip } => {
                Self::End(Ending::TripleFault { rip, in_traps: Vec::new() })
            }
        }
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
    /// The guest has used an MSR of its clock, perhaps to have something written.
    Clock(Option<ClockRequest>),
    /// Nothing is left to be done.
    Nothing(ExitKind),
    /// A breakpoint or single step, with what DR6 would say.
    Debug { dr6: u64, exception: u32 },
    /// A signal got the processor out.
    Interrupted,
    /// The guest has ended.
    End(Ending),
    /// Something that this program does not know.
    Strange(String),
}

/// One stay in the guest.
pub(crate) fn enter(
    ports: &Mutex<Ports>,
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
        Ok(VcpuExit::IoOut(port, data)) => Exit::Port(port_write(ports, kick, port, data)),
        Ok(VcpuExit::IoIn(port, data)) => {
            let mut ports = locked(ports);
            // A string instruction reads several times.
            data.chunks_mut(kick.port_bytes()).for_each(|access| ports.read(port, access));
            Exit::Port(PortEffect::None)
        }
        // Of MSRs, KVM hands over those of the clock.
        Ok(VcpuExit::X86Rdmsr(access)) => {
            *access.data = processor.clock.read(access.index);
            Exit::Clock(None)
        }
        Ok(VcpuExit::X86Wrmsr(access)) => {
            Exit::Clock(processor.clock.write(access.index, access.data))
        }
        // Kernels from 6.8 on may say so in place of EFAULT.
        Ok(VcpuExit::MemoryFault { .. }) => Exit::Trapped(Cause::Fault),
        Ok(VcpuExit::InternalError) => internal_error(processor),
        Ok(VcpuExit::Debug(debug)) => Exit::Debug { dr6: debug.dr6, exception: debug.exception },
        Ok(VcpuExit::Hlt) => Exit::Nothing(ExitKind::Hlt),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Exit::Nothing(ExitKind::Interrupted),
        Ok(VcpuExit::Shutdown) => {
            let rip = processor.interrupted()?.state.rip;
            Exit::End(Ending::TripleFault { rip, in_traps: Vec::new() })
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

/// Writes to a port, several times for a string instruction; the last effect counts.
fn port_write(ports: &Mutex<Ports>, kick: Kick, port: u16, data: &[u8]) -> PortEffect {
    let mut ports = locked(ports);
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
        PortEffect::Arm => Next::Arm(Moment::Write),
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

fn locked(ports: &Mutex<Ports>) -> MutexGuard<'_, Ports> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}
