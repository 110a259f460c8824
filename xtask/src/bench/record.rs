//! What recording costs: real programs under our own Valgrind tool and under lackey, from end to end, and
//! the encoder by itself.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::workspace::Workspace;

const SQL: &str = "create table t(a integer primary key,b text); with recursive c(x) as \
    (select 1 union all select x+1 from c where x<2000) insert into t select x, x*7919%2000 from c; \
    create index i on t(b); select count(*) from t where b like \"1%\";";
const PYTHON: &str = "print(sum(i * i for i in range(100000)))";
/// Runs under our own tool, of which the fastest counts; lackey has one, which takes long enough.
const ROUNDS: usize = 3;

/// `cargo xtask bench record`: a table or JSON on standard output, all else on standard error.
pub(crate) fn run(workspace: &Workspace, json: bool) -> Result<ExitCode> {
    // As the README's first command builds it.
    let features = ["--package", "subpage-cli", "--no-default-features"];
    built(workspace.cargo(&["build"]).args(features))?;
    let encoder = ["--release", "--package", "subpage-trace", "--example", "encode"];
    built(workspace.cargo(&["build"]).args(encoder))?;
    let subpage = workspace.target().join("debug/subpage");
    let encode = workspace.target().join("release/examples/encode");
    let place = tempfile::tempdir().context("cannot make a folder")?;
    let mut out = io::stdout().lock();
    let mut is_right = true;
    for (name, words) in programs(place.path())? {
        let Some(program) = find(&words[0]) else {
            eprintln!("   {name} is left out: it is not installed");
            continue;
        };
        eprintln!("   {name}");
        let record = |tool: &str, folder: Option<&str>| {
            let trace = place.path().join(format!("{tool}.sptrace"));
            let mut command = Command::new(&subpage);
            command.args(["record", "--json", "--tool", tool, "-o"]).arg(&trace);
            command.arg("--").arg(&program).args(&words[1..]);
            // What both have to agree on: the environment lies on the program's stack.
            command.env_clear().env("PATH", "/usr/bin:/bin").env("PYTHONHASHSEED", "0");
            command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
            if let Some(folder) = folder {
                command.env("VALGRIND_LIB", folder);
            }
            command.stdout(Stdio::null()).stdin(Stdio::null());
            let began = Instant::now();
            let output = command.output().context("cannot start subpage")?;
            let seconds = began.elapsed().as_secs_f64();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "subpage record failed: {text}");
            let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
            anyhow::Ok((seconds, line, trace))
        };
        let (_, line, own) = record("own", None)?;
        let folder = line["tool_folder"].as_str().map(str::to_owned);
        let mut fastest = f64::INFINITY;
        for _ in 0..ROUNDS {
            fastest = fastest.min(record("own", folder.as_deref())?.0);
        }
        let (lackey_seconds, _, lackey) = record("lackey", folder.as_deref())?;
        let is_equal = fs::read(&own)? == fs::read(&lackey)?;
        is_right &= is_equal;
        let encoder = Command::new(&encode).arg(&own).arg("--json").output()?;
        let encoder: Value =
            serde_json::from_slice(&encoder.stdout).context("the encoder failed")?;
        let rate = &encoder["million_writes_per_second"];
        let writes = &line["writes"];
        let ratio = lackey_seconds / fastest;
        if json {
            let line = json!({
                "program": name, "writes": writes, "own_seconds": fastest,
                "lackey_seconds": lackey_seconds, "ratio": ratio, "equal": is_equal,
                "encoder_million_writes_per_second": rate,
            });
            writeln!(out, "{line}")?;
        } else {
            let equal = if is_equal { "the same writes" } else { "OTHER WRITES" };
            writeln!(
                out,
                "{name:<10}{writes:>12} writes  own {fastest:>7.2} s  lackey {lackey_seconds:>7.1} s  \
                 {ratio:>5.1} times  {equal}  encoder {rate} M/s"
            )?;
        }
        out.flush()?;
    }
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn built(command: &mut Command) -> Result<()> {
    // Standard output is for figures.
    let status = command.stdout(Stdio::null()).status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo failed ({status})");
    Ok(())
}

/// What is recorded: each with a name, its program and arguments.
fn programs(place: &Path) -> Result<Vec<(&'static str, Vec<String>)>> {
    let input = place.join("numbers");
    let numbers: Vec<_> = (0_u32..20_000).map(|n| (n * 7919 % 20_011).to_string()).collect();
    let numbers = numbers.join("\n");
    fs::write(&input, numbers).context("cannot write a file")?;
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let python = python.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Ok(vec![
        ("gzip", words(&["gzip", "-9", "-c", &input.to_string_lossy()])),
        ("sqlite3", words(&["sqlite3", ":memory:", SQL])),
        ("python3", words(&[&python.unwrap_or_default(), "-S", "-c", PYTHON])),
    ])
}

/// A path, or what `PATH` leads to.
fn find(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| !program.is_empty() && path.is_file())
}
