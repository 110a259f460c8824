//! Handlers for the exceptions of a guest: each halts where it is, so that the host finds out by RIP
//! which it was and reads the frame.
//!
//! They run at CPL 0 on a stack of their own, and touch no register.

use iced_x86::code_asm::byte_ptr;
use kvm_bindings::kvm_sregs;
use subpage_kvm::vcpu::Processor;

use crate::guest::{Guest, assemble};
use crate::privilege::TASK_STATE;
use crate::stepper::{FLAG, spin};

/// The interrupt-descriptor table.
const TABLE: u64 = 0x60_6000;

/// The handlers.
const HANDLERS: u64 = 0x60_7000;

/// Bytes of a handler.
const HANDLER_BYTES: u64 = 16;

const VECTORS: u64 = 32;

/// Top of the handlers' stack.
const STACK: u64 = 0x60_a000;

/// An exception that a guest has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) vector: u64,
    /// Error code if any, RIP, CS, RFLAGS, RSP, SS.
    pub(crate) frame: Vec<u64>,
    /// CR2, of a page fault.
    pub(crate) address: Option<u64>,
}

/// Writes the table and the handlers.
pub(crate) fn install(guest: &Guest) {
    const CODE: u64 = 0x10;
    const PRESENT_FOR_ALL: u64 = 0xee;
    const OWN_STACK: u64 = 1;
    for vector in 0..VECTORS {
        let at = HANDLERS + vector * HANDLER_BYTES;
        let handler = assemble(at, |code| {
            code.mov(byte_ptr(FLAG), 1).unwrap();
            spin(code);
        });
        guest.write(at, &handler);
        let gate =
            at & 0xffff | CODE << 16 | OWN_STACK << 32 | PRESENT_FOR_ALL << 40 | at >> 16 << 48;
        guest.write(TABLE + vector * 16, &gate.to_le_bytes());
        guest.write(TABLE + vector * 16 + 8, &(at >> 32).to_le_bytes());
    }
    guest.write(TASK_STATE + 0x24, &STACK.to_le_bytes());
}

/// Lets a processor use the table.
pub(crate) fn use_table(processor: &Processor) {
    let mut special = processor.fd.get_sregs().unwrap();
    special.idt.base = TABLE;
    special.idt.limit = u16::try_from(VECTORS * 16 - 1).unwrap();
    processor.fd.set_sregs(&special).unwrap();
}

/// What has brought a processor to where it is; `None` if it is in no handler.
pub(crate) fn received(guest: &Guest, rip: u64, special: &kvm_sregs) -> Option<Received> {
    let vector = rip.checked_sub(HANDLERS)? / HANDLER_BYTES;
    if vector >= VECTORS {
        return None;
    }
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21);
    let words = if has_error_code { 6 } else { 5 };
    let frame = (0..words).map(|word| guest.word(STACK - 8 * words + 8 * word)).collect();
    Some(Received { vector, frame, address: (vector == 14).then_some(special.cr2) })
}
