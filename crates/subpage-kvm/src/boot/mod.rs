//! Starting a guest: its image into memory, and the state in which its first processor begins.
//!
//! Every format but Multiboot begins alike, as the 64-bit boot protocol of Linux says (the kernel's
//! `Documentation/arch/x86/boot.rst`). This is the boot contract for whoever writes a guest:
//!
//! | | |
//! |---|---|
//! | mode | 64-bit, CPL 0, interrupts off, SSE usable; no IDT, so an exception is a triple fault |
//! | RIP | ELF: its entry; flat: the load address; bzImage: 0x200 behind the load address |
//! | RSI | 0x7000, the zero page (`struct boot_params`): command line, initrd, E820 map |
//! | RSP | 0x8ff0, a stack down to 0x8000; the other general registers are 0 |
//! | CS | 0x10, flat 64-bit code |
//! | DS, ES, FS, GS, SS | 0x18, flat data |
//! | TR | 0x20, a 64-bit TSS at 0x600 without stacks |
//! | CR3 | 0x9000: linear = physical for 4 GiB and all memory, 2 MiB pages, writable, supervisor |
//!
//! | address | holds |
//! |---|---|
//! | 0x500 | GDT and TSS, to 0x668 |
//! | 0x7000 | zero page |
//! | 0x8000 | stack |
//! | 0x9000 | page tables: to 0xf000, with more than 4 GiB of memory further, up to 0x20000 |
//! | 0x20000 | command line and its NUL |
//! | 0x9fc00 | Intel MultiProcessor tables |
//! | 0xe0000 | ACPI tables, the pointer to them first |
//! | 1 MiB on | the image |
//! | high below 3 GiB | initrd |
//! | end of memory below 3 GiB | page directories, only with more than 20 GiB of memory |
//!
//! A Multiboot kernel begins as the Multiboot Specification says:
//!
//! | | |
//! |---|---|
//! | mode | 32-bit protected mode, no paging, CPL 0, interrupts off; no IDT |
//! | EIP | the ELF file's entry, or the header's |
//! | EAX, EBX | 0x2BADB002; 0x7000, the information: memory, command line, initrd as a module, map |
//! | ESP | 0: no stack; the other general registers are 0 |
//! | CS; DS, ES, FS, GS, SS | flat 32-bit code; flat data, and no GDT to load them again from |
//!
//! Of the table above it has command line, MP and ACPI tables, image and initrd.
//!
//! An image may use any other memory, and all of it once it has tables of its own. What is in memory
//! beside these parts is left as it is: zero at the first start, and the guest's own after a reset.

mod acpi;
mod bzimage;
mod elf;
mod elf_headers;
mod error;
mod first_program;
mod initrd;
mod kernel;
mod linux_program;
mod load;
mod mptable;
mod multiboot;
mod paging;
mod parameters;
mod part;
mod processor;
mod source;

pub use bzimage::BzImageError;
pub use elf::ElfError;
pub use error::BootError;
pub use first_program::{FirstProgram, FirstProgramError, first_program};
pub use load::{Boot, Format, ImageKind, KernelPlace, Request, inspect, load, sniff};
pub use mptable::MAX_PROCESSORS;
pub use multiboot::MultibootError;
pub use part::{Part, Placed};

#[cfg(test)]
mod tests;
