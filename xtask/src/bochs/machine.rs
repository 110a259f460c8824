//! One start of an image in Bochs, as if a boot loader had loaded it by Multiboot2.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    configuration::{self, Configuration, Logging, Placed, Run, SerialLines},
    emulator::Emulator,
    images::{IMAGE_ADDRESS, ROOM},
    information::{self, Module, More},
};
use crate::session::Interrupt;

/// Where the image has its information block: the reset ROM hands over this number.
pub(super) const INFORMATION_ADDRESS: u64 = 0x100_0000;
/// Where the two large modules can be.
const MODULE_ADDRESSES: [u64; 2] = [0x80_0000, 0x180_0000];
/// Names of their files in the directory of a run.
const MODULE_FILES: [&str; 2] = ["module-1", "module-2"];
/// A module begins at a page.
pub(super) const PAGE: usize = 4096;

/// Lines of the guest begin so and no line of the hypervisor does: what a guest prints is never taken for
/// a result.
pub(crate) const GUEST_MARK: &str = "guest| ";

/// Usable memory ends at this address, in MiB, if nothing else is said.
pub(crate) const MEMORY_MIB: u64 = 256;

/// What a module is made of.
#[derive(Clone, Debug)]
pub(crate) enum Contents {
    /// A file; at most two modules can be such.
    File(PathBuf),
    /// Bytes, which lie behind the information block.
    Bytes(Vec<u8>),
}

/// What a start differs in.
#[derive(Clone, Debug)]
pub(crate) struct BochsMachine {
    pub(crate) model: String,
    pub(crate) processors: u32,
    /// Usable memory ends at this address, in MiB.
    pub(crate) memory_mib: u64,
    pub(crate) rom: PathBuf,
    /// The flat image at 1 MiB.
    pub(crate) image: PathBuf,
    pub(crate) command_line: String,
    /// Name, of which the first word says what it is, and contents.
    pub(crate) modules: Vec<(String, Contents)>,
    /// Changes the information block, for tests with a damaged one.
    pub(crate) damage: Option<fn(&mut Vec<u8>)>,
    pub(crate) logging: Logging,
}

impl BochsMachine {
    /// Starts it; `on_line` sees each line of output as it comes. After `limit` it is killed.
    pub(crate) fn start(
        &self,
        emulator: &Emulator,
        limit: Duration,
        interrupt: &Interrupt,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Run> {
        let directory = tempfile::Builder::new()
            .prefix("subpage-bochs-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let path = directory.path();
        link(&self.rom, &path.join(configuration::ROM))?;
        let mut images = vec![Placed { name: "image", address: IMAGE_ADDRESS }];
        link(&self.image, &path.join("image"))?;

        let mut places = MODULE_ADDRESSES.into_iter().zip(MODULE_FILES);
        for (_, contents) in &self.modules {
            let Contents::File(file) = contents else { continue };
            let (address, name) = places.next().context("there is room for two large modules")?;
            link(file, &path.join(name))?;
            images.push(Placed { name, address });
        }
        fs::write(path.join("information"), self.information()?)
            .context("cannot write the Multiboot2 information")?;
        images.push(Placed { name: "information", address: INFORMATION_ADDRESS });

        let configuration = Configuration {
            model: &self.model,
            processors: self.processors,
            memory_mib: configuration::MEMORY_MIB,
            images: &images,
            medium: None,
            logging: self.logging,
            serial_lines: SerialLines::None,
            instructions_per_second: None,
        };
        configuration.start(&emulator.program, path, limit, interrupt, on_line)
    }

    /// The information block, behind it the small modules.
    fn information(&self) -> Result<Vec<u8>> {
        // The size of the block does not depend on the addresses in it.
        let size = self.block(&[])?.len();
        let mut places = MODULE_ADDRESSES.into_iter();
        let mut tail = Vec::new();
        let mut addresses = Vec::new();
        for (text, contents) in &self.modules {
            let place = match contents {
                Contents::File(file) => {
                    let length = fs::metadata(file)
                        .with_context(|| format!("cannot read {}", file.display()))?
                        .len();
                    ensure!(
                        length <= ROOM,
                        "{} has {length} bytes; there is room for {ROOM}",
                        file.display()
                    );
                    (places.next().context("there is room for two large modules")?, length)
                }
                Contents::Bytes(bytes) => {
                    tail.resize(tail.len().next_multiple_of(PAGE), 0);
                    let offset = size.next_multiple_of(PAGE) + tail.len();
                    tail.extend(bytes);
                    (INFORMATION_ADDRESS + offset as u64, bytes.len() as u64)
                }
            };
            ensure!(tail.len() as u64 <= ROOM / 2, "the module {text:?} is too large");
            addresses.push(place);
        }
        let mut bytes = self.block(&addresses)?;
        assert_eq!(bytes.len(), size, "the same tags");
        if let Some(damage) = self.damage {
            damage(&mut bytes);
        }
        bytes.resize(size.next_multiple_of(PAGE), 0);
        bytes.extend(tail);
        Ok(bytes)
    }

    /// The block; modules without an address are at 0.
    fn block(&self, addresses: &[(u64, u64)]) -> Result<Vec<u8>> {
        let module = |(number, (text, _)): (usize, &(String, Contents))| {
            let (address, length) = addresses.get(number).copied().unwrap_or_default();
            Ok(Module {
                address: u32::try_from(address)?,
                length: u32::try_from(length)?,
                text: text.clone(),
            })
        };
        let modules = self.modules.iter().enumerate().map(module).collect::<Result<Vec<_>>>()?;
        information::block(&self.command_line, &modules, self.memory_mib << 20, More::default())
    }
}

pub(super) fn link(file: &Path, name: &Path) -> Result<()> {
    let target = file.canonicalize().with_context(|| format!("there is no {}", file.display()))?;
    symlink(target, name).context("cannot make a symbolic link")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(modules: Vec<(String, Contents)>) -> BochsMachine {
        BochsMachine {
            model: "tigerlake".into(),
            processors: 1,
            memory_mib: MEMORY_MIB,
            rom: PathBuf::new(),
            image: PathBuf::new(),
            command_line: "subpage".into(),
            modules,
            damage: None,
            logging: Logging::Errors,
        }
    }

    #[test]
    fn small_modules_lie_behind_the_block_on_pages() {
        let modules = vec![
            ("policy".to_owned(), Contents::Bytes(b"rules".to_vec())),
            ("cases".to_owned(), Contents::Bytes(vec![7; 5000])),
            ("empty".to_owned(), Contents::Bytes(Vec::new())),
        ];
        let bytes = machine(modules).information().expect("all of it fits");
        assert_eq!(&bytes[PAGE..PAGE + 5], b"rules");
        assert_eq!(bytes[2 * PAGE..2 * PAGE + 5000], [7; 5000]);
        let block = &bytes[..PAGE];
        for (start, length) in [(PAGE, 5), (2 * PAGE, 5000), (4 * PAGE, 0)] {
            let start = u32::try_from(0x100_0000 + start).expect("far below 4 GiB");
            let range = [start.to_le_bytes(), (start + length).to_le_bytes()].concat();
            assert!(block.windows(8).any(|window| window == range), "{start:#x}");
        }
    }

    #[test]
    fn damage_stays_within_the_block() {
        let mut machine = machine(vec![("policy".into(), Contents::Bytes(b"rules".to_vec()))]);
        machine.damage = Some(|block| block.truncate(12));
        let bytes = machine.information().expect("all of it fits");
        assert_eq!(bytes[12..PAGE], [0; PAGE - 12]);
        assert_eq!(&bytes[PAGE..], b"rules");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let large = vec![0; usize::try_from(ROOM).expect("a few MiB")];
        assert!(machine(vec![("policy".into(), Contents::Bytes(large))]).information().is_err());
        let file = Contents::File("/nonexistent/file".into());
        assert!(machine(vec![("guest".into(), file)]).information().is_err());
    }
}
