//! QEMU, which emulates AMD-V with nested paging.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::session::Session;

/// Before, the intercept of XSETBV is not emulated: guests of the host see a wrong XCR0.
const OLDEST: (u32, u32) = (8, 2);

/// What is kept of the package and of all that it needs.
pub(super) const PARTS: [&str; 5] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/bin/qemu-system-x86_64",
    "usr/share/qemu",
    "usr/share/seabios",
];

/// A QEMU that was unpacked and not installed, with a C library of its own.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    root: PathBuf,
}

/// One start of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) command_line: &'a str,
    pub(crate) processors: u32,
    pub(crate) memory_mib: u64,
    /// Where it runs; what the kernel says goes to the file `console` there.
    pub(crate) directory: &'a Path,
}

impl Qemu {
    pub(super) fn unpacked(root: PathBuf) -> Self {
        Self { root }
    }

    /// Starts it by its own dynamic linker, so that no library of the machine comes into it.
    fn command(&self) -> Command {
        let libraries = self.root.join("lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        let mut search = libraries.into_os_string();
        search.push(":");
        search.push(self.root.join("usr/lib/x86_64-linux-gnu"));
        command
            .arg("--library-path")
            .arg(search)
            .arg(self.root.join("usr/bin/qemu-system-x86_64"))
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("LD_PRELOAD");
        command
    }

    /// What it says of its version, or why it says nothing.
    pub(super) fn version(&self, session: &mut Session<'_>) -> Result<Result<(u32, u32), String>> {
        let mut command = self.command();
        command.arg("--version");
        let finished = session.run_unshown(command, &mut |_| None)?;
        Ok(version(&finished.output).ok_or_else(|| {
            let said = finished.output.lines().next().unwrap_or("nothing");
            format!("QEMU does not start, it says: {said}")
        }))
    }

    /// The command that starts a kernel on one processor, without the options that `subpage record --system`
    /// sets itself; the first serial line is standard output.
    pub(crate) fn start_recorded(
        &self,
        kernel: &Path,
        initrd: &Path,
        command_line: &str,
    ) -> Command {
        let mut command = self.command();
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
            .args(["-cpu", "qemu64", "-m", "256", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", command_line]);
        command
    }

    /// The command that starts a bare machine with this firmware, without the options that `subpage record
    /// --system` sets itself. A write to port F4H ends it.
    pub(crate) fn start_firmware(&self, firmware: &Path) -> Command {
        let mut command = self.command();
        command
            .args(["-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x1", "-bios"])
            .arg(firmware);
        command
    }

    /// The command that starts a machine by UEFI, `[code, variables]`, from a disc: what is written to the
    /// first serial line goes to the file `console` in `directory`, and port E9H is standard output.
    pub(crate) fn start_disc(
        &self,
        [code, variables]: &[PathBuf; 2],
        image: &Path,
        directory: &Path,
    ) -> Command {
        let drive = |what: &str, file: &Path| {
            // QEMU takes a comma for the end of a value, unless there are two.
            let file = file.to_string_lossy().replace(',', ",,");
            format!("{what},format=raw,file={file}")
        };
        let mut command = self.command();
        command.current_dir(directory).args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"]);
        command.arg("-L").arg(self.root.join("usr/share/qemu"));
        command
            .args(["-m", "512", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-monitor", "none", "-no-reboot", "-serial", "file:console"])
            .args([
                "-chardev",
                "stdio,id=lines",
                "-device",
                "isa-debugcon,iobase=0xe9,chardev=lines",
            ])
            .args(["-drive", &drive("if=pflash,readonly=on", code)])
            .args(["-drive", &drive("if=pflash,snapshot=on", variables)])
            .args(["-drive", &drive("if=none,id=disc,media=cdrom,readonly=on", image)])
            .args(["-device", "ide-cd,drive=disc,bootindex=0"]);
        command
    }

    /// The command that starts a kernel; the second serial line is standard input and output.
    pub(super) fn start(&self, start: &Start<'_>) -> Command {
        let mut command = self.command();
        // One thread for all processors. With a thread each, QEMU 10.0 broke hosts now and then: guests
        // of one processor had triple faults, and a host's kernel found its stack corrupted.
        command.args(["-machine", "q35", "-accel", "tcg,thread=single,tb-size=512", "-cpu", "max"]);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
            .current_dir(start.directory)
            .args(["-smp", &start.processors.to_string(), "-m", &start.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"])
            .args(["-no-reboot", "-serial", "file:console", "-serial", "stdio", "-kernel"])
            .arg(start.kernel)
            .arg("-initrd")
            .arg(start.initrd)
            .args(["-append", start.command_line]);
        command
    }
}

/// From `QEMU emulator version 10.0.2 (Debian …)`.
fn version(output: &str) -> Option<(u32, u32)> {
    let (_, rest) = output.split_once("QEMU emulator version ")?;
    let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether this version will do, or why not.
pub(super) fn new_enough(version: (u32, u32)) -> Result<(), String> {
    if version >= OLDEST {
        return Ok(());
    }
    let ((major, minor), (oldest_major, oldest_minor)) = (version, OLDEST);
    Err(format!(
        "QEMU {major}.{minor} is older than {oldest_major}.{oldest_minor} and does not intercept \
         XSETBV"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_qemu_is_refused() {
        let judged = |text| version(text).map(new_enough);
        assert_eq!(judged("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n"), Some(Ok(())));
        assert_eq!(judged("QEMU emulator version 8.2.0\nCopyright"), Some(Ok(())));
        let old = judged("QEMU emulator version 7.2.18").expect("a version");
        assert!(old.expect_err("it is old").contains("QEMU 7.2 is older than 8.2"));
        assert_eq!(judged("qemu: error while loading shared libraries"), None);
    }
}
