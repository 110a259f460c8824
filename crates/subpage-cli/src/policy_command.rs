//! `subpage new policy` and `subpage policy check`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use crate::command_line::PolicyCheckArguments;
use crate::events::{Detail, TextEvents};
use crate::failure::{Failure, Status};
use crate::guard::is_trace;
use crate::policy::{Draft, Names, Policy, PolicySource, read_region_names};
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
    let source = PolicySource::read(&arguments.policy).map_err(|error| Failure::bad(&error))?;
    let path = source.path().display().to_string();
    let draft = Draft::parse(source);
    let wrong = |mistakes| Failure::Policy(Box::new(mistakes));
    let symbols = arguments.symbols.as_deref();
    let Some(guest) = symbols.or(arguments.guest.as_deref()) else {
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
    let policy = if symbols.is_none() && is_trace(guest)? {
        draft.resolve(&TraceFile::open(guest, None)?.names())
    } else {
        let names: Names = read_region_names(guest).map_err(|error| Failure::bad(&error))?;
        draft.resolve_or(&names, "`nm FILE` lists the names of an ELF file")
    };
    let policy = policy.map_err(wrong)?;
    let warnings = policy.overruled();
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::Strict(warnings));
    }
    show(&policy, out)?;
    let mut text = TextEvents::new(&mut *out, Detail::Normal);
    for warning in &warnings {
        text.warning(warning)?;
    }
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

fn show(policy: &Policy, out: &mut dyn Write) -> io::Result<()> {
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
            (known.line.to_string(), QUIET),
        ]);
    }
    table.write(out, 0)
}
