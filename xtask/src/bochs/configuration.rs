//! A Bochs of ours: its configuration file, one run of it, and what came out.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    execute::{self, Ending, Limits},
    session::Interrupt,
};

/// Name of the ROM image in the directory of a run: 64 KiB that end at 4 GiB.
pub(crate) const ROM: &str = "rom";
/// Name of the VGA ROM image: without one Bochs does not start, and an empty one is enough if there is no
/// BIOS.
pub(crate) const VGA_ROM: &str = "vga-rom";
const FILE: &str = "bochsrc";
const LOG: &str = "log";
const ERRORS: &str = "errors";

/// The emulated memory, if no more is needed, in MiB. It is in blocks of 8 MiB: Bochs reads an image
/// in one piece into the block where it begins.
pub(crate) const MEMORY_MIB: u64 = 512;
/// The most that Bochs takes of this machine, in MiB.
const MOST_HOST_MIB: u64 = 2048;
/// Bytes of a block; no image may cross from one into the next, unless that is not in use yet.
pub(crate) const BLOCK: u64 = 8 << 20;

/// How many lines at the end of Bochs's own log are of interest.
const LOG_LINES: usize = 12;
/// How far back from the end of the log they are looked for, in bytes.
const LOG_TAIL: u64 = 16 << 10;

/// An image in memory at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Name of the file in the directory of the run.
    pub(crate) name: &'static str,
    pub(crate) address: u64,
}

/// What the machine starts from; then its ROM is a BIOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A disc in a drive.
    Disc,
    /// The first disk, as a BIOS shows a USB stick.
    Stick,
}

impl Medium {
    /// Name of the image in the directory of the run.
    pub(crate) const FILE: &'static str = "medium";

    fn lines(self) -> String {
        let name = Self::FILE;
        match self {
            Self::Disc => {
                format!("ata1-master: type=cdrom, path={name}, status=inserted\nboot: cdrom\n")
            }
            Self::Stick => format!("ata0-master: type=disk, path={name}, mode=flat\nboot: disk\n"),
        }
    }
}

/// What Bochs itself writes down about its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logging {
    /// A line for each error, which tells exactly why a VM entry failed; and one for each EPT
    /// violation.
    Errors,
    /// Only what ends it: for runs of a million exits.
    Fatal,
}

/// Where the serial lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SerialLines {
    None,
    /// The first to a file in the directory of the run, and no second one.
    One {
        first: &'static str,
    },
    /// The first to a file in the directory of the run, the second to standard output.
    Two {
        first: &'static str,
    },
}

/// What differs from run to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration<'a> {
    pub(crate) model: &'a str,
    pub(crate) processors: u32,
    pub(crate) memory_mib: u64,
    /// At most four.
    pub(crate) images: &'a [Placed],
    /// What it starts from; `None` if the ROM is ours and knows what to do.
    pub(crate) medium: Option<Medium>,
    pub(crate) logging: Logging,
    pub(crate) serial_lines: SerialLines,
    /// How many make a second of its clock; Bochs's own choice is 4 million.
    pub(crate) instructions_per_second: Option<u32>,
}

/// One run of Bochs that has come to its end. Its exit status says nothing: it is always 1.
#[derive(Debug)]
pub(crate) struct Run {
    /// What Bochs printed about itself.
    pub(crate) banner: String,
    /// What the program inside wrote to port E9H.
    pub(crate) lines: Vec<String>,
    pub(crate) ending: Ending,
    /// The end of what Bochs had to report.
    pub(crate) log: Vec<String>,
}

impl Run {
    /// Why it ended, as far as Bochs says.
    pub(crate) fn complaint(&self) -> String {
        match self.ending {
            Ending::Exited(_) => self.log.last().map_or("it says nothing", String::as_str).into(),
            Ending::TimeLimit => "its time limit was reached".into(),
            Ending::Runaway => "it prints without end".into(),
            Ending::LeftBehind => "it leaves a process behind".into(),
            Ending::Interrupted => "interrupted".into(),
        }
    }
}

impl Configuration<'_> {
    /// The configuration file. All names in it are relative and plain, so that none needs quotes.
    fn text(&self) -> String {
        let ips = self.instructions_per_second.map_or(String::new(), |ips| format!(", ips={ips}"));
        let mut text = format!(
            "cpu: model={}, count={}, reset_on_triple_fault=0{ips}\n\
             memory: guest={memory}, host={host}, block_size={block}\n\
             romimage: file={ROM}{rom_address}\n\
             vgaromimage: file={VGA_ROM}\n{medium}",
            self.model,
            self.processors,
            // A BIOS says itself how large it is.
            rom_address = if self.medium.is_none() { ", address=0xffff0000" } else { "" },
            medium = self.medium.map_or(String::new(), Medium::lines),
            memory = self.memory_mib,
            // Only what is used takes memory of this machine.
            host = self.memory_mib.min(MOST_HOST_MIB),
            block = BLOCK >> 10,
        );
        for (number, image) in self.images.iter().enumerate() {
            writeln!(
                text,
                "optramimage{}: file={}, address={:#x}",
                number + 1,
                image.name,
                image.address
            )
            .expect("writing to a string cannot fail");
        }
        let lines = match self.serial_lines {
            SerialLines::None => [None, None],
            SerialLines::One { first } => [Some(first), None],
            SerialLines::Two { first } => [Some(first), Some("/dev/stdout")],
        };
        for (number, file) in (1..).zip(lines) {
            if let Some(file) = file {
                writeln!(text, "com{number}: enabled=1, mode=file, dev={file}")
                    .expect("writing to a string cannot fail");
            }
        }
        let errors = match self.logging {
            Logging::Errors => "report",
            Logging::Fatal => "ignore",
        };
        // Two runs of the same images are the same: the clock counts instructions, from a fixed
        // day on. A message of the kind `info` at the wrong moment can make Bochs wait for itself.
        write!(
            text,
            "display_library: nogui\n\
             clock: sync=none, time0=946684800\n\
             port_e9_hack: enabled=1\n\
             panic: action=fatal\n\
             error: action={errors}\n\
             info: action=ignore\n\
             debug: action=ignore\n\
             log: {LOG}\n"
        )
        .expect("writing to a string cannot fail");
        text
    }

    /// The command that runs Bochs in `directory`, where its files are written now.
    pub(crate) fn command(&self, program: &Path, directory: &Path) -> Result<Command> {
        assert!(self.images.len() <= 4, "Bochs takes four images");
        let write = |name: &str, contents: &[u8]| {
            fs::write(directory.join(name), contents)
                .with_context(|| format!("cannot write {name}"))
        };
        write(FILE, self.text().as_bytes())?;
        if self.medium.is_none() {
            write(VGA_ROM, &[0; 512])?;
        }
        let mut command = Command::new(program);
        command.args(["-q", "-f", FILE]).current_dir(directory);
        Ok(command)
    }

    /// Runs Bochs in `directory`, where the ROM and the images are, until it ends or `limit` has
    /// passed. `on_line` sees each line from inside as it comes.
    pub(crate) fn start(
        &self,
        program: &Path,
        directory: &Path,
        limit: Duration,
        interrupt: &Interrupt,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Run> {
        let command = execute::limited(&self.command(program, directory)?, limit);
        let errors = File::create(directory.join(ERRORS)).context("cannot write a file")?;
        let interrupted = || interrupt.raised();
        let limits = Limits::new(Instant::now() + limit, &interrupted);
        let mut lines = Vec::new();
        let mut banner = Banner::default();
        let finished = execute::run_with_errors_to(command, Some(errors), &limits, &mut |line| {
            if !banner.takes(line) {
                on_line(line);
                lines.push(line.to_owned());
            }
        })?;
        let mut log = tail(&directory.join(LOG)).unwrap_or_default();
        if log.is_empty() {
            // It did not get as far as to open one.
            log = tail(&directory.join(ERRORS)).unwrap_or_default();
        }
        Ok(Run { banner: banner.text, lines, ending: finished.ending, log })
    }
}

/// Tells Bochs's own first lines from those of the program inside: they stand between two lines
/// of `=`.
#[derive(Debug, Default)]
struct Banner {
    text: String,
    rules: u32,
}

impl Banner {
    fn takes(&mut self, line: &str) -> bool {
        if self.rules == 2 {
            return false;
        }
        let rule = line.len() > 20 && line.bytes().all(|byte| byte == b'=');
        self.rules += u32::from(rule);
        self.text += line;
        self.text.push('\n');
        true
    }
}

/// The last lines of a file that may be large.
fn tail(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    let mut lines = VecDeque::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let line = line.trim_end();
        if line.is_empty() || line.bytes().all(|byte| byte == b'=') || is_routine(line) {
            continue;
        }
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
    Ok(lines.into())
}

/// What Bochs says in every run, or of every EPT violation; the end that the program inside asked
/// for is no news either.
fn is_routine(line: &str) -> bool {
    const ROUTINE: [&str; 5] = [
        "VMEXIT: ",
        "Shutdown port: shutdown requested",
        "BXSHARE not set",
        "reading configuration from",
        "Bochs is exiting with the following message",
    ];
    ROUTINE.iter().any(|routine| line.contains(routine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_a_line() {
        let images = [
            Placed { name: "image", address: 0x10_0000 },
            Placed { name: "guest", address: 0x80_0000 },
        ];
        let text = Configuration {
            model: "tigerlake",
            processors: 3,
            images: &images,
            medium: None,
            logging: Logging::Errors,
            serial_lines: SerialLines::Two { first: "console" },
            instructions_per_second: None,
            memory_mib: 768,
        }
        .text();
        for line in [
            "cpu: model=tigerlake, count=3, reset_on_triple_fault=0",
            "memory: guest=768, host=768, block_size=8192",
            "com1: enabled=1, mode=file, dev=console",
            "com2: enabled=1, mode=file, dev=/dev/stdout",
            "romimage: file=rom, address=0xffff0000",
            "optramimage1: file=image, address=0x100000",
            "optramimage2: file=guest, address=0x800000",
            "port_e9_hack: enabled=1",
            "panic: action=fatal",
            "error: action=report",
            "info: action=ignore",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        let quiet = Configuration {
            model: "tigerlake",
            processors: 1,
            images: &[],
            medium: None,
            logging: Logging::Fatal,
            serial_lines: SerialLines::None,
            instructions_per_second: None,
            memory_mib: MEMORY_MIB,
        };
        assert!(quiet.text().contains("error: action=ignore\n"));
        assert!(!quiet.text().contains("optramimage") && !quiet.text().contains("com1"));
        let machine = Configuration { medium: Some(Medium::Disc), ..quiet };
        for line in ["romimage: file=rom", "boot: cdrom"] {
            assert!(machine.text().lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn the_banner_ends_with_its_second_rule() {
        let rule = "=".repeat(72);
        let mut banner = Banner::default();
        for line in [&rule, "   Bochs x86 Emulator 3.0", &rule] {
            assert!(banner.takes(line), "{line}");
        }
        assert!(!banner.takes("hypervisor: here"));
        assert!(!banner.takes(&rule));
        assert!(banner.text.contains("Emulator 3.0"));
    }

    #[test]
    fn of_a_log_only_the_end_is_read() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join(LOG);
        let mut text = String::new();
        for number in 0..10_000 {
            writeln!(text, "line {number}").expect("writing to a string cannot fail");
        }
        text += "====\n[UNMAP ] >>PANIC<< Shutdown port: shutdown requested\n";
        fs::write(&path, text).expect("files can be written");
        let lines = tail(&path).expect("it is there");
        assert_eq!(lines.len(), LOG_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 9999"));
    }
}
