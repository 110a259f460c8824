//! What this machine offers, with the reason for each no.

mod findings;
mod machine;
mod show;

pub use findings::{CommandFinding, Findings, MachineFinding, Verdict, find};
pub use machine::{Machine, ProgramError, Programs, SystemPrograms};
pub use show::{write_json, write_text};
