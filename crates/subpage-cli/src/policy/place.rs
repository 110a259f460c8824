//! Where a rule applies, as it is written.

use std::ops::Range;
use std::path::PathBuf;

use subpage::address::ByteRange;

/// A value and the bytes of the policy's text that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Range<usize>,
}

/// Which address of a symbol is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AddressSpace {
    /// The symbol's own value: right for a program whose trace holds virtual addresses.
    #[default]
    Virtual,
    /// The physical address that the load segment gives it: right for a kernel image in a guest.
    Physical,
    /// The symbol's value minus [`START_KERNEL_MAP`]: right for a Linux kernel that lies where it was
    /// built for (`nokaslr`).
    Kernel,
}

/// Where x86-64 Linux maps physical address 0 for the kernel's own image: `__START_KERNEL_map`.
///
/// Linux, Documentation/arch/x86/x86_64/mm.rst, "kernel text mapping, mapped to physical address 0".
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// What kind of file gives the symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SymbolFormat {
    /// An ELF file.
    Elf,
    /// A list as `/proc/kallsyms` or `System.map`.
    Map,
}

/// Which bytes of a named thing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Bytes to leave out at its start.
    pub offset: Option<Written<u64>>,
    /// How many bytes, at least 1; without it, all to its end.
    pub length: Option<Written<u64>>,
}

/// Where a rule applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Guest-physical addresses.
    Range(ByteRange),
    /// A text in the notation of places, with names that the guest brings.
    Notation(Written<String>),
    /// A name that the guest brings: an object or a region recorded in a trace.
    Region {
        /// The name.
        region: Written<String>,
        /// Which of its bytes.
        part: Part,
    },
    /// A symbol of the guest: of a kernel's image, or of the file that is named beside the policy.
    GuestSymbol {
        /// The name.
        symbol: Written<String>,
        /// Which of its bytes.
        part: Part,
    },
    /// A symbol of a file.
    Symbol {
        /// The symbol's name.
        symbol: Written<String>,
        /// The file, as written: relative to the policy's directory.
        file: Written<PathBuf>,
        /// What kind of file it is.
        format: SymbolFormat,
        /// Which address of the symbol.
        space: AddressSpace,
        /// What is added to that address, within ±2^64.
        bias: Option<Written<i128>>,
        /// Which of its bytes.
        part: Part,
    },
}
