//! The library that is loaded into the VMM.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The variable that names what is handed over.
pub(super) const VARIABLE: &str = "SUBPAGE_RUN";

const NAME: &str = "libsubpage_interpose.so";

/// Finds it: beside this program, or where it is installed.
pub(super) fn find() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::Internal(format!("this program has no path: {error}")))?;
    let directory = own.parent().unwrap_or(Path::new("/"));
    let places = [
        directory.join(NAME),
        directory.join("deps").join(NAME),
        directory.join("../lib/subpage").join(NAME),
    ];
    let found = places.iter().find(|path| path.is_file());
    found.map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).ok_or_else(|| {
        Failure::Input(format!(
            "no {NAME} in {}, nor in ../lib/subpage from there: it comes with the package, or by `cargo \
             build -p subpage-interpose`",
            directory.display()
        ))
    })
}

/// Refuses a program into which no library can be loaded.
pub(super) fn check_program(path: &Path) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::Input(format!("cannot read {}: {error}", path.display()))
    };
    let mut file = File::open(path).map_err(|error| cannot(&error))?;
    let mode = file.metadata().map_err(|error| cannot(&error))?.mode();
    if mode & 0o6000 != 0 {
        return Err(Failure::Input(format!(
            "{} runs with another user's rights (set-user-ID), so that no library is loaded into it: \
             start it as that user",
            path.display()
        )));
    }
    let mut magic = [0; 4];
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
    // A script: what it starts is looked at when it makes a machine.
    if !is_elf {
        return Ok(());
    }
    if !is_dynamic(path) {
        return Err(Failure::Input(format!(
            "{} is linked statically, so that no library can be loaded into it, and nothing was \
             started. A VMM in Rust can link the guard: see docs/own-vmm.md",
            path.display()
        )));
    }
    Ok(())
}

/// Whether an ELF file names a dynamic linker (PT_INTERP).
fn is_dynamic(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = std::fs::read(path) else { return true };
    let number = |at: usize, length: usize| {
        bytes.get(at..at + length).map(|bytes| {
            bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        })
    };
    // ELF64: e_phoff, e_phentsize, e_phnum.
    let (Some(first), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2))
    else {
        return true;
    };
    (0..count).any(|entry| {
        let at = first.checked_add(entry * size).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| number(at, 4)) == Some(PT_INTERP.into())
    })
}
