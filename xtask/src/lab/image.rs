//! A host as an initramfs: a shell, the modules of KVM, programs, and the job that it does.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Host,
    frames::Mark,
    ingredients::{Ingredients, MODULES},
    initramfs::Initramfs,
    job::Job,
    programs::{self, Programs},
};

/// Where programs and additional files are in a host.
const PROGRAMS: &str = "lab";
const FILES: &str = "root";

/// A setting for a module, as `kvm_intel.eptad=0` names it on the kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModuleOption {
    module: String,
    setting: String,
}

impl std::str::FromStr for ModuleOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.').filter(|(_, setting)| setting.contains('='));
        let (module, setting) = parts.ok_or("give MODULE.NAME=VALUE, like kvm_intel.eptad=0")?;
        let module = module.replace('_', "-");
        let plain = |text: &str| {
            text.chars()
                .all(|character| character.is_ascii_alphanumeric() || "-_=".contains(character))
        };
        if !MODULES.iter().any(|(name, _)| *name == module) || !plain(setting) {
            return Err("only irqbypass, kvm, kvm_amd and kvm_intel are loaded".into());
        }
        Ok(Self { module, setting: setting.to_owned() })
    }
}

/// What goes into a host.
#[derive(Clone, Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) host: Host,
    pub(crate) programs: &'a Programs,
    pub(crate) module_options: &'a [ModuleOption],
    /// Go to the job's working directory under their own names.
    pub(crate) files: &'a [PathBuf],
    /// Directories that stand in the host where they stand here, with the files in them.
    pub(crate) mirrored: &'a [PathBuf],
}

impl Contents<'_> {
    /// Writes the initramfs.
    pub(crate) fn image(
        &self,
        ingredients: &Ingredients,
        job: &Job,
        mark: &Mark,
        scratch: &Path,
    ) -> Result<Vec<u8>> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut archive = Initramfs::new();
        for directory in ["proc", "sys", "tmp", "run", FILES] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", 0o755, &read(&ingredients.busybox())?);
        archive.link("bin/sh", "busybox");
        archive.file("init", 0o755, self.init(job, mark).as_bytes());
        for (name, _) in self.modules() {
            let path = format!("{PROGRAMS}/modules/{name}.ko");
            archive.file(&path, 0o644, &read(&ingredients.module(name))?);
        }
        // The host's own kernel is a guest's as well.
        archive.file(&format!("{PROGRAMS}/vmlinuz"), 0o644, &read(&ingredients.kernel())?);
        let mut libraries = BTreeSet::new();
        for (name, path) in self.programs {
            let bytes = programs::stripped(path, scratch)?;
            archive.file(&format!("{PROGRAMS}/{name}"), 0o755, &bytes);
            libraries.extend(programs::libraries(path)?);
        }
        for path in self.files {
            let name =
                path.file_name().with_context(|| format!("{} has no name", path.display()))?;
            let name = name.to_str().context("a file's name is not UTF-8")?;
            let mode = permissions(path)?;
            archive.file(&format!("{FILES}/{name}"), mode, &programs::stripped(path, scratch)?);
            if mode & 0o111 != 0 {
                libraries.extend(programs::libraries(path)?);
            }
        }
        for directory in self.mirrored {
            archive.directory(relative(directory)?);
            for entry in fs::read_dir(directory)
                .with_context(|| format!("cannot read {}", directory.display()))?
            {
                let path = entry.context("cannot read a directory")?.path();
                if path.is_file() {
                    archive.file(relative(&path)?, permissions(&path)?, &read(&path)?);
                }
            }
        }
        for library in &libraries {
            archive.file(relative(library)?, 0o755, &read(library)?);
        }
        Ok(archive.finish())
    }

    /// The modules that this host loads, in order, each with its settings.
    fn modules(&self) -> impl Iterator<Item = (&'static str, String)> {
        let foreign = match self.host {
            Host::Amd => "kvm-intel",
            Host::Intel => "kvm-amd",
        };
        MODULES.into_iter().filter(move |(name, _)| *name != foreign).map(|(name, _)| {
            let mut settings = String::new();
            if name == "kvm-intel" {
                // Bochs wants a posted-interrupt descriptor on a page of its own, where the manual
                // wants 64 bytes: with APICv, every VM entry fails.
                settings += " enable_apicv=0";
            }
            for option in self.module_options.iter().filter(|option| option.module == name) {
                write!(settings, " {}", option.setting).expect("writing to a string cannot fail");
            }
            (name, settings)
        })
    }

    /// The first program of the host.
    fn init(&self, job: &Job, mark: &Mark) -> String {
        let mark = mark.word();
        let mut script = vec![format!(
            "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/{PROGRAMS}:/bin HOME=/{FILES} TERM=linux RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp
ip link set lo up
line=/dev/ttyS1
stty -F $line raw -echo
fail() {{
    echo {mark} failed $1 >$line
    poweroff -f
}}"
        )];
        for (name, settings) in self.modules() {
            let path = format!("/{PROGRAMS}/modules/{name}.ko");
            script.push(format!("insmod {path}{settings} >/dev/console 2>&1 || fail {name}"));
        }
        script.push("[ -c /dev/kvm ] || fail /dev/kvm".into());
        script.push(format!("cd /{FILES}"));
        script.push(job.script(mark));
        script.push("poweroff -f\n".into());
        script.join("\n")
    }
}

fn permissions(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(metadata.permissions().mode())
}

/// A path in the archive, which has no slash in front.
fn relative(path: &Path) -> Result<&str> {
    let text = path.to_str().context("a path is not UTF-8")?;
    ensure!(path.is_absolute(), "{text} is not absolute");
    Ok(text.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_modules_are_checked() {
        let option = |text: &str| text.parse::<ModuleOption>();
        let eptad = option("kvm_intel.eptad=0").expect("a setting");
        assert_eq!((eptad.module.as_str(), eptad.setting.as_str()), ("kvm-intel", "eptad=0"));
        for text in ["eptad=0", "kvm_intel.eptad", "ext4.x=1", "kvm.x=1;reboot", "kvm.x=a b"] {
            assert!(option(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_loads_the_modules_of_its_processor() {
        let programs = Programs::new();
        let options =
            ["kvm_intel.eptad=0", "kvm.ignore_msrs=1"].map(|text| text.parse().expect("a setting"));
        let contents = |host| Contents {
            host,
            programs: &programs,
            module_options: &options,
            files: &[],
            mirrored: &[],
        };
        let modules: Vec<_> = contents(Host::Intel).modules().collect();
        let expected = [
            ("irqbypass", ""),
            ("kvm", " ignore_msrs=1"),
            ("kvm-intel", " enable_apicv=0 eptad=0"),
        ];
        assert_eq!(modules, expected.map(|(name, settings)| (name, settings.to_owned())));
        let modules: Vec<_> = contents(Host::Amd).modules().map(|(name, _)| name).collect();
        assert_eq!(modules, ["irqbypass", "kvm", "kvm-amd"]);
    }
}
