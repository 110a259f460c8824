//! The bare-metal images: built by cargo, then made into what Bochs puts into memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{configuration::BLOCK, image};
use crate::{
    session::{self, Session},
    workspace::Workspace,
};

/// For an image that starts without an operating system; instead of all flags that the workspace
/// or the user has set, which are for programs of this machine.
const FLAGS: &str =
    "--cfg bare_metal -C relocation-model=static -C panic=abort -C target-cpu=x86-64";

/// With an explicit target the flags do not reach procedural macros and build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the image of the hypervisor, or of the conformance tests, is loaded.
pub(crate) const IMAGE_ADDRESS: u64 = 0x10_0000;
/// The reset ROM ends with the first 4 GiB.
const ROM_BYTES: u64 = 1 << 16;
const ROM_ADDRESS: u64 = (1 << 32) - ROM_BYTES;

/// Room for an image or a module in a block of Bochs's memory, the first of which begins below
/// the image.
pub(crate) const ROOM: u64 = BLOCK - IMAGE_ADDRESS;

/// Set by the conformance suite for the programs that it starts: images that are already built.
pub(crate) const DIRECTORY_VARIABLE: &str = "SUBPAGE_IMAGES";

/// What the images are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To guard something: the hypervisor has no call that breaks things.
    Guard,
    /// The same for a Linux kernel, without the guest with the tests.
    Linux,
    /// To be tested: the hypervisor breaks things for a guest that asks for it.
    Test,
    /// To judge the processor model.
    Conformance,
    /// To judge the machine that it starts on.
    Kit,
}

impl Purpose {
    /// Name of the directory.
    fn name(self) -> &'static str {
        match self {
            Self::Guard => "images",
            Self::Linux => "linux-images",
            Self::Test => "test-images",
            Self::Conformance => "conformance-images",
            Self::Kit => "kit-images",
        }
    }

    /// What cargo has to build, one call after the other.
    fn builds(self) -> &'static [&'static [&'static str]] {
        const HOOKS: &str = "--features=subpage-vmx/test-hooks";
        const VMX: &str = "--package=subpage-vmx";
        const GUEST: &str = "--package=subpage-guest";
        match self {
            // Together, the hypervisor would have the features that the guest asks for.
            Self::Guard => &[
                &[GUEST, "--bin=subpage-guest"],
                &[VMX, "--bin=subpage-reset-rom", "--bin=subpage-hypervisor"],
            ],
            Self::Linux => &[&[VMX, "--bin=subpage-reset-rom", "--bin=subpage-hypervisor"]],
            Self::Test => &[&[
                VMX,
                GUEST,
                HOOKS,
                "--bin=subpage-reset-rom",
                "--bin=subpage-hypervisor",
                "--bin=subpage-guest",
            ]],
            Self::Kit => &[&[VMX, "--bin=subpage-reset-rom", "--bin=subpage-kit"]],
            // The hooks make it the same library as that of the tests, which is there already.
            Self::Conformance => {
                &[&[VMX, HOOKS, "--bin=subpage-reset-rom", "--bin=subpage-conformance-image"]]
            }
        }
    }
}

/// The images of one build.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    directory: PathBuf,
}

impl Images {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// 64 KiB that end at 4 GiB.
    pub(crate) fn rom(&self) -> PathBuf {
        self.directory.join("subpage-reset-rom.bin")
    }

    /// Flat, from 1 MiB on.
    pub(crate) fn hypervisor(&self) -> PathBuf {
        self.directory.join("subpage-hypervisor.bin")
    }

    /// As it was linked, which a boot loader wants.
    pub(crate) fn hypervisor_elf(&self) -> PathBuf {
        self.directory.join("subpage-hypervisor.elf")
    }

    /// Flat, from 1 MiB on.
    pub(crate) fn conformance(&self) -> PathBuf {
        self.directory.join("subpage-conformance-image.bin")
    }

    /// The hardware kit, flat, from 1 MiB on.
    pub(crate) fn kit(&self) -> PathBuf {
        self.directory.join("subpage-kit.bin")
    }

    /// The hardware kit as it was linked.
    pub(crate) fn kit_elf(&self) -> PathBuf {
        self.directory.join("subpage-kit.elf")
    }

    /// A static ELF file of 64 bits.
    pub(crate) fn guest(&self) -> PathBuf {
        self.directory.join("subpage-guest.elf")
    }

    /// Builds them; without a result the build has failed, and its output has been shown.
    pub(crate) fn build(
        session: &mut Session<'_>,
        workspace: &Workspace,
        purpose: Purpose,
    ) -> Result<Option<Self>> {
        let start = Instant::now();
        for arguments in purpose.builds() {
            let arguments = [&["build", "--profile=dist"], *arguments].concat();
            if !run(session, bare_metal(workspace, &arguments))? {
                return Ok(None);
            }
        }
        let target = target_directory(workspace);
        let built = target.join(TARGET).join("dist");
        let images = Self::at(target.join(purpose.name()));
        fs::create_dir_all(&images.directory).context("cannot make a directory for the images")?;
        let rom = ("subpage-reset-rom", images.rom(), Form::ROM);
        let hypervisor = ("subpage-hypervisor", images.hypervisor(), Form::IMAGE);
        let elf = ("subpage-hypervisor", images.hypervisor_elf(), Form::Elf);
        let conformance = ("subpage-conformance-image", images.conformance(), Form::IMAGE);
        let guest = ("subpage-guest", images.guest(), Form::Elf);
        let made = match purpose {
            Purpose::Guard => vec![rom, hypervisor, elf, guest],
            Purpose::Linux => vec![rom, hypervisor, elf],
            Purpose::Test => vec![rom, hypervisor, guest],
            Purpose::Conformance => vec![rom, conformance],
            Purpose::Kit => vec![
                rom,
                ("subpage-kit", images.kit(), Form::IMAGE),
                ("subpage-kit", images.kit_elf(), Form::Elf),
            ],
        };
        for (program, image, form) in made {
            let elf = built.join(program);
            let elf = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
            let bytes = form.convert(elf).with_context(|| format!("the image {program}"))?;
            write(&image, &bytes)?;
            session.say(&format!("   {program}: {} KiB", bytes.len().div_ceil(1 << 10)))?;
        }
        session.say(&format!(
            "   images are in {}, made in {}",
            images.directory.display(),
            session::duration(start.elapsed())
        ))?;
        Ok(Some(images))
    }
}

/// How an image stands in memory.
#[derive(Clone, Copy, Debug)]
enum Form {
    Flat { base: u64, room: u64 },
    Elf,
}

impl Form {
    const ROM: Self = Self::Flat { base: ROM_ADDRESS, room: ROM_BYTES };
    const IMAGE: Self = Self::Flat { base: IMAGE_ADDRESS, room: ROOM };

    fn convert(self, elf: Vec<u8>) -> Result<Vec<u8>> {
        match self {
            Self::Flat { base, room } => {
                let mut image = image::flat(&elf, base, room)?;
                if base == ROM_ADDRESS {
                    // Bochs puts the end of a ROM at the end of the first 4 GiB.
                    image.resize(1 << 16, 0xff);
                }
                Ok(image)
            }
            Self::Elf => {
                let length = elf.len() as u64;
                anyhow::ensure!(length <= ROOM, "it has {length} bytes, there is room for {ROOM}");
                Ok(elf)
            }
        }
    }
}

/// Another run that uses the same image goes on with the old one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn run(session: &mut Session<'_>, command: Command) -> Result<bool> {
    let finished = session.run(command, &mut |_| None)?;
    let success = finished.ending.success();
    if !success {
        session.show(&finished.output)?;
    }
    Ok(success)
}

/// A cargo command that builds, or checks, for a machine without an operating system.
pub(crate) fn bare_metal(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = workspace.cargo(arguments);
    command
        .arg(format!("--target={TARGET}"))
        .env("RUSTFLAGS", FLAGS)
        // Cargo would prefer this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", target_directory(workspace))
        .env("CARGO_TERM_COLOR", "never");
    command
}

fn target_directory(workspace: &Workspace) -> PathBuf {
    workspace.separate_target("bare-metal")
}
