//! Who wrote, as the guest's own code and memory tell.

use std::fmt;

use subpage::address::PAGE_BYTES;
use subpage_emulate::guest::{PhysicalMemory, State};
use subpage_emulate::{Access, PagingFeatures, read_linear};
use subpage_trap::{Function, SourceLine, Task};

use super::Functions;

/// What can be told about the writer of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Testimony {
    /// The function that holds the writing instruction.
    pub function: Option<Function>,
    /// The line of the source that it comes from.
    pub source: Option<SourceLine>,
    /// The calls above it, the nearest first.
    pub call_trace: Vec<Function>,
    /// The task of the guest's kernel that ran.
    pub task: Option<Task>,
}

/// What names the writers of a guest's events.
///
/// It is asked for each event while the processor waits, under the lock that all other processors need
/// to write: its work has a bound. What it is not certain of it leaves out.
pub trait Witness: fmt::Debug + Send + Sync {
    /// Who the writer in this scene is.
    fn testify(&self, scene: &Scene<'_>) -> Testimony;
}

impl Witness for Functions {
    fn testify(&self, scene: &Scene<'_>) -> Testimony {
        let (function, source) =
            scene.rip.map(|rip| self.find(rip, scene.instruction)).unwrap_or_default();
        Testimony { function, source, ..Testimony::default() }
    }
}

/// A processor that has written, stopped at its instruction.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// Address of the instruction, if it is known.
    pub rip: Option<u64>,
    /// Its bytes; none if they are not known.
    pub instruction: &'a [u8],
    state: &'a State,
    memory: &'a dyn PhysicalMemory,
    paging: PagingFeatures,
}

impl<'a> Scene<'a> {
    /// What is to be told to a [`Witness`]: the instruction that wrote, registers before or behind it,
    /// and the guest's memory.
    pub const fn new(
        rip: Option<u64>,
        instruction: &'a [u8],
        state: &'a State,
        memory: &'a dyn PhysicalMemory,
        paging: PagingFeatures,
    ) -> Self {
        Self { rip, instruction, state, memory, paging }
    }

    /// Where the processor stands, as its registers do: at the instruction that wrote, or behind it if it was
    /// carried out before it was known.
    pub const fn stands_at(&self) -> u64 {
        self.state.rip
    }

    /// The general registers, by the numbers of the instruction set: RAX, RCX, RDX, RBX, RSP, RBP, RSI,
    /// RDI, R8 to R15.
    pub const fn registers(&self) -> [u64; 16] {
        self.state.registers.0
    }

    /// The base of GS: of 64-bit kernels, that of the processor's own data.
    pub const fn gs_base(&self) -> u64 {
        self.state.segments.gs.base
    }

    /// The privilege level, 0 to 3.
    pub const fn cpl(&self) -> u8 {
        self.state.cpl
    }

    /// Reads from a linear address on, with the rights of a kernel; false if some byte is not mapped.
    /// Marks nothing as accessed.
    pub fn read(&self, linear: u64, buffer: &mut [u8]) -> bool {
        debug_assert!(buffer.len() as u64 <= PAGE_BYTES, "a piece at a time");
        let access = Access::SYSTEM_READ;
        read_linear(&self.memory, self.paging, self.state, linear, access, buffer).is_ok()
    }
}

impl fmt::Debug for Scene<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scene")
            .field("rip", &self.rip)
            .field("instruction", &self.instruction)
            .finish_non_exhaustive()
    }
}
