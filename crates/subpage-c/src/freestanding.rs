//! Where there is no C library: memory and the last word come from the embedding program.

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write as _;
use core::panic::PanicInfo;

use arrayvec::ArrayString;

unsafe extern "C" {
    /// For a library without the feature `std`, from the program. Returns `bytes` bytes, aligned to `alignment`, a power of two; NULL if there are none.
    fn subpage_platform_allocate(bytes: usize, alignment: usize) -> *mut u8;
    /// For a library without the feature `std`, from the program. Takes back what `subpage_platform_allocate` gave for the same size and alignment.
    fn subpage_platform_release(memory: *mut u8, bytes: usize, alignment: usize);
    /// For a library without the feature `std`, from the program. Stops everything, and must not return: the library found its own state broken. `text` has
    /// `length` bytes of UTF-8.
    fn subpage_platform_panic(text: *const u8, length: usize) -> !;
}

/// The program's memory.
struct Platform;

// SAFETY: the two functions have the contract of an allocator by their description in the header.
unsafe impl GlobalAlloc for Platform {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout's size and alignment are what the function asks for.
        unsafe { subpage_platform_allocate(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller gives what `alloc` returned for this layout.
        unsafe { subpage_platform_release(memory, layout.size(), layout.align()) }
    }
}

#[global_allocator]
static PLATFORM: Platform = Platform;

#[cfg(not(test))]
#[panic_handler]
fn panicked(information: &PanicInfo<'_>) -> ! {
    let mut text = ArrayString::<512>::new();
    // What does not fit is left out.
    let _ = write!(text, "{information}");
    // SAFETY: the text is valid for its length; the function does not return.
    unsafe { subpage_platform_panic(text.as_ptr(), text.len()) }
}

/// The `core` of a target with an operating system is built for programs that unwind, and names what
/// would do it. Nothing unwinds here.
///
/// cbindgen:ignore
#[cfg(all(not(test), not(target_os = "none")))]
mod unwinding {
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        panic!("unwinding was asked for")
    }
}
