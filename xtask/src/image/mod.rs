//! `cargo xtask image`: an image with the hypervisor and a guest, or with the hardware kit, from which a
//! machine starts.

pub(crate) mod iso;
pub(crate) mod kit;
pub(crate) mod menu;
pub(crate) mod tools;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    bochs::{
        images::{Images, Purpose},
        linux as bochs_linux,
    },
    linux,
    session::{self, Interrupt, Session},
    workspace::Workspace,
};
use iso::Contents;
use menu::Entry;
use tools::Tools;

const PROGRAM: &str = "/boot/subpage-hypervisor.elf";

/// The marks of a file that can be a guest: where, and which bytes.
const ELF: (usize, &[u8]) = (0, b"\x7fELF");
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");
/// The mark of a compiled policy: `EXPORT_MAGIC` of the engine.
const POLICY: (usize, &[u8]) = (0, b"SUBPAGE\0");

/// What `cargo xtask image` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the image goes
    #[arg(short, long, value_name = "FILE.iso")]
    output: PathBuf,
    /// The hardware kit instead of a guest: it compares the machine with the processor model and reports
    /// on the first serial port, and on a screen for text
    #[arg(long, conflicts_with_all = ["guest", "linux", "policy", "cmdline", "options"])]
    kit: bool,
    /// A small guest, which gets no devices: an ELF file; without it and --linux, the guest with our
    /// tests
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// A Linux kernel, which gets the machine's devices: a bzImage
    #[arg(long, value_name = "KERNEL", conflicts_with = "guest")]
    linux: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "linux")]
    initrd: Option<PathBuf>,
    /// The guest's own command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// A policy: a TOML file, which is compiled with the guest's symbols, or a module of `subpage compile`
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Options of the hypervisor
    #[arg(long, value_name = "WORDS", default_value = "events=serial")]
    options: String,
}

/// Makes the image.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let mut out = io::stdout();
    let mut session = Session::new(&mut out, interrupt, Duration::from_secs(3600));
    let made = make(&mut session, workspace, arguments)?;
    Ok(match (made, session.interrupted()) {
        (_, true) => ExitCode::from(session::INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

/// Without success the reason has been said.
fn make(session: &mut Session<'_>, workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    // What is wrong with a file is said before anything is built.
    if let Some(guest) = &arguments.guest {
        check(guest, ELF, "a static ELF file; a Linux kernel is given by --linux")?;
    }
    if let Some(kernel) = &arguments.linux {
        check(kernel, BZIMAGE, "a Linux kernel (bzImage)")?;
    }
    if let Some(initrd) = &arguments.initrd {
        bochs_linux::read(initrd)?;
    }
    if let Some(policy) = arguments.policy.as_deref().filter(|policy| !is_source(policy)) {
        check(policy, POLICY, "a policy: neither a .toml file nor a module of `subpage compile`")?;
    }
    let mut words = menu::words(&arguments.options)?;
    if !arguments.cmdline.is_empty() {
        words.push("--".into());
        words.extend(menu::words(&arguments.cmdline)?);
    }
    let tools = match Tools::prepare(session)? {
        Ok(tools) => tools,
        Err(reason) => {
            session.say(&format!("   no GRUB: {reason}"))?;
            return Ok(false);
        }
    };
    if arguments.kit {
        let made = kit::image(session, workspace, &tools, &arguments.output)?;
        return finish(session, made, arguments);
    }
    let own = arguments.guest.is_none() && arguments.linux.is_none();
    let purpose = if own { Purpose::Guard } else { Purpose::Linux };
    let Some(images) = Images::build(session, workspace, purpose)? else { return Ok(false) };
    let mut modules = match (&arguments.linux, &arguments.guest) {
        (Some(kernel), _) => vec![("linux", kernel.clone())],
        (None, Some(guest)) => vec![("guest", guest.clone())],
        (None, None) => vec![("guest", images.guest())],
    };
    let symbols = modules[0].1.clone();
    // Not below target/, where another run may write the same at the same time.
    let directory = tempfile::Builder::new()
        .prefix("subpage-image-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    modules.extend(arguments.initrd.clone().map(|file| ("initrd", file)));
    if let Some(policy) = &arguments.policy {
        let files = arguments.linux.is_some().then(|| directory.path().join("names"));
        let module = directory.path().join("policy");
        if !is_source(policy) {
            modules.push(("policy", policy.clone()));
        } else if linux::compile_into(
            session,
            workspace,
            policy,
            Some(&symbols),
            &module,
            files.as_deref(),
        )? {
            modules.push(("policy", module));
            modules.extend(files.map(|names| ("names", names)));
        } else {
            return Ok(false);
        }
    }
    let made = contents(&images, words, modules).write(session, &tools, &arguments.output)?;
    finish(session, made, arguments)
}

/// Says what was made, if it was.
fn finish(session: &mut Session<'_>, made: bool, arguments: &Arguments) -> Result<bool> {
    if !made {
        return Ok(false);
    }
    session.say(&format!(
        "   made {}: for a disc, a USB stick or a virtual drive; docs/on-a-real-machine.md says how",
        arguments.output.display()
    ))?;
    Ok(true)
}

/// The hypervisor with its options, and modules by their names.
pub(crate) fn contents(
    images: &Images,
    words: Vec<String>,
    modules: Vec<(&str, PathBuf)>,
) -> Contents {
    let path = |name: &str| format!("/boot/{name}");
    let entry = Entry {
        program: PROGRAM.into(),
        words: [vec!["subpage".to_owned()], words].concat(),
        modules: modules.iter().map(|(name, _)| (path(name), (*name).to_owned())).collect(),
    };
    let mut files = vec![(PROGRAM.to_owned(), images.hypervisor_elf())];
    files.extend(modules.into_iter().map(|(name, file)| (path(name), file)));
    Contents { files, entry }
}

/// Whether a policy is a text, which has to be compiled.
fn is_source(policy: &Path) -> bool {
    policy.extension().is_some_and(|extension| extension == "toml")
}

/// Whether a file can be what it is given for.
fn check(file: &Path, (at, mark): (usize, &[u8]), what: &str) -> Result<()> {
    let bytes = bochs_linux::read(file)?;
    let found = bytes.get(at..at + mark.len());
    ensure!(found == Some(mark), "{} is not {what}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = directory.path().join("guest");
        let checked = |bytes: &[u8], mark| {
            std::fs::write(&file, bytes).expect("files can be written");
            check(&file, mark, "a guest").map_err(|error| error.to_string())
        };
        let mut kernel = vec![0; 0x202];
        kernel.extend(b"HdrS");
        assert_eq!(checked(b"\x7fELF\x02", ELF), Ok(()));
        assert_eq!(checked(&kernel, BZIMAGE), Ok(()));
        assert_eq!(checked(b"SUBPAGE\0\x01", POLICY), Ok(()));
        for (bytes, mark) in
            [(&kernel[..], ELF), (b"\x7fELF", BZIMAGE), (b"", ELF), (b"version = 1\n", POLICY)]
        {
            let error = checked(bytes, mark).expect_err("another kind");
            assert!(error.ends_with("guest is not a guest"), "{error}");
        }
    }

    #[test]
    fn modules_have_the_names_that_the_hypervisor_looks_for() {
        let images = Images::at("images".into());
        let modules = vec![("linux", "vmlinuz".into()), ("policy", "rules".into())];
        let contents = contents(&images, vec!["cpus=2".into()], modules);
        assert_eq!(contents.entry.words, ["subpage", "cpus=2"]);
        let names: Vec<_> = contents
            .entry
            .modules
            .iter()
            .map(|(path, name)| (path.as_str(), name.as_str()))
            .collect();
        assert_eq!(names, [("/boot/linux", "linux"), ("/boot/policy", "policy")]);
        for (path, _) in &contents.entry.modules {
            assert!(contents.files.iter().any(|(file, _)| file == path), "{path}");
        }
    }
}
