//! Names for `region` that a guest on KVM brings, and whether they fit it.

use std::fs::File;
use std::io::Read;
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
    let is_elf = is_elf(image)?;
    // A kernel with debug information has a gigabyte, which is read only if it is asked for.
    let wanted =
        draft.rules().any(|rule| matches!(rule.place, Place::Region { .. } | Place::Notation(_)));
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

/// The warning about a guest that is a kernel which may move itself away from its symbols.
pub(super) fn may_move(
    image: &Path,
    draft: &Draft,
    asked: &MachineArguments,
) -> Result<Option<WarningEvent>, Failure> {
    let by_name = draft.rules().any(|rule| !matches!(rule.place, Place::Range(_)));
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
        file: None,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use subpage::address::{ByteRange, Gpa};
    use subpage_kvm::boot::Placed;

    use super::*;
    use crate::policy::PolicySource;

    const LIST: &str = "ffffffff80100000 T _text\nffffffff80200080 D path\n";

    /// The policy of rules at these places, in two files in a directory with the files of symbols.
    fn draft(directory: &Path, places: &[&str]) -> Draft {
        let source = |(file, places): (&str, &[&str])| {
            let rule = |(index, place): (usize, &&str)| {
                format!("[[rule]]\nname = \"{file} {index}\"\n{place}\n")
            };
            let rules: String = places.iter().enumerate().map(rule).collect();
            let rules = if rules.is_empty() { "rule = []".to_owned() } else { rules };
            PolicySource::from_text(&directory.join(file), format!("version = 1\n{rules}"))
        };
        let (one, two) = places.split_at(places.len() / 2);
        Draft::of([("one.toml", one), ("two.toml", two)].into_iter().map(source).collect())
    }

    /// The example guest, with its `_start` called `_text`, and there, at its own address or another.
    fn image(text: Option<u64>) -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
        let mut image = fs::read(path).expect("the example");
        let mut replace = |old: &[u8], new: &[u8]| {
            let at = image.windows(old.len()).rposition(|bytes| bytes == old).expect("it is there");
            image[at..at + new.len()].copy_from_slice(new);
        };
        // Also the end of the name `__bss_start`.
        replace(b"_start\0", b"_text\0\0");
        if let Some(text) = text {
            // The symbol's value and length.
            let old = [0x20_02c1_u64.to_le_bytes(), 0x5b_u64.to_le_bytes()].concat();
            replace(&old, &text.to_le_bytes());
        }
        image
    }

    fn starts(draft: &mut Draft, asked: &MachineArguments) -> Vec<i128> {
        let names = GuestNames { list: Names::default(), otherwise: "" };
        kernel_starts(&names, draft, asked).into_iter().map(|found| found.start).collect()
    }

    #[test]
    fn rules_say_where_their_kernel_begins() {
        let directory = tempfile::tempdir().expect("directory");
        let directory = directory.path();
        fs::write(directory.join("System.map"), LIST).expect("list");
        fs::write(directory.join("guest.elf"), image(None)).expect("image");
        fs::write(directory.join("vmlinux"), image(Some(0xffff_ffff_8030_0000))).expect("image");
        let map = "symbol = \"path\"\nmap = \"System.map\"\n";
        let biased = &format!("{map}bias = 0x400000");
        let by_hand = &format!("{map}address = \"virtual\"\nbias = \"-0xffffffff80000000\"");
        // It says itself where its segments lie.
        let physical = "symbol = \"modprobe_path\"\nelf = \"guest.elf\"\naddress = \"physical\"";
        let kernel = "symbol = \"_text\"\nelf = \"vmlinux\"\naddress = \"kernel\"";
        let asked = MachineArguments::default();
        let of = |places: &[&str]| starts(&mut draft(directory, places), &asked);
        assert_eq!(of(&["range = \"1..2\"", map]), [0x10_0000]);
        assert_eq!(of(&[map, map, map, biased]), [0x10_0000, 0x50_0000]);
        assert_eq!(of(&[by_hand, physical]), [0; 0]);
        assert_eq!(of(&[physical, kernel]), [0x30_0000]);
        // The list of the option comes first.
        let names = GuestNames {
            list: read_region_names(&directory.join("System.map")).expect("a list"),
            otherwise: "",
        };
        let asked =
            MachineArguments { symbols: Some("System.map".into()), ..MachineArguments::default() };
        let found = kernel_starts(&names, &mut draft(directory, &[kernel]), &asked);
        let found: Vec<_> = found.into_iter().map(|found| found.start).collect();
        assert_eq!(found, [0x10_0000, 0x30_0000]);
    }

    /// What the look for the kernel's start has read, the rules of all files find without the file.
    #[test]
    fn a_file_of_symbols_is_read_once() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("System.map");
        fs::write(&path, LIST).expect("list");
        let map = "symbol = \"path\"\nmap = \"System.map\"\nlength = 8";
        let mut draft = draft(directory.path(), &[map, map]);
        assert_eq!(starts(&mut draft, &MachineArguments::default()), [0x10_0000]);
        fs::remove_file(path).expect("it was there");
        let policy = draft.resolve_or(&Names::default(), "").expect("read before");
        assert_eq!(policy.rules.len(), 2);
    }

    #[test]
    fn a_kernel_that_lies_elsewhere_is_refused() {
        let placed = |part, start| Placed {
            part,
            range: ByteRange::new(Gpa::new(start), 4096).expect("a range"),
        };
        let boot = Boot {
            format: Format::Elf64,
            entry: 0x10_0000,
            boot_parameters: 0,
            stack: 0,
            page_tables: 0,
            parts: vec![
                placed(Part::Stack, 0x8000),
                placed(Part::Segment(1), 0x20_0000),
                placed(Part::Segment(0), 0x10_0000),
            ],
        };
        let start = |start| KernelStart { path: "System.map".into(), start };
        assert!(check_place(&[], &boot).is_ok());
        assert!(check_place(&[start(0x10_0000)], &boot).is_ok());
        for wrong in [0x8000, 0x20_0000, -0x10_0000] {
            assert!(check_place(&[start(0x10_0000), start(wrong)], &boot).is_err(), "{wrong:#x}");
        }
    }
}
