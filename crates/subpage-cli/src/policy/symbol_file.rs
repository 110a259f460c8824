//! Files of symbols: ELF files, and lists as the kernel prints them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::Object;
use object::read::ReadCache;
use subpage_linux::{ImageError, KallsymsError, KernelImage};
use thiserror::Error;

use super::place::START_KERNEL_MAP;
use super::{AddressSpace, Names, SymbolFormat, elf_symbols, kallsyms, linux_image};

/// Longest ELF file in bytes: 4 GiB. A kernel with debug information has about 1 GiB.
const MAX_ELF_BYTES: u64 = 4 << 30;

/// Longest list in bytes: 64 MiB. That of a distribution's kernel has about 10 MiB.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Most symbols that are read; the Linux kernel has about 200,000.
pub(super) const MAX_SYMBOLS: usize = 4_000_000;

/// Longest name of a symbol in bytes; longer ones cannot be named by a policy.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// Most bytes of all names together, 256 MiB: many symbols of a made-up file may have one long name.
pub(super) const MAX_NAMES_BYTES: usize = 256 << 20;

/// Longest number of a build in bytes.
const MAX_BUILD_ID_BYTES: usize = 64;

/// The first bytes of every ELF file.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// Why a file gives no symbols.
#[derive(Debug, Error)]
pub enum SymbolError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It has too many bytes.
    #[error("{} is longer than {most}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in words.
        most: &'static str,
    },
    /// It is no ELF file, or a damaged one.
    #[error("{} cannot be read as ELF: {reason}; a whole ELF file is needed", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A list was asked for, and it is an ELF file.
    #[error("{} is an ELF file, not a list of symbols", path.display())]
    NotAList {
        /// The file.
        path: PathBuf,
    },
    /// Its first line is no symbol, so it is something else.
    #[error(
        "{} is neither an ELF file nor a list of symbols as /proc/kallsyms or System.map, whose \
         lines are `ADDRESS TYPE NAME`",
        path.display()
    )]
    Neither {
        /// The file.
        path: PathBuf,
    },
    /// Its first line stands where a kernel package has left the list out.
    #[error(
        "{} is not the kernel's list of symbols: its package has put a line of text in its place, as \
         Debian's do. It is not needed: the image (vmlinuz) has the names in it. Leave `map` out of rules \
         for a guest, or name the image instead (`--symbols vmlinuz`)",
        path.display()
    )]
    Stub {
        /// The file.
        path: PathBuf,
    },
    /// A kernel's image cannot be opened.
    #[error("{}: {error}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: ImageError,
    },
    /// A kernel's image does not tell its symbols.
    #[error("{}: {error}", path.display())]
    Kallsyms {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: KallsymsError,
    },
    /// A later line of a list is no symbol.
    #[error("line {line} of {} is not `ADDRESS TYPE NAME`: the list is damaged or cut off", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
    },
    /// A list without a symbol.
    #[error("{} has no symbol in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The kernel showed zeros instead of addresses.
    #[error(
        "every address in {} is 0: the kernel hides them from ordinary users (kptr_restrict); \
         read /proc/kallsyms as root",
        path.display()
    )]
    Hidden {
        /// The file.
        path: PathBuf,
    },
    /// It has too many symbols, or they have too long names.
    #[error("{} has more than 4,000,000 symbols, or more than 256 MiB of names", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

/// The symbols of a file of a known format, with addresses as asked for.
///
/// Of an ELF file the data, code and untyped symbols of both its tables. A name without an address
/// in `space` is kept with the reason where it is in a list, or was asked for as a kernel's.
pub fn read_symbols(
    path: &Path,
    format: SymbolFormat,
    space: AddressSpace,
) -> Result<Names, SymbolError> {
    let mut file = open(path)?;
    match format {
        SymbolFormat::Elf => read_elf(file, path, space),
        SymbolFormat::Map => {
            let list = read_list(&mut file, path)?;
            kallsyms::parse(&list, path, space)
        }
    }
}

/// The symbols of a file of either format as names for `region`: guest-physical addresses.
///
/// Those of an ELF file lie where its load segments put them (`p_paddr`), those of a list at their
/// value minus [`START_KERNEL_MAP`]. A bzImage, and an ELF file without symbols, is asked for those that
/// a Linux kernel has for its own use.
pub fn read_region_names(path: &Path) -> Result<Names, SymbolError> {
    let failed = |source| SymbolError::Read { path: path.to_owned(), source };
    let mut magic = Vec::new();
    open(path)?.take(ELF_MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
    if magic == ELF_MAGIC {
        let names = read_symbols(path, SymbolFormat::Elf, AddressSpace::Physical)?;
        if !names.is_empty() {
            return Ok(names);
        }
        Ok(linux_image::read_linux(path)?.map_or(names, |linux| linux.names))
    } else if linux_image::is_bzimage(path) {
        Ok(linux_image::read_linux(path)?.map_or_else(Names::default, |linux| linux.names))
    } else {
        read_symbols(path, SymbolFormat::Map, AddressSpace::Kernel)
    }
}

/// The number that the linker gave an ELF file (`.note.gnu.build-id`), or the kernel in a bzImage; none if it gave none, or if the
/// file is another one or damaged.
pub fn build_id(path: &Path) -> Option<Vec<u8>> {
    let file = open(path).ok()?;
    if linux_image::is_bzimage(path) {
        return Some(KernelImage::open(path).ok()?.build_id()?.to_vec());
    }
    let cache = ReadCache::new(file);
    let file = object::File::parse(&cache).ok()?;
    let id = file.build_id().ok()??;
    (1..=MAX_BUILD_ID_BYTES).contains(&id.len()).then(|| id.to_vec())
}

fn open(path: &Path) -> Result<File, SymbolError> {
    let failed = |source| SymbolError::Read { path: path.to_owned(), source };
    // Opening a pipe would wait for whoever fills it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(SymbolError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(failed)
}

fn read_elf(file: File, path: &Path, space: AddressSpace) -> Result<Names, SymbolError> {
    let failed = |source| SymbolError::Read { path: path.to_owned(), source };
    if file.metadata().map_err(failed)?.len() > MAX_ELF_BYTES {
        return Err(SymbolError::TooLong { path: path.to_owned(), most: "4 GiB" });
    }
    elf_symbols::parse(&ReadCache::new(file), path, space)
}

fn read_list(file: &mut File, path: &Path) -> Result<Vec<u8>, SymbolError> {
    let failed = |source| SymbolError::Read { path: path.to_owned(), source };
    let mut list = Vec::new();
    file.take(ELF_MAGIC.len() as u64).read_to_end(&mut list).map_err(failed)?;
    if list == ELF_MAGIC {
        return Err(SymbolError::NotAList { path: path.to_owned() });
    }
    // The length is that of what is read: /proc/kallsyms claims to have none.
    let rest = MAX_LIST_BYTES + 1 - list.len() as u64;
    file.take(rest).read_to_end(&mut list).map_err(failed)?;
    if list.len() as u64 > MAX_LIST_BYTES {
        return Err(SymbolError::TooLong { path: path.to_owned(), most: "64 MiB" });
    }
    Ok(list)
}

/// The guest-physical address of a byte of the kernel's image, or why it has none.
pub(super) fn kernel_address(value: u64) -> Result<u64, &'static str> {
    value.checked_sub(START_KERNEL_MAP).ok_or(
        "its value lies below 0xffffffff80000000, where the kernel's image begins: per-processor \
         data and the like have no one address; give the `range` that you mean",
    )
}
