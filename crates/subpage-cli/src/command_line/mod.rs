//! The command line, as clap reads it.

#[cfg(feature = "kvm")]
mod ctl;
mod guard;
#[cfg(feature = "kvm")]
mod run;
#[cfg(feature = "kvm")]
mod top;
mod values;

#[cfg(feature = "kvm")]
pub use ctl::{ActionChoice, CtlArguments, CtlRequest, MAX_PAGES};
pub(crate) use guard::MAX_PROCESSORS;
use guard::ON_KVM;
pub use guard::{
    BackendChoice, DEFAULT_MEMORY, GuardArguments, MachineArguments, OnFailure, OnStop, PageTables,
    TrapChoice,
};

#[cfg(feature = "kvm")]
pub use run::{DevicesChoice, RunArguments};
#[cfg(feature = "kvm")]
pub use top::TopArguments;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use subpage_trace::ToolChoice;

#[cfg(feature = "kvm")]
use crate::linux_policy::Pack;
use crate::schema::SchemaChoice;
use crate::terminal::ColorWhen;
use values::file;

const EXIT_STATUS: &str = "\
Exit status:
  0  nothing was denied, and everything worked
  1  internal error, or output that cannot be written
  2  bad input, a request that the guest's process refuses (`ctl`), or with `--strict` a warning and
     nothing denied
  3  at least one write was denied (`guard`)
  4  nothing was denied, but the guest failed or ended itself with a status other than 0, or the time
     limit was reached (`guard`); the recording stops before the end of the program (`record`)";

#[cfg(feature = "kvm")]
const RUN_STATUS: &str = "\
Exit status: that of the VMM, 128 and the number of the signal that ended it, or
  1  internal error
  2  bad input, or nothing was started, or the VMM made no machine that could be guarded";

const GUARD_USAGE: &str = "\
subpage guard [OPTIONS] --policy <FILE> <GUEST>
       subpage guard [OPTIONS] --restore <FILE>";

const CHECK_USAGE: &str = "\
subpage policy check [OPTIONS] <FILE> [GUEST]
       subpage policy check [OPTIONS] --policy <FILE>... [GUEST]";

/// Write protection for any 128 bytes of a virtual machine's memory.
#[derive(Debug, Parser)]
#[command(name = "subpage", version, after_help = EXIT_STATUS, arg_required_else_help = true)]
pub struct CommandLine {
    /// When to use colours; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: ColorWhen,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest under a policy and report the writes that it denies
    #[command(after_help = EXIT_STATUS, override_usage = GUARD_USAGE)]
    Guard(Box<GuardArguments>),
    /// Record the writes of a program into a trace
    Record(RecordArguments),
    /// Show which pages of a trace mix hot and cold data, and what protection would cost
    Plan(PlanArguments),
    /// Ask a guest that runs on KVM, or change what is guarded in it
    #[cfg(feature = "kvm")]
    #[command(after_help = EXIT_STATUS)]
    Ctl(CtlArguments),
    /// Ask a guest that runs on KVM: not built
    #[cfg(not(feature = "kvm"))]
    #[command(hide = true)]
    Ctl {
        /// Whatever it is
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        any: Vec<OsString>,
    },
    /// Look at a guest that runs on KVM: rules, hottest pages and events, as they change
    #[cfg(feature = "kvm")]
    #[command(after_help = EXIT_STATUS)]
    Top(TopArguments),
    /// Look at a guest that runs on KVM: not built
    #[cfg(not(feature = "kvm"))]
    #[command(hide = true)]
    Top {
        /// Whatever it is
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        any: Vec<OsString>,
    },
    /// Run a VMM, such as QEMU, and guard its guest
    #[cfg(feature = "kvm")]
    #[command(after_help = RUN_STATUS)]
    Run(RunArguments),
    /// Turn a policy into the module that the bare-metal hypervisor loads
    Compile(CompileArguments),
    /// Show what this machine offers, with the reason for each no
    Check {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Begin a file
    New {
        /// Which
        #[command(subcommand)]
        what: NewFile,
    },
    /// Look at a policy
    Policy {
        /// How
        #[command(subcommand)]
        task: PolicyTask,
    },
    /// Reports of the hardware kit, which compares a machine with the processor model
    Kit {
        /// What to do
        #[command(subcommand)]
        task: KitTask,
    },
    /// Print the JSON Schema of events, policies or the control protocol
    Schema {
        /// Of what
        #[arg(value_enum, value_name = "WHAT")]
        of: SchemaChoice,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, subpage(1) and one for each command
    Man {
        /// Where to: a directory that is there
        #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath, value_parser = file())]
        directory: PathBuf,
    },
}

/// The command line as clap has it: for parsing, for completions and for the manual pages.
///
/// Without the feature `kvm` the options of guests on KVM are hidden: they are understood, and refused
/// with the reason.
pub fn definition() -> clap::Command {
    let mut command = CommandLine::command();
    if cfg!(not(feature = "metrics")) {
        command = command.mut_subcommand("guard", |guard| {
            guard.mut_arg("metrics", |argument| argument.hide(true))
        });
    }
    if cfg!(feature = "kvm") {
        return command;
    }
    command.mut_subcommand("guard", |guard| {
        guard.mut_args(|argument| {
            let hidden = argument.get_help_heading() == Some(ON_KVM);
            argument.hide(hidden)
        })
    })
}

/// What can be begun.
#[derive(Debug, Subcommand)]
pub enum NewFile {
    /// A policy with a rule of each kind, explained: on standard output, or in a new file
    Policy {
        /// The file; one that is there is left alone
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
        output: Option<PathBuf>,
    },
}

/// What can be done with a report of the hardware kit.
#[derive(Debug, Subcommand)]
pub enum KitTask {
    /// Show a report beside that of Bochs: what the processor is, how it deviates, how long things take
    Show {
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
        /// The recording of the serial line
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
        report: PathBuf,
    },
}

/// What can be done with a policy.
#[derive(Debug, Subcommand)]
pub enum PolicyTask {
    /// Find every mistake and doubt of a policy, and show where its rules lie, without a run
    #[command(override_usage = CHECK_USAGE)]
    Check(PolicyCheckArguments),
    /// Write a policy for a Linux kernel: rules on what exploits overwrite, each with its reason and cost
    #[cfg(feature = "kvm")]
    Linux(PolicyLinuxArguments),
}

/// Arguments of `policy linux`.
#[cfg(feature = "kvm")]
#[derive(Debug, Args)]
pub struct PolicyLinuxArguments {
    /// The kernel: a bzImage (vmlinuz) or a vmlinux
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub kernel: PathBuf,
    /// Which rules, several with commas
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',', default_value = "default")]
    pub pack: Vec<Pack>,
}

/// Arguments of `policy check`.
#[derive(Debug, Args)]
pub struct PolicyCheckArguments {
    /// The rules (TOML); `-` is standard input. With --policy, the guest
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "policy")]
    first: Option<PathBuf>,
    /// The rules in several files, which are one policy
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "guest")]
    policy: Vec<PathBuf>,
    /// The guest whose names the policy uses: a trace, an ELF file, or a Linux image; without one, and without
    /// --symbols, only the text is looked at
    #[arg(value_name = "GUEST", value_hint = ValueHint::FilePath, value_parser = file())]
    guest: Option<PathBuf>,
    /// Names for the policy in place of those of a guest on KVM: an ELF file, a Linux image, or a list as System.map; for
    /// a trace, the program that was recorded
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// Which process of a trace of several, by its number in `subpage plan TRACE --processes`
    /// [default: the program that was recorded, after its last exec]
    #[arg(long, value_name = "N")]
    pub process: Option<u16>,
    /// Treat every warning as an error: status 2. The places of the rules are needed: a guest, or
    /// --symbols
    #[arg(long)]
    pub strict: bool,
}

impl PolicyCheckArguments {
    /// The files of the policy.
    pub fn policy(&self) -> &[PathBuf] {
        if self.policy.is_empty() { self.first.as_slice() } else { &self.policy }
    }

    /// The guest, if one is named.
    pub fn guest(&self) -> Option<&Path> {
        let guest = if self.policy.is_empty() { &self.guest } else { &self.first };
        guest.as_deref()
    }
}

/// Arguments of `record`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct RecordArguments {
    /// The trace to write; it appears when it is complete
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub output: PathBuf,
    /// Read what `valgrind --tool=lackey --trace-mem=yes` printed; `-` is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "program")]
    pub from_lackey: Option<PathBuf>,
    /// Record the processes that the program starts as well, each by itself
    #[arg(long, conflicts_with = "from_lackey")]
    pub children: bool,
    /// Record what the kernel writes for the program as well (what it reads from a file, say), without the
    /// address of an instruction
    #[arg(long, conflicts_with = "from_lackey")]
    pub kernel_writes: bool,
    /// Which tool of Valgrind records: our own, which is compiled once with gcc, or lackey
    #[arg(long, value_enum, default_value_t, value_name = "TOOL", conflicts_with = "from_lackey")]
    pub tool: RecordTool,
    /// Record a whole machine by its physical addresses: the program is QEMU (`qemu-system-x86_64`), with any
    /// arguments but those of its accelerator and clock
    #[arg(long, requires = "program", conflicts_with_all = ["from_lackey", "children", "kernel_writes", "tool"])]
    pub system: bool,
    /// The kernel that the machine boots (vmlinuz, vmlinux, or a list as System.map), started with `nokaslr`:
    /// the trace gets the names of its data
    #[arg(long, requires = "system", value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// End the machine after that many writes
    #[arg(long, requires = "system", value_name = "WRITES", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print one JSON object at the end, on standard error: standard output is the program's
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments
    #[arg(
        last = true,
        required_unless_present = "from_lackey",
        value_name = "PROGRAM",
        value_hint = ValueHint::CommandWithArguments
    )]
    pub program: Vec<OsString>,
}

/// Which tool of Valgrind records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RecordTool {
    /// Our own, or lackey where that cannot be had
    #[default]
    Auto,
    /// Our own, or none
    Own,
    /// Lackey
    Lackey,
}

impl From<RecordTool> for ToolChoice {
    fn from(tool: RecordTool) -> Self {
        match tool {
            RecordTool::Auto => Self::Auto,
            RecordTool::Own => Self::Own,
            RecordTool::Lackey => Self::Lackey,
        }
    }
}

/// Arguments of `compile`.
#[derive(Debug, Args)]
pub struct CompileArguments {
    /// The rules (TOML); `-` is standard input. Several files are one policy
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, required = true)]
    pub policy: Vec<PathBuf>,
    /// Names for `region` and `symbol` in the policy: the symbols of an ELF file, where its load segments
    /// put them, those in a Linux image (vmlinuz), or a list as /proc/kallsyms or System.map, at their
    /// values minus 0xffffffff80000000
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// The module to write; it appears when it is complete
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub output: PathBuf,
    /// Write another module, with the names of the functions of the Linux image given by `--symbols`, and
    /// where it has its tasks: the hypervisor's events then name function and process
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file(),
          requires = "symbols")]
    pub names: Option<PathBuf>,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct PlanArguments {
    /// The trace; `-` is standard input
    #[arg(value_name = "TRACE", value_hint = ValueHint::FilePath)]
    pub trace: PathBuf,
    /// A place whose protection is to be priced: START..END (the end not included), START+LENGTH, or
    /// NAME with +OFFSET, and ..END or +LENGTH behind it
    #[arg(long, value_name = "PLACE")]
    pub range: Vec<String>,
    /// The program that was recorded, an ELF file with debug information: fields and elements of what the
    /// trace names are known by it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// Which process of a trace of several, by its number in `--processes` [default: the program that was
    /// recorded, after its last exec]
    #[arg(long, value_name = "N")]
    pub process: Option<u16>,
    /// List the processes that the trace holds and stop
    #[arg(long, conflicts_with_all = ["range", "top", "names", "process"])]
    pub processes: bool,
    /// Print a policy that guards the cold names of the mixed pages shown, without those that are hot
    /// elsewhere: `deny` for what was never written, else `log`
    #[arg(long, conflicts_with_all = ["range", "names", "processes", "json"])]
    pub suggest: bool,
    /// How many mixed pages to show, the best first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// List the names that the trace holds and stop
    #[arg(long, conflicts_with_all = ["range", "top"])]
    pub names: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::EXIT_STATUS;

    /// The help has a line for each status; the prose has them in one sentence.
    #[test]
    fn the_exit_status_is_told_in_the_same_words_everywhere() {
        let (head, list) = EXIT_STATUS.split_once('\n').expect("a list");
        let items = list.replace("\n     ", " ");
        let items: Vec<_> =
            items.lines().map(|line| line.trim_start().replacen("  ", " ", 1)).collect();
        let sentence = format!("{head} {}.", items.join("; "));
        for text in
            [include_str!("../../../../README.md"), include_str!("../../../../docs/events.md")]
        {
            assert!(text.contains(&sentence), "a text lacks: {sentence}");
        }
    }
}
