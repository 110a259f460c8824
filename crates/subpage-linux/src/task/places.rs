//! Where a kernel has what it knows of its tasks, and reading it there: without an allocator.

use crate::address::{RuntimeAddress, Slide};
use crate::memory::{Memory, long, word};

/// The least linear address of the kernel's half (Linux, Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// Length of a task's name with its end (TASK_COMM_LEN).
pub(super) const NAME_BYTES: usize = 16;

/// Most bits of a task's number (PID_MAX_LIMIT is 2^22).
const MAX_PID: u32 = 1 << 22;

/// A task's name (`comm`), as the kernel's memory has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskName {
    bytes: [u8; NAME_BYTES],
    length: usize,
}

impl TaskName {
    /// At most 15 bytes, none of them zero; otherwise anything.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A task of a running kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningTask {
    /// Where its `task_struct` is.
    pub address: RuntimeAddress,
    /// Number of its process (`tgid`).
    pub pid: u32,
    /// Its own number (`pid`).
    pub tid: u32,
    /// Its name.
    pub name: TaskName,
    /// The user whose rights it has (`cred->uid`), as the kernel counts users.
    pub uid: Option<u32>,
}

/// Where a kernel keeps the task that a processor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Current {
    /// As an offset in the processor's data, whatever KASLR did (before 6.15).
    PerProcessor(u64),
    /// As an address that moves with the kernel (from 6.15 on).
    Linked(u64),
}

/// Offsets by which the task is found that a processor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskPlaces {
    pub(crate) current: Current,
    pub(crate) pid: u64,
    pub(crate) tgid: u64,
    pub(crate) name: u64,
    pub(crate) leader: u64,
    /// Of the credentials in the task, and of the user in the credentials.
    pub(crate) uid: Option<(u64, u64)>,
}

impl TaskPlaces {
    /// The task of the processor whose GS base is `gs_base`. `None` if the base is not the kernel's, or if
    /// what is there is no task: its leader has to have the number of its process.
    pub fn current(&self, memory: &dyn Memory, gs_base: u64, slide: Slide) -> Option<RunningTask> {
        if gs_base < KERNEL_HALF {
            return None;
        }
        let place = match self.current {
            Current::PerProcessor(offset) => gs_base.checked_add(offset)?,
            // The base is the distance from where it was linked.
            Current::Linked(address) => gs_base.wrapping_add(address).wrapping_add(slide.bytes()),
        };
        let task =
            long(memory, place).filter(|task| *task >= KERNEL_HALF && task.is_multiple_of(8))?;
        let at = |offset: u64| task.checked_add(offset);
        let number = |at| word(memory, at).filter(|number| *number <= MAX_PID);
        let (tid, pid) = (number(at(self.pid)?)?, number(at(self.tgid)?)?);
        let leader = long(memory, at(self.leader)?).filter(|leader| *leader >= KERNEL_HALF)?;
        if number(leader.checked_add(self.pid)?)? != pid {
            return None;
        }
        let mut name = [0; NAME_BYTES];
        if !memory.read(RuntimeAddress::new(at(self.name)?), &mut name) {
            return None;
        }
        let length = name.iter().position(|byte| *byte == 0)?;
        let uid = self.uid.and_then(|(credentials, uid)| {
            let credentials = long(memory, at(credentials)?).filter(|it| *it >= KERNEL_HALF)?;
            word(memory, credentials.checked_add(uid)?)
        });
        let (address, name) = (RuntimeAddress::new(task), TaskName { bytes: name, length });
        Some(RunningTask { address, pid, tid, name, uid })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Memory of eight bytes at each address.
    #[derive(Default)]
    struct Words(HashMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
            (address.as_u64()..).zip(buffer).all(|(at, byte)| {
                let Some(word) = self.0.get(&(at & !7)) else { return false };
                *byte = word.to_le_bytes()[(at % 8) as usize];
                true
            })
        }
    }

    const GS: u64 = 0xffff_8880_3e60_0000;
    const TASK: u64 = 0xffff_8880_0100_0000;
    const LEADER: u64 = 0xffff_8880_0200_0000;
    const CREDENTIALS: u64 = 0xffff_8880_0300_0000;

    fn tasks(current: Current) -> TaskPlaces {
        TaskPlaces {
            current,
            pid: 0x10,
            tgid: 0x14,
            name: 0x20,
            leader: 0x18,
            uid: Some((0x30, 4)),
        }
    }

    /// Thread 102 of process 101, of user 1000.
    fn memory() -> Words {
        Words(HashMap::from([
            (GS + 0x1_fbc0, TASK),
            (TASK + 0x10, 0x65 << 32 | 0x66),
            (TASK + 0x18, LEADER),
            (TASK + 0x20, u64::from_le_bytes(*b"modprobe")),
            (TASK + 0x28, u64::from_le_bytes(*b"-x\0abcde")),
            (TASK + 0x30, CREDENTIALS),
            (LEADER + 0x10, 0x65 << 32 | 0x65),
            (CREDENTIALS, 0x3e8 << 32 | 5),
        ]))
    }

    #[test]
    fn the_task_that_runs() {
        let name = TaskName { bytes: *b"modprobe-x\0abcde", length: 10 };
        let address = RuntimeAddress::new(TASK);
        let expected = RunningTask { address, pid: 101, tid: 102, name, uid: Some(1000) };
        assert_eq!(expected.name.as_bytes(), b"modprobe-x");
        let tasks = tasks(Current::PerProcessor(0x1_fbc0));
        let found = tasks.current(&memory(), GS, Slide::new(0x1000));
        assert_eq!(found.as_ref(), Some(&expected));
        let no_types = TaskPlaces { uid: None, ..tasks };
        let found = no_types.current(&memory(), GS, Slide::ZERO);
        assert_eq!(found, Some(RunningTask { uid: None, ..expected }));
    }

    /// Newer kernels link the data of processors as all else.
    #[test]
    fn the_place_may_move_with_the_kernel() {
        let linked = 0xffff_ffff_8300_0bc0;
        let slide = Slide::new(0x1d00_0000);
        let base = GS.wrapping_add(0x1_fbc0).wrapping_sub(linked).wrapping_sub(slide.bytes());
        assert!(base >= KERNEL_HALF);
        let tasks = tasks(Current::Linked(linked));
        assert_eq!(tasks.current(&memory(), base, slide).map(|task| task.tid), Some(102));
        assert_eq!(tasks.current(&memory(), base, Slide::ZERO), None);
    }

    #[test]
    fn what_is_not_certain_is_absent() {
        let tasks = tasks(Current::PerProcessor(0x1_fbc0));
        let with = |at: u64, value: u64| {
            let mut memory = memory();
            memory.0.insert(at, value);
            tasks.current(&memory, GS, Slide::ZERO)
        };
        assert!(with(TASK + 8, 0).is_some());
        for (at, value) in [
            (GS + 0x1_fbc0, 0x1000),
            (GS + 0x1_fbc0, TASK + 1),
            (GS + 0x1_fbc0, u64::MAX - 7),
            (TASK + 0x10, 0x65 << 32 | 0xffff_ffff),
            (LEADER + 0x10, 99),
            (TASK + 0x18, 0),
            (TASK + 0x28, u64::MAX),
        ] {
            assert_eq!(with(at, value), None, "{at:#x}: {value:#x}");
        }
        assert_eq!(
            tasks.current(&memory(), 0x7fff_0000_0000, Slide::ZERO),
            None,
            "a program's base"
        );
        assert_eq!(tasks.current(&Words::default(), GS, Slide::ZERO), None);
        let uid = |value| with(TASK + 0x30, value).expect("a task").uid;
        assert_eq!((uid(0), uid(CREDENTIALS + 0x1000)), (None, None));
    }
}
