//! The x2APIC: identification, interrupts between processors.
//!
//! Unsafe: its registers are model-specific registers.

use super::registers::{read_msr, write_msr};

/// Local APIC ID.
const ID: u32 = 0x802;
/// End of interrupt.
const EOI: u32 = 0x80b;
/// Spurious-interrupt vector; bit 8 turns the APIC on.
const SPURIOUS: u32 = 0x80f;
/// Interrupt command: destination in bits 63:32.
const COMMAND: u32 = 0x830;

/// What is sent to another processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// An interrupt with this vector.
    Fixed(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset to "wait for SIPI".
    Init,
    /// Begin in real mode at this page.
    Startup(u8),
}

impl Message {
    /// Bits 31:0 of the interrupt command register; level asserted, destination physical.
    const fn command(self) -> u64 {
        match self {
            Self::Fixed(vector) => 0x4000 | vector as u64,
            Self::Nmi => 0x4400,
            Self::Init => 0x4500,
            Self::Startup(page) => 0x4600 | page as u64,
        }
    }
}

/// Number of this processor.
pub fn id() -> u32 {
    read_msr(ID) as u32
}

/// Turns the APIC on.
pub(super) fn enable() {
    // SAFETY: interrupts are taken by handlers of this guest only.
    unsafe { write_msr(SPURIOUS, 0x1ff) }
}

/// Sends a message to one processor.
pub fn send(processor: u32, message: Message) {
    // SAFETY: the handlers of the other processor save what they change; INIT and SIPI are sent to
    // processors that hold nothing of ours.
    unsafe { write_msr(COMMAND, u64::from(processor) << 32 | message.command()) }
}

/// Ends the handling of an interrupt.
pub(super) fn end_of_interrupt() {
    // SAFETY: said by the interrupt's handler.
    unsafe { write_msr(EOI, 0) }
}

#[cfg(test)]
mod tests {
    use super::Message;

    #[test]
    fn commands_are_those_of_the_manual() {
        assert_eq!(Message::Fixed(0x91).command(), 0x4091);
        assert_eq!(Message::Nmi.command(), 0x4400);
        assert_eq!(Message::Init.command(), 0x4500);
        assert_eq!(Message::Startup(8).command(), 0x4608);
    }
}
