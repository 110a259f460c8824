//! Code at CPL 3.
//!
//! Unsafe: entered by IRET, left by an interrupt.

use core::arch::naked_asm;

use super::exception::{self, Exception, USER_RETURN};
use super::stack::USER_STACKS;
use super::tables::selector;

/// Calls `code` with `argument` at CPL 3, on a stack of its own. Returns its result, or the
/// exception that ended it. `code` must not use what only CPL 0 may.
pub fn run(code: extern "sysv64" fn(u64) -> u64, argument: u64) -> Result<u64, Exception> {
    let stack = USER_STACKS[super::number()].top();
    let ended = exception::catch(|| {
        // SAFETY: the selectors are of flat segments for the user; the stack is this processor's,
        // and nothing of it is in use. The interrupt at the end goes where `catch` waits.
        unsafe { enter(code, argument, stack) }
    });
    match ended {
        Some(exception) if exception.vector == USER_RETURN => Ok(exception::user_result()),
        Some(exception) => Err(exception),
        None => unreachable!("code of the user ends in an interrupt"),
    }
}

#[unsafe(naked)]
unsafe extern "sysv64" fn enter(code: extern "sysv64" fn(u64) -> u64, argument: u64, stack: u64) {
    naked_asm!(
        "push {data}",
        "push rdx",
        "push 2",
        "push {selector}",
        "lea rax, [rip + 2f]",
        "push rax",
        "iretq",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "int {vector}",
        "ud2",
        data = const selector::USER_DATA,
        selector = const selector::USER_CODE,
        vector = const USER_RETURN,
    )
}
