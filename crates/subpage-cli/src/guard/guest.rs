//! What the command line names as a guest, told by its content.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use subpage_kvm::boot::sniff;
use subpage_trace::MAGIC;

use crate::command_line::{BackendChoice, GuardArguments};
use crate::failure::Failure;
use crate::new_file::is_stdin;

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
        BackendChoice::Model => Content::Trace,
        BackendChoice::Auto | BackendChoice::Kvm => content(image)?,
    };
    if content != Content::Trace {
        check_load_address(image, content, arguments.machine.load_address)?;
        no_process(arguments, &format!("{}, which KVM runs", image.display()))?;
        return Ok(GuestFile::Image { image, policy });
    }
    if arguments.backend == BackendChoice::Kvm {
        return Err(Failure::Input(format!(
            "`--backend kvm` does not fit {}: it is a trace, whose writes the model replays; leave \
             `--backend` out, or name a program or a kernel",
            image.display()
        )));
    }
    if let Some(option) = arguments.machine.given().first() {
        let other = match arguments.backend {
            BackendChoice::Model => "`--backend model`".to_owned(),
            _ => format!("{}, which is a trace", image.display()),
        };
        return Err(Failure::Input(format!(
            "`{option}` does not fit {other}: it is for guests that run on KVM"
        )));
    }
    Ok(GuestFile::Trace { trace: image, policy })
}

/// Refuses to choose among the processes of what is no trace.
fn no_process(arguments: &GuardArguments, other: &str) -> Result<(), Failure> {
    if arguments.process.is_none() {
        return Ok(());
    }
    Err(Failure::Input(format!("`--process` does not fit {other}: it is for a trace")))
}

/// What a file is by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Trace,
    /// ELF of any kind, or a Linux kernel: it says itself where it is loaded.
    Image,
    /// Anything else.
    Bytes,
}

/// Whether a file is a trace, by its content.
pub fn is_trace(path: &Path) -> Result<bool, Failure> {
    Ok(content(path)? == Content::Trace)
}

fn content(path: &Path) -> Result<Content, Failure> {
    let failed =
        |error| Failure::input(format_args!("cannot read the guest {}", path.display()), &error);
    if is_stdin(path) {
        return Ok(Content::Trace);
    }
    // What cannot be read twice is read once, as a trace: an image has to be a regular file.
    let kind = std::fs::metadata(path).map_err(failed)?;
    if kind.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Ok(Content::Trace);
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(failed)?;
    if head == MAGIC {
        return Ok(Content::Trace);
    }
    let known = sniff(path).map_err(|error| Failure::bad(&error))?.is_some();
    Ok(if known || head.starts_with(b"\x7fELF") { Content::Image } else { Content::Bytes })
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
            "{image} is neither a trace, an ELF file nor a Linux kernel (bzImage); if it is a flat \
             file of code, give its `--load-address`"
        ))),
        _ => Ok(()),
    }
}
