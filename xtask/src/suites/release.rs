//! What is published: each public crate says what it is (one check a crate), cargo packs them (one
//! check), the tool compiles for the C library that `cargo xtask dist` links it with (one check), and the
//! archive and the Debian package hold the tool with its manual pages and completions (one check each).

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Plan;
use crate::{
    count::Count,
    dist::{archive, contents::Contents, debian, target::Target},
    lab::programs,
    packages,
    session::Session,
};

/// What every package of a crate holds besides its code.
const IN_EACH: [&str; 4] = ["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// Longest description that a list of crates shows whole.
const MAX_DESCRIPTION: usize = 120;

/// crates.io takes at most five keywords and five categories.
const MOST_WORDS: usize = 5;

/// What is below the prefix of each package, with one of its manual pages and one of its licences.
const INSTALLED: [&str; 5] = [
    "bin/subpage",
    "share/bash-completion/completions/subpage",
    "share/fish/vendor_completions.d/subpage.fish",
    "share/man/man1/subpage-guard.1",
    "share/man/man1/subpage.1",
];

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let all = plan.workspace.packages();
    let public: Vec<_> = all.iter().filter(|package| is_public(package)).collect();
    ensure!(!public.is_empty(), "no crate of the workspace is public");
    let mut count = Count::default();
    for package in &public {
        let faults = faults(package, all);
        count += Count::check(faults.is_empty());
        for fault in faults {
            session.say(&format!("   failed: {}: {fault}", name(package)))?;
        }
    }
    count += packed(session, plan, &public)?;
    count += compiled(session, plan)?;
    count += made(session, plan)?;
    Ok(count)
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

/// `publish = false` is an empty list of registries.
fn is_public(package: &Value) -> bool {
    package["publish"].is_null()
}

/// What a public crate's manifest lacks.
fn faults(package: &Value, all: &[Value]) -> Vec<String> {
    let name = name(package);
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    let words = |key: &str| package[key].as_array().map_or(0, Vec::len);
    let mut faults = Vec::new();
    let mut need = |right: bool, fault: &str| {
        if !right {
            faults.push(fault.to_owned());
        }
    };
    need(!text("description").is_empty(), "no `description`");
    need(text("description").len() <= MAX_DESCRIPTION, "a `description` of more than 120 bytes");
    need(!text("license").is_empty(), "no `license`");
    need(!text("rust_version").is_empty(), "no `rust-version`");
    need(text("readme") == "README.md", "no `readme = \"README.md\"`");
    need(
        text("documentation") == format!("https://docs.rs/{name}"),
        "`documentation` is not its page on docs.rs",
    );
    need((1..=MOST_WORDS).contains(&words("keywords")), "no `keywords`, or more than 5");
    need((1..=MOST_WORDS).contains(&words("categories")), "no `categories`, or more than 5");
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        // A test may stand on anything here: cargo leaves such a dependency out where it has no version.
        if dependency["kind"] == "dev" || dependency["path"].is_null() {
            continue;
        }
        let other = dependency["name"].as_str().unwrap_or_default();
        need(dependency["req"] != "*", &format!("it depends on {other} without a version"));
        let private = all.iter().any(|package| package["name"] == other && !is_public(package));
        need(!private, &format!("it depends on {other}, which is not public"));
    }
    faults
}

/// Has cargo pack all, which finds their dependencies among each other, and list what is in each; it
/// needs no network and builds nothing.
fn packed(session: &mut Session<'_>, plan: &Plan, public: &[&Value]) -> Result<Count> {
    let mut command = plan.cargo(&["package", "--offline", "--allow-dirty", "--no-verify"]);
    for package in public {
        command.args(["--package", name(package)]);
    }
    let finished = session.run_unshown(command, &mut |_| None)?;
    let mut right = finished.ending.success();
    if !right {
        session.show(&finished.output)?;
    }
    for package in public {
        let mut command = plan.cargo(&["package", "--offline", "--allow-dirty", "--list"]);
        command.args(["--package", name(package)]);
        let finished = session.run_unshown(command, &mut |_| None)?;
        if !finished.ending.success() {
            right = false;
            session.show(&finished.output)?;
        }
        let listed: BTreeSet<_> = finished.output.lines().collect();
        for missing in IN_EACH.iter().filter(|file| !listed.contains(**file)) {
            right = false;
            session.say(&format!("   failed: the package {} has no {missing}", name(package)))?;
        }
    }
    Ok(Count::check(right))
}

/// Has cargo check the tool for musl, whose types differ from glibc's, where the toolchain has it.
fn compiled(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    if !Target::Musl.is_there(&plan.workspace)? {
        session.say("   skipped: `cargo xtask dist` has rustup install what is for musl")?;
        return Ok(Count::SKIPPED);
    }
    let mut command = plan.cargo(&["check", "--quiet", "--package=subpage-cli", "--bin=subpage"]);
    command.arg(format!("--target={}", Target::Musl.triple()));
    let finished = session.run_unshown(command, &mut |_| None)?;
    let right = finished.ending.success();
    if !right {
        session.show(&finished.output)?;
    }
    Ok(Count::check(right))
}

/// Makes the packages from the program that the README's first command built.
fn made(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let Some(program) = programs::tool(session, &plan.workspace)? else {
        return Ok(Count::FAILED);
    };
    let contents = Contents::of(&plan.workspace, &program, Target::Musl)?;
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let mut count = verdict(session, &archived(&contents, directory.path()))?;
    if packages::found(debian::PROGRAM).is_none() {
        session.say("   skipped: dpkg-deb is missing")?;
        count += Count::SKIPPED;
    } else {
        count += verdict(session, &debianised(&contents, directory.path()))?;
    }
    Ok(count)
}

fn verdict(session: &mut Session<'_>, result: &Result<()>) -> Result<Count> {
    if let Err(error) = result {
        session.say(&format!("   failed: {error:#}"))?;
    }
    Ok(Count::check(result.is_ok()))
}

fn archived(contents: &Contents, directory: &Path) -> Result<()> {
    let archive = archive::write(contents, directory)?;
    let again = tempfile::tempdir_in(directory).context("cannot make a directory")?;
    let second = archive::write(contents, again.path())?;
    ensure!(std::fs::read(&archive)? == std::fs::read(second)?, "two archives differ");
    let unpacked = directory.join("archive");
    std::fs::create_dir(&unpacked).context("cannot make a directory")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]).arg(&archive);
    let status = tar.arg("--directory").arg(&unpacked).status().context("cannot start tar")?;
    ensure!(status.success(), "tar failed: {status}");
    holds(&unpacked, &INSTALLED)?;
    let files =
        ["zsh/site-functions/_subpage", "doc/subpage/LICENSE-MIT", "doc/subpage/THIRD-PARTY.txt"];
    holds(&unpacked.join("share"), &files)?;
    runs(&unpacked.join("bin/subpage"), contents)
}

fn debianised(contents: &Contents, directory: &Path) -> Result<()> {
    let package = debian::write(contents, directory)?.context("dpkg-deb is there")?;
    let told = debian::ask("--info", &package)?;
    for field in ["Package: subpage", "Architecture: amd64", "Maintainer: ", "Installed-Size: "] {
        ensure!(told.contains(field), "the package has no {field:?}:\n{told}");
    }
    let version = format!("Version: {}\n", contents.version());
    ensure!(told.contains(&version), "the package has no {version:?}:\n{told}");
    let listed = debian::ask("--contents", &package)?;
    ensure!(listed.lines().all(|line| line.contains(" root/root ")), "not root's:\n{listed}");
    let program = listed.lines().find(|line| line.ends_with(" ./usr/bin/subpage"));
    ensure!(program.is_some_and(|line| line.starts_with("-rwxr-xr-x")), "{listed}");
    let unpacked = directory.join("package");
    debian::unpack(&package, &unpacked)?;
    let usr = unpacked.join("usr");
    // Debian has its manual pages packed, and a place of its own for zsh.
    holds(&usr, &INSTALLED[..3])?;
    let files = ["man/man1/subpage.1.gz", "man/man1/subpage-guard.1.gz", "doc/subpage/copyright"];
    holds(&usr.join("share"), &files)?;
    holds(&usr.join("share"), &["zsh/vendor-completions/_subpage", "doc/subpage/changelog.gz"])?;
    runs(&usr.join("bin/subpage"), contents)
}

fn holds(prefix: &Path, files: &[&str]) -> Result<()> {
    for file in files {
        let length = std::fs::metadata(prefix.join(file)).map_or(0, |metadata| metadata.len());
        ensure!(length > 0, "{file} is missing or empty");
    }
    Ok(())
}

fn runs(program: &Path, contents: &Contents) -> Result<()> {
    let output = Command::new(program).arg("--version").output().context("cannot start it")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(told == format!("subpage {}\n", contents.version()), "it says {told:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole() -> Value {
        json!({
            "name": "engine",
            "description": "What it is",
            "license": "MIT",
            "rust_version": "1.88",
            "readme": "README.md",
            "documentation": "https://docs.rs/engine",
            "keywords": ["one"],
            "categories": ["no-std"],
            "dependencies": [
                { "name": "codec", "req": "^1", "kind": null },
                { "name": "base", "req": "^0.1.0", "kind": null, "path": "/base" },
                { "name": "bench", "req": "*", "kind": "dev", "path": "/bench" },
            ],
        })
    }

    fn others() -> Vec<Value> {
        vec![json!({ "name": "base", "publish": null }), json!({ "name": "bench", "publish": [] })]
    }

    #[test]
    fn a_whole_manifest_has_no_fault() {
        assert_eq!(faults(&whole(), &others()), Vec::<String>::new());
    }

    #[test]
    fn each_missing_field_is_a_fault() {
        for key in [
            "description",
            "license",
            "rust_version",
            "readme",
            "documentation",
            "keywords",
            "categories",
        ] {
            let mut package = whole();
            package.as_object_mut().expect("an object").remove(key);
            assert_eq!(faults(&package, &others()).len(), 1, "{key}");
        }
        let mut package = whole();
        package["keywords"] = json!(["1", "2", "3", "4", "5", "6"]);
        assert_eq!(faults(&package, &others()).len(), 1);
    }

    #[test]
    fn what_is_not_on_the_registry_is_a_fault() {
        let mut package = whole();
        package["dependencies"][1]["req"] = json!("*");
        assert_eq!(faults(&package, &others()), ["it depends on base without a version"]);
        let mut package = whole();
        package["dependencies"][2] =
            json!({ "name": "bench", "req": "^0.1.0", "kind": null, "path": "/bench" });
        assert_eq!(faults(&package, &others()), ["it depends on bench, which is not public"]);
    }

    #[test]
    fn private_crates_name_no_registry() {
        assert!(is_public(&others()[0]) && !is_public(&others()[1]));
    }
}
