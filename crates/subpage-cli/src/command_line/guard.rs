//! Arguments of `guard`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
#[cfg(feature = "kvm")]
pub(crate) use subpage_kvm::boot::MAX_PROCESSORS;
#[cfg(feature = "metrics")]
use subpage_kvm::metrics::parse_address;

use crate::events::Detail;

use super::values::{FeatureChoice, file, parse_bytes, parse_features, parse_gpa, parse_seconds};

/// Guest memory where nothing else is asked for, in bytes: 128 MiB.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// No address is one where nothing serves metrics.
#[cfg(not(feature = "metrics"))]
fn parse_address(_: &str) -> Result<SocketAddr, &'static str> {
    Err(crate::guard::NO_METRICS)
}

/// Most virtual processors of a guest: any number is refused where there is none.
#[cfg(not(feature = "kvm"))]
pub(crate) const MAX_PROCESSORS: u32 = u16::MAX as u32;

/// Heading of the options of guests on KVM.
pub(super) const ON_KVM: &str = "Guests on KVM";

/// What enforces the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BackendChoice {
    /// What suits the guest: for a trace the software model, for a program or a kernel KVM
    #[default]
    Auto,
    /// The software model of the processor's memory side
    Model,
    /// A virtual machine on the kernel's KVM
    Kvm,
}

/// How writes to guarded pages are made to leave the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TrapChoice {
    /// By mprotect; where KVM emulates the guest's kernel, by slots for one processor
    #[default]
    Auto,
    /// By read-only memory slots, where KVM emulates the guest's kernel, else by mprotect; with several processors that is not exact for locked instructions
    Slots,
    /// By pages of the host's mapping that are write-protected with mprotect
    #[value(alias = "view")] // Its former name.
    Mprotect,
}

/// What becomes of page tables of the guest in guarded pages, where every walk of them leaves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PageTables {
    /// Each instruction that uses them is executed by itself: exact, and a thousand times slower
    #[default]
    Step,
    /// The guest is ended, and the rule and the table are named
    Refuse,
}

/// What happens when the guest cannot continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// Keep it as it is, for `subpage ctl`, until `subpage ctl SOCKET stop` or a signal
    Wait,
    /// End
    Exit,
}

/// What happens when a rule with the action `stop` is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnStop {
    /// The guest ends.
    End,
    /// It is held.
    Wait,
    /// It is saved to a file, and ends.
    Save(PathBuf),
    /// It is held for a debugger.
    Gdb,
}

fn parse_on_stop(text: &str) -> Result<OnStop, &'static str> {
    Ok(match text {
        "end" => OnStop::End,
        "wait" => OnStop::Wait,
        "gdb" => OnStop::Gdb,
        _ => match text.strip_prefix("save=") {
            Some(file) if !file.is_empty() => OnStop::Save(file.into()),
            _ => return Err("it is `end`, `wait`, `save=FILE` or `gdb`"),
        },
    })
}

/// Where a debugger is waited for.
#[cfg(feature = "kvm")]
pub(crate) type DebuggerAddress = subpage_kvm::gdb::DebuggerAddress;

/// Where there is no guest, there is no debugger: its address is any text.
#[cfg(not(feature = "kvm"))]
pub(crate) type DebuggerAddress = String;

fn parse_debugger(text: &str) -> Result<DebuggerAddress, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// Arguments of `guard`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct GuardArguments {
    /// The rules (TOML); `-` is standard input. Several files are one policy
    #[arg(
        long,
        short,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        required_unless_present = "restore"
    )]
    pub policy: Vec<PathBuf>,
    /// Write a self-contained page about the run
    #[arg(long, value_name = "FILE.html", value_hint = ValueHint::FilePath, value_parser = file())]
    pub report: Option<PathBuf>,
    /// Print one JSON object a line for every event; a guest's console goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Print warnings, failures, what was lost and what was denied in all, and no more: no events, no
    /// notices, and a guest's console only into the file of `--console`
    #[arg(long, short, conflicts_with_all = ["json", "verbose"])]
    pub quiet: bool,
    /// Print every event, also where there are many
    #[arg(long, short, conflicts_with = "json")]
    pub verbose: bool,
    /// Treat every warning as an error: nothing is run if one is known before, and the status is 2 if
    /// one comes later and nothing was denied
    #[arg(long)]
    pub strict: bool,
    /// Which process of a trace of several, by its number in `subpage plan TRACE --processes`
    /// [default: the program that was recorded, after its last exec]
    #[arg(long, value_name = "N")]
    pub process: Option<u16>,
    /// What enforces the rules
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendChoice,
    /// A trace (`-`: from standard input), a static ELF64 program, a Linux kernel (bzImage or vmlinux), a
    /// Multiboot kernel, or with --load-address any file of code
    #[arg(value_name = "GUEST", value_hint = ValueHint::FilePath, required_unless_present = "restore")]
    pub guest: Option<PathBuf>,
    /// What only a guest on KVM has.
    #[command(flatten)]
    pub machine: MachineArguments,
}

/// What only a guest on KVM has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = ON_KVM)]
pub struct MachineArguments {
    /// Virtual processors [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PROCESSORS)))]
    pub cpus: Option<u16>,
    /// Memory, for example 128M or 2G (powers of 1024) [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Features of the processor over those that this KVM offers, with commas: FEATURE must be there,
    /// -FEATURE is left out with all that need it; names as `avx2` in /proc/cpuinfo
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, conflicts_with = "restore", value_parser = parse_features)]
    pub cpu: Option<FeatureChoice>,
    /// Initial RAM disk of a Linux kernel; for a Multiboot kernel, a module
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub initrd: Option<PathBuf>,
    /// Command line of a kernel
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// The guest is a flat file of 64-bit code: load it here and begin at its first byte
    #[arg(long, value_name = "ADDRESS", value_parser = parse_gpa)]
    pub load_address: Option<u64>,
    /// Names for `region` and `symbol` in the policy: the symbols of an ELF file, where its load segments
    /// put them, those in a Linux image (vmlinuz), or a list as /proc/kallsyms or System.map, at their
    /// values minus 0xffffffff80000000
    /// [default: the guest's own, if it is an ELF file or a Linux image]; for a trace, the program that was recorded, for
    /// fields and elements of what it names; with `--restore`, the saved guest's kernel or ELF file, for the
    /// functions in its events
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// Go on from a file that `subpage ctl SOCKET save FILE` wrote; it holds memory, processors and
    /// rules
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        value_parser = file(),
        conflicts_with_all = ["policy", "guest", "cpus", "memory", "initrd", "cmdline", "load_address"]
    )]
    pub restore: Option<PathBuf>,
    /// What the guest's serial port receives: a file, or `-` for standard input, of which a terminal
    /// gives whole lines [default: nothing]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub input: Option<PathBuf>,
    /// Where the guest's console goes: a file to create, or `none` [default: between the events, each
    /// line marked; with `--json`, standard error; with `--quiet`, `none`]
    #[arg(long, value_name = "FILE|none", value_hint = ValueHint::FilePath, value_parser = file())]
    pub console: Option<PathBuf>,
    /// Where `subpage ctl` reaches the guest: a socket to create [default: one of its own, printed]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, value_parser = file())]
    pub control: Option<PathBuf>,
    /// Serve metrics for Prometheus at this address; without a host, for this machine alone
    #[arg(long, value_name = "[HOST:]PORT", value_parser = parse_address)]
    pub metrics: Option<SocketAddr>,
    /// How writes to guarded pages are trapped [default: auto]
    #[arg(long, value_enum, value_name = "HOW")]
    pub trap: Option<TrapChoice>,
    /// What becomes of page tables of the guest in guarded pages, on a KVM for which a walk of them is a
    /// write [default: step]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub page_tables: Option<PageTables>,
    /// What happens when the guest cannot continue [default: wait on a terminal, else exit]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_failure: Option<OnFailure>,
    /// What happens when a rule with the action `stop` is met: `end`; `wait`: the guest is held for `subpage
    /// ctl`; `save=FILE`: it is saved there, and ends; `gdb`: it is held for gdb [default: end]
    #[arg(long, value_name = "WHAT", value_parser = parse_on_stop)]
    pub on_stop: Option<OnStop>,
    /// Wait for gdb at a port of this machine, HOST:PORT, or a socket to create, whose path has a slash. The
    /// guest begins when gdb lets it; with `--on-stop gdb` it begins at once
    #[arg(long, value_name = "ADDR", value_parser = parse_debugger)]
    pub gdb: Option<DebuggerAddress>,
    /// End the guest after this time
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
}

impl GuardArguments {
    /// How much is told to people.
    pub fn detail(&self) -> Detail {
        match (self.quiet, self.verbose) {
            (true, _) => Detail::Quiet,
            (false, true) => Detail::All,
            (false, false) => Detail::Normal,
        }
    }

    /// Every file that is read.
    pub fn inputs(&self) -> impl Iterator<Item = &Path> {
        let machine = &self.machine;
        let files =
            [&self.guest, &machine.initrd, &machine.symbols, &machine.input, &machine.restore];
        files.into_iter().flatten().chain(&self.policy).map(PathBuf::as_path)
    }

    /// The files that are made or written anew, with their names for people.
    pub fn written_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files =
            [("the report", self.report.as_deref()), ("the console", self.machine.console_file())];
        files.into_iter().filter_map(|(what, path)| Some((what, path?)))
    }

    /// Every file that is written, with the option that names it.
    pub fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let machine = &self.machine;
        let files = [
            ("`--report`", self.report.as_deref()),
            ("`--console`", machine.console_file()),
            ("`--control`", machine.control.as_deref()),
            ("`--on-stop save=`", machine.saved_at_stop()),
        ];
        files.into_iter().filter_map(|(option, path)| Some((option, path?)))
    }

    /// The files that no saved guest may replace while the guest runs: all that are read, but a saved
    /// guest, and all that are written.
    pub fn kept(&self) -> Vec<PathBuf> {
        let restored = self.machine.restore.as_deref();
        let read = self.inputs().filter(|path| Some(*path) != restored).map(Path::to_owned);
        read.chain(self.outputs().map(|(_, path)| path.to_owned())).collect()
    }
}

impl MachineArguments {
    /// The file that the guest's console goes to, if it has one of its own.
    pub fn console_file(&self) -> Option<&Path> {
        self.console.as_deref().filter(|path| *path != Path::new("none"))
    }

    /// The file that a guest is saved to when a rule stops it.
    pub fn saved_at_stop(&self) -> Option<&Path> {
        if let Some(OnStop::Save(file)) = &self.on_stop { Some(file) } else { None }
    }

    /// The options that were given and fit no trace, as they are typed.
    pub fn given(&self) -> Vec<&'static str> {
        [
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--cpu", self.cpu.is_some()),
            ("--initrd", self.initrd.is_some()),
            ("--cmdline", self.cmdline.is_some()),
            ("--load-address", self.load_address.is_some()),
            ("--restore", self.restore.is_some()),
            ("--input", self.input.is_some()),
            ("--console", self.console.is_some()),
            ("--control", self.control.is_some()),
            ("--metrics", self.metrics.is_some()),
            ("--trap", self.trap.is_some()),
            ("--page-tables", self.page_tables.is_some()),
            ("--on-failure", self.on_failure.is_some()),
            ("--on-stop", self.on_stop.is_some()),
            ("--gdb", self.gdb.is_some()),
            ("--timeout", self.timeout.is_some()),
        ]
        .into_iter()
        .filter_map(|(option, given)| given.then_some(option))
        .collect()
    }
}
