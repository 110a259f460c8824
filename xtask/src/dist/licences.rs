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

use crate::workspace::Workspace;

/// How the files begin that hold a licence or a notice that goes with it.
const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// A list of the crates from elsewhere in the program of `package`, and the text of every licence.
pub(super) fn of_others(workspace: &Workspace, package: &str, triple: &str) -> Result<String> {
    let output = workspace
        .cargo(&["metadata", "--format-version=1", "--locked", "--filter-platform", triple])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", output.status);
    let metadata = serde_json::from_slice(&output.stdout).context("it is not JSON")?;
    let linked = linked(&metadata, package);
    ensure!(!linked.is_empty(), "{package} is linked from nothing");
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for crate_ in linked {
        let text = |key: &str| crate_[key].as_str().unwrap_or("none");
        let name = format!("{} {}", text("name"), text("version"));
        writeln!(list, "{name}  {}", text("license"))?;
        let manifest = Path::new(text("manifest_path"));
        for licence in licences(manifest.parent().unwrap_or(manifest))? {
            texts.entry(licence).or_default().insert(name.clone());
        }
    }
    let mut all = format!(
        "The program subpage holds code of these crates, under the licences behind their names, and of the\n\
         Rust standard library (MIT or Apache-2.0) and the C library (musl: MIT; or glibc: LGPL-2.1-or-later).\n\n\
         {list}"
    );
    for (text, names) in texts {
        let names: Vec<_> = names.into_iter().collect();
        write!(all, "\n{}\n{}\n\n{}\n", "-".repeat(80), names.join(", "), text.trim_end())?;
    }
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

/// The texts in a directory.
fn licences(directory: &Path) -> Result<Vec<String>> {
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
        for name in ["LICENSE-MIT", "Copying", "README.md", "NOTICE.txt"] {
            fs::write(directory.path().join(name), name).expect("files can be written");
        }
        let mut found = licences(directory.path()).expect("a directory");
        found.sort();
        assert_eq!(found, ["Copying", "LICENSE-MIT", "NOTICE.txt"]);
    }
}
