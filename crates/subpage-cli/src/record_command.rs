//! `subpage record`.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use subpage_trace::{Header, RecordError, Recorded, Recording, import, record};

use crate::command_line::RecordArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::progress::Progress;
use crate::terminal::style::{LOGGED, QUIET};
use crate::terminal::{ColorWhen, Output, bytes, grouped, printable};

/// Runs the command. Standard output stays the recorded program's.
pub fn run(arguments: &RecordArguments, color: ColorWhen) -> Result<Status, Failure> {
    let program = arguments.program.first().and_then(|program| find_program(program));
    let read = [arguments.from_lackey.as_deref(), program.as_deref()];
    new_file::keep(&arguments.output, "the trace", read.into_iter().flatten())?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))
            .map_err(|error| Failure::Internal(format!("cannot handle signals: {error}")))?;
    }
    let progress = Progress::new(color, "recording", 0);
    let tick = |now: subpage_trace::Progress| progress.at(now.text_bytes, now.writes);
    let recorded = match (&arguments.from_lackey, &arguments.program[..]) {
        (Some(path), _) if path == Path::new("-") => {
            import(&arguments.output, io::stdin().lock(), &Header::default(), &cancel, tick)
        }
        (Some(path), _) => {
            let file = File::open(path).map_err(|error| {
                Failure::input(format_args!("cannot read {}", path.display()), &error)
            })?;
            import(&arguments.output, file, &Header::default(), &cancel, tick)
        }
        (None, [program, rest @ ..]) => {
            let recording = Recording {
                program: program.clone(),
                arguments: rest.to_vec(),
                valgrind: "valgrind".into(),
                cancel: &cancel,
            };
            record(&arguments.output, &recording, tick)
        }
        (None, []) => return Err(Failure::Input("there is no program to record".to_owned())),
    };
    drop(progress);
    let recorded = recorded.map_err(|error: RecordError| Failure::bad(&error))?;
    say(&arguments.output, &recorded, &mut Output::stderr(color))?;
    Ok(Status::Clean)
}

/// The file that a command's name leads to, as a shell would find it.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn say(path: &Path, recorded: &Recorded, err: &mut dyn Write) -> io::Result<()> {
    writeln!(
        err,
        "{}  {} writes in {}  {QUIET}{} names{QUIET:#}",
        printable(&path.to_string_lossy()),
        grouped(recorded.writes),
        bytes(recorded.file_bytes),
        grouped(recorded.names as u64),
    )?;
    let warn = |err: &mut dyn Write, text: &str| {
        writeln!(err, "{LOGGED}note:{LOGGED:#} {}", printable(text))
    };
    if let Some(status) = recorded.status.filter(|status| !status.success()) {
        warn(err, &format!("the program ended with {status}; the trace goes up to its end"))?;
    }
    if let Some(reason) = &recorded.nameless {
        warn(err, &format!("the trace has no names of the program's data: {reason}"))?;
    }
    if recorded.names_left_out > 0 {
        let count = grouped(recorded.names_left_out as u64);
        warn(err, &format!("{count} names are left out: too long, or too many"))?;
    }
    if recorded.text.malformed > 0 {
        let count = grouped(recorded.text.malformed);
        warn(err, &format!("{count} lines of the text look like accesses and are not"))?;
    }
    err.flush()
}
