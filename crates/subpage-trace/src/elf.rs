//! Names out of a program's ELF file.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object::elf::{SHF_ALLOC, SHF_TLS, SHF_WRITE};
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, ReadCache, SectionFlags, SectionIndex,
    SymbolKind,
};

use crate::build_id::BuildId;
use crate::code_names::CodeNames;
use crate::names::{MAX_NAMES, Name, NameKind, Names};

const PAGE: u64 = 4096;
/// Symbols looked at; a table that is longer is not read to its end.
const MAX_SYMBOLS: usize = 1 << 22;

/// Why an ELF file gives no names.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The file cannot be opened.
    #[error("cannot open the program file")]
    Open(#[source] Arc<io::Error>),
    /// The file is no ELF file or a damaged one.
    #[error("the program file is not a readable ELF file")]
    Parse(#[source] object::Error),
    /// The program ended before it was looked at.
    #[error("the program ended before it was looked at")]
    Gone,
    /// Another file has taken the program's place since it was started.
    #[error("the program file was replaced while the program ran; record it again")]
    Replaced,
    /// No segment of the file begins at the offset that is mapped.
    #[error("the program file has no segment for file offset {offset:#x}; has it changed?")]
    NoSegment {
        /// File offset of the mapping.
        offset: u64,
    },
}

impl ElfError {
    fn open(error: io::Error) -> Self {
        Self::Open(Arc::new(error))
    }
}

/// Where a program file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First address of a mapping of the file.
    pub address: u64,
    /// Offset in the file that is mapped there, in whole pages.
    pub offset: u64,
}

/// What a program's file says about its memory.
pub(crate) struct Program {
    /// Its sections and objects, where they are mapped.
    pub(crate) names: Names,
    pub(crate) code: MappedCode,
    /// Which build it is.
    pub(crate) build: Option<BuildId>,
}

/// Names of a program's code.
pub(crate) struct MappedCode {
    /// By the addresses in the file.
    pub(crate) names: CodeNames,
    /// How many bytes higher the program lies than its file says.
    pub(crate) bias: u64,
}

/// What [`program_names`] reads, and the code, of a file that a program which began at `began` was loaded from, unless the file
/// was changed since.
pub(crate) fn mapped_program(
    path: &Path,
    placement: Placement,
    began: SystemTime,
) -> Result<Program, ElfError> {
    // What the kernel adds to the path of a file without a name.
    if path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)") {
        return Err(ElfError::Replaced);
    }
    let changed = || {
        let metadata = path.metadata().map_err(ElfError::open)?;
        // Whatever its content's time says, which tools set.
        let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
        let nanoseconds = u64::try_from(metadata.ctime_nsec()).unwrap_or_default();
        let at = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
        Ok(SystemTime::UNIX_EPOCH + at > began)
    };
    if changed()? {
        return Err(ElfError::Replaced);
    }
    let program = with_file(path, |file| {
        let (names, bias) = names_of(file, placement)?;
        let code = MappedCode { names: CodeNames::of_elf(file), bias };
        Ok(Program { names, code, build: BuildId::of_elf(file) })
    })?;
    if changed()? { Err(ElfError::Replaced) } else { Ok(program) }
}

/// The writable sections and data objects of the ELF file `path`, where it is mapped.
///
/// Sections are named `program:.data` and so on. Objects are the symbols of type `STT_OBJECT`
/// with a size, in writable sections, of the static and the dynamic symbol table, without their
/// version. Thread-local data has no one address and is left out.
pub fn program_names(path: &Path, placement: Placement) -> Result<Names, ElfError> {
    with_file(path, |file| names_of(file, placement).map(|(names, _)| names))
}

type ElfFile<'a> = object::File<'a, &'a ReadCache<File>>;

fn with_file<T>(
    path: &Path,
    read: impl FnOnce(&ElfFile<'_>) -> Result<T, ElfError>,
) -> Result<T, ElfError> {
    // The path comes from the recorded program: one that is a pipe would never be opened.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(ElfError::open)?;
    if !file.metadata().map_err(ElfError::open)?.is_file() {
        return Err(ElfError::open(io::Error::other("it is no regular file")));
    }
    let cache = ReadCache::new(file);
    read(&object::File::parse(&cache).map_err(ElfError::Parse)?)
}

/// The names of a file's data, and how many bytes higher it is mapped than it says.
fn names_of(file: &ElfFile<'_>, placement: Placement) -> Result<(Names, u64), ElfError> {
    let segment = file
        .segments()
        .find(|segment| segment.file_range().0 & !(PAGE - 1) == placement.offset)
        .ok_or(ElfError::NoSegment { offset: placement.offset })?;
    let bias = placement.address.wrapping_sub(segment.address() & !(PAGE - 1));
    let mut names = Vec::new();
    let mut writable: HashSet<SectionIndex> = HashSet::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        let wanted = SHF_ALLOC | SHF_WRITE;
        if sh_flags & (wanted | SHF_TLS) != wanted {
            continue;
        }
        writable.insert(section.index());
        if names.len() < MAX_NAMES
            && let Ok(name) = section.name()
        {
            names.push(Name {
                name: format!("program:{name}"),
                start: section.address().wrapping_add(bias),
                length: section.size(),
                kind: NameKind::Section,
            });
        }
    }
    let symbols = file.symbols().chain(file.dynamic_symbols()).take(MAX_SYMBOLS);
    for symbol in symbols {
        let in_writable = symbol.section_index().is_some_and(|index| writable.contains(&index));
        if symbol.kind() != SymbolKind::Data || symbol.size() == 0 || !in_writable {
            continue;
        }
        let Ok(name) = symbol.name() else { continue };
        // `stdout@GLIBC_2.2.5`: the version is the linker's, not part of the name.
        let name = name.split_once('@').map_or(name, |(name, _)| name);
        names.push(Name {
            name: name.to_owned(),
            start: symbol.address().wrapping_add(bias),
            length: symbol.size(),
            kind: NameKind::Object,
        });
    }
    Ok((Names::new(names), bias))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::fs::symlink;

    use super::*;

    const START: Placement = Placement { address: 0x10_0000, offset: 0 };

    /// This test's own program, a link to it with the name that a deleted one has, and the time now.
    #[test]
    fn a_file_that_was_changed_or_deleted_since_gives_no_names() {
        let program = env::current_exe().expect("there");
        let now = SystemTime::now();
        let mapped = |path: &Path, began| mapped_program(path, START, began).map(|it| it.names);
        let names = mapped(&program, now).expect("it was built before");
        assert!(names.find("program:.data").is_ok());
        let replaced = |path: &Path, began| matches!(mapped(path, began), Err(ElfError::Replaced));
        assert!(replaced(&program, SystemTime::UNIX_EPOCH));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (link, deleted) = (folder.path().join("it"), folder.path().join("it (deleted)"));
        for path in [&link, &deleted] {
            symlink(&program, path).expect("writable");
        }
        assert!(!replaced(&link, now));
        assert!(replaced(&deleted, now));
        let missing = mapped(&folder.path().join("none"), now);
        assert!(matches!(missing, Err(ElfError::Open(_))), "{missing:?}");
    }

    /// A recorded program may name any path as its own.
    #[test]
    fn a_pipe_is_no_program_and_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        let placement = Placement { address: 0, offset: 0 };
        assert!(matches!(program_names(&pipe, placement), Err(ElfError::Open(_))));
        assert!(matches!(program_names(folder.path(), placement), Err(ElfError::Open(_))));
    }
}
