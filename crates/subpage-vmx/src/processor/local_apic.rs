//! The local APIC: interrupts from one processor to another.
//!
//! Unsafe because its registers are MSRs (x2APIC) or memory at a fixed address (xAPIC).
#![allow(unsafe_code)]

use super::{cpuid, msr, msr::Msr};

const X2APIC_ENABLE: u64 = 1 << 10;
const X2APIC_ID: Msr = Msr(0x802);
const X2APIC_SPURIOUS: Msr = Msr(0x80F);
const X2APIC_COMMAND: Msr = Msr(0x830);
const XAPIC_ID: usize = 0x20;
const XAPIC_SPURIOUS: usize = 0xF0;
const XAPIC_COMMAND_LOW: usize = 0x300;
const XAPIC_COMMAND_HIGH: usize = 0x310;
const DELIVERY_PENDING: u32 = 1 << 12;
/// Software enable, spurious vector FFH.
const ENABLED: u32 = 0x1FF;

/// The guest asks for a mode or an address that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// Sets IA32_APIC_BASE as a guest wants that has the APIC; the address stays.
pub fn set_mode(value: u64) -> Result<(), Refused> {
    // SAFETY: every processor with VMX has the register.
    let old = unsafe { msr::read(Msr::APIC_BASE) };
    let has_x2apic = cpuid::leaf(1, 0).ecx & 1 << 21 != 0;
    if !may_become(old, value, has_x2apic) {
        return Err(Refused);
    }
    // SAFETY: a change that the processor takes; the hypervisor uses the APIC in the mode it finds.
    unsafe { msr::write(Msr::APIC_BASE, value) };
    Ok(())
}

/// Whether the register may be changed so (SDM Vol. 3A, "x2APIC State Transitions").
const fn may_become(old: u64, new: u64, has_x2apic: bool) -> bool {
    const ENABLE: u64 = 1 << 11;
    const MODE: u64 = ENABLE | X2APIC_ENABLE;
    if (old ^ new) & !MODE != 0 || new & X2APIC_ENABLE != 0 && !has_x2apic {
        return false;
    }
    let (from, to) = (old & MODE, new & MODE);
    from == to || to == 0 || from == 0 && to == ENABLE || from == ENABLE && to == MODE
}

/// What an interprocessor interrupt does (bits 10:8 of the command).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Non-maskable interrupt.
    Nmi,
    /// Reset, then wait for a start-up.
    Init,
    /// Start in real mode at page `.0`.
    StartUp(u8),
}

impl Message {
    const fn bits(self) -> u32 {
        const ASSERT: u32 = 1 << 14;
        ASSERT
            | match self {
                Self::Nmi => 4 << 8,
                Self::Init => 5 << 8,
                Self::StartUp(page) => 6 << 8 | page as u32,
            }
    }
}

/// This processor's local APIC.
#[derive(Debug, Clone, Copy)]
pub struct LocalApic {
    /// Base of the xAPIC's registers; none in x2APIC mode.
    registers: Option<usize>,
}

impl LocalApic {
    /// Enables it, in x2APIC mode where there is one (CPUID leaf 1, ECX bit 21).
    pub fn enable() -> Self {
        // SAFETY: every processor with VMX has the register.
        let base = unsafe { msr::read(Msr::APIC_BASE) };
        if cpuid::leaf(1, 0).ecx & 1 << 21 != 0 {
            // SAFETY: CPUID says that the mode exists; interrupts stay off.
            unsafe { msr::write(Msr::APIC_BASE, base | 1 << 11 | X2APIC_ENABLE) };
            // SAFETY: in x2APIC mode now.
            unsafe { msr::write(X2APIC_SPURIOUS, ENABLED.into()) };
            return Self { registers: None };
        }
        // The address has bits 35:12 at least and lies below 4 GiB after reset.
        let apic = Self { registers: Some((base & 0xFFFF_F000) as usize) };
        apic.write(XAPIC_SPURIOUS, ENABLED);
        apic
    }

    /// It in the mode in which the guest has left it.
    pub fn as_found() -> Self {
        // SAFETY: every processor with VMX has the register.
        let base = unsafe { msr::read(Msr::APIC_BASE) };
        let x2apic = base & X2APIC_ENABLE != 0;
        Self { registers: (!x2apic).then_some((base & 0xFFFF_F000) as usize) }
    }

    /// The number by which others reach it.
    pub fn id(self) -> u32 {
        match self.registers {
            Some(_) => self.read(XAPIC_ID) >> 24,
            #[allow(clippy::cast_possible_truncation)]
            // SAFETY: in x2APIC mode; the number has 32 bits.
            None => unsafe { msr::read(X2APIC_ID) as u32 },
        }
    }

    /// Sends a message to the processor with number `id`.
    pub fn send(self, id: u32, message: Message) {
        self.command(id, message.bits());
    }

    /// Sends a message to all other processors.
    pub fn send_to_others(self, message: Message) {
        const ALL_BUT_SELF: u32 = 3 << 18;
        self.command(0, message.bits() | ALL_BUT_SELF);
    }

    fn command(self, id: u32, command: u32) {
        if self.registers.is_none() {
            // The write may pass earlier stores in x2APIC mode; those must be seen before the
            // interrupt is (SDM Vol. 3A, "x2APIC ICR Operation").
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            // SAFETY: in x2APIC mode; the command interrupts another processor, which handles it.
            unsafe { msr::write(X2APIC_COMMAND, u64::from(id) << 32 | u64::from(command)) };
            return;
        }
        let idle = || {
            while self.read(XAPIC_COMMAND_LOW) & DELIVERY_PENDING != 0 {
                core::hint::spin_loop();
            }
        };
        idle();
        // A guest that has the APIC may be between the two halves of a command of its own.
        let kept = self.read(XAPIC_COMMAND_HIGH);
        self.write(XAPIC_COMMAND_HIGH, id << 24);
        self.write(XAPIC_COMMAND_LOW, command);
        idle();
        self.write(XAPIC_COMMAND_HIGH, kept);
    }

    fn read(self, offset: usize) -> u32 {
        let Some(base) = self.registers else { return 0 };
        // SAFETY: the registers are mapped with the rest of the first 4 GiB; reading has no effect.
        unsafe { ((base + offset) as *const u32).read_volatile() }
    }

    fn write(self, offset: usize, value: u32) {
        let Some(base) = self.registers else { return };
        // SAFETY: the offsets are those of the registers named above.
        unsafe { ((base + offset) as *mut u32).write_volatile(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_the_processor_has_it() {
        const BASE: u64 = 0xFEE0_0100;
        const OFF: u64 = BASE;
        const XAPIC: u64 = BASE | 1 << 11;
        const X2APIC: u64 = BASE | 3 << 10;
        for (old, new, legal) in [
            (XAPIC, XAPIC, true),
            (XAPIC, X2APIC, true),
            (X2APIC, OFF, true),
            (OFF, XAPIC, true),
            (XAPIC, OFF, true),
            (X2APIC, XAPIC, false),
            (OFF, X2APIC, false),
            (XAPIC, XAPIC ^ 1 << 12, false),
            (XAPIC, XAPIC ^ 1 << 8, false),
            (XAPIC, XAPIC | 1, false),
            (XAPIC, BASE | 1 << 10, false),
        ] {
            assert_eq!(may_become(old, new, true), legal, "{old:#x} to {new:#x}");
        }
        assert!(!may_become(XAPIC, X2APIC, false));
    }
}
