//! Exits of a guest that has the machine's devices: the kernel's entry, ports and registers that are
//! kept, processors that wait.

use subpage::address::{Gfn, GfnRange, Gpa, Hpa};
use subpage::domain::{DomainError, EptViolation, HostPage};
use subpage::exit::ExitReason;
use subpage::level::PageSize;

use super::input_output::PortExit;
use super::reason;
use super::registers::Refused;
use super::violation::{OUT_OF_MEMORY, SPACE};
use crate::devices::{Awaited, Devices, Kept, Verdict, kept};
use crate::machine::Shared;
use crate::policy;
use crate::processor::console;
use crate::processor::local_apic;
use crate::processor::msr::Msr;
use crate::processor::port;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::{ExitField, GuestField as G};
use subpage_emulate::Exception;
use subpage_emulate::bits::RFLAGS_IF;
use subpage_emulate::guest::Register;

// Activity states (SDM Vol. 3C, "Guest Non-Register State").
const HALTED: u64 = 1;
const WAITING_FOR_START_UP: u64 = 3;

#[allow(clippy::cast_possible_truncation)] // Instructions that use the low half.
const fn low(value: u64) -> u32 {
    value as u32
}

impl Vcpu {
    /// What is done with an exit otherwise than for a guest without devices, if it is.
    pub(super) fn handle_with_devices(&mut self, reason: ExitReason) -> Option<Result<(), Stop>> {
        Some(match reason {
            reason::HLT => self.halt(),
            reason::INIT => {
                self.machine.leave(self.index);
                self.wait_for_start_up();
                Ok(())
            }
            reason::START_UP => {
                let page = self.vmcs.exit(ExitField::QUALIFICATION).to_le_bytes()[0];
                self.reset(page);
                self.machine.lives(self.index);
                self.machine.join(self.index);
                Ok(())
            }
            reason::NMI_WINDOW => Ok(()),
            reason::INPUT_OUTPUT => return self.kept_port(),
            _ => return None,
        })
    }

    /// The processor goes on waiting in the guest, where interrupts of devices wake it.
    fn halt(&mut self) -> Result<(), Stop> {
        self.skip_instruction();
        if self.vmcs.guest(G::RFLAGS) & RFLAGS_IF == 0 && self.machine.dies(self.index) {
            return Err(Stop::AllHalted);
        }
        self.vmcs.set_guest(G::ACTIVITY, HALTED);
        Ok(())
    }

    /// The processor waits in the guest for a start-up message of another one.
    pub(super) fn wait_for_start_up(&mut self) {
        self.reset(0);
        // Nothing but that message ends it.
        let _ = self.machine.dies(self.index);
        self.vmcs.set_guest(G::ACTIVITY, WAITING_FOR_START_UP);
    }

    /// If nothing is mapped where the guest wants to go, maps what is there, whatever it wants to do:
    /// where rules do not permit that, it exits again. Gives whether that is all there is to do.
    pub(super) fn map_first(&mut self, exit: &EptViolation) -> Result<bool, Stop> {
        let machine = self.machine;
        let Some(devices) = &machine.devices else { return Ok(false) };
        let mut shared = machine.lock();
        if shared.domain.mapping(SPACE, exit.gpa.gfn()).is_some() {
            return Ok(false);
        }
        self.fix_up_delivery(exit.delivery.fixup(exit.qualification.nmi_unblocked()));
        self.map_in_place(devices, &mut shared, exit.gpa)?;
        Ok(true)
    }

    /// Maps the page around an address to itself, a large one if it can be.
    pub(super) fn map_in_place(
        &mut self,
        devices: &Devices,
        shared: &mut Shared,
        gpa: Gpa,
    ) -> Result<(), Stop> {
        let Some((first, size, memory_type)) = devices.page_around(gpa) else {
            // Nothing of the guest's is there.
            self.inject(Exception::general_protection(0));
            return Ok(());
        };
        let page = |first: Gfn, size, memory_type| HostPage {
            hpa: Hpa::new(first.gpa().as_u64()),
            size,
            writable: true,
            executable: true,
            memory_type,
        };
        let whole = shared.domain.map(SPACE, first, page(first, size, memory_type));
        if let Err(DomainError::AlreadyMapped(_)) = whole
            && size != PageSize::Size4K
        {
            // A part of it is mapped by small pages.
            let small = page(gpa.gfn(), PageSize::Size4K, memory_type);
            return shared.domain.map(SPACE, gpa.gfn(), small).map_err(|_| OUT_OF_MEMORY);
        }
        whole.map_err(|_| OUT_OF_MEMORY)
    }

    /// The kernel has unpacked itself and begins: the policy comes into force.
    pub(super) fn kernel_entered(&mut self, shared: &mut Shared, gpa: Gpa) -> Result<(), Stop> {
        let machine = self.machine;
        let awaited = machine.devices.as_ref().and_then(|devices| devices.awaited.lock().take());
        let Some(Awaited { page, policy }) = awaited.filter(|awaited| awaited.page == gpa.gfn())
        else {
            return Err(Stop::NotExecutable(gpa.as_u64()));
        };
        // Its page was the only one of its large page that had to be small.
        let around = PageSize::Size2M.frames();
        let region = GfnRange::new(Gfn::new(page.as_u64() & !(around - 1)), around);
        let region = region.expect("the large page around a page that exists");
        let token = shared.domain.unmap(SPACE, region).map_err(|_| OUT_OF_MEMORY)?;
        machine.complete(shared, self.index, token);
        if policy.is_empty() {
            console::print_line(format_args!("hypervisor: the kernel begins, without a policy"));
            return Ok(());
        }
        let (policy, token) = policy::load(&mut shared.domain, &policy).map_err(Stop::Policy)?;
        machine.complete(shared, self.index, token);
        console::print_line(format_args!("hypervisor: the kernel begins; {policy}"));
        shared.ledger.set_host_maps(policy.maps);
        shared.waiting = policy.waiting;
        Ok(())
    }

    /// An access to ports of which one is kept; `None` if it is the console, which is handled as for
    /// other guests, or in memory (INS, OUTS).
    fn kept_port(&mut self) -> Option<Result<(), Stop>> {
        let own = &self.machine.devices.as_ref()?.ports;
        let PortExit { access, input, string } = self.port_exit();
        if string {
            return None;
        }
        let rax = self.register(Register::Rax);
        let written = (!input).then_some(low(rax));
        match access.verdict(written, own) {
            Verdict::Console => return None,
            Verdict::Reset(port) => return Some(Err(Stop::Reset { port })),
            Verdict::Suspend(port) => return Some(Err(Stop::Suspend { port })),
            Verdict::Pass => {}
        }
        if let Some(value) = written {
            port::write_for_guest(access, value, own);
        } else {
            self.set_input(access.width, port::read_for_guest(access, own));
        }
        self.skip_instruction();
        Some(Ok(()))
    }

    pub(super) fn read_kept_msr(&self, register: Msr) -> Result<u64, Refused> {
        match (kept(register), register) {
            (_, Msr::EFER) => Ok(self.vmcs.guest(G::EFER)),
            (_, Msr::PAT) => Ok(self.vmcs.guest(G::PAT)),
            // Locked without VMX.
            (_, Msr::FEATURE_CONTROL) => Ok(1),
            _ => Err(Refused),
        }
    }

    pub(super) fn write_kept_msr(&mut self, register: Msr, value: u64) -> Result<(), Refused> {
        match (kept(register), register) {
            (_, Msr::EFER) => self.set_efer(value).map_err(|_| Refused),
            (_, Msr::PAT) => self.set_pat(value),
            (_, Msr::APIC_BASE) => local_apic::set_mode(value).map_err(|_| Refused),
            // Nothing is offered; it is what the register holds since the processor's reset.
            (_, Msr::XSS) if value == 0 => Ok(()),
            (Some(Kept::Constant), _) => Ok(()),
            _ => Err(Refused),
        }
    }
}
