//! `subpage record`.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use subpage_trace::{Header, MAGIC, RecordError, Recorded, Recording, Told, import, record};

use crate::command_line::RecordArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::progress::Progress;
use crate::terminal::style::{DENIED, LOGGED, QUIET};
use crate::terminal::{ColorWhen, Output, bytes, grouped, plural, printable};

/// Runs the command. Standard output stays the recorded program's.
pub fn run(arguments: &RecordArguments, color: ColorWhen) -> Result<Status, Failure> {
    let program = arguments.program.first().and_then(|program| find_program(program));
    let read = [arguments.from_lackey.as_deref(), program.as_deref()];
    new_file::keep(&arguments.output, "the trace", read.into_iter().flatten())?;
    new_file::replace(&arguments.output, "the trace", &MAGIC)?;
    // A text is given up at a signal; a program is asked to end, and its recording is kept.
    let cancel = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).expect("signals are above 0");
        signal_hook::flag::register(signal, Arc::clone(&cancel))
            .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(&asked), number))
            .map_err(|error| Failure::Internal(format!("cannot handle signals: {error}")))?;
    }
    let progress = Progress::new(color, "recording", 0);
    let tick = |now: subpage_trace::Progress| progress.at(now.text_bytes, now.writes);
    let mut err = Output::stderr(color);
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
                children: arguments.children,
                signal: &asked,
            };
            record(&arguments.output, &recording, |told| match told {
                Told::Progress(now) => tick(now),
                Told::Message(message) => {
                    let line = printable(message).into_owned();
                    // Standard error is the program's as well; a failure there is no reason to end.
                    let _ = progress.aside(|| {
                        writeln!(err, "{QUIET}valgrind|{QUIET:#} {line}")?;
                        err.flush()
                    });
                }
            })
        }
        (None, []) => return Err(Failure::Input("there is no program to record".to_owned())),
    };
    drop(progress);
    let recorded = recorded.map_err(|error: RecordError| Failure::bad(&error))?;
    say(&arguments.output, &recorded, &mut Output::stderr(color))?;
    Ok(if recorded.stops_early() { Status::GuestFailed } else { Status::Clean })
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
    let names = recorded.names as u64;
    writeln!(
        err,
        "{}  {} {} in {}  {QUIET}{} {}{QUIET:#}",
        printable(&path.to_string_lossy()),
        grouped(recorded.writes),
        plural(recorded.writes, "write"),
        bytes(recorded.file_bytes),
        grouped(names),
        plural(names, "name"),
    )?;
    let warn = |err: &mut dyn Write, text: &str| {
        writeln!(err, "{LOGGED}note:{LOGGED:#} {}", printable(text))
    };
    if recorded.stops_early() {
        writeln!(
            err,
            "{DENIED}error:{DENIED:#} Valgrind could not go on, for the reason above: the trace ends \
             there, before the end of the program"
        )?;
    } else if let Some(status) = recorded.status.filter(|status| !status.success()) {
        warn(err, &format!("the program ended with {status}; the trace goes up to its end"))?;
    }
    if recorded.processes > 1 {
        let count = recorded.processes as u64;
        let (count, processes) = (grouped(count), plural(count, "process"));
        warn(
            err,
            &format!(
                "the trace holds {count} {processes}, each by itself: `subpage plan {} --processes` \
                 lists them",
                path.display()
            ),
        )?;
    }
    if recorded.processes_left_out > 0 {
        let count = recorded.processes_left_out as u64;
        let (count, processes) = (grouped(count), plural(count, "process"));
        warn(
            err,
            &format!(
                "the writes of {count} {processes} that the program started are not in the trace: \
                 `--children` records them"
            ),
        )?;
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
