//! The 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst): what a bzImage's setup header
//! asks for, and the zero page, by which a kernel is told where everything is.

mod header;
mod zero_page;

pub use header::{HeaderError, SetupHeader};
pub use zero_page::{MAX_RANGES, MemoryKind, TooManyRanges, ZERO_PAGE_BYTES, ZeroPage};

/// Where the setup header begins, in a bzImage and in the zero page.
const HEADER_AT: usize = 0x1F1;
/// Where it ends at the latest, in the zero page.
const HEADER_END: usize = 0x290;
