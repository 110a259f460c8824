//! `subpage record`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use subpage_trace::{
    Header, MAGIC, Machine, Name, NameKind, Names, RecordError, Recording, Told, Tool, import,
    record, record_machine,
};

use crate::command_line::RecordArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::policy::read_region_names;
use crate::progress::Progress;
use crate::record_report::{causes, note, write_json, write_text};
use crate::terminal::style::QUIET;
use crate::terminal::{ColorWhen, Output, printable};

/// Runs the command. Standard output stays the recorded program's.
pub fn run(arguments: &RecordArguments, color: ColorWhen) -> Result<Status, Failure> {
    let program = arguments.program.first().and_then(|program| find_program(program));
    let read = [arguments.from_lackey.as_deref(), program.as_deref(), arguments.symbols.as_deref()];
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
    let json = arguments.json;
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
        (None, [program, rest @ ..]) if arguments.system => {
            if arguments.symbols.is_some() && may_move(rest) && !json {
                note(
                    &mut err,
                    "the names are given the addresses of a kernel that was not moved: if this one has \
                     KASLR, put `nokaslr` on its command line (`-append`)",
                )?;
            }
            let machine = Machine {
                program: program.clone(),
                arguments: rest.to_vec(),
                names: match &arguments.symbols {
                    Some(path) => kernel_data(path)?,
                    None => Names::default(),
                },
                limit: arguments.limit,
                cache: None,
                signal: &asked,
            };
            record_machine(&arguments.output, &machine, |told| {
                if let Told::Progress(now) = told {
                    tick(now);
                }
            })
        }
        (None, [program, rest @ ..]) => {
            let recording = Recording {
                program: program.clone(),
                arguments: rest.to_vec(),
                valgrind: "valgrind".into(),
                children: arguments.children,
                kernel_writes: arguments.kernel_writes,
                tool: arguments.tool.into(),
                cache: None,
                signal: &asked,
            };
            record(&arguments.output, &recording, |told| match told {
                Told::Progress(now) => tick(now),
                // Early, since it is the reason why a recording takes long.
                Told::Tool(Tool::Lackey { reason: Some(reason) }) if !json => {
                    let reason = causes(reason);
                    let _ = note(
                        &mut err,
                        &format!(
                            "recording with Valgrind's lackey, which takes many times as long: the \
                             recorder's own tool cannot be used: {reason}"
                        ),
                    );
                }
                Told::Tool(_) => {}
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
    let err = &mut Output::stderr(color);
    if json {
        write_json(&arguments.output, &recorded, arguments.kernel_writes, err)?;
    } else {
        write_text(&arguments.output, &recorded, arguments.system, err)?;
    }
    let is_whole = recorded.is_whole != Some(false) && recorded.missing == 0 && !recorded.is_full;
    Ok(if is_whole && !recorded.stops_early() { Status::Clean } else { Status::GuestFailed })
}

/// Whether QEMU is given a kernel that may move itself.
fn may_move(arguments: &[OsString]) -> bool {
    let line = arguments.iter().skip_while(|word| *word != "-append" && *word != "--append").nth(1);
    line.is_none_or(|line| {
        !line.to_string_lossy().split_ascii_whitespace().any(|word| word == "nokaslr")
    })
}

/// The names of a kernel's data, by physical address; code is left out, as there is too much of it.
fn kernel_data(path: &Path) -> Result<Names, Failure> {
    let names = read_region_names(path).map_err(|error| Failure::bad(&error))?;
    let code_end = names.find("_etext").map_or(0, |end| end.start);
    if names.is_empty() {
        let path = path.display();
        return Err(Failure::Input(format!("{path} has no symbols of a kernel's data")));
    }
    let data = names.iter().filter(|name| name.start >= code_end);
    Ok(Names::new(data.map(|name| Name {
        name: name.name.clone(),
        start: name.start,
        length: name.length,
        kind: NameKind::Object,
    })))
}

/// The file that a command's name leads to, as a shell would find it.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_stays_where_its_command_line_says_so() {
        let moves =
            |words: &[&str]| may_move(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(!moves(&["-m", "256", "-append", "quiet nokaslr panic=-1"]));
        assert!(!moves(&["--append", "nokaslr"]));
        assert!(moves(&["-append", "quiet", "nokaslr"]));
        assert!(moves(&["-append", "quiet xnokaslr"]));
        assert!(moves(&["-append"]));
        assert!(moves(&["-m", "256"]));
    }
}
