//! What an image is made with and tried on, from packages of Debian, unpacked into the user's cache:
//! GRUB, the makers of its file systems, and the firmware of Bochs and of QEMU.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    cache::Place,
    packages::{private::Apt, wanted::Wanted},
    session::{self, Session},
};

/// The release of Debian whose packages were tried.
const CODENAME: &str = "bookworm";

/// A package, and whether it comes with all that it needs.
const PACKAGES: [(Wanted, bool); 8] = [
    (wanted("grub-common", "2.06-13+deb12u2", "^grub-common$"), true),
    (wanted("grub-pc-bin", "2.06-13+deb12u2", "^grub-pc-bin$"), false),
    (wanted("grub-efi-amd64-bin", "2.06-13+deb12u2", "^grub-efi-amd64-bin$"), false),
    (wanted("xorriso", "1.5.4-4", "^xorriso$"), true),
    (wanted("mtools", "4.0.33-1+really4.0.32-1", "^mtools$"), true),
    (wanted("ovmf", "2022.11-6+deb12u2", "^ovmf$"), false),
    (wanted("bochsbios", "2.7+dfsg-4+deb12u1", "^bochsbios$"), false),
    (wanted("vgabios", "0.8a+ds-2", "^vgabios$"), false),
];

const fn wanted(package: &'static str, version: &'static str, names: &'static str) -> Wanted {
    Wanted { package, version, names }
}

/// Names the packages that were taken, one a line.
const VERSIONS: &str = "versions";

/// Where the packages' files are kept, as they lie on a machine that has them installed.
const ROOT: &str = "root";

/// The tools, each known to be there.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    directory: PathBuf,
}

/// A program of the packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Makes GRUB's core out of its modules.
    GrubMkimage,
    /// Writes to file systems of the kind FAT.
    Mtools,
    /// Writes ISO 9660.
    Xorriso,
}

impl Program {
    const ALL: [Self; 3] = [Self::GrubMkimage, Self::Mtools, Self::Xorriso];

    const fn path(self) -> &'static str {
        match self {
            Self::GrubMkimage => "usr/bin/grub-mkimage",
            Self::Mtools => "usr/bin/mtools",
            Self::Xorriso => "usr/bin/xorriso",
        }
    }
}

impl Tools {
    /// Finds them in the cache or fetches them, and says what it does; or says why there are none.
    pub(crate) fn prepare(session: &mut Session<'_>) -> Result<Result<Self, String>> {
        let way = format!("{CODENAME} {PACKAGES:?}");
        let place = match Place::of_user("image", &way) {
            Ok(place) => place,
            Err(reason) => return Ok(Err(reason)),
        };
        let tools = Self { directory: place.directory() };
        if !tools.directory.exists()
            && let Err(reason) = fetch(session, &place)?
        {
            return Ok(Err(reason));
        }
        let versions = fs::read_to_string(tools.directory.join(VERSIONS))
            .context("cannot read which packages there are")?;
        session.say(&format!(
            "   found GRUB and the image's tools in {}: {}",
            tools.directory.display(),
            versions.trim_end().replace('\n', ", ")
        ))?;
        Ok(Ok(tools))
    }

    /// Starts a program by the dynamic linker that came with it, so that no library of this machine
    /// comes into it.
    pub(crate) fn command(&self, program: Program) -> Command {
        let libraries = self.file("lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        let mut search = libraries.into_os_string();
        search.push(":");
        search.push(self.file("usr/lib/x86_64-linux-gnu"));
        command
            .arg("--library-path")
            .arg(search)
            .arg(self.file(program.path()))
            .env("LC_ALL", "C")
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("LD_PRELOAD");
        command
    }

    /// GRUB's modules for a platform: `i386-pc`, `x86_64-efi`.
    pub(super) fn grub(&self, platform: &str) -> PathBuf {
        self.file("usr/lib/grub").join(platform)
    }

    /// Bochs's BIOS, with tables of ACPI for its processors.
    pub(crate) fn bios(&self) -> PathBuf {
        self.file("usr/share/bochs/BIOS-bochs-latest")
    }

    /// The BIOS of Bochs's screen.
    pub(crate) fn vga_bios(&self) -> PathBuf {
        self.file("usr/share/vgabios/vgabios.bin")
    }

    /// UEFI for QEMU: its code and the variables that it begins with.
    pub(crate) fn uefi(&self) -> [PathBuf; 2] {
        ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"].map(|name| self.file("usr/share/OVMF").join(name))
    }

    fn file(&self, path: &str) -> PathBuf {
        self.directory.join(ROOT).join(path)
    }

    /// The first file of those that are used that is not there.
    fn missing(&self) -> Option<PathBuf> {
        let [code, variables] = self.uefi();
        let mut files: Vec<_> = Program::ALL.map(|program| self.file(program.path())).into();
        files.extend([self.bios(), self.vga_bios(), code, variables]);
        files.extend([self.grub("i386-pc"), self.grub("x86_64-efi")]);
        files.into_iter().find(|file| !file.exists())
    }
}

/// Fetches all of them into their place, or says why it could not.
fn fetch(session: &mut Session<'_>, place: &Place) -> Result<Result<(), String>> {
    if let Err(reason) = place.make_parent() {
        return Ok(Err(reason));
    }
    let Some(_lock) = place.lock(session, "fetching GRUB")? else {
        return Ok(Err("interrupted".into()));
    };
    if place.directory().exists() {
        // The other one's.
        return Ok(Ok(()));
    }
    session.say("   fetching GRUB and the image's tools, once for this machine; about 30 MB")?;
    let start = Instant::now();
    let directory = place.begin()?;
    let made = directory.path().join("made");
    fs::create_dir(&made).context("cannot make a directory")?;
    if let Err(reason) = unpack(session, &directory.path().join("apt"), &made)? {
        return Ok(Err(reason));
    }
    if let Some(file) = (Tools { directory: made.clone() }).missing() {
        return Ok(Err(format!("no package has {}", file.display())));
    }
    // What is not whole is fetched anew the next time.
    let tools = Tools { directory: made.clone() };
    for program in Program::ALL {
        let mut command = tools.command(program);
        command.arg("--version");
        let finished = session.run_unshown(command, &mut |_| None)?;
        if !finished.ending.success() {
            let said = finished.output.lines().next().unwrap_or("nothing").to_owned();
            return Ok(Err(format!("{} does not start, it says: {said}", program.path())));
        }
    }
    place.finish(&made)?;
    session.say(&format!("   fetched and unpacked in {}", session::duration(start.elapsed())))?;
    Ok(Ok(()))
}

fn unpack(session: &mut Session<'_>, apt: &Path, made: &Path) -> Result<Result<(), String>> {
    let apt = match Apt::prepare(session, apt.to_owned(), CODENAME)? {
        Ok(apt) => apt,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut versions = Vec::new();
    for (wanted, with_dependencies) in &PACKAGES {
        let version = match wanted.find(session, &apt)? {
            Ok(version) => version,
            Err(reason) => return Ok(Err(reason)),
        };
        if !apt.unpack(session, &version, *with_dependencies, &made.join(ROOT))? {
            return Ok(Err(format!("the package {} cannot be had", version.package)));
        }
        versions.push(format!("{} {}", version.package, version.version));
    }
    fs::write(made.join(VERSIONS), versions.join("\n")).context("cannot write a file")?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_package_has_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let tools = Tools { directory: directory.path().to_owned() };
        assert!(tools.missing().is_some_and(|file| file.ends_with("usr/bin/grub-mkimage")));
        for program in Program::ALL {
            let file = tools.file(program.path());
            fs::create_dir_all(file.parent().expect("in a directory")).expect("it can be made");
            fs::write(file, "").expect("it can be written");
        }
        assert!(tools.missing().is_some_and(|file| file.ends_with("BIOS-bochs-latest")));
    }
}
