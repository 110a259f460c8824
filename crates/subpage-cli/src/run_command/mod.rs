//! `subpage run`: guards the guest of a VMM that knows nothing of it.
//!
//! The library that does it is loaded into the VMM's process. This process hands it the rules, prints the
//! events, and sees to it that no machine runs without the library.

mod library;
mod processes;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use subpage::rules::Moment;
use subpage_kvm::control::Client;
use subpage_kvm::control::protocol::NewRule;

use crate::command_line::{DevicesChoice, RunArguments};
use crate::ctl;
use crate::failure::{Failure, Status};
use crate::policy::{Draft, Names, Policy, PolicyRule, read_region_names};
use crate::terminal::style::QUIET;
use crate::terminal::{ColorWhen, Output, tell};

/// Between two looks at the VMM.
const LOOK: Duration = Duration::from_millis(20);

/// Rounds from one look for unguarded machines to the next, once a machine is guarded.
const ROUNDS: u32 = 25;

/// How long a machine may have a processor before the library has said that it guards it.
const SILENCE: Duration = Duration::from_secs(5);

/// How long the library has to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A rule as the library reads it.
#[derive(Serialize)]
struct Given {
    #[serde(flatten)]
    rule: NewRule,
    waits: bool,
}

/// What the library reads.
#[derive(Serialize)]
struct Configuration<'a> {
    rules: Vec<Given>,
    devices: &'static str,
    socket: &'a Path,
    /// A file that the library makes when it guards a machine.
    seen: &'a Path,
}

/// Runs the command. It ends this process with the VMM's own status.
pub(crate) fn run(
    arguments: &RunArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Status, Failure> {
    let policy = read_policy(arguments)?;
    let (program, rest) = arguments.vmm.split_first().expect("the command line has one");
    let path = processes::find_program(program)?;
    library::check_program(&path)?;
    let library = library::find()?;
    let internal = |error: std::io::Error| Failure::Internal(format!("cannot run a VMM: {error}"));
    let directory = tempfile::Builder::new().prefix("subpage-").tempdir().map_err(internal)?;
    let socket = match &arguments.control {
        Some(path) => std::path::absolute(path).map_err(internal)?,
        None => own_socket().unwrap_or_else(|| directory.path().join("control.sock")),
    };
    if socket.exists() && Client::connect(&socket, PATIENCE).is_ok() {
        return Err(Failure::Input(format!("the socket {} is in use", socket.display())));
    }
    let handed = directory.path().join("run.json");
    let seen = directory.path().join("seen");
    let text = configuration(&policy, arguments.devices, &socket, &seen)?;
    std::fs::write(&handed, text).map_err(internal)?;
    let events = match &arguments.events {
        None => Output::stderr(color),
        Some(path) => Output::file(File::create(path).map_err(|error| {
            Failure::Input(format!("cannot write {}: {error}", path.display()))
        })?),
    };
    out.flush()?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&ended)).map_err(internal)?;
    }
    let mut command = Command::new(program);
    command.args(rest).env(library::VARIABLE, &handed).env("LD_PRELOAD", preload(&library));
    let child = command
        .spawn()
        .map_err(|error| Failure::Input(format!("cannot start {}: {error}", path.display())))?;
    let places = Places { socket: &socket, seen: &seen };
    let status = stay(child, places, arguments.json, events, &ended, color)?;
    // Neither a destructor nor a guard runs after this.
    let _ = directory.close();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    std::process::exit(code)
}

/// `LD_PRELOAD` with the library first.
fn preload(library: &Path) -> OsString {
    let mut all = library.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        all.push(":");
        all.push(others);
    }
    all
}

/// `$XDG_RUNTIME_DIR/subpage/PID.sock`, where `subpage ctl list` finds it.
fn own_socket() -> Option<PathBuf> {
    let runtime = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    let directory = runtime.join("subpage");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join(format!("{}.sock", std::process::id())))
}

fn read_policy(arguments: &RunArguments) -> Result<Policy, Failure> {
    let draft = Draft::read(&arguments.policy).map_err(|error| Failure::bad(&error))?;
    let names = match &arguments.symbols {
        Some(path) => read_region_names(path).map_err(|error| Failure::bad(&error))?,
        None => Names::default(),
    };
    let otherwise = "give a file with names by `--symbols FILE`, or give the rule a `range`";
    let policy = draft
        .resolve_or(&names, otherwise)
        .map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    for rule in &policy.rules {
        if !matches!(rule.arm, None | Some(Moment::Start | Moment::Command)) {
            return Err(Failure::Input(format!(
                "the rule `{}` ({}) cannot arm at `{}` in a guest of another VMM: `start` (when a \
                 processor first enters the guest) and `command` (`subpage ctl SOCKET arm`) are known",
                rule.rule.name,
                rule.place(),
                rule.arm.unwrap_or(Moment::Start).word(),
            )));
        }
    }
    Ok(policy)
}

fn configuration(
    policy: &Policy,
    devices: DevicesChoice,
    socket: &Path,
    seen: &Path,
) -> Result<String, Failure> {
    let given = |PolicyRule { rule, arm, .. }: &PolicyRule| Given {
        rule: NewRule {
            name: rule.name.to_string(),
            start: rule.range.first().as_u64(),
            length: rule.range.bytes(),
            action: rule.action.word().to_owned(),
            owner: rule.owner.0,
            locked: rule.locked,
        },
        waits: *arm == Some(Moment::Command),
    };
    let devices = match devices {
        DevicesChoice::Judged => "judged",
        DevicesChoice::Trusted => "trusted",
    };
    let rules = policy.rules.iter().map(given).collect();
    serde_json::to_string(&Configuration { rules, devices, socket, seen })
        .map_err(|error| Failure::Internal(error.to_string()))
}

/// Where the library shows that it guards a machine.
#[derive(Clone, Copy)]
struct Places<'a> {
    socket: &'a Path,
    seen: &'a Path,
}

/// Stays with the VMM until it ends.
fn stay(
    mut child: Child,
    places: Places<'_>,
    json: bool,
    events: Output,
    ended: &AtomicBool,
    color: ColorWhen,
) -> Result<ExitStatus, Failure> {
    let internal = |error: std::io::Error| Failure::Internal(format!("cannot run a VMM: {error}"));
    let (mut watching, mut events) = (None, Some(events));
    let (mut round, mut silent_since) = (0u32, None);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(internal)? {
            break status;
        }
        if ended.swap(false, Ordering::SeqCst) {
            processes::terminate(child.id());
        }
        // Also when one machine is guarded: a script may start a second VMM.
        if (watching.is_none() || round.is_multiple_of(ROUNDS))
            && let Some(process) = processes::unguarded(child.id())
        {
            return Err(end_unguarded(child, process, "without the library", REMOVED));
        }
        if watching.is_none() {
            if places.socket.exists()
                && let Ok(client) = Client::connect(places.socket, PATIENCE)
            {
                tell(
                    color,
                    format!(
                        "{QUIET}guarded; ask by: subpage ctl {} show{QUIET:#}\n",
                        places.socket.display()
                    ),
                );
                let events = events.take().expect("watched once");
                watching = Some(thread::spawn(move || ctl::watch_all(client, json, events)));
            } else if !places.seen.exists()
                && let Some(process) = processes::with_processor(child.id())
                && silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE
            {
                return Err(end_unguarded(child, process, "that the library has not seen", PASSED));
            }
        }
        round = round.wrapping_add(1);
        thread::sleep(LOOK);
    };
    match watching {
        Some(watching) => {
            let _ = watching.join();
        }
        // It ended before it was looked at.
        None if places.seen.exists() => {}
        None => {
            return Err(Failure::Input(format!(
                "the VMM has ended ({status}) without having made a machine that the library has seen: \
                 nothing was guarded"
            )));
        }
    }
    Ok(status)
}

const REMOVED: &str =
    "something between this command and it removes LD_PRELOAD from the environment";
const PASSED: &str = "it calls KVM without the C library, or something between this command and it \
                      removes SUBPAGE_RUN from the environment";

/// Ends a process whose machine nobody guards, and the VMM with it.
fn end_unguarded(mut child: Child, process: u32, how: &str, why: &str) -> Failure {
    processes::kill(process);
    // What has ended already needs no end.
    let _ = child.kill();
    let _ = child.wait();
    Failure::Input(format!(
        "process {process} has made a machine {how}, unguarded, and was ended: {why}"
    ))
}
