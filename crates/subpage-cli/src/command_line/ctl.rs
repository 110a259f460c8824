//! Arguments of `ctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use subpage::rules::Action;
use subpage_kvm::control::protocol::RuleRef;
use subpage_kvm::gdb::{DebuggerAddress, DebuggerAddressError};

use super::values::{file, parse_map, parse_rule, parse_seconds, parse_unsigned};

/// How long an answer may take if nobody says: no request needs more, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for a request that writes all of a guest's memory.
const SAVING: Duration = Duration::from_secs(3600);

/// Most pages of one `get` or `set`.
pub const MAX_PAGES: i64 = 512;

/// Arguments of `ctl`.
#[derive(Debug, Args)]
pub struct CtlArguments {
    /// The socket that `subpage guard` printed; or `list`, and nothing else, for those of all running
    /// guests of yours
    #[arg(value_name = "SOCKET", value_hint = ValueHint::FilePath, value_parser = file())]
    pub socket: PathBuf,
    /// Print the reply as one JSON object; with `watch`, one for each event; with `list`, one for each
    /// guest
    #[arg(long, global = true)]
    pub json: bool,
    /// Names for places: the symbols of an ELF file, where its load segments put them, those in a
    /// Linux image (vmlinuz), or a list as /proc/kallsyms or System.map, at their values minus
    /// 0xffffffff80000000
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// How long the guest's process may take to answer [default: 60; for `save`, 3600; for `list`, 2]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// What the guest's process is asked for.
    #[command(subcommand)]
    pub request: Option<CtlRequest>,
}

impl CtlArguments {
    /// How long the guest's process may take to answer.
    pub fn patience(&self) -> Duration {
        let saves = matches!(self.request, Some(CtlRequest::Save { .. }));
        self.timeout.unwrap_or(if saves { SAVING } else { PATIENCE })
    }
}

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActionChoice {
    /// It takes effect and is reported
    Log,
    /// The first takes effect, later ones do not
    AllowOnce,
    /// It has no effect
    Deny,
    /// It has no effect, and the guest is stopped
    Stop,
}

impl From<ActionChoice> for Action {
    fn from(choice: ActionChoice) -> Self {
        match choice {
            ActionChoice::Log => Self::Log,
            ActionChoice::AllowOnce => Self::AllowOnce,
            ActionChoice::Deny => Self::Deny,
            ActionChoice::Stop => Self::Stop,
        }
    }
}

/// What the guest's process is asked for.
#[derive(Debug, Subcommand)]
pub enum CtlRequest {
    /// Show the guest's state, its rules and its counts
    Show,
    /// Show the pages that were written most, by sub-page
    Heat {
        /// How many at most
        #[arg(default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_PAGES))]
        pages: u32,
    },
    /// Show which sub-pages of pages may be written
    Get {
        /// An address in the first page: a number, or NAME+OFFSET; or a range, START..END or
        /// START+LENGTH, whose pages are meant
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// How many pages, behind an address [default: 1]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_PAGES))]
        pages: Option<u32>,
    },
    /// Set which sub-pages of pages may be written: all of the pages, or none
    Set {
        /// The address of the first page, a multiple of 4096: a number, or NAME+OFFSET; or a range of
        /// whole pages, START..END or START+LENGTH
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// One map a page, in hexadecimal; bit i set: sub-page i may be written
        #[arg(value_name = "MAP", required = true, num_args = 1..=512, value_parser = parse_map)]
        maps: Vec<u32>,
    },
    /// Add a rule
    Add {
        /// Its name
        name: String,
        /// Its bytes: START..END (the end not included), START+LENGTH, or NAME with +OFFSET, and
        /// ..END or +LENGTH behind it
        #[arg(value_name = "PLACE")]
        range: String,
        /// What happens to a write
        #[arg(long, value_enum, default_value = "deny")]
        action: ActionChoice,
        /// Whose it is; 0 is the host
        #[arg(long, default_value_t = 0, value_name = "N")]
        owner: u32,
        /// Nothing can loosen it any more
        #[arg(long)]
        locked: bool,
    },
    /// Remove a rule
    Remove {
        /// Its number, or its name if only one rule has it
        #[arg(value_parser = parse_rule)]
        rule: RuleRef,
    },
    /// Lock a rule: nothing can loosen it any more
    Lock {
        /// Its number, or its name if only one rule has it
        #[arg(value_parser = parse_rule)]
        rule: RuleRef,
    },
    /// Put rules in force that wait: those named, else all whose policy says `arm = "command"`
    Arm {
        /// Numbers, or names that only one rule has
        #[arg(value_name = "RULE", value_parser = parse_rule)]
        rules: Vec<RuleRef>,
    },
    /// Print every event from now on, until the guest ends
    Watch {
        /// Only those that this rule decided, by its name
        #[arg(long, value_name = "NAME")]
        rule: Option<String>,
        /// Only those of rules with this action
        #[arg(long, value_enum)]
        action: Option<ActionChoice>,
        /// End after this many events
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Find out from now on which sub-pages of a range are written
    Track {
        /// START..END (the end not included), START+LENGTH, or NAME with +OFFSET, and ..END or +LENGTH
        /// behind it
        #[arg(value_name = "PLACE")]
        range: String,
    },
    /// Show what was written of a tracked range since the last harvest
    Harvest {
        /// The number that `track` printed
        #[arg(value_parser = parse_unsigned)]
        track: u64,
    },
    /// Stop tracking a range
    Untrack {
        /// The number that `track` printed
        #[arg(value_parser = parse_unsigned)]
        track: u64,
    },
    /// Save the guest to a file, from which `subpage guard --restore FILE` continues
    Save {
        /// The file; it appears when it is complete
        #[arg(value_hint = ValueHint::FilePath, value_parser = file())]
        file: PathBuf,
    },
    /// Hold the guest between two instructions, until `resume`
    Pause,
    /// Let a held guest go on
    Resume,
    /// Execute one instruction of a processor of a held guest
    Step {
        /// Which processor
        #[arg(default_value_t = 0, value_name = "CPU")]
        cpu: u32,
    },
    /// Show the registers of a processor of a held guest
    Registers {
        /// Which processor
        #[arg(default_value_t = 0, value_name = "CPU")]
        cpu: u32,
    },
    /// Show bytes of the guest's memory, at most 64 KiB
    Read {
        /// START..END (the end not included), START+LENGTH, or NAME with +OFFSET, and ..END or +LENGTH
        /// behind it
        #[arg(value_name = "PLACE")]
        range: String,
    },
    /// Write bytes of the guest's memory to a new file
    Dump {
        /// As for `read`, of any length
        #[arg(value_name = "PLACE")]
        range: String,
        /// The file, which must not exist
        #[arg(value_hint = ValueHint::FilePath, value_parser = file())]
        file: PathBuf,
    },
    /// Wait for gdb, which may then attach to the guest
    Gdb {
        /// A port of this machine, HOST:PORT, or the path of a socket, with a slash; port 0 is any free one
        #[arg(value_name = "ADDR", value_parser = parse_debugger)]
        address: DebuggerAddress,
    },
    /// Have the debugger go that is attached, if it does not answer any more; the guest goes on
    GdbEnd,
    /// End the guest
    Stop,
}

/// The path of a socket as the guest's process sees it, whose working directory may be another.
fn parse_debugger(text: &str) -> Result<DebuggerAddress, String> {
    match text.parse().map_err(|error: DebuggerAddressError| error.to_string())? {
        DebuggerAddress::Unix(path) => {
            let path = std::path::absolute(&path).map_err(|error| error.to_string())?;
            Ok(DebuggerAddress::Unix(path))
        }
        address @ DebuggerAddress::Tcp(_) => Ok(address),
    }
}
