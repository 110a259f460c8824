//! EPT violations and SPP events: what the engine answers, and doing it.

use subpage::address::{GfnRange, Gpa, Hpa, PAGE_BYTES};
use subpage::domain::HostPage;
use subpage::domain::{Answer, EptViolation, SppEvent};
use subpage::ept::MemoryType;
use subpage::exit::{Delivery, EptQualification, SppQualification, VectoringInfo};
use subpage::level::PageSize;
use subpage::slots::AddressSpace;

use crate::machine::Shared;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::{ExitField, GuestField as G};

/// Guests have one address space: system-management mode is not virtualized.
pub(super) const SPACE: AddressSpace = AddressSpace::Normal;

impl Vcpu {
    /// Event delivery that the exit interrupted.
    #[allow(clippy::cast_possible_truncation)] // Both fields have 32 bits.
    pub(super) fn delivery(&self) -> Delivery {
        let vectoring = VectoringInfo::from(self.vmcs.exit(ExitField::VECTORING) as u32);
        let error_code = if vectoring.valid() {
            self.vmcs.exit(ExitField::VECTORING_ERROR_CODE) as u32
        } else {
            0
        };
        Delivery { vectoring, error_code, virtual_nmis: true }
    }

    pub(super) fn ept_violation(&mut self) -> Result<(), Stop> {
        let qualification = EptQualification::from(self.vmcs.exit(ExitField::QUALIFICATION));
        let exit = self.violation(qualification)?;
        #[cfg(feature = "test-hooks")]
        self.note_exit(super::ExitReason::EPT_VIOLATION, qualification.into(), &exit);
        if self.map_first(&exit)? {
            return Ok(());
        }
        if self.machine.devices.is_some() && qualification.is_page_walk() {
            self.machine.costs.walk();
        }
        let delivering = exit.delivery.vectoring.valid();
        if qualification.write() && !qualification.is_page_walk() {
            return if delivering {
                self.frame_violation(&exit)
            } else {
                self.store_violation(&exit)
            };
        }
        let machine = self.machine;
        let mut shared = machine.lock();
        let (answer, fixup) = shared.domain.ept_violation(&mut self.retry, &exit);
        match answer {
            // The page has been opened and closed again since the first time: a walk is stepped over
            // either way.
            Answer::Emulate if qualification.is_page_walk() => {
                self.step_over_walk(&mut shared, exit.gla);
            }
            Answer::PageWalk { .. } => self.step_over_walk(&mut shared, exit.gla),
            Answer::NotExecutable(gpa) if machine.devices.is_some() => {
                return self.kernel_entered(&mut shared, gpa);
            }
            Answer::Emulate if delivering => {
                drop(shared);
                return self.deliver_in_software(&exit);
            }
            Answer::Emulate => return Err(Stop::CannotEmulate("it is no store")),
            answer => self.obey(&mut shared, answer)?,
        }
        self.fix_up_delivery(fixup);
        Ok(())
    }

    /// The exit as the engine wants to know it.
    fn violation(&self, qualification: EptQualification) -> Result<EptViolation, Stop> {
        let gpa = self.vmcs.exit(ExitField::GUEST_PHYSICAL);
        Ok(EptViolation {
            qualification,
            gpa: Gpa::try_new(gpa).map_err(|_| Stop::NoMemory(gpa))?,
            gla: self.vmcs.exit(ExitField::GUEST_LINEAR),
            rip: self.vmcs.guest(G::RIP),
            length: None,
            space: SPACE,
            delivery: self.delivery(),
        })
    }

    pub(super) fn spp_event(&mut self) -> Result<(), Stop> {
        let qualification = SppQualification::from(self.vmcs.exit(ExitField::QUALIFICATION));
        let exit = self.violation(EptQualification::new())?;
        #[cfg(feature = "test-hooks")]
        self.note_exit(super::ExitReason::SPP_EVENT, qualification.into(), &exit);
        let (gpa, rip, delivery) = (exit.gpa, exit.rip, exit.delivery);
        let event = SppEvent { qualification, gpa, rip, space: SPACE, delivery };
        let machine = self.machine;
        let mut shared = machine.lock();
        let (answer, fixup) = shared.domain.spp_event(&mut self.retry, &event);
        if answer == Answer::Emulate {
            drop(shared);
            return if delivery.vectoring.valid() {
                self.deliver_in_software(&exit)
            } else {
                self.complete_store(&exit, fixup)
            };
        }
        self.obey(&mut shared, answer)?;
        self.fix_up_delivery(fixup);
        Ok(())
    }

    /// Does what an answer asks for that needs no instruction.
    pub(super) fn obey(&mut self, shared: &mut Shared, answer: Answer) -> Result<(), Stop> {
        match answer {
            Answer::Resume => Ok(()),
            Answer::Retry => {
                self.vmcs.invalidate_ept();
                Ok(())
            }
            Answer::Map(gpa) => self.map_page(shared, gpa),
            Answer::MakeWritable(gpa) => self.make_writable(shared, gpa),
            Answer::NotExecutable(gpa) => Err(Stop::NotExecutable(gpa.as_u64())),
            // Other stores are dropped; here there is no instruction to continue after.
            Answer::ReadOnlySlot(_) => {
                Err(Stop::CannotEmulate("it is a delivery onto a read-only stack"))
            }
            Answer::NoSlot(gpa) => Err(Stop::NoMemory(gpa.as_u64())),
            Answer::Host(error) => Err(Stop::Host(error)),
            Answer::Emulate | Answer::PageWalk { .. } | Answer::Deny(_) => {
                unreachable!("handled by the callers")
            }
        }
    }

    /// Maps a page of the guest's memory that was unmapped.
    pub(super) fn map_page(&mut self, shared: &mut Shared, gpa: Gpa) -> Result<(), Stop> {
        if let Some(devices) = &self.machine.devices {
            return self.map_in_place(devices, shared, gpa);
        }
        let gfn = gpa.gfn();
        let hpa = shared.host_page(&self.machine.ram, gfn).ok_or(Stop::NoMemory(gpa.as_u64()))?;
        let page = HostPage {
            hpa,
            size: PageSize::Size4K,
            writable: true,
            executable: true,
            memory_type: MemoryType::WriteBack,
        };
        shared.domain.map(SPACE, gfn, page).map_err(|_| OUT_OF_MEMORY)
    }

    /// Lets the guest write a page that the host had write-protected.
    pub(super) fn make_writable(&mut self, shared: &mut Shared, gpa: Gpa) -> Result<(), Stop> {
        let page = GfnRange::one(gpa.gfn());
        let token = shared.domain.protect(SPACE, page, true).map_err(|_| OUT_OF_MEMORY)?;
        self.machine.complete(shared, self.index, token);
        Ok(())
    }

    /// Where a page that a store goes to lies, mapped and writable as far as the host is concerned.
    pub(super) fn ready_page(&mut self, shared: &mut Shared, gpa: Gpa) -> Result<Hpa, Stop> {
        let gfn = gpa.gfn();
        if self.machine.devices.is_some() && self.machine.ram.host(gpa).is_none() {
            // What the hypervisor cannot reach, or must not.
            return Err(Stop::NoMemory(gpa.as_u64()));
        }
        if shared.domain.mapping(SPACE, gfn).is_none() {
            self.map_page(shared, gpa)?;
        }
        let place = shared.domain.mapping(SPACE, gfn).ok_or(Stop::NoMemory(gpa.as_u64()))?;
        if !place.entry.host_writable() {
            self.make_writable(shared, gpa)?;
        }
        let page = place.host_frame(gfn).as_u64() & !(PAGE_BYTES - 1);
        Ok(Hpa::new(page))
    }
}

pub(super) const OUT_OF_MEMORY: Stop = Stop::Host(subpage::domain::HostError::OutOfMemory);
