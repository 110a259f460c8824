//! Stacks.
//!
//! Unsafe: a stack is shared memory that no lock guards; the processor whose it is alone uses it.

use core::cell::UnsafeCell;

use super::MAX_PROCESSORS;

/// Bytes of a stack.
pub const STACK_BYTES: usize = 32 << 10;

/// A stack. Only the processor whose it is uses it, and only as a stack.
#[repr(C, align(4096))]
pub struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

impl Stack {
    #[allow(clippy::large_stack_arrays)] // The value of a static: it is on no stack.
    const fn new() -> Self {
        Self(UnsafeCell::new([0; STACK_BYTES]))
    }

    /// Address of the first byte after it.
    pub fn top(&self) -> u64 {
        self.0.get() as u64 + STACK_BYTES as u64
    }
}

// SAFETY: no Rust code reads or writes through a reference to it.
#[allow(unsafe_code)]
unsafe impl Sync for Stack {}

/// Where processor 0 begins.
pub static BOOT_STACK: Stack = Stack::new();

/// Where the others begin.
pub static STACKS: [Stack; MAX_PROCESSORS] = [const { Stack::new() }; MAX_PROCESSORS];

/// For exceptions and interrupts.
pub static EXCEPTION_STACKS: [Stack; MAX_PROCESSORS] = [const { Stack::new() }; MAX_PROCESSORS];

/// For NMIs, which may interrupt an exception's handler.
pub static NMI_STACKS: [Stack; MAX_PROCESSORS] = [const { Stack::new() }; MAX_PROCESSORS];

/// For code of the user.
pub static USER_STACKS: [Stack; MAX_PROCESSORS] = [const { Stack::new() }; MAX_PROCESSORS];
