//! VMCALL.
//!
//! Unsafe: the instruction, and that some calls make the hypervisor write to memory. [`call`] is safe
//! all the same: the modules next to this one pass only memory for tests ([`crate::memory::Bytes`]),
//! and tests of hostile calls pass addresses of which they know what is there.

use core::arch::asm;

/// Calls the hypervisor: number in RAX, arguments in RBX, RCX, RDX, RSI. Returns RAX.
pub fn call(number: u64, arguments: [u64; 4]) -> i64 {
    call_with_registers(number, arguments).0
}

/// As [`call`], and returns RBX, RCX, RDX and RSI as they are afterwards.
pub fn call_with_registers(number: u64, arguments: [u64; 4]) -> (i64, [u64; 4]) {
    let [mut first, mut second, mut third, mut fourth] = arguments;
    let result: i64;
    // SAFETY: the hypervisor changes RAX only and, for some calls, memory that the caller names. RBX
    // belongs to the compiler, hence the exchange.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "vmcall",
            "xchg rbx, {first}",
            first = inout(reg) first,
            inout("rax") number => result,
            inout("rcx") second,
            inout("rdx") third,
            inout("rsi") fourth,
            options(nostack)
        );
    }
    (result, [first, second, third, fourth])
}
