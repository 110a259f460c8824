//! Where the workspace and its build output are.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The checkout that cargo works on.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    test_programs: Vec<String>,
    packages: Vec<Value>,
}

impl Workspace {
    /// Asks cargo, which knows of `CARGO_TARGET_DIR` and of `build.target-dir`.
    pub(crate) fn locate() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "cargo metadata failed: {}", output.status);
        let metadata: Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let directory = |key: &str| {
            let path = metadata[key].as_str();
            path.map(PathBuf::from).with_context(|| format!("cargo metadata names no {key}"))
        };
        Ok(Self {
            root: directory("workspace_root")?,
            target: directory("target_directory")?,
            test_programs: test_programs(&metadata),
            packages: metadata["packages"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The names of the programs under `tests` of all crates, each once.
    pub(crate) fn test_programs(&self) -> &[String] {
        &self.test_programs
    }

    /// The crates, as `cargo metadata` describes them.
    pub(crate) fn packages(&self) -> &[Value] {
        &self.packages
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A build directory of its own inside the usual one, for a build with other flags.
    pub(crate) fn separate_target(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// A cargo command that runs at the root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root).args(arguments);
        command
    }
}

/// The cargo that started this program, so that `cargo +TOOLCHAIN xtask` keeps its toolchain.
fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn test_programs(metadata: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut programs: Vec<_> = list(&metadata["packages"])
        .iter()
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| list(&target["kind"]).iter().any(|kind| kind == "test"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_targets_of_one_kind() {
        let metadata = serde_json::json!({ "packages": [
            { "targets": [
                { "kind": ["lib"], "name": "engine" },
                { "kind": ["test"], "name": "property" },
                { "kind": ["test"], "name": "model" },
            ] },
            { "targets": [
                { "kind": ["bin"], "name": "tool" },
                { "kind": ["test"], "name": "model" },
            ] },
        ] });
        assert_eq!(test_programs(&metadata), ["model", "property"]);
        assert!(test_programs(&serde_json::json!({})).is_empty());
    }
}
