//! What the command line names as a guest, told by its content.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

#[cfg(feature = "kvm")]
use subpage_kvm::boot::sniff;
use subpage_trace::MAGIC;

use crate::command_line::{BackendChoice, GuardArguments};
use crate::failure::Failure;
use crate::new_file::is_stdin;
use crate::policy::Policy;

/// A guest.
#[derive(Debug)]
pub(super) enum GuestFile<'a> {
    /// A trace, which the model replays.
    Trace {
        /// The trace.
        trace: &'a Path,
        /// The files of the policy, at least one.
        policy: &'a [PathBuf],
    },
    /// An image that KVM runs.
    Image {
        /// The image.
        image: &'a Path,
        /// The files of the policy, at least one.
        policy: &'a [PathBuf],
    },
    /// A saved guest, with the rules that it had.
    Saved {
        /// The file.
        file: &'a Path,
    },
}

/// Finds out what the guest is, and whether the other arguments fit it.
pub(super) fn of(arguments: &GuardArguments) -> Result<GuestFile<'_>, Failure> {
    if let Some(file) = &arguments.machine.restore {
        if arguments.backend == BackendChoice::Model {
            return Err(Failure::Input(
                "`--backend model` does not fit `--restore`: a saved guest goes on under KVM"
                    .to_owned(),
            ));
        }
        no_process(arguments, "`--restore`")?;
        return Ok(GuestFile::Saved { file });
    }
    let image = arguments.guest.as_deref().expect("clap requires it without `--restore`");
    let policy = &arguments.policy[..];
    let content = match arguments.backend {
        BackendChoice::Model => no_program(image)?,
        BackendChoice::Auto | BackendChoice::Kvm => content(image)?,
    };
    if !content.is_trace() {
        if cfg!(not(feature = "kvm")) {
            return Ok(GuestFile::Image { image, policy });
        }
        check_load_address(image, content, arguments.machine.load_address)?;
        no_process(arguments, &format!("{}, which KVM runs", image.display()))?;
        return Ok(GuestFile::Image { image, policy });
    }
    if arguments.backend == BackendChoice::Kvm {
        let fit = format!("`--backend kvm` does not fit {}", image.display());
        return Err(Failure::Input(match content {
            Content::Pipe => format!("{fit}: {FROM_A_PIPE}"),
            _ => format!(
                "{fit}: it is a trace, whose writes the model replays; leave `--backend` out, or name a \
                 program or a kernel"
            ),
        }));
    }
    if let Some(option) = arguments.machine.given().first() {
        let (other, why) = match (arguments.backend, content) {
            (BackendChoice::Model, _) => ("`--backend model`".to_owned(), FOR_KVM),
            (_, Content::Pipe) => (image.display().to_string(), FROM_A_PIPE),
            _ => (format!("{}, which is a trace", image.display()), FOR_KVM),
        };
        return Err(Failure::Input(format!("`{option}` does not fit {other}: {why}")));
    }
    Ok(GuestFile::Trace { trace: image, policy })
}

/// What the model is asked to replay: a trace, unless it says itself that it is something else. What does
/// not, its reader refuses.
fn no_program(path: &Path) -> Result<Content, Failure> {
    match content(path)? {
        Content::Image => Err(Failure::Input(format!(
            "`--backend model` does not fit {}, which is a program or a kernel: the model replays traces; \
             leave `--backend` out to run it on KVM, or make a trace of a program by `subpage record`",
            path.display()
        ))),
        Content::Bytes => Ok(Content::Trace),
        content => Ok(content),
    }
}

/// Refuses to choose among the processes of what is no trace.
fn no_process(arguments: &GuardArguments, other: &str) -> Result<(), Failure> {
    if arguments.process.is_none() {
        return Ok(());
    }
    Err(Failure::Input(format!("`--process` does not fit {other}: it is for a trace")))
}

const FOR_KVM: &str = "it is for guests that run on KVM";

const FROM_A_PIPE: &str =
    "from a pipe only a trace can be read; copy a program or a kernel to a regular file";

/// What a file is by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Trace,
    /// A trace, or nothing that is a guest: it cannot be read twice.
    Pipe,
    /// ELF of any kind, or a kernel: it says itself where it is loaded.
    Image,
    /// Anything else.
    Bytes,
}

impl Content {
    const fn is_trace(self) -> bool {
        matches!(self, Self::Trace | Self::Pipe)
    }
}

/// Whether a file is a trace, by its content; a pipe can be nothing else.
pub fn is_trace(path: &Path) -> Result<bool, Failure> {
    Ok(content(path)?.is_trace())
}

/// Looks for what a run of the guest in this file would refuse of a policy. A file that does not say
/// itself what it is, is not looked at.
pub(crate) fn check_policy(guest: &Path, policy: Option<&mut Policy>) -> Result<(), Failure> {
    if content(guest)? != Content::Image {
        return Ok(());
    }
    super::machine::check_policy(guest, policy)
}

fn content(path: &Path) -> Result<Content, Failure> {
    let failed =
        |error| Failure::input(format_args!("cannot read the guest {}", path.display()), &error);
    if is_stdin(path) {
        return Ok(Content::Pipe);
    }
    let kind = std::fs::metadata(path).map_err(failed)?;
    if kind.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    if kind.file_type().is_fifo() {
        return Ok(Content::Pipe);
    }
    if !kind.is_file() {
        return Err(Failure::Input(format!(
            "cannot read the guest {}: it is a device or a socket; name a file, or a pipe with a trace",
            path.display()
        )));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(failed)?;
    if head == MAGIC {
        return Ok(Content::Trace);
    }
    if head.is_empty() {
        return Err(Failure::Input(format!(
            "cannot read the guest {}: it is empty",
            path.display()
        )));
    }
    Ok(if is_kernel(path)? || head.starts_with(b"\x7fELF") {
        Content::Image
    } else {
        Content::Bytes
    })
}

/// Whether the file is a Linux kernel or another image that says itself what it is.
#[cfg(feature = "kvm")]
fn is_kernel(path: &Path) -> Result<bool, Failure> {
    Ok(sniff(path).map_err(|error| Failure::bad(&error))?.is_some())
}

/// Nobody asks what it is where it is refused.
#[cfg(not(feature = "kvm"))]
#[allow(clippy::unnecessary_wraps, reason = "what the other build has can fail")]
fn is_kernel(_: &Path) -> Result<bool, Failure> {
    Ok(false)
}

fn check_load_address(
    image: &Path,
    content: Content,
    load_address: Option<u64>,
) -> Result<(), Failure> {
    let image = image.display();
    match (content, load_address) {
        (Content::Image, Some(_)) => Err(Failure::Input(format!(
            "`--load-address` does not fit {image}, which says itself where it is loaded: leave it \
             out"
        ))),
        (Content::Bytes, None) => Err(Failure::Input(format!(
            "{image} is neither a trace, an ELF file, a Multiboot kernel nor a Linux kernel (bzImage); \
             if it is a flat file of code, give its `--load-address`"
        ))),
        _ => Ok(()),
    }
}
