//! `subpage new policy` and `subpage policy check`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::command_line::PolicyCheckArguments;
use crate::events::{Detail, TextEvents};
use crate::failure::{Failure, Status};
use crate::guard::{check_moments, check_policy, is_trace};
use crate::new_file;
use crate::policy::{Draft, Mistakes, Names, Policy, read_region_names};
use crate::terminal::style::{GOOD, HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, Output, bytes, grouped, plural, printable};
use crate::trace_file::TraceFile;

/// A policy with a rule of each kind, explained.
const TEMPLATE: &str = include_str!("template.toml");

/// Writes the beginning of a policy to a new file, or to `out`.
pub fn begin(output: Option<&Path>, out: &mut Output) -> Result<Status, Failure> {
    let Some(path) = output else {
        out.write_all(TEMPLATE.as_bytes())?;
        return Ok(Status::Clean);
    };
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(TEMPLATE.as_bytes())).map_err(|error| {
        Failure::input(format_args!("cannot write the policy {}", path.display()), &error)
    })?;
    Ok(Status::Clean)
}

/// Looks at a policy without a run.
pub fn check(arguments: &PolicyCheckArguments, out: &mut Output) -> Result<Status, Failure> {
    let names = NameFile::of(arguments)?;
    new_file::one_stdin(arguments.policy().iter().map(PathBuf::as_path))?;
    let draft = Draft::read(arguments.policy()).map_err(|error| Failure::bad(&error))?;
    let path = draft.name();
    let several = draft.sources().count() > 1;
    let wrong = |mistakes| Failure::Policy(Box::new(mistakes));
    let Some(names) = names else {
        let rules = draft.mistakes().map_err(wrong)?.rules().count() as u64;
        let (count, rules) = (grouped(rules), plural(rules, "rule"));
        writeln!(
            out,
            "{}  {count} {rules}, {GOOD}no mistake in the text{GOOD:#}; {QUIET}with a guest their \
             places are looked up as well{QUIET:#}",
            printable(&path)
        )?;
        return Ok(Status::Clean);
    };
    let of_trace = matches!(names, NameFile::Trace(..));
    let mut resolved = names.resolve(draft, arguments.process);
    if let (Some(guest), false) = (arguments.guest(), of_trace) {
        let known = resolved.as_mut().ok().and_then(|(policy, _)| policy.as_mut().ok());
        check_policy(guest, known)?;
    }
    let (policy, is_machine) = resolved?;
    let policy = policy.map_err(wrong)?;
    if of_trace {
        check_moments(&policy, is_machine)?;
    }
    let warnings = policy.overruled();
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::Strict { warnings, before_a_run: false });
    }
    show(&policy, several, out)?;
    TextEvents::new(&mut *out, Detail::Normal).warnings(&warnings)?;
    let (doubts, rules) = (warnings.len() as u64, policy.rules.len() as u64);
    writeln!(
        out,
        "\n{}  {} {}, {GOOD}no mistake{GOOD:#}, {} {}",
        printable(&path),
        grouped(rules),
        plural(rules, "rule"),
        grouped(doubts),
        plural(doubts, "warning"),
    )?;
    Ok(Status::Clean)
}

/// The file that has the names of a policy's places.
enum NameFile<'a> {
    /// A trace, and the program that was recorded.
    Trace(&'a Path, Option<&'a Path>),
    Symbols(&'a Path),
}

impl<'a> NameFile<'a> {
    /// The file, if one is named; fails if the arguments do not fit each other.
    fn of(arguments: &'a PolicyCheckArguments) -> Result<Option<Self>, Failure> {
        let (guest, symbols) = (arguments.guest(), arguments.symbols.as_deref());
        let trace = guest.map(is_trace).transpose()?.unwrap_or(false);
        match (guest, symbols) {
            (Some(guest), symbols) if trace => Ok(Some(Self::Trace(guest, symbols))),
            (Some(guest), _) if arguments.process.is_some() => Err(Failure::Input(format!(
                "`--process` does not fit {}, which KVM runs: it is for a trace",
                guest.display()
            ))),
            (None, _) if arguments.process.is_some() => {
                Err(Failure::Input("`--process` is for a trace: name it".to_owned()))
            }
            (None, None) if arguments.strict => Err(Failure::Input(
                "`--strict` is for warnings, and only the places of the rules give any: name the \
                 guest, or give `--symbols`"
                    .to_owned(),
            )),
            (guest, symbols) => Ok(symbols.or(guest).map(Self::Symbols)),
        }
    }

    /// The policy with these names, or its mistakes; and whether they are of the trace of a machine.
    fn resolve(
        self,
        draft: Draft,
        process: Option<u16>,
    ) -> Result<(Result<Policy, Mistakes>, bool), Failure> {
        Ok(match self {
            Self::Trace(path, program) => {
                let trace = TraceFile::open(path, process)?;
                let policy = draft.resolve_listed(&trace.names(program)?, &trace.names_command());
                (policy, trace.is_machine())
            }
            Self::Symbols(path) => {
                let names: Names = read_region_names(path).map_err(|error| Failure::bad(&error))?;
                let otherwise = "`nm FILE` lists the names of an ELF file; those of a Linux image are \
                                 its functions and data, without loadable modules";
                (draft.resolve_or(&names, otherwise), false)
            }
        })
    }
}

/// The rules; of several files, with the one that has each.
fn show(policy: &Policy, several: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut table =
        Columns::new(&[Align::Left, Align::Left, Align::Left, Align::Right, Align::Right]);
    table.row(["rule", "action", "guards", "", "line"].map(|text| (text.to_owned(), HEADING)));
    for known in &policy.rules {
        let rule = &known.rule;
        let (first, last) = (rule.range.first().as_u64(), rule.range.last().as_u64());
        table.row([
            (printable(rule.name.as_str()).into_owned(), NAME),
            (rule.action.word().to_owned(), PLAIN),
            (format!("{first:#x}..{:#x}", last + 1), PLAIN),
            (bytes(rule.range.bytes()), QUIET),
            (
                if several {
                    printable(&known.place()).into_owned()
                } else {
                    known.line.to_string()
                },
                QUIET,
            ),
        ]);
    }
    table.write(out, 0)
}
