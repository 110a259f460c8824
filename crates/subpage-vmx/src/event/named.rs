//! What an event's instruction and processor mean to the guest's kernel.

use core::fmt::{self, Write as _};

use subpage_linux::RunningTask;

/// The function that holds an instruction, and the task that the processor runs; what is not known is left
/// out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Named<'a> {
    /// The function, and how far behind its beginning the instruction is.
    pub function: Option<(&'a str, u64)>,
    /// The task, as the guest's memory has it.
    pub task: Option<RunningTask>,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, offset)) = self.function {
            write!(f, " function={name}+{offset:#x}")?;
        }
        let Some(task) = &self.task else { return Ok(()) };
        write!(f, " pid={} comm=\"", task.pid)?;
        // A program chooses its name, and must not forge the rest of the line.
        for byte in task.name.as_bytes() {
            match byte {
                b' ' | b'!' | b'#'..=b'[' | b']'..=b'~' => f.write_char(char::from(*byte))?,
                other => write!(f, "\\x{other:02x}")?,
            }
        }
        f.write_char('"')?;
        if let Some(uid) = task.uid {
            write!(f, " uid={uid}")?;
        }
        write!(f, " task={:#x}", task.address.as_u64())
    }
}
