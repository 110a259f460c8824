//! Functions and source lines of a guest, for the events.

use std::fs::File;
use std::path::Path;

use object::read::ReadCache;
use object::{Object as _, ObjectSegment as _, SegmentFlags, elf};
use subpage_kvm::event::{Functions, Lines};
use subpage_trace::{CodeNames, SourceLines};
use subpage_trap::SourceLine;

/// Most bytes of code that names are checked against. The Linux kernel has about 20 MiB.
const MAX_CODE_BYTES: u64 = 256 << 20;

/// The functions and source lines of the ELF file at `path`, with its code to check them by; none if it
/// is another file, or a damaged one: nobody has asked for them.
pub(super) fn of_elf(path: &Path) -> Functions {
    File::open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|it| it.is_file()))
        .and_then(|file| read(&ReadCache::new(file)))
        .unwrap_or_default()
}

fn read(cache: &ReadCache<File>) -> Option<Functions> {
    let file = object::File::parse(cache).ok()?;
    let mut code = Vec::new();
    let mut room = MAX_CODE_BYTES;
    for segment in file.segments() {
        let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { continue };
        let (_, bytes) = segment.file_range();
        if !p_flags.contains(elf::PF_X) || bytes > room {
            continue;
        }
        room -= bytes;
        code.push((segment.address(), segment.data().ok()?.to_vec()));
    }
    let CodeNames { functions, lines, .. } = CodeNames::of_elf(&file);
    Some(Functions::new(functions, code).with_lines(Box::new(ElfLines(lines))))
}

#[derive(Debug)]
struct ElfLines(SourceLines);

impl Lines for ElfLines {
    fn find(&self, rip: u64) -> Option<SourceLine> {
        self.0.find(rip).map(|(file, line)| SourceLine { file: file.to_owned(), line })
    }
}
