//! One start of the hypervisor with a Linux kernel as its guest: the machine's first serial line is the
//! kernel's console, port E9H has the hypervisor's lines.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    acpi::AcpiTables,
    configuration::{self, BLOCK, Configuration, Logging, Placed, Run, SerialLines},
    emulator::Emulator,
    images::IMAGE_ADDRESS,
    information::{self, FIRMWARE, Module, More},
    machine::{INFORMATION_ADDRESS, PAGE, link},
};
use crate::session::Interrupt;

/// Where kernel and initrd lie as a boot loader leaves them, one behind the other. It is one image that
/// spans blocks, for which they are touched in order by the ROM.
const MODULES: u64 = 0x1000_0000;

/// Where the ROM looks for the memory that it is to touch: two numbers.
const TOUCH: usize = 0xfff4;

/// About what Bochs does in a second, so that the kernel's timer comes no more often than on a real
/// machine.
const INSTRUCTIONS_PER_SECOND: u32 = 40_000_000;

/// Memory in MiB, if nothing else is said.
pub(crate) const MEMORY_MIB: u64 = 512;

const CONSOLE: &str = "console";

/// The most that is read of a kernel, an initrd, and what the kernel has printed.
const MOST: u64 = 64 << 20;

/// What a start differs in.
#[derive(Clone, Debug)]
pub(crate) struct LinuxMachine {
    pub(crate) model: String,
    pub(crate) processors: u32,
    pub(crate) memory_mib: u64,
    /// Where usable memory ends by the boot loader's account, if that is not where it ends.
    pub(crate) told_memory_mib: Option<u64>,
    /// Memory from 4 GiB on, in MiB.
    pub(crate) high_memory_mib: u64,
    pub(crate) rom: PathBuf,
    /// The hypervisor, flat, at 1 MiB.
    pub(crate) image: PathBuf,
    /// Options of the hypervisor.
    pub(crate) options: String,
    pub(crate) kernel: Vec<u8>,
    pub(crate) initrd: Option<Vec<u8>>,
    /// A module that `subpage compile` has made.
    pub(crate) policy: Option<Vec<u8>>,
    /// Names of the kernel, another one of it.
    pub(crate) names: Option<Vec<u8>>,
    /// The kernel's own.
    pub(crate) command_line: String,
    pub(crate) logging: Logging,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct LinuxRun {
    /// The hypervisor's lines, and how Bochs ended.
    pub(crate) run: Run,
    /// What the kernel has printed.
    pub(crate) console: Vec<String>,
}

/// A file that is to be a module.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(MOST + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= MOST, "{} has more than {} MiB", path.display(), MOST >> 20);
    Ok(bytes)
}

impl LinuxMachine {
    /// Starts it; `on_line` sees each line of the hypervisor as it comes. After `limit` it is killed.
    pub(crate) fn start(
        &self,
        emulator: &Emulator,
        limit: Duration,
        interrupt: &Interrupt,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<LinuxRun> {
        let directory = tempfile::Builder::new()
            .prefix("subpage-bochs-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let path = directory.path();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(path.join(name), bytes).with_context(|| format!("cannot write {name}"))
        };
        link(&self.image, &path.join("image"))?;
        let (modules, end) = self.modules();
        ensure!(
            end.next_multiple_of(BLOCK) <= self.memory_mib << 20,
            "kernel and initrd do not fit into {} MiB",
            self.memory_mib
        );
        write("modules", &modules)?;
        write("information", &self.information()?)?;
        write(configuration::ROM, &self.rom(end)?)?;
        let mut images = vec![
            Placed { name: "image", address: IMAGE_ADDRESS },
            Placed { name: "information", address: INFORMATION_ADDRESS },
        ];
        if let Some(tables) = self.acpi() {
            write("acpi", tables.bytes())?;
            images.push(Placed { name: "acpi", address: FIRMWARE });
        }
        // The last of all: the blocks behind its first have not been given away yet.
        images.push(Placed { name: "modules", address: MODULES });
        let configuration = Configuration {
            model: &self.model,
            processors: self.processors,
            memory_mib: match self.high_memory_mib {
                0 => self.memory_mib,
                high => (4 << 10) + high,
            },
            images: &images,
            medium: None,
            logging: self.logging,
            serial_lines: SerialLines::One { first: CONSOLE },
            instructions_per_second: Some(INSTRUCTIONS_PER_SECOND),
        };
        let run = configuration.start(&emulator.program, path, limit, interrupt, on_line)?;
        Ok(LinuxRun { run, console: console(&path.join(CONSOLE)) })
    }

    /// Tables of several processors, which a kernel finds in no other way.
    fn acpi(&self) -> Option<AcpiTables> {
        let processors = u8::try_from(self.processors).expect("Bochs has at most 255");
        (processors > 1).then(|| AcpiTables::of(processors, FIRMWARE))
    }

    /// Kernel, initrd and names, each from a page on, and where they end in memory.
    fn modules(&self) -> (Vec<u8>, u64) {
        let mut bytes = self.kernel.clone();
        for more in [&self.initrd, &self.names].into_iter().flatten() {
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
            bytes.extend(more);
        }
        let end = MODULES + bytes.len() as u64;
        (bytes, end)
    }

    /// The information block, behind it the policy.
    fn information(&self) -> Result<Vec<u8>> {
        let module = |text: &str, address: u64, bytes: &[u8]| {
            Ok::<_, anyhow::Error>(Module {
                address: u32::try_from(address)?,
                length: u32::try_from(bytes.len())?,
                text: text.into(),
            })
        };
        let mut place = MODULES;
        let mut modules = Vec::new();
        let files = [
            ("linux", Some(&self.kernel)),
            ("initrd", self.initrd.as_ref()),
            ("names", self.names.as_ref()),
        ];
        for (name, file) in files {
            let Some(file) = file else { continue };
            modules.push(module(name, place, file)?);
            place += file.len().next_multiple_of(PAGE) as u64;
        }
        let command_line = format!("subpage {} -- {}", self.options, self.command_line);
        let tables = self.acpi();
        // The size of the block does not depend on the addresses in it.
        let told = self.told_memory_mib.unwrap_or(self.memory_mib) << 20;
        let more = More {
            root_pointer: tables.as_ref().map(AcpiTables::pointer),
            high_memory: self.high_memory_mib << 20,
        };
        let block = |modules: &[Module]| information::block(&command_line, modules, told, more);
        let Some(policy) = &self.policy else { return block(&modules) };
        modules.push(module("policy", 0, policy)?);
        let room = block(&modules)?.len().next_multiple_of(PAGE);
        modules.pop();
        modules.push(module("policy", INFORMATION_ADDRESS + room as u64, policy)?);
        let mut bytes = block(&modules)?;
        bytes.resize(room, 0);
        bytes.extend(policy);
        ensure!(bytes.len() as u64 <= BLOCK, "the policy is too large");
        Ok(bytes)
    }

    /// The reset ROM, which touches the blocks of the modules up to `end`.
    fn rom(&self, end: u64) -> Result<Vec<u8>> {
        let mut rom = fs::read(&self.rom).context("cannot read the reset ROM")?;
        let place = rom.get_mut(TOUCH..TOUCH + 8).context("the reset ROM has not 64 KiB")?;
        place[..4].copy_from_slice(&u32::try_from(MODULES + BLOCK)?.to_le_bytes());
        place[4..].copy_from_slice(&u32::try_from(end)?.to_le_bytes());
        Ok(rom)
    }
}

/// What was printed, as far as it is text.
fn console(path: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What could not be read is missing in what is expected.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> LinuxMachine {
        LinuxMachine {
            model: "tigerlake".into(),
            processors: 1,
            memory_mib: MEMORY_MIB,
            told_memory_mib: None,
            high_memory_mib: 0,
            rom: PathBuf::new(),
            image: PathBuf::new(),
            options: "cpus=1".into(),
            kernel: vec![1; 0x1801],
            initrd: Some(vec![2; 0x10]),
            policy: Some(b"rules".to_vec()),
            names: Some(vec![3; 0x20]),
            command_line: "console=ttyS0 -- work".into(),
            logging: Logging::Errors,
        }
    }

    #[test]
    fn modules_lie_where_the_information_says() {
        let machine = machine();
        let (bytes, end) = machine.modules();
        assert_eq!((bytes[0x1800], bytes[0x1801], bytes[0x2000]), (1, 0, 2));
        assert_eq!((bytes[0x2010], bytes[0x3000]), (0, 3));
        assert_eq!(end, MODULES + 0x3020);
        let block = machine.information().expect("all of it fits");
        let policy = u32::try_from(INFORMATION_ADDRESS).expect("below 4 GiB") + 0x1000;
        for (from, to) in [
            (0x1000_0000, 0x1000_1801),
            (0x1000_2000, 0x1000_2010),
            (0x1000_3000, 0x1000_3020),
            (policy, policy + 5),
        ] {
            let range = [u32::to_le_bytes(from), u32::to_le_bytes(to)].concat();
            assert!(block.windows(8).any(|window| window == range), "{from:#x}");
        }
        assert_eq!(&block[0x1000..], b"rules");
        let words = b"subpage cpus=1 -- console=ttyS0 -- work\0";
        assert!(block.windows(words.len()).any(|window| window == words));
    }

    #[test]
    fn without_an_initrd_and_a_policy_there_are_none() {
        let machine = LinuxMachine { initrd: None, policy: None, names: None, ..machine() };
        let (bytes, end) = machine.modules();
        assert_eq!((bytes.len(), end), (0x1801, MODULES + 0x1801));
        let block = machine.information().expect("all of it fits");
        assert!(!block.windows(6).any(|window| window == b"initrd" || window == b"policy"));
    }
}
