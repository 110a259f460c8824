//! Puts a guest into its memory: the ELF image, first page tables, what it is told.

use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, elf};
use subpage::address::Gpa;
use thiserror::Error;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::abi::{self, BootInformation};
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

/// The top page table.
const TOP_TABLE: u64 = 0x1000;
const POINTER_TABLE: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
/// [`BootInformation`]; the stack is the page below.
const INFORMATION: u64 = 0x5000;
const PAGE: u64 = 4096;

/// Least memory that a guest can start in.
const LEAST_MEMORY: u64 = 2 << 20;

/// Why a guest cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GuestError {
    /// The file is not such an image.
    #[error("the guest module is no ELF64 image: {0}")]
    NotElf(&'static str),
    /// It is for something else.
    #[error("the guest module is no static x86-64 program (type {kind}, machine {machine})")]
    NotStatic {
        /// e_type.
        kind: u16,
        /// e_machine.
        machine: u16,
    },
    /// A segment lies outside.
    #[error(
        "the guest's segment of {bytes:#x} bytes at {address:#x} does not fit into its {memory:#x} \
         bytes of memory above {lowest:#x}"
    )]
    DoesNotFit {
        /// Its address.
        address: u64,
        /// Its size.
        bytes: u64,
        /// The memory.
        memory: u64,
        /// Below this address lie page tables and what the guest is told.
        lowest: u64,
    },
    /// The guest's command line is too long.
    #[error("the guest's command line has {0} bytes; there is room for {room}", room = COMMAND_LINE_ROOM)]
    LongCommandLine(usize),
    /// Memory is missing.
    #[error("the guest has less than 2 MiB of memory")]
    LittleMemory,
}

const COMMAND_LINE_ROOM: usize = 4096 - size_of::<BootInformation>();

impl From<NotMemory> for GuestError {
    fn from(_: NotMemory) -> Self {
        Self::LittleMemory
    }
}

/// How the first virtual processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// CR3.
    pub cr3: u64,
    /// RDI and RSI.
    pub information: u64,
    /// Selectors of code and data, which are flat.
    pub code: u16,
    /// Likewise.
    pub data: u16,
    /// Base and limit of GDTR.
    pub descriptors: (u64, u32),
}

/// Loads a guest of `bytes` memory, which is all zeros.
pub fn load(
    memory: &impl PhysicalMemory,
    bytes: u64,
    image: &[u8],
    command_line: &str,
    processors: u32,
) -> Result<Entry, GuestError> {
    if bytes < LEAST_MEMORY {
        return Err(GuestError::LittleMemory);
    }
    if command_line.len() > COMMAND_LINE_ROOM {
        return Err(GuestError::LongCommandLine(command_line.len()));
    }
    let (rip, free) = load_segments(memory, bytes, image)?;
    map_first_gigabyte(memory)?;
    let text = INFORMATION + size_of::<BootInformation>() as u64;
    let mut signature = [0; 16];
    signature[..abi::SIGNATURE.len()].copy_from_slice(&abi::SIGNATURE);
    let information = BootInformation {
        signature,
        version: U32::new(abi::VERSION),
        processors: U32::new(processors),
        memory: U64::new(bytes),
        command_line: U64::new(text),
        command_line_length: U64::new(command_line.len() as u64),
        free: U64::new(free),
        reserved: U64::new(0),
    };
    memory.write(Gpa::new(INFORMATION), information.as_bytes())?;
    memory.write(Gpa::new(text), command_line.as_bytes())?;
    Ok(Entry {
        rip,
        rsp: INFORMATION,
        cr3: TOP_TABLE,
        information: INFORMATION,
        code: 0x08,
        data: 0x10,
        descriptors: (0, 0),
    })
}

/// Copies what is to be loaded; returns the entry point and the first byte behind it all.
fn load_segments(
    memory: &impl PhysicalMemory,
    bytes: u64,
    image: &[u8],
) -> Result<(u64, u64), GuestError> {
    let endian = LittleEndian;
    let header = elf::FileHeader64::<LittleEndian>::parse(image)
        .map_err(|_| GuestError::NotElf("it has no ELF header"))?;
    let (kind, machine) = (header.e_type(endian), header.e_machine(endian));
    if header.endian().is_err() || kind != elf::ET_EXEC || machine != elf::EM_X86_64 {
        return Err(GuestError::NotStatic { kind: kind.0, machine: machine.0 });
    }
    let segments = header
        .program_headers(endian, image)
        .map_err(|_| GuestError::NotElf("its program headers lie outside of the file"))?;
    let lowest = INFORMATION + PAGE;
    let mut free = lowest;
    for segment in segments {
        if segment.p_type(endian) != elf::PT_LOAD {
            continue;
        }
        let address = segment.p_paddr(endian);
        let size = segment.p_memsz(endian);
        let data = segment
            .data(endian, image)
            .map_err(|()| GuestError::NotElf("a segment lies outside of the file"))?;
        let does_not_fit = GuestError::DoesNotFit { address, bytes: size, memory: bytes, lowest };
        let end = address.checked_add(size).filter(|&end| end <= bytes).ok_or(does_not_fit)?;
        if address < lowest || data.len() as u64 > size {
            return Err(does_not_fit);
        }
        memory.write(Gpa::new(address), data).map_err(|_| does_not_fit)?;
        free = free.max(end);
    }
    Ok((header.e_entry(endian), free.next_multiple_of(PAGE)))
}

fn map_first_gigabyte(memory: &impl PhysicalMemory) -> Result<(), NotMemory> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let set = |at: u64, value: u64| memory.write(Gpa::new(at), &value.to_le_bytes());
    set(TOP_TABLE, POINTER_TABLE | PRESENT_WRITABLE)?;
    set(POINTER_TABLE, DIRECTORY | PRESENT_WRITABLE)?;
    for entry in 0..512 {
        set(DIRECTORY + entry * 8, entry << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}
