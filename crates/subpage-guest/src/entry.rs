//! Where the image begins, where a panic ends, and the memory functions that `core` calls.
//!
//! Unsafe: the hypervisor enters here with nothing but a pointer, and the four memory functions work
//! on raw pointers by contract.

use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;

use subpage_vmx::abi::BootInformation;
use zerocopy::FromBytes;

use crate::command_line::{self, Request};
use crate::hypervisor::test_hooks;
use crate::processor::stack::{BOOT_STACK, STACK_BYTES};
use crate::{bench, memory, processor, registry, say};

/// Enters in 64-bit mode with RDI pointing to [`BootInformation`]. SSE first: `core` uses it.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "sysv64" fn _start() -> ! {
    naked_asm!(
        "cli",
        "cld",
        "mov rax, cr0",
        "and eax, ~0x4",    // EM
        "or eax, 0x10022",  // MP, NE, WP
        "mov cr0, rax",
        "mov rax, cr4",
        "or eax, 0x600",    // OSFXSR, OSXMMEXCPT
        "mov cr4, rax",
        "lea rsp, [rip + {stack} + {bytes}]",
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        stack = sym BOOT_STACK,
        bytes = const STACK_BYTES,
        main = sym main,
    )
}

/// The command line, copied out of memory that tests may use.
static mut COMMAND_LINE: [u8; 256] = [0; 256];

extern "sysv64" fn main(information: *const [u8; size_of::<BootInformation>()]) -> ! {
    // SAFETY: the hypervisor passes a pointer to this many bytes of memory, which nobody writes yet.
    let bytes = unsafe { information.read_unaligned() };
    let information = BootInformation::read_from_bytes(&bytes).expect("as many bytes as it has");
    let command_line = information.command_line.get() as *const u8;
    let length = usize::try_from(information.command_line_length.get()).unwrap_or(256).min(256);
    let to = (&raw mut COMMAND_LINE).cast::<u8>();
    for index in 0..length {
        // SAFETY: the hypervisor says that so many bytes are there, in memory that is mapped.
        let byte = unsafe { command_line.wrapping_add(index).read() };
        // SAFETY: within the array, which only this function names; it runs once.
        unsafe { to.wrapping_add(index).write(byte) };
    }
    // SAFETY: the array's first bytes, written above and never again.
    let copy = unsafe { core::slice::from_raw_parts(to, length) };
    memory::frames::initialise(information.free.get(), information.memory.get());
    processor::initialise_first(information.processors.get());
    assert_eq!(information.signature[..12], subpage_vmx::abi::SIGNATURE, "whose guest is this?");
    match core::str::from_utf8(copy).ok().and_then(command_line::parse) {
        Some(Request::List) => registry::list(),
        Some(Request::Run(name)) => registry::run(name),
        Some(Request::Bench) => bench::run(),
        None => {
            say!("FAIL guest: the command line must have list, run=NAME or bench");
            test_hooks::stop(2)
        }
    }
    test_hooks::stop(0)
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    let name = registry::running().unwrap_or("guest");
    let message = information.message();
    match information.location() {
        Some(at) => say!("FAIL {name}: {message} ({}:{})", at.file(), at.line()),
        None => say!("FAIL {name}: {message}"),
    }
    test_hooks::stop(1)
}

/// There is no heap, and nothing here asks for memory: the crates of the engine, of which only the
/// definitions are used, want an allocator to exist.
struct NoHeap;

// SAFETY: handing out nothing is always right.
unsafe impl core::alloc::GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[global_allocator]
static HEAP: NoHeap = NoHeap;

/// Named by the unwind tables of the precompiled `core`; nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// `core` may name it; panics abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    test_hooks::stop(3)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's pointers are good for so many bytes, and the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: the caller's promise; ascending is right if the target does not begin inside.
        return unsafe { memcpy(to, from, bytes) };
    }
    let last = bytes.wrapping_sub(1);
    // SAFETY: as for `memcpy`, from the last byte down; not reached for 0 bytes. The direction flag
    // is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _,
            inout("rdi") to.wrapping_add(last) => _, inout("rsi") from.wrapping_add(last) => _,
            options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's pointer is good for so many bytes, and the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for index in 0..bytes {
        // SAFETY: the caller's pointers are good for so many bytes.
        let left = unsafe { left.wrapping_add(index).read_volatile() };
        // SAFETY: as above.
        let right = unsafe { right.wrapping_add(index).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, bytes) }
}
