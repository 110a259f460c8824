//! From power-on to a machine with all its processors in long mode and its memory divided.

pub mod acpi;
pub mod command_line;
#[cfg(bare_metal)]
#[allow(unsafe_code)]
mod entry;
mod firmware;
mod guest;
mod guest_image;
pub mod information;
pub mod layout;
mod others;
mod program;
pub mod start;

#[cfg(bare_metal)]
pub use entry::{STACK_BYTES, image, started_processors, trampoline};
pub use guest_image::{Entry, GuestError, load as load_guest};
pub use information::Area;
pub use program::fatal;

/// Most processors that the hypervisor uses.
pub const MAX_PROCESSORS: usize = 16;

/// Where the image's 32-bit entry lies: a number that the reset ROM knows.
pub const IMAGE_ENTRY: u32 = 0x10_0040;

/// Where the reset ROM says the Multiboot2 information block is.
pub const INFORMATION_ADDRESS: u32 = 0x100_0000;

/// The page below 1 MiB that other processors start in.
pub const AP_TRAMPOLINE: u32 = 0x8000;
