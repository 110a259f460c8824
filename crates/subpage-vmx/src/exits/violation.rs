//! EPT violations and SPP events: what the engine answers, and doing it.

use subpage::address::{GfnRange, Gpa, Hpa, PAGE_BYTES};
use subpage::domain::HostPage;
use subpage::domain::{Answer, EptViolation, SppEvent};
use subpage::ept::MemoryType;
use subpage::exit::{Delivery, EptQualification, SppQualification, VectoringInfo};
use subpage::level::PageSize;
use subpage::slots::AddressSpace;

use super::store::Trapped;
use crate::machine::Shared;
use crate::processor::control;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::{ExitField, GuestField as G};

/// Guests have one address space: system-management mode is not virtualized.
pub(super) const SPACE: AddressSpace = AddressSpace::Normal;

impl Vcpu {
    /// Event delivery that the exit interrupted.
    #[allow(clippy::cast_possible_truncation)] // Both fields have 32 bits.
    pub(super) fn delivery(&self) -> Delivery {
        Delivery {
            vectoring: VectoringInfo::from(self.vmcs.exit(ExitField::VECTORING) as u32),
            error_code: self.vmcs.exit(ExitField::VECTORING_ERROR_CODE) as u32,
            virtual_nmis: true,
        }
    }

    pub(super) fn ept_violation(&mut self) -> Result<(), Stop> {
        #[cfg(feature = "test-hooks")]
        self.note_exit();
        let qualification = EptQualification::from(self.vmcs.exit(ExitField::QUALIFICATION));
        let gpa = self.vmcs.exit(ExitField::GUEST_PHYSICAL);
        let gpa = Gpa::try_new(gpa).map_err(|_| Stop::NoMemory(gpa))?;
        let gla = self.vmcs.exit(ExitField::GUEST_LINEAR);
        let delivery = self.delivery();
        let in_instruction = !delivery.vectoring.valid() && qualification.final_access();
        let trapped =
            if qualification.write() && in_instruction { Trapped::find(self) } else { None };
        let length = trapped.as_ref().and_then(|trapped| trapped.length_from(gla, gpa));
        let exit = EptViolation {
            qualification,
            gpa,
            gla,
            rip: self.vmcs.guest(G::RIP),
            length,
            space: SPACE,
            delivery,
        };
        let machine = self.machine;
        let mut shared = machine.lock();
        let begin = control::time_stamp();
        let (answer, fixup) = shared.domain.ept_violation(&mut self.retry, &exit);
        let end = control::time_stamp();
        match answer {
            // The page has been opened and closed again since the first time: a walk is stepped over
            // either way.
            Answer::Emulate if qualification.is_page_walk() => {
                self.step_over_walk(&mut shared, gla);
            }
            Answer::Emulate if delivery.vectoring.valid() => {
                return self.deliver_in_software(&mut shared, delivery, &exit);
            }
            // The instruction cannot even be fetched any more: another processor has changed it or
            // its mapping, and this one has to find that out itself.
            Answer::Emulate if trapped.is_none() && qualification.write() => {
                self.vmcs.invalidate_ept();
            }
            Answer::Emulate => {
                let trapped = trapped.ok_or(Stop::CannotEmulate("it is no store"))?;
                self.fix_up_delivery(fixup);
                return self.complete_store(&mut shared, &trapped, &exit);
            }
            Answer::Deny(denial) => {
                self.last_decision = end.wrapping_sub(begin);
                if !delivery.vectoring.valid() {
                    self.fix_up_delivery(fixup);
                }
                return self.deny(&mut shared, trapped.as_ref(), &denial, &exit);
            }
            Answer::ReadOnlySlot(_) if !delivery.vectoring.valid() => {
                self.fix_up_delivery(fixup);
                return self.drop_write(&mut shared, trapped.as_ref());
            }
            Answer::PageWalk { .. } => self.step_over_walk(&mut shared, gla),
            answer => self.obey(&mut shared, answer)?,
        }
        self.fix_up_delivery(fixup);
        Ok(())
    }

    pub(super) fn spp_event(&mut self) -> Result<(), Stop> {
        #[cfg(feature = "test-hooks")]
        self.note_exit();
        let qualification = SppQualification::from(self.vmcs.exit(ExitField::QUALIFICATION));
        let gpa = self.vmcs.exit(ExitField::GUEST_PHYSICAL);
        let gpa = Gpa::try_new(gpa).map_err(|_| Stop::NoMemory(gpa))?;
        let delivery = self.delivery();
        let rip = self.vmcs.guest(G::RIP);
        let event = SppEvent { qualification, gpa, rip, space: SPACE, delivery };
        let trapped = if delivery.vectoring.valid() { None } else { Trapped::find(self) };
        let machine = self.machine;
        let mut shared = machine.lock();
        let (answer, fixup) = shared.domain.spp_event(&mut self.retry, &event);
        if answer == Answer::Emulate {
            let exit = EptViolation {
                qualification: EptQualification::new(),
                gpa,
                gla: self.vmcs.exit(ExitField::GUEST_LINEAR),
                rip,
                length: None,
                space: SPACE,
                delivery,
            };
            if delivery.vectoring.valid() {
                return self.deliver_in_software(&mut shared, delivery, &exit);
            }
            self.fix_up_delivery(fixup);
            let Some(trapped) = trapped else {
                self.vmcs.invalidate_ept();
                return Ok(());
            };
            return self.complete_store(&mut shared, &trapped, &exit);
        }
        self.obey(&mut shared, answer)?;
        self.fix_up_delivery(fixup);
        Ok(())
    }

    /// Does what an answer asks for that needs no instruction.
    fn obey(&mut self, shared: &mut Shared, answer: Answer) -> Result<(), Stop> {
        match answer {
            Answer::Resume => Ok(()),
            Answer::Retry => {
                self.vmcs.invalidate_ept();
                Ok(())
            }
            Answer::Map(gpa) => self.map_page(shared, gpa),
            Answer::MakeWritable(gpa) => self.make_writable(shared, gpa),
            Answer::NotExecutable(gpa) => Err(Stop::NotExecutable(gpa.as_u64())),
            // Other stores are dropped; here there is no instruction to go on behind.
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
