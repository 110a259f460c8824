//! One start of Bochs as a machine of its own: by its BIOS from a disc or a stick.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    configuration::{Configuration, Logging, Medium, ROM, Run, SerialLines, VGA_ROM},
    emulator::Emulator,
    machine::link,
};
use crate::session::Interrupt;

const CONSOLE: &str = "console";

/// About what Bochs does in a second: the menu's time passes by this clock.
const INSTRUCTIONS_PER_SECOND: u32 = 40_000_000;

/// What a start differs in.
#[derive(Clone, Debug)]
pub(crate) struct MediumMachine<'a> {
    pub(crate) model: &'a str,
    pub(crate) processors: u32,
    pub(crate) memory_mib: u64,
    pub(crate) bios: PathBuf,
    pub(crate) vga_bios: PathBuf,
    pub(crate) image: &'a Path,
    pub(crate) medium: Medium,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct MediumRun {
    /// The hypervisor's lines on port E9H, and how Bochs ended.
    pub(crate) run: Run,
    /// What came by the first serial port.
    pub(crate) serial: Vec<String>,
}

impl MediumMachine<'_> {
    /// Starts it. After `limit` it is killed.
    pub(crate) fn start(
        &self,
        emulator: &Emulator,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<MediumRun> {
        let directory = tempfile::Builder::new()
            .prefix("subpage-bochs-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let path = directory.path();
        link(&self.bios, &path.join(ROM))?;
        link(&self.vga_bios, &path.join(VGA_ROM))?;
        // Bochs locks a disk, and may be given the same image several times at once.
        fs::copy(self.image, path.join(Medium::FILE))
            .with_context(|| format!("cannot read {}", self.image.display()))?;
        let configuration = Configuration {
            model: self.model,
            processors: self.processors,
            memory_mib: self.memory_mib,
            images: &[],
            medium: Some(self.medium),
            logging: Logging::Fatal,
            serial_lines: SerialLines::One { first: CONSOLE },
            instructions_per_second: Some(INSTRUCTIONS_PER_SECOND),
        };
        let run = configuration.start(&emulator.program, path, limit, interrupt, &mut |_| {})?;
        let bytes = fs::read(path.join(CONSOLE)).unwrap_or_default();
        let serial = String::from_utf8_lossy(&bytes);
        Ok(MediumRun { run, serial: serial.lines().map(|line| line.trim_end().into()).collect() })
    }
}
