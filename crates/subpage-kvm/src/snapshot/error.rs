//! Why a snapshot cannot be made or taken.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::memory::Size;

/// Why a snapshot was not saved or restored.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// KVM refuses something about a processor.
    #[error("KVM cannot {what} of processor {number}: {error}")]
    Processor {
        /// What was asked, as the end of a sentence.
        what: &'static str,
        /// Which processor.
        number: u32,
        /// What the kernel says.
        error: vmm_sys_util::errno::Error,
    },
    /// KVM does not take the value of a model-specific register.
    #[error(
        "KVM cannot set model-specific register {register:#x} of processor {number} to {value:#x}: \
         the guest would find another value; restore on a host like the one that saved it"
    )]
    Register {
        /// Which register.
        register: u32,
        /// Its value in the snapshot.
        value: u64,
        /// Which processor.
        number: u32,
    },
    /// The time-stamp counter would run at another rate.
    #[error(
        "the guest's time-stamp counter ran at {saved} kHz, this host's runs at {here} kHz, and this \
         host cannot scale it: restore on a host of the same rate"
    )]
    OtherRate {
        /// The rate in the snapshot, in kHz.
        saved: u32,
        /// The rate here, in kHz.
        here: u32,
    },
    /// A processor has an exit in progress that cannot be completed.
    #[error("processor {number} is in the middle of an exit ({found}); try again")]
    Busy {
        /// Which processor.
        number: u32,
        /// Which exit.
        found: String,
    },
    /// KVM refuses something about its devices.
    #[error("KVM cannot {what}: {error}")]
    Chip {
        /// What was asked, as the end of a sentence.
        what: &'static str,
        /// What the kernel says.
        error: vmm_sys_util::errno::Error,
    },
    /// The file cannot be written; an older one of the name is as it was.
    #[error("cannot save to {}: {error}; what was there before is untouched", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the snapshot {}: {error}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// It is another file.
    #[error("{} is not a snapshot of a guest", .path.display())]
    NotSnapshot {
        /// Which file.
        path: PathBuf,
    },
    /// Its format is another one.
    #[error("the snapshot has version {found}; this program reads version {known}")]
    Version {
        /// What the file says.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// Its bytes are not those that were written.
    #[error("the snapshot is damaged or cut short: its checksum does not match")]
    Checksum,
    /// A part of it means nothing.
    #[error("the snapshot holds something that cannot be: {0}")]
    Content(String),
    /// It was made on a processor that offers its guests something else.
    #[error(
        "the guest was saved with other features of its processor: {}; restore it on a processor and a \
         KVM like those that saved it",
        differences(gone, new)
    )]
    OtherProcessor {
        /// What it has seen and would not find.
        gone: Vec<String>,
        /// What it would find besides.
        new: Vec<String>,
    },
    /// It contradicts itself about the machine.
    #[error(
        "the snapshot says that its guest has {cpus} processors and {} of memory, and holds the state \
         of another number",
        Size(*memory)
    )]
    OtherMachine {
        /// Processors of the snapshot.
        cpus: u32,
        /// Bytes of memory of the snapshot.
        memory: u64,
    },
}

fn differences(gone: &[String], new: &[String]) -> String {
    let told = [("not here: ", gone), ("here alone: ", new)];
    let told = told.into_iter().filter(|(_, names)| !names.is_empty());
    told.map(|(what, names)| format!("{what}{}", names.join(", "))).collect::<Vec<_>>().join("; ")
}
