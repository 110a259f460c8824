//! The processor as this guest sets it up: tables, exceptions, the APIC, other processors.

// Registers of the APIC are model-specific registers.
#[allow(unsafe_code)]
pub mod apic;
// Exceptions are entered and left by assembly, and a caught one continues elsewhere.
#[allow(unsafe_code)]
pub mod exception;
// Switching modes is a few instructions of assembly that must not be interrupted by Rust.
#[allow(unsafe_code)]
pub mod modes;
// Port output is an instruction.
#[allow(unsafe_code)]
pub mod port;
// Control and model-specific registers are read and written by instructions.
#[allow(unsafe_code)]
pub mod registers;
pub mod stack;
// The other processors begin in real mode, in assembly.
#[allow(unsafe_code)]
pub mod start;
// Loads the descriptor-table registers and the task register.
#[allow(unsafe_code)]
pub mod tables;
// Code of the user is entered by IRET.
#[allow(unsafe_code)]
pub mod user;

/// Most processors that this guest starts.
pub const MAX_PROCESSORS: usize = 8;

/// Sets up processor 0, which has entered, and notes how many there are.
pub fn initialise_first(processors: u32) {
    tables::fill();
    let root = crate::memory::paging::initialise();
    initialise_this(0, root);
    start::note_processors(processors);
}

/// Sets up the processor that runs this.
fn initialise_this(number: usize, root: u64) {
    tables::load(number);
    registers::set_cr3(root);
    registers::enable_extended_state();
    apic::enable();
}

/// Number of the processor that runs this: its x2APIC ID, kept in the task register, where it can be
/// read without an exit.
pub fn number() -> usize {
    tables::task_of(tables::task_register())
}

/// Waits for the next interrupt; forever with interrupts off.
pub fn halt() {
    port::halt();
}
