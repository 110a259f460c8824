//! What a result needs to be told apart from others, and made again.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};
use subpage_trap::Timestamp;

use crate::policy::{Draft, PolicySource};

/// What a result needs to be told apart from others, and made again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunHeader {
    /// Version of this program.
    pub tool_version: String,
    /// Name of the machine that it ran on.
    pub host: Option<String>,
    /// Command line, the program by its name alone.
    pub command: Vec<String>,
    /// SHA-256 of the policy's text, in hexadecimal; of several files, of a list of theirs, one a line; none for a saved guest, which holds its rules.
    pub policy_sha256: Option<String>,
    /// When the run began, by RFC 3339 in UTC.
    pub started: Timestamp,
}

impl RunHeader {
    /// Of a run of this process that begins now.
    pub fn now(policy: Option<&Draft>) -> Self {
        let mut words = env::args_os();
        let program = words.next().unwrap_or_default();
        let program = Path::new(&program).file_name().unwrap_or(&program).to_owned();
        let words = std::iter::once(program).chain(words);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").ok();
        Self {
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
            command: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            policy_sha256: policy.map(|policy| {
                policy_sum(&policy.sources().map(PolicySource::text).collect::<Vec<_>>())
            }),
            started: Timestamp::now(),
        }
    }
}

/// The sum of one text; of several, that of a list of their sums, which keeps them apart.
fn policy_sum(texts: &[&str]) -> String {
    match texts {
        [text] => sha256(text),
        texts => sha256(&texts.iter().map(|text| sha256(text) + "\n").collect::<String>()),
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf abc | sha256sum`.
    #[test]
    fn a_policy_has_the_sum_that_sha256sum_prints() {
        assert_eq!(
            policy_sum(&["abc"]),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    /// `sha256sum FILE... | cut -c1-64 | sha256sum`.
    #[test]
    fn a_policy_of_several_files_has_the_sum_of_their_sums() {
        assert_eq!(
            policy_sum(&["a", "bc"]),
            "7c76d6e7cd020283ecfea9204b1f76fba3313631000d9ae31c9ae8625840e2c8"
        );
        assert_ne!(policy_sum(&["a", "bc"]), policy_sum(&["ab", "c"]));
        assert_ne!(policy_sum(&["a", ""]), policy_sum(&["a"]));
    }
}
