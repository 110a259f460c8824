//! CPUID, XSETBV and VMCALL.
//!
//! Unsafe for XSETBV, which sets what the guest may use of the processor.
#![allow(unsafe_code)]

use super::features::{XCR0_OFFERED, offered};
use crate::abi::{self, Call};
use crate::event::{Event, Line, Named};
use crate::hypercall::{self, CallContext, CallOutcome, Request};
use crate::machine::Shared;
use crate::processor::{console, control, cpuid};
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::GuestField as G;
use subpage_emulate::Exception;
use subpage_emulate::bits::CR4_OSXSAVE;
use subpage_emulate::guest::Register;
use subpage_trap::{Origin, When};

#[allow(clippy::cast_possible_truncation)] // Instructions that use the low half.
const fn low(value: u64) -> u32 {
    value as u32
}

impl Vcpu {
    pub(super) fn cpuid(&mut self) {
        const X2APIC: u32 = 1 << 21;
        const OSXSAVE: u32 = 1 << 27;
        let leaf = low(self.register(Register::Rax));
        let subleaf = low(self.register(Register::Rcx));
        let signature = |at: usize| {
            let bytes = &abi::SIGNATURE[at..at + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let has_devices = self.machine.devices.is_some();
        let mut result = offered(leaf, subleaf, has_devices, &cpuid::leaf);
        match leaf {
            1 => {
                result.ecx &= !OSXSAVE;
                if self.vmcs.guest(G::CR4) & CR4_OSXSAVE != 0 {
                    result.ecx |= OSXSAVE;
                }
                if !has_devices {
                    result.ecx |= X2APIC;
                    result.ebx = result.ebx & 0x00FF_FFFF | low(self.index as u64) << 24;
                }
            }
            0xB | 0x1F if !has_devices => result.edx = low(self.index as u64),
            abi::CPUID_SIGNATURE => {
                result.eax = abi::CPUID_FEATURES;
                result.ebx = signature(0);
                result.ecx = signature(4);
                result.edx = signature(8);
            }
            abi::CPUID_FEATURES => {
                result.eax = abi::VERSION;
                result.ebx = self.machine.told.features;
                result.ecx = 0;
                result.edx = 0;
            }
            _ => {}
        }
        self.set_register(Register::Rax, result.eax.into());
        self.set_register(Register::Rbx, result.ebx.into());
        self.set_register(Register::Rcx, result.ecx.into());
        self.set_register(Register::Rdx, result.edx.into());
        self.skip_instruction();
    }

    pub(super) fn xsetbv(&mut self) {
        const X87: u64 = 1;
        const SSE: u64 = 1 << 1;
        const AVX: u64 = 1 << 2;
        const AVX512: u64 = 7 << 5;
        let value =
            self.register(Register::Rdx) << 32 | u64::from(low(self.register(Register::Rax)));
        let allowed = cpuid::xcr0_mask() & XCR0_OFFERED;
        let wide = value & AVX512;
        let legal = low(self.register(Register::Rcx)) == 0
            && self.cpl() == 0
            && value & !allowed == 0
            && value & X87 != 0
            && (value & AVX == 0 || value & SSE != 0)
            && (wide == 0 || wide == AVX512 && value & AVX != 0);
        if legal {
            // SAFETY: checked as XSETBV would, and CR4.OSXSAVE is set in the hypervisor wherever
            // the processor has XSAVE, without which the guest's instruction had faulted itself.
            unsafe { control::set_xcr0(value) };
            self.skip_instruction();
        } else {
            self.inject(Exception::general_protection(0));
        }
    }

    /// A hypercall: the result is in RAX when what it asks for is in force on every processor.
    pub(super) fn vmcall(&mut self) -> Result<(), Stop> {
        let rip = self.vmcs.guest(G::RIP);
        self.skip_instruction();
        let call = Call(self.register(Register::Rax));
        #[cfg(feature = "test-hooks")]
        if call.0 >= Call::FIRST_TEST_HOOK && self.cpl() == 0 {
            let result = self.test_hook(call.0)?;
            self.set_register(Register::Rax, result);
            return Ok(());
        }
        let request = Request {
            call,
            arguments: [Register::Rbx, Register::Rcx, Register::Rdx, Register::Rsi]
                .map(|register| self.register(register)),
            origin: Origin {
                vcpu: low(self.index as u64),
                rip: Some(rip),
                rip_exact: true,
                cr3: Some(self.vmcs.guest(G::CR3)),
                cpl: Some(self.cpl()),
            },
        };
        let machine = self.machine;
        let mut shared = machine.lock();
        let Shared { domain, ledger, .. } = &mut *shared;
        let print = machine.settings.print_events;
        let named = Named::default();
        let mut heard = |sequence: u64, event: &Event<'_>, met: Option<u64>| {
            if print || met.is_some() {
                let met = met.filter(|_| !print);
                console::print_line(format_args!(
                    "{}",
                    Line { sequence, event, name: None, met, named }
                ));
            }
        };
        let mut context = CallContext {
            domain,
            memory: &machine.ram,
            ledger,
            machine: &machine.told,
            when: When::Counter(control::time_stamp()),
            heard: &mut heard,
        };
        let result = match hypercall::dispatch(&request, &mut context) {
            CallOutcome::Done { rax } => rax,
            CallOutcome::Invalidate { token, then } => {
                let done = machine.invalidate(self.index, token);
                then.finish(&done, &mut context)
            }
            CallOutcome::Stop { rule } => return Err(Stop::Rule(rule)),
        };
        self.set_register(Register::Rax, result);
        Ok(())
    }
}
