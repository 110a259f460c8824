//! The program that was recorded, for the fields of what a trace names.

use std::path::{Path, PathBuf};

use subpage_trace::BuildId;
use thiserror::Error;

use super::debug_info::{DebugInfo, Mapping};
use super::symbol_file::{SymbolError, build_id, read_region_names, read_symbols};
use super::{AddressSpace, NamedRange, Names, SymbolFormat};

/// Why a file is not that of the program that was recorded.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It gives no symbols.
    #[error(transparent)]
    Symbols(#[from] SymbolError),
    /// Nothing in it is named in the trace.
    #[error("{} is not the program that was recorded: none of its data is named in the trace", path.display())]
    Stranger {
        /// The file.
        path: PathBuf,
    },
    /// Its build ID is another one.
    #[error(
        "{} is of another build than the program that was recorded: its build ID is not that of the \
         trace; take the file that was recorded",
        path.display()
    )]
    OtherId {
        /// The file.
        path: PathBuf,
    },
    /// A name stands for something else.
    #[error(
        "{} is of another build than the program that was recorded: `{name}` does not have the place and \
         the length that it has in the trace; take the file that was recorded",
        path.display()
    )]
    OtherBuild {
        /// The file.
        path: PathBuf,
        /// A name that both have.
        name: String,
    },
}

/// Data that the compiler's start files put into every program, and so tell nothing.
const IN_EVERY_PROGRAM: [&str; 6] =
    ["completed.0", "__dso_handle", "_IO_stdin_used", "data_start", "__data_start", "__TMC_END__"];

impl Names {
    /// The same names of a trace, with the fields that the debug information of the ELF file at `path`
    /// tells: the program that was recorded.
    ///
    /// `objects`: those that are symbols of the program. Each one that the file has as well has to be
    /// equally long there, and all equally far from where the file says. If both the trace, by `build`, and
    /// the file have a build ID, these have to be the same: fields may have moved where nothing else has.
    pub fn with_program(
        self,
        objects: impl IntoIterator<Item = NamedRange>,
        build: Option<&BuildId>,
        path: &Path,
    ) -> Result<Self, ProgramError> {
        let symbols = read_symbols(path, SymbolFormat::Elf, AddressSpace::Virtual)?;
        let own = build.and_then(|_| build_id(path));
        if let (Some(build), Some(own)) = (build, own)
            && build.bytes() != own
        {
            return Err(ProgramError::OtherId { path: path.to_owned() });
        }
        let objects = Self::new(objects.into_iter().collect());
        let mut shift = None;
        let mut is_known = false;
        for object in objects.iter() {
            let (Ok(_), Ok(symbol)) =
                (objects.find_exactly(&object.name), symbols.find_exactly(&object.name))
            else {
                continue;
            };
            let distance = i128::from(object.start) - i128::from(symbol.start);
            if symbol.length != object.length || *shift.get_or_insert(distance) != distance {
                let name = object.name.clone();
                return Err(ProgramError::OtherBuild { path: path.to_owned(), name });
            }
            is_known |= !IN_EVERY_PROGRAM.contains(&object.name.as_str());
        }
        let Some(shift) = shift.filter(|_| is_known) else {
            return Err(ProgramError::Stranger { path: path.to_owned() });
        };
        Ok(self.with_debug_info(DebugInfo::of(path.to_owned(), Mapping::Shifted(shift))))
    }

    /// The names of the kernel's image, vmlinux or list of symbols at `path`, by the physical addresses of a
    /// kernel that was not moved: what the names of the trace of a machine are as well.
    ///
    /// Names that both have must have the same place.
    pub fn with_kernel(self, path: &Path) -> Result<Self, ProgramError> {
        let kernel = read_region_names(path)?;
        if let Some([name, _]) = self.first_difference(&kernel) {
            let name = name.name.clone();
            return Err(ProgramError::OtherBuild { path: path.to_owned(), name });
        }
        Ok(kernel.with_lengths_of(&self))
    }
}
