//! From the command line to the exit status.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{ColorChoice, FromArgMatches};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

use crate::check::{self, Host};
use crate::command_line::{Command, CommandLine, KitTask, NewFile, PolicyTask, definition};
use crate::events::{Detail, EventWriter, ShownWarning, WarningEvent, shown_warnings};
use crate::failure::{Failure, Status};
use crate::terminal::style::{DENIED, QUIET};
use crate::terminal::{self, ColorWhen, Output, printable};
use crate::{
    compile_command, guard, kit, man_pages, plan_command, policy_command, record_command, schema,
};
#[cfg(feature = "kvm")]
use crate::{ctl, linux_policy, run_command, top};

/// Runs the command that `arguments` (the program's name first) ask for.
///
/// Everything is printed when this returns; the caller only has to end with the status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Status {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A file that grows beyond its limit is an error of the write then, and does not end the process.
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    let command = definition().color(clap_color(&arguments));
    let parsed = command
        .try_get_matches_from(arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed {
        Ok(line) => line,
        Err(error) => {
            let printed = error.print();
            return match printed {
                _ if error.use_stderr() => Status::BadInput,
                // A reader that has gone is no reason to fail.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    let failure = Failure::Output(error.to_string());
                    tell_people(&failure, ColorWhen::Auto);
                    failure.status()
                }
                _ => Status::Clean,
            };
        }
    };
    let mut out = Output::stdout(line.color);
    let result = execute(&line.command, line.color, &mut out)
        .and_then(|status| out.flush().map(|()| status).map_err(Failure::from))
        .and_then(|status| match out.failure() {
            None => Ok(status),
            Some(failure) => Err(Failure::Output(failure.to_string())),
        });
    match result {
        Ok(status) => status,
        Err(failure) => {
            tell(&failure, &line, &mut out);
            failure.status()
        }
    }
}

/// What `--color` says about clap's own messages, which come before the command line is parsed.
fn clap_color(arguments: &[OsString]) -> ColorChoice {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        let when = match word {
            "--" => break,
            "--color" => words.next(),
            _ => word.strip_prefix("--color="),
        };
        match when {
            Some("always") => return ColorChoice::Always,
            Some("never") => return ColorChoice::Never,
            _ => {}
        }
    }
    ColorChoice::Auto
}

fn execute(command: &Command, color: ColorWhen, out: &mut Output) -> Result<Status, Failure> {
    match command {
        Command::Guard(arguments) => guard::run(arguments, color, out),
        Command::Record(arguments) => record_command::run(arguments, color),
        Command::Plan(arguments) => plan_command::run(arguments, color, out),
        #[cfg(feature = "kvm")]
        Command::Ctl(arguments) => ctl::run(arguments, out),
        #[cfg(feature = "kvm")]
        Command::Top(arguments) => top::run(arguments, color, out),
        #[cfg(feature = "kvm")]
        Command::Run(arguments) => run_command::run(arguments, color, out),
        #[cfg(not(feature = "kvm"))]
        Command::Ctl { .. } | Command::Top { .. } => Err(Failure::Input(guard::NO_VMM.to_owned())),
        Command::Compile(arguments) => compile_command::run(arguments, color),
        Command::Check { json } => {
            let findings = check::find(&Host::this());
            if *json {
                check::write_json(out, &findings)?;
            } else {
                check::write_text(out, &findings)?;
            }
            Ok(Status::Clean)
        }
        Command::New { what: NewFile::Policy { output } } => {
            policy_command::begin(output.as_deref(), out)
        }
        Command::Policy { task: PolicyTask::Check(arguments) } => {
            policy_command::check(arguments, out)
        }
        #[cfg(feature = "kvm")]
        Command::Policy { task: PolicyTask::Linux(arguments) } => {
            linux_policy::write(out, &arguments.kernel, &arguments.pack)?;
            Ok(Status::Clean)
        }
        Command::Kit { task: KitTask::Show { json, report } } => kit::show(report, *json, out),
        Command::Schema { of } => {
            schema::write(out, *of)?;
            Ok(Status::Clean)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut definition(), "subpage", &mut script);
            out.write_all(&script)?;
            Ok(Status::Clean)
        }
        Command::Man { directory } => {
            man_pages::write(definition(), directory)?;
            Ok(Status::Clean)
        }
    }
}

/// Says what went wrong: on standard error for people, and as events where those were asked for.
fn tell(failure: &Failure, line: &CommandLine, out: &mut Output) {
    let json = match &line.command {
        Command::Guard(arguments) => arguments.json,
        Command::Plan(arguments) => arguments.json,
        Command::Check { json } => *json,
        // What `ctl` prints are replies, and it has told of a failure in their form.
        Command::Ctl { .. }
        | Command::Top { .. }
        | Command::Record(_)
        | Command::Compile(_)
        | Command::New { .. }
        | Command::Policy { .. }
        | Command::Kit { .. }
        | Command::Schema { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => false,
        // Its events are those of a guest, and there was none.
        #[cfg(feature = "kvm")]
        Command::Run(_) => false,
    };
    if json {
        let mut events = EventWriter::new(&mut *out, true, Detail::Normal);
        // Nothing is left to try when this cannot be written either.
        let _ = match (failure, failure.event()) {
            (Failure::Policy(mistakes), _) => events.mistakes(mistakes),
            (Failure::Strict { warnings, .. }, _) => {
                warnings.iter().try_for_each(|warning| events.error(&warning.as_error()))
            }
            (_, Some(event)) => events.error(&event),
            (_, None) => Ok(()),
        };
    }
    let _ = out.flush();
    tell_people(failure, line.color);
}

fn strict(warnings: &[WarningEvent]) -> String {
    let one = |warning: &WarningEvent| {
        let (message, help) = (printable(&warning.message), printable(&warning.help));
        format!("{DENIED}error:{DENIED:#} {message}\n  {QUIET}{help}{QUIET:#}\n")
    };
    let shown = |shown: ShownWarning<'_>| match shown {
        ShownWarning::Whole(warning) => one(warning),
        ShownWarning::More(count) => format!("{QUIET}{}{QUIET:#}\n", ShownWarning::more(count)),
    };
    shown_warnings(warnings).into_iter().map(shown).collect()
}

fn tell_people(failure: &Failure, color: ColorWhen) {
    let text = match failure {
        Failure::Policy(mistakes) => mistakes.render(),
        Failure::Strict { warnings, before_a_run } => {
            let nothing = if *before_a_run { "nothing was run: " } else { "" };
            strict(warnings) + nothing + "`--strict` makes warnings errors\n"
        }
        Failure::Input(message) => {
            format!("{DENIED}error:{DENIED:#} {}\n", printable(message))
        }
        Failure::Output(reason) => format!(
            "{DENIED}error:{DENIED:#} cannot write to standard output: {}\n",
            printable(reason)
        ),
        Failure::Internal(message) => {
            format!("{DENIED}internal error:{DENIED:#} {}\n", printable(message))
        }
    };
    terminal::tell(color, text);
}
