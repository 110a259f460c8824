//! What a program without an operating system has to bring along.
//!
//! Unsafe because the functions that the compiler calls by name (`memcpy` and its kin) work on raw
//! memory, and because symbols with fixed names can be defined only by unsafe attributes.

use core::fmt;

use crate::processor::console;

/// Prints why the hypervisor cannot continue, as its last line, and ends the machine.
pub fn fatal(reason: fmt::Arguments<'_>) -> ! {
    console::print_line(format_args!("hypervisor: stopped: {reason}"));
    console::end_machine()
}

/// Defines the panic handler, the heap and the functions that compiled code calls by name.
///
/// Once in every bare-metal program; the heap gets its memory from
/// [`Heap::give`](crate::memory::Heap::give).
#[macro_export]
macro_rules! bare_metal_program {
    () => {
        #[cfg(bare_metal)]
        #[global_allocator]
        static HEAP: $crate::memory::Heap = $crate::memory::Heap::new();

        #[cfg(bare_metal)]
        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::boot::fatal(::core::format_args!("{info}"))
        }

        /// Symbols that the compiler expects (none of them unwinds: panics abort).
        #[cfg(bare_metal)]
        mod compiler_symbols {
            use ::core::arch::asm;

            // SAFETY (all): the names are reserved for exactly these functions; the bodies are
            // string instructions, so that the compiler cannot turn them into calls of themselves.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
                // Eight bytes at a time: emulators count each turn.
                // SAFETY: the caller passes two valid ranges of that length; DF is 0 by the ABI.
                unsafe {
                    asm!("rep movsq", "mov rcx, {rest}", "rep movsb",
                         inout("rcx") bytes / 8 => _, rest = in(reg) bytes % 8,
                         inout("rdi") to => _, inout("rsi") from => _,
                         options(nostack, preserves_flags));
                }
                to
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
                if (to as usize).abs_diff(from as usize) >= bytes {
                    // SAFETY: the same contract, and copying upwards, whatever the unit, overwrites
                    // no byte before it is read, since the destination ends before the source
                    // begins or begins behind its end.
                    unsafe { memcpy(to, from, bytes) };
                } else if (to as usize) < from as usize {
                    // SAFETY: byte by byte upwards, each is read before it is overwritten.
                    unsafe {
                        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _,
                             inout("rsi") from => _, options(nostack, preserves_flags));
                    }
                } else {
                    // SAFETY: as above, downwards from the last byte; DF is 0 again afterwards.
                    unsafe {
                        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _,
                             inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
                             inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _,
                             options(nostack));
                    }
                }
                to
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
                // SAFETY: the caller passes a valid range of that length; DF is 0 by the ABI.
                unsafe {
                    asm!("rep stosq", "mov rcx, {rest}", "rep stosb",
                         inout("rcx") bytes / 8 => _, rest = in(reg) bytes % 8,
                         inout("rdi") to => _,
                         in("rax") u64::from(byte as u8) * 0x0101_0101_0101_0101,
                         options(nostack, preserves_flags));
                }
                to
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
                for at in 0..bytes {
                    // SAFETY: the caller passes two valid ranges of that length.
                    let left = unsafe { a.add(at).read_volatile() };
                    // SAFETY: likewise.
                    let right = unsafe { b.add(at).read_volatile() };
                    if left != right {
                        return i32::from(left) - i32::from(right);
                    }
                }
                0
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
                // SAFETY: the same contract.
                unsafe { memcmp(a, b, bytes) }
            }

            #[cfg(not(target_os = "none"))]
            #[unsafe(no_mangle)]
            extern "C" fn rust_eh_personality() {}

            #[cfg(not(target_os = "none"))]
            #[unsafe(no_mangle)]
            extern "C" fn _Unwind_Resume() -> ! {
                ::core::panic!("unwinding was asked for")
            }
        }
    };
}

/// Defines what the entry code calls, for a program that uses the first processor alone, and what the same
/// program does on a system: it says how it is built.
///
/// Beside [`bare_metal_program`](crate::bare_metal_program); the function takes what the boot loader left,
/// the image's place and the heap, and does not come back.
#[macro_export]
macro_rules! one_processor_entry {
    ($run:path, $how:literal) => {
        #[cfg(bare_metal)]
        mod entry {
            /// # Safety
            /// Called once, by the entry code.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn boot_processor_start(magic: u32, information: u32) -> ! {
                // SAFETY: the entry code has just come here with what the boot loader left.
                unsafe { $run(magic, information, $crate::boot::image(), &super::HEAP) }
            }

            /// Nobody starts other processors.
            #[unsafe(no_mangle)]
            extern "C" fn application_processor_start(_: u64) -> ! {
                loop {
                    $crate::processor::control::halt();
                }
            }
        }

        #[cfg(not(bare_metal))]
        fn main() {
            ::std::eprintln!("this program is a bare-metal image: build it with `{}`", $how);
            ::std::process::exit(2);
        }
    };
}
