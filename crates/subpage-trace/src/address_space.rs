//! Where Valgrind has put the program, its heap and its stack.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::elf::Placement;
use crate::names::{Name, NameKind};
use crate::stores_tool;
use crate::write::Write;

const PAGE: u64 = 4096;
/// `/proc/PID/maps` is read up to here; a program that has just started has some 30 lines.
const MAX_MAPS: u64 = 1 << 22;
/// Where the client's stack ends on amd64 (`suggested_clstack_end` in Valgrind's
/// `coregrind/m_aspacemgr/aspacemgr-linux.c`).
const STACK_END: u64 = 0x1f_ff00_1000;
/// Bounds of what the recorder sets with `--main-stacksize`, all of which Valgrind reserves at once.
const STACK_SIZES: RangeInclusive<u64> = 8 << 20..=1 << 30;
/// What Valgrind reserves for the brk segment at most (`setup_client_dataseg` in
/// `coregrind/m_initimg/initimg-linux.c`).
const HEAP_SIZE: u64 = 8 << 20;

/// How large the main thread's stack may become: as without Valgrind, from 8 MiB to 1 GiB.
pub(crate) fn stack_size() -> u64 {
    // Without a limit, what it is called for most often.
    let limit = getrlimit(Resource::Stack).current.unwrap_or(64 << 20);
    limit.clamp(*STACK_SIZES.start(), *STACK_SIZES.end()) & !(PAGE - 1)
}

/// The areas of a program that has just started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressSpace {
    /// Program file and where it is mapped.
    pub(crate) program: Option<(PathBuf, Placement)>,
    /// Area that the brk segment may grow into.
    heap: Option<Range<u64>>,
    /// Area that the main thread's stack may grow into.
    stack: Option<Range<u64>>,
}

struct Mapping<'a> {
    range: Range<u64>,
    permissions: &'a [u8],
    offset: u64,
    path: &'a [u8],
}

impl AddressSpace {
    /// Reads the mappings of a Valgrind process whose client `program` is about to run.
    pub(crate) fn of_process(pid: u32, program: &Path) -> io::Result<Self> {
        let mut maps = Vec::new();
        File::open(format!("/proc/{pid}/maps"))?.take(MAX_MAPS).read_to_end(&mut maps)?;
        Ok(Self::of_maps(&maps, program))
    }

    /// The same of what its `/proc/PID/maps` held.
    pub(crate) fn of_maps(maps: &[u8], program: &Path) -> Self {
        Self::parse(maps, program, stack_size())
    }

    fn parse(maps: &[u8], program: &Path, stack_size: u64) -> Self {
        let mappings: Vec<_> = maps.split(|&b| b == b'\n').filter_map(mapping).collect();
        let files = || mappings.iter().filter(|m| m.path.starts_with(b"/"));
        let path = |m: &Mapping<'_>| PathBuf::from(std::ffi::OsString::from_vec(m.path.to_vec()));
        // A script is run by its interpreter, which then lies lowest; Valgrind itself lies above.
        let is_tool = |name: &OsStr| {
            let rest = ["lackey", stores_tool::NAME]
                .iter()
                .find_map(|tool| name.as_encoded_bytes().strip_prefix(tool.as_bytes()));
            rest.is_some_and(|rest| rest.starts_with(b"-"))
        };
        let file = files().find(|m| path(m) == program).or_else(|| files().next());
        let file = file.filter(|m| !path(m).file_name().is_some_and(is_tool));
        let program =
            file.map(|m| (path(m), Placement { address: m.range.start, offset: m.offset }));
        // The brk segment is the one anonymous mapping that the client may execute, too.
        let heap = mappings.iter().position(|m| m.path.is_empty() && m.permissions == b"rwxp");
        let heap = heap.map(|at| {
            let start = mappings[at].range.start;
            let next = mappings.get(at + 1).map_or(u64::MAX, |m| m.range.start);
            start..start.saturating_add(HEAP_SIZE).min(next)
        });
        let stack = mappings
            .iter()
            .any(|m| {
                m.path.is_empty() && m.permissions.starts_with(b"rw") && m.range.end == STACK_END
            })
            .then_some(STACK_END - stack_size..STACK_END);
        Self { program, heap, stack }
    }
}

/// `start-end perms offset device inode path`, see proc_pid_maps(5).
fn mapping(line: &[u8]) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut field = || fields.next();
    let (range, permissions, offset) = (field()?, field()?, field()?);
    let (_device, _inode) = (field()?, field()?);
    let path = field().unwrap_or_default().trim_ascii_start();
    let hex = |text: &[u8]| u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok();
    let dash = range.iter().position(|&b| b == b'-')?;
    let range = hex(&range[..dash])?..hex(&range[dash + 1..])?;
    Some(Mapping { range, permissions, offset: hex(offset)?, path })
}

/// Which part of heap and stack was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extents {
    /// End of the highest write into the heap.
    heap_end: u64,
    /// Start of the lowest write into the stack; `None` before the first.
    stack_start: Option<u64>,
}

impl Extents {
    pub(crate) fn note(&mut self, space: &AddressSpace, write: Write) {
        let inside =
            |area: &Option<Range<u64>>| area.as_ref().is_some_and(|a| a.contains(&write.address));
        if inside(&space.heap) {
            self.heap_end = self.heap_end.max(write.address + u64::from(write.size));
        } else if inside(&space.stack) {
            let lowest = self.stack_start.unwrap_or(write.address);
            self.stack_start = Some(lowest.min(write.address));
        }
    }

    /// `heap` and `stack`, in whole pages, if they were written at all.
    pub(crate) fn names(&self, space: &AddressSpace) -> Vec<Name> {
        let mut names = Vec::new();
        let mut put = |name: &str, kind, range: Range<u64>| {
            let (start, length) = (range.start, range.end - range.start);
            names.push(Name { name: name.to_owned(), start, length, kind });
        };
        if let Some(heap) = &space.heap
            && self.heap_end > heap.start
        {
            let end = self.heap_end.next_multiple_of(PAGE);
            put("heap", NameKind::Heap, heap.start..end.min(heap.end));
        }
        if let (Some(stack), Some(lowest)) = (&space.stack, self.stack_start) {
            put("stack", NameKind::Stack, lowest & !(PAGE - 1)..stack.end);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &[u8] = b"\
00108000-00109000 r--p 00000000 fe:00 10010887      /home/user/my program
00109000-0010a000 r-xp 00001000 fe:00 10010887      /home/user/my program
0010b000-0010d000 rw-p 00002000 fe:00 10010887      /home/user/my program
04000000-04001000 r--p 00000000 fe:00 325843        /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
04031000-04035000 rw-p 00031000 fe:00 325843        /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
04035000-04036000 rwxp 00000000 00:00 0 
58000000-58001000 r--p 00000000 fe:00 12            /usr/libexec/valgrind/lackey-amd64-linux
1002001000-1002c00000 rwxp 00000000 00:00 0 
1ffefff000-1fff001000 rw-p 00000000 00:00 0 
";

    #[test]
    fn areas_of_a_dynamic_program() {
        let space = AddressSpace::parse(DYNAMIC, Path::new("/home/user/my program"), 8 << 20);
        assert_eq!(
            space,
            AddressSpace {
                program: Some((
                    PathBuf::from("/home/user/my program"),
                    Placement { address: 0x10_8000, offset: 0 }
                )),
                heap: Some(0x403_5000..0x483_5000),
                stack: Some(0x1f_fe80_1000..0x1f_ff00_1000),
            }
        );
        // A script: the lowest file is its interpreter.
        let script = AddressSpace::parse(DYNAMIC, Path::new("/home/user/script"), 8 << 20);
        assert_eq!(script.program, space.program);
    }

    #[test]
    fn a_process_that_has_ended_or_not_begun_has_no_areas() {
        for maps in [&b""[..], b"\n\n", b"zz-yy rw-p 0 0 0", b"1000 rw-p 0 0 0", b"\xff\xff"] {
            assert_eq!(
                AddressSpace::parse(maps, Path::new("/x"), 8 << 20),
                AddressSpace::default()
            );
        }
    }

    #[test]
    fn heap_and_stack_reach_as_far_as_they_were_written() {
        let space = AddressSpace::parse(DYNAMIC, Path::new("/x"), 8 << 20);
        let mut extents = Extents::default();
        assert_eq!(extents.names(&space), []);
        for (address, size) in [
            (0x403_5010, 8),
            (0x403_6ffc, 8),
            (0x1f_fefe_0008, 8),
            (0x1f_ff00_0000, 8),
            (0x5000, 8),
        ] {
            extents.note(&space, Write { pc: 0, address, size });
        }
        let names = extents.names(&space);
        let ranges: Vec<_> =
            names.iter().map(|n| (n.name.as_str(), n.start, n.start + n.length)).collect();
        assert_eq!(
            ranges,
            [("heap", 0x403_5000, 0x403_8000), ("stack", 0x1f_fefe_0000, 0x1f_ff00_1000)]
        );
    }
}
