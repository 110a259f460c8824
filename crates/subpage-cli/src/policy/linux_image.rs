//! The symbols of a Linux kernel's image, from the table that the kernel itself has of them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use subpage_linux::{ImageError, Kallsyms, KernelImage, Placement};

use super::fleeting::{INIT, PER_PROCESSOR};
use super::symbol_file::SymbolError;
use super::{NamedRange, Names};

/// Where a Linux image has `HdrS` (Linux, Documentation/arch/x86/boot.rst, "header").
const MAGIC_AT: usize = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";

/// What an image tells.
pub struct LinuxSymbols {
    /// Guest-physical addresses where the kernel was not moved, with lengths up to the next symbol.
    pub names: Names,
    /// The number that the linker gave the kernel.
    pub build_id: Option<Vec<u8>>,
}

/// Whether a file begins as a bzImage does.
pub(super) fn is_bzimage(path: &Path) -> bool {
    let mut head = [0; MAGIC_AT + MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && head[MAGIC_AT..] == MAGIC
}

/// The symbols of a bzImage, or of an ELF file of a kernel; `None` for an ELF file of anything else.
pub fn read_linux(path: &Path) -> Result<Option<LinuxSymbols>, SymbolError> {
    let image = match KernelImage::open(path) {
        Ok(image) => image,
        Err(ImageError::Read(source)) => {
            return Err(SymbolError::Read { path: path.to_owned(), source });
        }
        Err(error) if error.is_something_else() => return Ok(None),
        Err(error) => return Err(SymbolError::Image { path: path.to_owned(), error }),
    };
    let kallsyms = Kallsyms::read(&image)
        .map_err(|error| SymbolError::Kallsyms { path: path.to_owned(), error })?;
    let (mut ranges, mut unplaced) = (Vec::new(), Vec::new());
    for symbol in kallsyms.iter() {
        let name = symbol.name.to_owned();
        let reason = match (symbol.placement, image.physical(symbol.address)) {
            (Placement::Image, Some(start)) => {
                ranges.push(NamedRange { name, start, length: symbol.length.unwrap_or(0) });
                continue;
            }
            (Placement::PerProcessor, _) => PER_PROCESSOR,
            (Placement::Init, _) => INIT,
            (Placement::Outside | Placement::Image, _) => OUTSIDE,
        };
        unplaced.push((name, reason));
    }
    let names = Names::new(ranges).with_unplaced(unplaced);
    Ok(Some(LinuxSymbols { names, build_id: image.build_id().map(<[u8]>::to_vec) }))
}

const OUTSIDE: &str = "its value is no address in the kernel's image";
