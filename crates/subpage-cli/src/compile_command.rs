//! `subpage compile`: a policy as the bytes that a hypervisor takes in.

use std::io::Write;
use std::path::PathBuf;

use subpage::address::PhysicalWidth;
use subpage::domain::{Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::rules::Rule;

use crate::command_line::CompileArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::policy::{Draft, Names, Policy, PolicySource, read_region_names};
use crate::terminal::style::QUIET;
use crate::terminal::{ColorWhen, Output, bytes, grouped, plural, printable};

/// Most guarded pages, counted rule by rule: 4 GiB, the most that the hypervisor takes.
pub const MAX_PAGES: u64 = 1 << 20;

/// Where the names for `region` come from, for mistakes.
const NAMES: &str = "list the symbols of the file given by `--symbols` with `nm FILE`";
const NO_NAMES: &str =
    "without `--symbols ELF` there are no names; give the rule a `range` or a `symbol`";

/// Runs the command.
pub fn run(arguments: &CompileArguments, color: ColorWhen) -> Result<Status, Failure> {
    new_file::check(&arguments.output, "the compiled policy")?;
    new_file::one_stdin(arguments.policy.iter().map(PathBuf::as_path))?;
    let read = arguments.policy.iter().chain(&arguments.symbols).map(PathBuf::as_path);
    new_file::keep(&arguments.output, "the compiled policy", read)?;
    let draft = Draft::read(&arguments.policy).map_err(|error| Failure::bad(&error))?;
    let included = draft.sources().map(PolicySource::path);
    new_file::keep(&arguments.output, "the compiled policy", included)?;
    let regions = match &arguments.symbols {
        Some(path) => read_region_names(path).map_err(|error| Failure::bad(&error))?,
        None => Names::default(),
    };
    let otherwise = if regions.is_empty() { NO_NAMES } else { NAMES };
    let policy = draft
        .resolve_or(&regions, otherwise)
        .map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    let state = compile(&policy)?;
    new_file::write(&arguments.output, &state).map_err(|error| {
        let path = arguments.output.display();
        Failure::input(format_args!("cannot write the compiled policy {path}"), &error)
    })?;
    let rules = policy.rules.len() as u64;
    let mut err = Output::stderr(color);
    writeln!(
        err,
        "{}  {} {}  {QUIET}{}{QUIET:#}",
        printable(&arguments.output.to_string_lossy()),
        grouped(rules),
        plural(rules, "rule"),
        bytes(state.len() as u64),
    )?;
    err.flush()?;
    Ok(Status::Clean)
}

/// The policy as the exported state of a domain that holds it and nothing else.
///
/// Equal policies give equal bytes. Fails if it guards more than [`MAX_PAGES`] or memory is short.
pub fn compile(policy: &Policy) -> Result<Vec<u8>, Failure> {
    let rules: Vec<Rule> = policy.rules.iter().map(|rule| rule.rule).collect();
    let pages = rules.iter().fold(0_u64, |sum, rule| sum.saturating_add(rule.range.gfns().pages()));
    if pages > MAX_PAGES {
        return Err(Failure::Input(format!(
            "the policy guards {} pages of 4 KiB; the hypervisor takes at most {} (4 GiB): guard \
             smaller ranges",
            grouped(pages),
            grouped(MAX_PAGES),
        )));
    }
    let refused =
        |error: DomainError| Failure::Internal(format!("cannot compile the policy: {error}"));
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable().map_err(refused)?;
    let (_, token) = domain.add_rules(&rules).map_err(refused)?;
    // No processor walks these tables.
    domain.finish(&token.without_processors());
    domain.export().map_err(refused)
}
