//! What this machine offers, with the reason for each no.

mod findings;
mod kvm;
mod machine;
mod show;

pub use findings::{CommandFinding, Findings, MachineFinding, Verdict, find};
pub use kvm::KvmFacts;
pub use machine::{AskKvm, Machine, ProgramError, Programs, SystemPrograms};
pub use show::{write_json, write_text};
