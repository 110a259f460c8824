//! Recorded memory writes of real programs: a compact format, its recorder and its reader.
//!
//! [`TraceReader`] and [`TraceWriter`] read and write `.sptrace` files, whose bytes are described
//! in `docs/trace-format.md`. [`record()`] runs a program under a Valgrind tool of our own, or under
//! Valgrind's lackey; [`LackeyReader`] reads the text of lackey from anywhere.
#![forbid(unsafe_code)]

mod address_space;
mod block;
mod boot;
mod build_id;
mod code;
mod code_names;
mod destination;
mod elf;
mod error;
mod frame;
mod header;
mod lackey;
mod machine;
mod names;
mod packets;
mod predict;
mod processes;
mod reader;
mod record;
mod salvage;
mod source_lines;
mod spool;
mod stores_tool;
mod tool;
mod valgrind;
mod varint;
mod write;
mod writer;

pub use boot::{BootMoment, BootMoments};
pub use build_id::{BuildId, MAX_BUILD_ID_BYTES};
pub use code::{Code, CodePlace, MAX_INSTRUCTIONS, MAX_TEXTS};
pub use code_names::CodeNames;
pub use destination::destination;
pub use elf::{ElfError, Placement, program_names};
pub use error::TraceError;
pub use frame::{MAGIC, MAX_BLOCK_BYTES, MAX_BLOCK_WRITES, VERSION};
pub use header::{
    Header, MAX_ARGUMENTS, MAX_COMMAND_BYTES, MAX_PROCESS_BYTES, MAX_PROCESSES, Process,
};
pub use lackey::{Item, LackeyReader, LackeySummary, MAX_LINE, MAX_REPORTED, MAX_STORE};
pub use machine::{Machine, record_machine};
pub use names::{MAX_NAME_BYTES, MAX_NAMES, Name, NameError, NameKind, Names};
pub use reader::{TraceReader, Writes};
pub use record::{Progress, RecordError, Recorded, Recording, Told, import, record};
pub use source_lines::SourceLines;
pub use stores_tool::ToolError;
pub use tool::{Tool, ToolChoice};
pub use write::{ADDRESS_LIMIT, MAX_WRITE_SIZE, Pieces, Write};
pub use writer::TraceWriter;
