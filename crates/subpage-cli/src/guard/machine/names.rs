//! Names for `region` that a guest on KVM brings, and whether they fit it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use subpage_kvm::boot::{Boot, Format, Part, sniff};

use crate::command_line::MachineArguments;
use crate::events::{WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{
    AddressSpace, Draft, Names, Place, SymbolFormat, read_region_names, read_symbols,
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
    let is_elf = sniff(image).map_err(|error| Failure::bad(&error))? == Some(Format::Elf64);
    // A kernel with debug information has a gigabyte, which is read only if it is asked for.
    let wanted = draft
        .rules()
        .any(|(_, rule)| matches!(rule.place, Place::Region { .. } | Place::Notation(_)));
    if !is_elf {
        return Ok(GuestNames {
            list: Names::default(),
            otherwise: "this guest brings no names; give their file by `--symbols FILE`, or give \
                        the rule a `range`",
        });
    }
    let list = if wanted {
        read_symbols(image, SymbolFormat::Elf, AddressSpace::Physical).map_err(failed)?
    } else {
        Names::default()
    };
    let otherwise = "the names are the guest's symbols: `nm GUEST` lists them; a stripped file has \
                     none, then give their file by `--symbols FILE`";
    Ok(GuestNames { list, otherwise })
}

/// The warning about a guest that is a kernel which may move itself away from its symbols.
pub(super) fn may_move(
    image: &Path,
    draft: &Draft,
    asked: &MachineArguments,
) -> Result<Option<WarningEvent>, Failure> {
    let by_name = draft.rules().any(|(_, rule)| !matches!(rule.place, Place::Range(_)));
    let stays = asked
        .cmdline
        .as_deref()
        .is_some_and(|line| line.split_ascii_whitespace().any(|word| word == "nokaslr"));
    let is_bzimage =
        sniff(image).map_err(|error| Failure::bad(&error))? == Some(Format::LinuxBzImage);
    if !by_name || stays || !is_bzimage {
        return Ok(None);
    }
    Ok(Some(WarningEvent {
        warning: WarningKind::KernelMayMove,
        message: "a kernel that randomizes its place is not where its symbols say, and the rules \
                  then guard other bytes"
            .to_owned(),
        rule: None,
        line: None,
        help: "add `nokaslr` to `--cmdline`".to_owned(),
    }))
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
    draft: &Draft,
    asked: &MachineArguments,
) -> Vec<KernelStart> {
    let mut starts = Vec::new();
    if let (Some(path), Ok(first)) = (&asked.symbols, names.list.find_exactly(FIRST)) {
        starts.push(KernelStart { path: path.clone(), start: first.start.into() });
    }
    let mut seen = HashSet::new();
    for (source, rule) in draft.rules() {
        let Place::Symbol { file, format, space, bias, .. } = &rule.place else { continue };
        let path = source.relative(&file.value);
        let bias = bias.as_ref().map_or(0, |bias| bias.value);
        if *space == AddressSpace::Virtual || !seen.insert((path.clone(), *format, *space, bias)) {
            continue;
        }
        if let Ok(names) = read_symbols(&path, *format, *space)
            && let Ok(first) = names.find_exactly(FIRST)
        {
            starts.push(KernelStart { path, start: i128::from(first.start) + bias });
        }
    }
    starts
}

/// Refuses symbols of a kernel that lies elsewhere than this guest was loaded: those of a boot with
/// KASLR, or of another build.
pub(super) fn check_place(starts: &[KernelStart], boot: &Boot) -> Result<(), Failure> {
    let image = boot
        .parts
        .iter()
        .filter(|placed| matches!(placed.part, Part::Kernel | Part::Segment(_) | Part::Flat));
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
