//! The licences of what the program is linked from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{runtime, target::Target};
use crate::workspace::Workspace;

/// How the files begin that hold a licence or a notice that goes with it.
const NAMES: [&str; 7] =
    ["license", "licence", "copying", "copyright", "notice", "third-party", "unlicense"];

/// The licences of crates whose packages have none: those of their repositories, or, where these have
/// no other copyright than the authors', the text that the licence itself prescribes.
const MISSING: [(&str, &str); 2] = [
    ("iced-x86", include_str!("texts/iced-x86.txt")),
    // "MIT OR Apache-2.0", of which the second needs nothing filled in.
    ("maud", include_str!("../../../LICENSE-APACHE")),
];

/// Every text once, with the names of what it is the licence of.
#[derive(Default)]
pub(super) struct Texts(BTreeMap<String, BTreeSet<String>>);

impl Texts {
    pub(super) fn add(&mut self, text: &str, name: &str) {
        let text = text.trim_end().trim_start_matches('\n').to_owned();
        self.0.entry(text).or_default().insert(name.to_owned());
    }

    fn append_to(&self, all: &mut String) -> Result<()> {
        for (text, names) in &self.0 {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            write!(all, "\n{}\n{}\n\n{text}\n", "-".repeat(80), names.join(", "))?;
        }
        Ok(())
    }
}

/// A list of the crates from elsewhere in the program of `package`, and the text of every licence.
///
/// # Errors
///
/// A crate, or a library that every program is linked with, whose text is nowhere.
pub(super) fn of_others(workspace: &Workspace, package: &str, target: Target) -> Result<String> {
    let output = workspace
        .cargo(&["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", target.triple()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", output.status);
    let metadata = serde_json::from_slice(&output.stdout).context("it is not JSON")?;
    let linked = linked(&metadata, package);
    ensure!(!linked.is_empty(), "{package} is linked from nothing");
    let mut list = String::new();
    let mut texts = Texts::default();
    for crate_ in linked {
        let text = |key: &str| crate_[key].as_str().unwrap_or("none");
        let name = format!("{} {}", text("name"), text("version"));
        writeln!(list, "{name}  {}", text("license"))?;
        let manifest = Path::new(text("manifest_path"));
        for licence in licences(text("name"), manifest.parent().unwrap_or(manifest))? {
            texts.add(&licence, &name);
        }
    }
    runtime::add(&mut texts, workspace.root(), target)?;
    let mut all = format!(
        "The program subpage holds code of these crates, under the licences behind their names, of\n\
         Rust's standard library and of a C library ({}). Their texts follow.\n\n{list}",
        target.c_library(),
    );
    texts.append_to(&mut all)?;
    Ok(all)
}

/// The packages from a registry that are linked into the first one's program, by name. Procedural macros
/// run in the compiler.
fn linked<'a>(metadata: &'a Value, first: &str) -> Vec<&'a Value> {
    let list = |value: &'a Value| value.as_array().map_or(&[][..], Vec::as_slice);
    let packages: BTreeMap<_, _> = list(&metadata["packages"])
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<_, _> = list(&metadata["resolve"]["nodes"])
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let is_macro = |id: &str| {
        let targets = packages.get(id).map_or(&[][..], |package| list(&package["targets"]));
        targets.iter().any(|target| list(&target["kind"]).iter().any(|kind| kind == "proc-macro"))
    };
    let mut seen = BTreeSet::new();
    let mut left: Vec<_> = packages
        .iter()
        .filter(|(_, package)| package["name"] == first)
        .map(|(id, _)| *id)
        .collect();
    while let Some(id) = left.pop() {
        if is_macro(id) || !seen.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).map_or(&[][..], |node| list(&node["deps"]));
        let normal = dependencies.iter().filter(|dependency| {
            list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
        });
        left.extend(normal.filter_map(|dependency| dependency["pkg"].as_str()));
    }
    let mut linked: Vec<_> = seen.into_iter().filter_map(|id| packages.get(id).copied()).collect();
    linked.retain(|package| !package["source"].is_null());
    linked.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    linked
}

/// The texts in the directory of a crate; else what is known about it.
fn licences(name: &str, directory: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if entry.path().is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            let text = fs::read(entry.path());
            let text = text.with_context(|| format!("cannot read {}", entry.path().display()))?;
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    if texts.is_empty() {
        let known = MISSING.iter().find(|(crate_, _)| *crate_ == name);
        let (_, text) = known.with_context(|| {
            format!(
                "{name} has no text of its licence in {}: MISSING needs it",
                directory.display()
            )
        })?;
        texts.push((*text).to_owned());
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_linked_is_followed_and_what_only_builds_is_not() {
        let package = |name: &str, kind: &str, source: Option<&str>| json!({ "id": name, "name": name, "source": source, "targets": [{ "kind": [kind] }] });
        let edge = |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("tool", "bin", None),
                package("engine", "lib", None),
                package("codec", "lib", Some("registry")),
                package("derive", "proc-macro", Some("registry")),
                package("quote", "lib", Some("registry")),
                package("cc", "lib", Some("registry")),
            ],
            "resolve": { "nodes": [
                { "id": "tool", "deps": [edge("engine", None), edge("derive", None)] },
                { "id": "engine", "deps": [edge("codec", None), edge("cc", Some("build"))] },
                { "id": "derive", "deps": [edge("quote", None)] },
                { "id": "codec", "deps": [edge("engine", Some("dev"))] },
            ] },
        });
        let names: Vec<_> = linked(&metadata, "tool").iter().map(|p| p["name"].clone()).collect();
        assert_eq!(names, ["codec"]);
    }

    #[test]
    fn licences_are_found_by_name() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        for name in ["LICENSE-MIT", "Copying", "README.md", "NOTICE.txt", "THIRD-PARTY"] {
            fs::write(directory.path().join(name), name).expect("files can be written");
        }
        let mut found = licences("any", directory.path()).expect("a directory");
        found.sort();
        assert_eq!(found, ["Copying", "LICENSE-MIT", "NOTICE.txt", "THIRD-PARTY"]);
    }

    #[test]
    fn a_crate_without_a_text_is_one_that_is_known_or_an_error() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let error = licences("stranger", directory.path()).expect_err("no text").to_string();
        assert!(error.contains("stranger has no text"), "{error}");
        let known = licences("iced-x86", directory.path()).expect("a text");
        assert!(known[0].contains("iced project"), "{known:?}");
    }

    /// The tool itself, for both C libraries where this machine has their texts.
    #[test]
    fn all_that_the_tool_is_linked_with_has_its_text() {
        let workspace = Workspace::locate().expect("a workspace");
        let text = of_others(&workspace, "subpage-cli", Target::Musl).expect("texts");
        for part in [
            // Of iced-x86, maud and kvm-ioctls, of musl, of the standard library and what it is from.
            "\niced-x86 1",
            "(C) 2018-present iced project",
            ", maud 0",
            "The Chromium OS Authors",
            "2005-2020 Rich Felker, et al.",
            "Copyright: The Rust Project Developers",
            "Rust's standard library: hashbrown",
            "LLVM Exceptions",
            "Unicode, Inc.",
        ] {
            assert!(text.contains(part), "{part} is missing");
        }
    }
}
