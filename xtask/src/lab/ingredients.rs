//! What a host is made of, from packages of Debian, unpacked into the user's cache: a kernel with
//! its KVM, a shell with tools, and QEMU.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::qemu::{self, Qemu};
use crate::{
    cache::Place,
    packages::{self, private::Apt, wanted::Wanted},
    session::{self, Session},
};

/// The release of Debian with the kernel that was tried.
pub(super) const CODENAME: &str = "bookworm";

/// The kernel of a host, and of the guests that boot the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// 6.1, that of the release
    #[default]
    Stable,
    /// 6.12 or later, of its backports
    Newer,
}

impl Kernel {
    const fn wanted(self) -> &'static Wanted {
        match self {
            Self::Stable => &KERNEL,
            Self::Newer => &NEWER_KERNEL,
        }
    }
}

const KERNEL: Wanted = Wanted {
    package: "linux-image-6.1.0-56-cloud-amd64",
    version: "6.1.192-2",
    names: r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$",
};
const NEWER_KERNEL: Wanted = Wanted {
    package: "linux-image-6.12.117+deb12-cloud-amd64",
    version: "6.12.117-1~deb12u1",
    names: r"^linux-image-(6\.(1[2-9]|[2-9][0-9])|[7-9])\.[0-9.]+\+[a-z0-9]+-cloud-amd64$",
};
const BUSYBOX: Wanted = Wanted {
    package: "busybox-static",
    version: "1:1.35.0-4+deb12u1+b1",
    names: "^busybox-static$",
};
const QEMU: Wanted = Wanted {
    package: "qemu-system-x86",
    version: "1:10.0.2+ds-2+deb13u1~bpo12+1",
    names: "^qemu-system-x86$",
};

/// The modules of the kernel that a host loads, in this order, and the last by its processor.
pub(crate) const MODULES: [(&str, &str); 4] = [
    ("irqbypass", "virt/lib/irqbypass.ko"),
    ("kvm", "arch/x86/kvm/kvm.ko"),
    ("kvm-amd", "arch/x86/kvm/kvm-amd.ko"),
    ("kvm-intel", "arch/x86/kvm/kvm-intel.ko"),
];

/// The ingredients, each known to be there.
#[derive(Clone, Debug)]
pub(crate) struct Ingredients {
    directory: PathBuf,
}

/// The ingredients, or why there are none.
pub(crate) type Availability = Result<Ingredients, String>;

impl Ingredients {
    /// Finds them in the cache or fetches them, and says what it does.
    pub(crate) fn prepare(session: &mut Session<'_>, kernel: Kernel) -> Result<Availability> {
        let way = format!("{CODENAME} {:?} {BUSYBOX:?} {QEMU:?}", kernel.wanted());
        let place = match Place::of_user("lab", &way) {
            Ok(place) => place,
            Err(reason) => return Ok(Err(reason)),
        };
        let ingredients = Self { directory: place.directory() };
        if !ingredients.directory.exists()
            && let Err(reason) = fetch(session, &place, kernel.wanted())?
        {
            return Ok(Err(reason));
        }
        let versions = fs::read_to_string(ingredients.directory.join(VERSIONS))
            .context("cannot read which packages the lab has")?;
        session.say(&format!(
            "   found the lab's packages in {}: {}",
            ingredients.directory.display(),
            versions.trim_end().replace('\n', ", ")
        ))?;
        Ok(Ok(ingredients))
    }

    /// The kernel of host and guests, a bzImage.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The package that it is from.
    pub(super) fn kernel_version(&self) -> Result<packages::private::Version> {
        let versions = fs::read_to_string(self.directory.join(VERSIONS))
            .context("cannot read which packages the lab has")?;
        let (package, version) = versions
            .lines()
            .find_map(|line| {
                line.split_once(' ').filter(|(name, _)| name.starts_with("linux-image-"))
            })
            .context("the lab does not say from which package its kernel is")?;
        Ok(packages::private::Version { package: package.to_owned(), version: version.to_owned() })
    }

    /// A module of it.
    pub(crate) fn module(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.ko"))
    }

    /// One static program, which is a shell and all tools.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.directory.join("busybox")
    }

    /// QEMU with its libraries and firmware.
    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::unpacked(self.directory.join("qemu"))
    }
}

/// Names the packages that were taken, one a line.
const VERSIONS: &str = "versions";

/// Fetches all of them into their place, or says why it could not.
fn fetch(session: &mut Session<'_>, place: &Place, kernel: &Wanted) -> Result<Result<(), String>> {
    if let Err(reason) = place.make_parent() {
        return Ok(Err(reason));
    }
    let Some(_lock) = place.lock(session, "fetching the lab's packages")? else {
        return Ok(Err("interrupted".into()));
    };
    if place.directory().exists() {
        // The other one's.
        return Ok(Ok(()));
    }
    session.say("   fetching the lab's packages, once for this machine; about 80 MB")?;
    let start = Instant::now();
    let directory = place.begin()?;
    let path = directory.path();
    let made = path.join("made");
    fs::create_dir(&made).context("cannot make a directory")?;
    let apt = match Apt::prepare(session, path.join("apt"), CODENAME)? {
        Ok(apt) => apt,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut versions = Vec::new();
    for wanted in [kernel, &BUSYBOX, &QEMU] {
        let version = match wanted.find(session, &apt)? {
            Ok(version) => version,
            Err(reason) => return Ok(Err(reason)),
        };
        let root = path.join(wanted.package);
        if !apt.unpack(session, &version, wanted.package == QEMU.package, &root)? {
            return Ok(Err(format!("the package {} cannot be had", version.package)));
        }
        versions.push(format!("{} {}", version.package, version.version));
    }
    if let Err(reason) = keep(path, &made, kernel)? {
        return Ok(Err(reason));
    }
    let qemu = Qemu::unpacked(made.join("qemu"));
    if let Err(reason) = qemu.version(session)?.and_then(qemu::new_enough) {
        return Ok(Err(reason));
    }
    fs::write(made.join(VERSIONS), versions.join("\n")).context("cannot write a file")?;
    place.finish(&made)?;
    session.say(&format!("   fetched and unpacked in {}", session::duration(start.elapsed())))?;
    Ok(Ok(()))
}

/// Moves what is of use from the unpacked packages below `from`, or says what is missing to do so.
fn keep(from: &Path, to: &Path, kernel: &Wanted) -> Result<Result<(), String>> {
    let take = |path: &Path, name: &str| {
        let target = to.join(name);
        let parent = target.parent().context("a file is in a directory")?;
        fs::create_dir_all(parent).context("cannot make a directory")?;
        fs::rename(path, &target)
            .with_context(|| format!("there is no {} in its package", path.display()))
    };
    let kernel = from.join(kernel.package);
    let boot = only(&kernel.join("boot"), "vmlinuz-")?;
    take(&boot, "vmlinuz")?;
    let modules = only(&kernel.join("lib/modules"), "")?.join("kernel");
    for (name, path) in MODULES {
        match plain(&modules.join(path), &COMPRESSIONS)? {
            Ok(module) => take(&module, &format!("{name}.ko"))?,
            Err(reason) => return Ok(Err(reason)),
        }
    }
    take(&from.join(BUSYBOX.package).join("bin/busybox"), "busybox")?;
    for part in qemu::PARTS {
        take(&from.join(QEMU.package).join(part), &format!("qemu/{part}"))?;
    }
    Ok(Ok(()))
}

/// How newer kernels compress their modules: how such a file's name ends, and what unpacks it.
const COMPRESSIONS: [(&str, &str); 2] = [("xz", "xz"), ("zst", "zstd")];

/// A module as it is, unpacked if its kernel has compressed modules: a host's shell unpacks none. Or
/// which program is missing to unpack it.
fn plain(module: &Path, compressions: &[(&str, &str)]) -> Result<Result<PathBuf, String>> {
    for (extension, program) in compressions {
        let packed = module.with_extension(format!("ko.{extension}"));
        if packed.exists() {
            if packages::found(program).is_none() {
                return Ok(Err(format!(
                    "{program} is missing, which unpacks the kernel's modules"
                )));
            }
            let status =
                Command::new(program).args(["--decompress", "--quiet"]).arg(&packed).status();
            let status = status.with_context(|| format!("cannot start {program}"))?;
            ensure!(status.success(), "{program} does not unpack {}", packed.display());
        }
    }
    Ok(Ok(module.to_owned()))
}

/// The one entry of a directory whose name begins so.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    entries.sort_unstable();
    entries.pop().with_context(|| format!("nothing in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_unpacked() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let module = directory.path().join("kvm.ko");
        fs::write(&module, "module").expect("files can be written");
        let plain = |module: &Path| plain(module, &COMPRESSIONS);
        assert_eq!(plain(&module).expect("nothing to do"), Ok(module.clone()));
        if packages::found("xz").is_none() {
            println!("skipped: there is no xz here");
            return;
        }
        let status = Command::new("xz").arg(&module).status().expect("xz starts");
        assert!(status.success() && !module.exists());
        let unpacked = plain(&module).expect("xz unpacks what it has packed").expect("xz is here");
        assert_eq!(fs::read(&unpacked).expect("it is there"), b"module");
        fs::remove_file(unpacked).expect("it can be removed");
        fs::write(module.with_extension("ko.xz"), "no archive").expect("files can be written");
        assert!(plain(&module).is_err());
    }

    /// The lab is then skipped with that reason, and nothing has failed.
    #[test]
    fn a_machine_that_cannot_unpack_modules_is_told_what_it_lacks() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let module = directory.path().join("kvm.ko");
        fs::write(module.with_extension("ko.xz"), "an archive").expect("files can be written");
        let reason = plain(&module, &[("xz", "no-program-of-this-name")]).expect("no failure");
        assert!(reason.expect_err("it is missing").contains("no-program-of-this-name is missing"));
    }
}
