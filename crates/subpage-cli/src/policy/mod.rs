//! The policy file: rules as people write them, turned into rules of the engine.
//!
//! Two stages, because a place may be given by a name that only a trace or a file of symbols knows:
//! [`Draft::parse`] reads the text alone, [`Draft::resolve`] finds the names. A mistake found in
//! the first stage does not stop the second, so one run reports every mistake of all files.

mod debug_info;
mod diagnostic;
mod draft;
mod elf_symbols;
mod fields;
mod fleeting;
mod include;
mod kallsyms;
mod linux_image;
mod names;
mod notation;
mod number;
mod overruled;
mod path;
mod place;
mod recorded;
mod resolve;
mod rule;
mod schema;
mod source;
mod symbol_file;
mod symbol_files;

pub use diagnostic::{Diagnostic, Mistakes, PlacedMistake};
pub use draft::Draft;
pub use linux_image::{LinuxSymbols, read_linux};
pub use names::{LookupError, NamedRange, Names};
pub use notation::{NotAPlace, address, is_numeric, place as place_of};
pub use number::{parse_address_range, parse_number};
pub use place::{AddressSpace, Part, Place, START_KERNEL_MAP, SymbolFormat, Written};
pub use recorded::ProgramError;
pub use resolve::{Policy, PolicyRule};
pub use rule::DraftRule;
pub use schema::schema;
pub use source::{PolicySource, SourceError};
pub use symbol_file::{SymbolError, build_id, read_region_names, read_symbols};

/// The version of the format that this reader knows: the value of the key `version`.
pub const FORMAT_VERSION: u64 = 1;

/// Longest policy in bytes, all its files together: 16 MiB, room for [`MAX_RULES`].
pub const MAX_POLICY_BYTES: u64 = 16 << 20;

/// Most rules of a policy, in all its files.
pub const MAX_RULES: usize = 100_000;
