//! Arguments of `run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::values::file;

/// Who is asked about what the VMM's devices write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DevicesChoice {
    /// The rules decide, as about the guest's own writes
    #[default]
    Judged,
    /// Nobody: devices write what they want
    Trusted,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The policy; several are one with the rules of all. Without one, rules come by `subpage ctl`
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub policy: Vec<PathBuf>,
    /// Names for places: the symbols of an ELF file, those in a Linux image (vmlinuz), or a list as
    /// /proc/kallsyms or System.map
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub symbols: Option<PathBuf>,
    /// Who is asked about what the VMM's devices write
    #[arg(long, value_enum, default_value_t)]
    pub devices: DevicesChoice,
    /// Where the control socket is to be [default: $XDG_RUNTIME_DIR/subpage/PID.sock]
    #[arg(long, value_name = "PATH", value_parser = file())]
    pub control: Option<PathBuf>,
    /// Write events to this file instead of standard error
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = file())]
    pub events: Option<PathBuf>,
    /// Write events as JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// The VMM and its arguments
    #[arg(
        value_name = "VMM",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_hint = ValueHint::CommandWithArguments
    )]
    pub vmm: Vec<OsString>,
}
