//! Names for `region` that a guest on KVM brings, and whether they fit it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use subpage_kvm::boot::{Boot, Format, Part, sniff};

use crate::command_line::MachineArguments;
use crate::events::{WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{
    AddressSpace, Draft, Names, Place, SymbolError, SymbolFormat, build_id, read_linux,
    read_region_names, read_symbols,
};

/// The symbol at the first byte of a kernel's image.
const FIRST: &str = "_text";

/// Names, and what to do about one that is not among them.
pub(super) struct GuestNames {
    pub(super) list: Names,
    pub(super) otherwise: &'static str,
}

/// The names that the policy may use: those of `--symbols`, else the guest's own if it is ELF.
pub(super) fn of_guest(
    image: &Path,
    draft: &Draft,
    asked: &MachineArguments,
) -> Result<GuestNames, Failure> {
    let failed = |error| Failure::bad(&error);
    if let Some(path) = &asked.symbols {
        return Ok(GuestNames {
            list: read_region_names(path).map_err(failed)?,
            otherwise: "look into the file given by `--symbols`: `nm FILE` lists the symbols of an \
                        ELF file",
        });
    }
    let is_elf = is_elf(image)?;
    // A kernel with debug information has a gigabyte, which is read only if it is asked for.
    let wanted = draft.rules().any(|rule| {
        matches!(rule.place, Place::Region { .. } | Place::GuestSymbol { .. } | Place::Notation(_))
    });
    if is_linux(image)? {
        let list =
            if wanted { read_region_names(image).map_err(failed)? } else { Names::default() };
        return Ok(GuestNames {
            list,
            otherwise: "the names are those of the kernel's own table, of functions and data in its \
                        image; what belongs to a loadable module lies anywhere in memory",
        });
    }
    if !is_elf {
        return Ok(GuestNames {
            list: Names::default(),
            otherwise: "this guest brings no names; give their file by `--symbols FILE`, or give \
                        the rule a `range`",
        });
    }
    let list = if wanted { read_region_names(image).map_err(failed)? } else { Names::default() };
    let otherwise = "the names are the guest's symbols: `nm GUEST` lists them; a stripped file has \
                     none, then give their file by `--symbols FILE`";
    Ok(GuestNames { list, otherwise })
}

/// Whether a guest that KVM runs is a bzImage.
fn is_linux(image: &Path) -> Result<bool, Failure> {
    Ok(sniff(image).map_err(|error| Failure::bad(&error))? == Some(Format::LinuxBzImage))
}

/// Whether a guest that KVM runs is an ELF file.
fn is_elf(image: &Path) -> Result<bool, Failure> {
    const MAGIC: [u8; 4] = *b"\x7fELF";
    Ok(match sniff(image).map_err(|error| Failure::bad(&error))? {
        Some(Format::Elf64) => true,
        Some(Format::Multiboot) => {
            let mut magic = [0; MAGIC.len()];
            File::open(image).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
                && magic == MAGIC
        }
        _ => false,
    })
}

/// Whether a rule has a place by a name.
pub(super) fn has_places_by_name(draft: &Draft) -> bool {
    draft.rules().any(|rule| !matches!(rule.place, Place::Range(_)))
}

/// The warning about a kernel which may move itself away from its symbols: one whose own loader runs.
pub(super) fn may_move(boot: &Boot, asked: &MachineArguments) -> Option<WarningEvent> {
    let stays = asked
        .cmdline
        .as_deref()
        .is_some_and(|line| line.split_ascii_whitespace().any(|word| word == "nokaslr"));
    if stays || boot.image.format != Format::LinuxBzImage || boot.image.kernel.is_some() {
        return None;
    }
    Some(WarningEvent {
        warning: WarningKind::KernelMayMove,
        message: "a kernel that randomizes its place is not where its symbols say, and the rules \
                  then guard other bytes"
            .to_owned(),
        rule: None,
        file: None,
        line: None,
        help: "add `nokaslr` to `--cmdline`".to_owned(),
    })
}

/// The warning about a Linux kernel that KVM would emulate instead of running it: none was seen to boot so.
pub(super) fn is_emulated(boot: &Boot) -> Option<WarningEvent> {
    if boot.image.kernel.is_none() || subpage_kvm::probe::is_native() {
        return None;
    }
    Some(WarningEvent {
        warning: WarningKind::KernelEmulated,
        message:
            "this KVM emulates a guest's kernel instead of running it, and no Linux was seen to \
                  boot so"
                .to_owned(),
        rule: None,
        file: None,
        line: None,
        help: "use a KVM with VT-x or AMD-V (`subpage check` tells)".to_owned(),
    })
}

/// A file of kernel symbols, and where it says that the kernel begins.
pub(super) struct KernelStart {
    path: PathBuf,
    start: i128,
}

/// Where the files of kernel symbols say that the kernel begins: that of `--symbols`, and those that
/// rules of the policy name. Files that cannot be read are among the policy's mistakes.
pub(super) fn kernel_starts(
    names: &GuestNames,
    draft: &mut Draft,
    asked: &MachineArguments,
) -> Vec<KernelStart> {
    let of_symbols = asked.symbols.as_ref().zip(names.list.find_exactly(FIRST).ok());
    let of_symbols = of_symbols.map(|(path, first)| (path.clone(), first.start.into()));
    let of_rules = draft.kernel_starts(FIRST);
    of_symbols
        .into_iter()
        .chain(of_rules)
        .map(|(path, start)| KernelStart { path, start })
        .collect()
}

/// Refuses symbols of a kernel that lies elsewhere than this guest was loaded: those of a boot with
/// KASLR, or of another build.
pub(super) fn check_place(starts: &[KernelStart], boot: &Boot) -> Result<(), Failure> {
    let is_image =
        |part| matches!(part, Part::Kernel | Part::Segment(_) | Part::Flat | Part::MultibootImage);
    let image = boot.parts.iter().filter(|placed| is_image(placed.part));
    let Some(loaded) = image.map(|placed| placed.range.first().as_u64()).min() else {
        return Ok(());
    };
    let Some(wrong) = starts.iter().find(|found| found.start != i128::from(loaded)) else {
        return Ok(());
    };
    Err(Failure::Input(format!(
        "the symbols in {} are of a kernel that begins at {:#x}, and this guest is loaded at \
         {loaded:#x}: take the list from the same build, from a boot with `nokaslr`",
        wrong.path.display(),
        wrong.start,
    )))
}

/// Files of symbols of the guest, and what they say.
pub(super) struct GuestSymbols(Vec<(PathBuf, AddressSpace, Names)>);

/// The files of symbols of a guest other than itself: that of `--symbols`, and those that rules of
/// the policy name.
pub(super) fn of_other_files(
    names: &GuestNames,
    draft: &mut Draft,
    asked: &MachineArguments,
) -> GuestSymbols {
    let mut files = draft.guest_symbols();
    if let Some(path) = &asked.symbols {
        // An ELF file says where its segments lie, a list what lies where.
        let file = if is_elf(path).is_ok_and(|is_elf| is_elf) {
            (path.clone(), AddressSpace::Physical, names.list.clone())
        } else {
            (path.clone(), AddressSpace::Kernel, names.list.without_lengths())
        };
        files.insert(0, file);
    }
    GuestSymbols(files)
}

/// Refuses symbols of another build than the guest, where it is an ELF file or a Linux kernel: by the numbers
/// of both builds, else by the symbols that both have.
pub(super) fn check_build(symbols: &GuestSymbols, image: &Path) -> Result<(), Failure> {
    if symbols.0.is_empty() || !(is_elf(image)? || is_linux(image)?) {
        return Ok(());
    }
    let mine = build_id(image);
    let mut own = HashMap::new();
    for (path, space, names) in &symbols.0 {
        let theirs = mine.as_ref().and_then(|_| build_id(path));
        let reason = match (&mine, theirs) {
            (Some(mine), Some(theirs)) if *mine == theirs => continue,
            (Some(_), Some(_)) => "the build IDs differ".to_owned(),
            _ => {
                let own = match own.entry(*space) {
                    Entry::Occupied(read) => read.into_mut(),
                    Entry::Vacant(place) => {
                        let read = own_symbols(image, *space);
                        place.insert(read.map_err(|error| Failure::bad(&error))?)
                    }
                };
                match names.first_difference(own) {
                    Some([there, here]) if there.start != here.start => format!(
                        "`{}` lies at {:#x} there and at {:#x} in the guest",
                        there.name, there.start, here.start
                    ),
                    Some([there, here]) => format!(
                        "`{}` has {} bytes there and {} in the guest",
                        there.name, there.length, here.length
                    ),
                    // A stripped guest has nothing to compare.
                    None if own.is_empty() || names.common(own).next().is_some() => continue,
                    None => "the guest has none of them".to_owned(),
                }
            }
        };
        return Err(Failure::Input(format!(
            "the symbols in {} are of another build than the guest {}: {reason}; take them from the \
             same build",
            path.display(),
            image.display(),
        )));
    }
    Ok(())
}

/// The guest's own symbols; without lengths where they are only distances.
fn own_symbols(image: &Path, space: AddressSpace) -> Result<Names, SymbolError> {
    if !is_linux(image).is_ok_and(|is_linux| is_linux) {
        let names = read_symbols(image, SymbolFormat::Elf, space)?;
        if !names.is_empty() {
            return Ok(names);
        }
    }
    // A kernel without a table of its own, or that its own loader has to unpack, is compared no more than a
    // stripped program.
    let names = match read_linux(image) {
        Ok(Some(linux)) => linux.names,
        Ok(None) | Err(SymbolError::Image { .. } | SymbolError::Kallsyms { .. }) => {
            Names::default()
        }
        Err(error) => return Err(error),
    };
    Ok(names.without_lengths())
}

#[cfg(test)]
mod tests;
