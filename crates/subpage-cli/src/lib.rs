//! The `subpage` command.
#![forbid(unsafe_code)]

pub mod check;
pub mod closing_table;
pub mod command_line;
pub mod compile_command;
#[cfg(feature = "kvm")]
pub mod ctl;
pub mod events;
pub mod failure;
pub mod guard;
pub mod heat;
pub mod kit;
#[cfg(feature = "kvm")]
pub mod linux_policy;
pub mod man_pages;
pub mod new_file;
pub mod plan;
pub mod plan_command;
pub mod policy;
pub mod policy_command;
pub mod progress;
pub mod record_command;
pub mod record_report;
pub mod report;
pub mod run;
#[cfg(feature = "kvm")]
mod run_command;
pub mod schema;
pub mod summary;
pub mod terminal;
#[cfg(feature = "kvm")]
pub mod top;
pub mod trace_file;
