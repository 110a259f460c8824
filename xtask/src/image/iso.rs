//! An image that a machine starts from: by BIOS and by UEFI, from a disc and from a USB stick.
//!
//! It is an ISO 9660 file system with GRUB's core for the BIOS of a disc drive (El Torito), in its first
//! sector for the BIOS of a stick, and in a FAT file system, which is also a partition, for UEFI.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::{
    menu::Entry,
    tools::{Program, Tools},
};
use crate::{cache::hexadecimal, session::Session};

/// Modules of GRUB that every core has.
const MODULES: [&str; 18] = [
    "normal",
    "search",
    "search_fs_file",
    "iso9660",
    "part_msdos",
    "part_gpt",
    "fat",
    "multiboot2",
    "serial",
    "terminal",
    "configfile",
    "echo",
    "test",
    "halt",
    "reboot",
    "ls",
    "sleep",
    "minicmd",
];

/// KiB of the file system for UEFI: that of a large floppy disk.
const UEFI_KIB: u64 = 2880;

/// All files are of this second, so that the same files make the same image.
const SECOND: &str = "946684800";

/// What is on an image.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    /// Path on the image, from its root on, and the file that comes there.
    pub(crate) files: Vec<(String, PathBuf)>,
    pub(crate) entry: Entry,
}

impl Contents {
    /// Makes the image; without success the output of what failed has been shown.
    pub(crate) fn write(
        &self,
        session: &mut Session<'_>,
        tools: &Tools,
        output: &Path,
    ) -> Result<bool> {
        let directory = tempfile::Builder::new()
            .prefix("subpage-image-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let path = directory.path();
        let root = path.join("root");
        let grub = root.join("boot/grub");
        fs::create_dir_all(&grub).context("cannot make a directory")?;
        for (name, file) in &self.files {
            let target = root.join(name.trim_start_matches('/'));
            fs::create_dir_all(target.parent().context("a file is in a directory")?)
                .context("cannot make a directory")?;
            fs::copy(file, &target).with_context(|| format!("cannot read {}", file.display()))?;
        }
        let configuration = self.entry.configuration();
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(grub.join("grub.cfg"), &configuration)?;
        // Tells this image from others on the same machine.
        let mark = format!("/boot/grub/{}", self.mark(&configuration)?);
        write(root.join(&mark[1..]), "")?;
        let first = path.join("first.cfg");
        write(
            first.clone(),
            &format!(
                "search --no-floppy --set=root --file {mark}\n\
                 set prefix=($root)/boot/grub\n\
                 normal ($root)/boot/grub/grub.cfg\n"
            ),
        )?;
        let uefi = path.join("BOOTX64.EFI");
        let partition = grub.join("uefi.img");
        fs::File::create(&partition)
            .and_then(|file| file.set_len(UEFI_KIB << 10))
            .context("cannot write a file")?;
        let core = |format: &str, platform: &str, more: &[&str], to: &Path| {
            let mut command = tools.command(Program::GrubMkimage);
            command.args(["--format", format, "--prefix", "/boot/grub", "--directory"]);
            command.arg(tools.grub(platform)).arg("--config").arg(&first).arg("--output").arg(to);
            command.args(MODULES).args(more);
            command
        };
        let mtools = |program: &str, arguments: &[&str]| {
            let mut command = tools.command(Program::Mtools);
            command.args(["-c", program, "-i"]).arg(&partition).args(arguments);
            command
        };
        let eltorito = grub.join("bios.img");
        let fresh = path.join("image.iso");
        let copy = {
            let mut command = mtools("mcopy", &[]);
            command.arg(&uefi).arg("::/EFI/BOOT/BOOTX64.EFI");
            command
        };
        for command in [
            core("i386-pc-eltorito", "i386-pc", &["biosdisk", "vga_text"], &eltorito),
            core("x86_64-efi", "x86_64-efi", &[], &uefi),
            mtools("mformat", &["-N", "53554250", "-f", "2880", "::"]),
            mtools("mmd", &["::/EFI", "::/EFI/BOOT"]),
            copy,
            file_system(tools, &root, &fresh),
        ] {
            if !run(session, command)? {
                return Ok(false);
            }
        }
        place(&fresh, output)?;
        Ok(true)
    }

    /// A name that stands for all that is on the image.
    fn mark(&self, configuration: &str) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(configuration);
        for (name, file) in &self.files {
            let bytes =
                fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            hash.update(name);
            hash.update(Sha256::digest(&bytes));
        }
        Ok(format!("{}.id", &hexadecimal(&hash.finalize())[..16]))
    }
}

/// The command that makes the file system out of all that is below `root`.
fn file_system(tools: &Tools, root: &Path, to: &Path) -> Command {
    let mut command = tools.command(Program::Xorriso);
    command
        .args(["-as", "mkisofs", "-quiet", "-volid", "SUBPAGE", "-rational-rock"])
        .args(["-b", "boot/grub/bios.img", "-no-emul-boot", "-boot-load-size", "4"])
        .args(["-boot-info-table", "--grub2-boot-info", "--grub2-mbr"])
        .arg(tools.grub("i386-pc").join("boot_hybrid.img"))
        .args(["--efi-boot", "boot/grub/uefi.img", "-efi-boot-part", "--efi-boot-image"])
        .args(["--set_all_file_dates", &format!("={SECOND}")])
        .args(["--protective-msdos-label", "-o"])
        .arg(to)
        .arg(root);
    command
}

fn run(session: &mut Session<'_>, mut command: Command) -> Result<bool> {
    command.env("SOURCE_DATE_EPOCH", SECOND);
    let finished = session.run_unshown(command, &mut |_| None)?;
    let success = finished.ending.success();
    if !success {
        session.show(&finished.output)?;
    }
    Ok(success)
}

/// Puts the image where it belongs, in one step: an image that is in use stays whole.
fn place(fresh: &Path, output: &Path) -> Result<()> {
    let place = || {
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut beside = tempfile::Builder::new()
            .prefix(".subpage-image-")
            .tempfile_in(parent.unwrap_or(Path::new(".")))?;
        std::io::copy(&mut fs::File::open(fresh)?, beside.as_file_mut())?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        beside.as_file().set_permissions(permissions)?;
        beside.persist(output).map_err(|error| error.error).map(drop)
    };
    place().with_context(|| format!("cannot write {}", output.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_another_image() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let file = directory.path().join("guest");
        let entry = Entry { program: "/p".into(), words: Vec::new(), modules: Vec::new() };
        let contents = Contents { files: vec![("/guest".into(), file.clone())], entry };
        let mut marks = Vec::new();
        for (bytes, configuration) in [("a", "x"), ("a", "x"), ("b", "x"), ("a", "y")] {
            fs::write(&file, bytes).expect("files can be written");
            marks.push(contents.mark(configuration).expect("the file is there"));
        }
        assert_eq!(marks[0], marks[1]);
        assert!(marks[0] != marks[2] && marks[0] != marks[3] && marks[2] != marks[3]);
    }

    #[test]
    fn an_image_that_cannot_be_placed_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let fresh = directory.path().join("fresh");
        fs::write(&fresh, "image").expect("files can be written");
        let output = directory.path().join("out.iso");
        place(&fresh, &output).expect("nothing hinders it");
        assert_eq!(fs::read(&output).expect("it is there"), b"image");
        let error = place(&fresh, &directory.path().join("no/out.iso")).expect_err("no directory");
        assert!(error.to_string().contains("no/out.iso"), "{error}");
    }
}
