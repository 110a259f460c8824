//! What a Linux kernel's image says about itself.
//!
//! Everything is read from the image *file*, never from the memory of a running guest, which its
//! owner may have changed. The file is not trusted either: nothing in it makes a reader panic, wait
//! or take more memory than its documentation says, and what does not fit together is an error or
//! absent, never a guess.
//!
//! [`KernelImage`] opens a kernel as users have it: a bzImage of any usual compression, or a vmlinux,
//! stripped or not, for 64-bit x86. [`Kallsyms`] reads the names of the kernel's functions and data
//! out of the tables that the kernel has for its own use.
#![forbid(unsafe_code)]

mod address;
mod image;
mod kallsyms;

pub use address::{LinkAddress, RuntimeAddress, START_KERNEL_MAP, Slide};
pub use image::{
    Compression, ImageError, KernelImage, MAX_FILE_BYTES, MAX_UNPACKED_BYTES, Packaging, Section,
    Segment,
};
pub use kallsyms::{Kallsyms, KallsymsError, MAX_NAME_BYTES, MAX_SYMBOLS, Placement, Symbol};
