//! What this machine offers, with the reason for each no.

mod findings;
mod kvm;
mod machine;
mod show;

pub use findings::{CommandFinding, Findings, MachineFinding, Support, find};
pub use kvm::KvmFacts;
pub use machine::{AskKvm, Host, ProgramError, Programs, SystemPrograms};
pub(crate) use show::line_schema;
pub use show::{write_json, write_text};
