//! Recording a whole machine: QEMU with a plugin of our own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::header::Header;
use crate::lackey::LackeySummary;
use crate::names::Names;
use crate::packets::{self, MAX_PACKET, Packet};
use crate::processes::TextSource as _;
use crate::record::{RecordError, Recorded, Told};
use crate::spool::{Next, Source, Spool};
use crate::stores_tool::{self, ToolError};
use crate::valgrind::{Traced, find_program};
use crate::write::Write;

const SOURCE: &str = include_str!("../plugin/subpage_machine.c");
const FLAGS: [&str; 4] = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden"];
/// The machine's time follows its instructions and begins at a fixed date, and its random numbers have a
/// fixed seed, so two runs of the same input do the same.
const REPEATABLE: [&str; 8] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "clock=vm,base=2026-01-01T00:00:00",
    "-seed",
    "1",
];
/// Options that the recorder sets, or that leave the emulator.
const OURS: [&str; 7] =
    ["-accel", "-icount", "-enable-kvm", "-rtc", "-seed", "-plugin", "-daemonize"];

/// What machine to record.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// QEMU (`qemu-system-x86_64`): a path, or a name that `PATH` leads to.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Names of physical addresses.
    pub names: Names,
    /// Writes after which the machine is ended; the trace then ends there.
    pub limit: Option<u64>,
    /// Where the plugin is kept, in place of the user's cache directory.
    pub cache: Option<PathBuf>,
    /// As in [`Recording::signal`]; QEMU ends the machine at the first one.
    ///
    /// [`Recording::signal`]: crate::Recording::signal
    pub signal: &'a AtomicUsize,
}

/// Runs a machine in QEMU's emulator, and records every write of its processors to memory, by the physical
/// address: of firmware, kernel and programs. Not of devices, and not those that are no instruction's: the
/// frames of exceptions and interrupts, and accessed and dirty bits. One processor runs at a time, and time follows
/// the instructions, so two recordings of the same machine are the same.
///
/// # Errors
/// Those of [`record()`](crate::record()), [`RecordError::MachineOption`] and
/// [`RecordError::OtherProcess`].
pub fn record_machine(
    output: &Path,
    machine: &Machine<'_>,
    tell: impl FnMut(Told<'_>),
) -> Result<Recorded, RecordError> {
    let Machine { program, arguments, signal, .. } = machine;
    let file = find_program(program)?;
    let ours = arguments.iter().find(|argument| {
        OURS.iter().any(|option| {
            let text = argument.as_encoded_bytes();
            // QEMU takes two dashes as well.
            text == option.as_bytes() || text.strip_prefix(b"-") == Some(option.as_bytes())
        })
    });
    if let Some(option) = ours {
        return Err(RecordError::MachineOption { option: option.to_string_lossy().into_owned() });
    }
    let spool = Spool::new(output)?;
    let plugin = plugin(machine.cache.as_deref());
    // A Ctrl-C ends the compiler as well, and is no fault of it.
    if signal.load(Ordering::Relaxed) != 0 {
        return Err(RecordError::Cancelled);
    }
    let plugin = plugin.map_err(RecordError::Tool)?;
    let mut command = Command::new(file);
    command.args(arguments).args(REPEATABLE);
    let traced = Traced::start_machine(command, &plugin, signal)?;
    let mut stores = Stores {
        pid: traced.pid(),
        traced,
        limit: machine.limit,
        chunk: vec![0; MAX_PACKET].into_boxed_slice(),
        bytes: 0,
        writes: 0,
        records: 0,
        malformed: 0,
        missing: 0,
        has_stranger: false,
        is_whole: false,
        is_limited: false,
    };
    let never = AtomicBool::new(false);
    let filled = spool.fill(&mut stores, &never, tell)?;
    if stores.is_limited || filled.is_full() {
        // It may have ended by itself meanwhile.
        let _ = stores.traced.ask_to_end();
    }
    let status = stores.traced.wait().map_err(|source| RecordError::Start { source })?;
    if stores.writes == 0 && stores.has_stranger {
        return Err(RecordError::OtherProcess { program: program.to_string_lossy().into_owned() });
    }
    if stores.writes == 0 {
        return Err(RecordError::Nothing { status });
    }
    let words = std::iter::once(program).chain(arguments);
    let command = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let header =
        Header { command, names: machine.names.clone(), is_machine: true, ..Header::default() };
    let placed = filled.place(&header, &never)?;
    let text = LackeySummary { malformed: stores.malformed, ..LackeySummary::default() };
    Ok(Recorded {
        writes: placed.writes,
        file_bytes: placed.bytes,
        is_full: placed.is_full,
        text,
        tool: None,
        missing: stores.missing,
        unfinished: 0,
        is_whole: (!stores.is_limited).then_some(stores.is_whole),
        is_limited: stores.is_limited,
        names: header.names.len(),
        names_left_out: header.names.left_out(),
        nameless: None,
        status: Some(status),
        processes: 1,
        processes_left_out: 0,
    })
}

/// The plugin; it is made if it is not there.
fn plugin(cache: Option<&Path>) -> Result<PathBuf, ToolError> {
    let root = stores_tool::root(cache)?;
    let made_of = format!("{SOURCE}{FLAGS:?}");
    let path = root.join(format!("qemu-plugin-{:08x}.so", crc32fast::hash(made_of.as_bytes())));
    let failed = |source| ToolError::Cache { path: path.clone(), source };
    if !path.exists() {
        let compiler = stores_tool::compiler()?;
        let place = tempfile::Builder::new().prefix(".building-").tempdir_in(&root);
        let place = place.map_err(failed)?;
        let (source, made) = (place.path().join("subpage_machine.c"), place.path().join("so"));
        fs::write(&source, SOURCE).map_err(failed)?;
        let mut command = Command::new(compiler);
        command.args(FLAGS).arg("-o").arg(&made).arg(&source);
        stores_tool::run(&mut command, "QEMU")?;
        // Whatever the umask: others may not write to what is loaded.
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        fs::File::open(&made).and_then(|file| file.sync_all()).map_err(failed)?;
        // The same from whoever is faster.
        fs::rename(&made, &path).map_err(failed)?;
    }
    if !stores_tool::is_private(&path.symlink_metadata().map_err(failed)?) {
        return Err(ToolError::NotPrivate { path });
    }
    Ok(path)
}

/// The stores of a machine that runs.
struct Stores<'a> {
    traced: Traced<'a>,
    pid: u32,
    limit: Option<u64>,
    chunk: Box<[u8]>,
    bytes: u64,
    writes: u64,
    records: u64,
    malformed: u64,
    /// Stores that were told of and did not come: QEMU has no address of them.
    missing: u64,
    /// Another process than the one that was started has sent packets.
    has_stranger: bool,
    is_whole: bool,
    is_limited: bool,
}

impl Stores<'_> {
    /// Takes in how many stores there were up to here.
    fn told(&mut self, total: u64) {
        match total.checked_sub(self.records) {
            Some(missing) => self.missing = missing,
            None => self.malformed += 1,
        }
    }
}

impl Source for Stores<'_> {
    fn next(&mut self, writes: &mut Vec<Write>) -> io::Result<Option<Next>> {
        while !self.is_limited {
            let Some((pid, length)) = self.traced.receive(&mut self.chunk)? else { break };
            self.bytes += length as u64;
            if pid != self.pid {
                self.has_stranger = true;
                continue;
            }
            match Packet::parse(&self.chunk[..length]) {
                Packet::Stores { records, total } => {
                    self.malformed += packets::writes(records, writes);
                    self.records += packets::count(records);
                    self.is_whole = false;
                    self.told(total);
                    self.writes += writes.len() as u64;
                    if let Some(limit) = self.limit
                        && self.writes >= limit
                    {
                        let beyond = usize::try_from(self.writes - limit).unwrap_or(usize::MAX);
                        writes.truncate(writes.len().saturating_sub(beyond));
                        self.writes = limit;
                        self.is_limited = true;
                    }
                    return Ok(Some(Next::Writes(0)));
                }
                Packet::End { total } => {
                    self.told(total);
                    self.is_whole = self.records == total;
                }
                Packet::Maps(_) | Packet::Malformed | Packet::Text(_) => self.malformed += 1,
            }
        }
        Ok(None)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
