//! `subpage compile`: a policy as the bytes that a hypervisor takes in.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

use subpage::address::{ByteRange, Gpa, PhysicalWidth};
use subpage::domain::{Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Moment, Owner, Rule, RuleName};
use subpage_linux::{Btf, FirstProgram, Kallsyms, KernelImage, Tasks};

use crate::command_line::CompileArguments;
use crate::failure::{Failure, Status};
use crate::new_file;
use crate::policy::{Draft, Names, Policy, PolicyRule, PolicySource, read_region_names};
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
    if let Some(names) = &arguments.names {
        new_file::check(names, "the names")?;
        new_file::apart(&[("`--output`", &arguments.output), ("`--names`", names)])?;
        new_file::keep(
            names,
            "the names",
            arguments.policy.iter().chain(&arguments.symbols).map(PathBuf::as_path),
        )?;
        new_file::keep(names, "the names", draft.sources().map(PolicySource::path))?;
    }
    let regions = match &arguments.symbols {
        Some(path) => read_region_names(path).map_err(|error| Failure::bad(&error))?,
        None => Names::default(),
    };
    let otherwise = if regions.is_empty() { NO_NAMES } else { NAMES };
    let policy = draft
        .resolve_or(&regions, otherwise)
        .map_err(|mistakes| Failure::Policy(Box::new(mistakes)))?;
    let first = first_program(&policy, arguments.symbols.as_deref())?;
    let state = compile(&policy, first)?;
    let names = match (&arguments.names, &arguments.symbols) {
        (Some(path), Some(symbols)) => Some((path, kernel_names(symbols)?)),
        _ => None,
    };
    new_file::replace(&arguments.output, "the compiled policy", &subpage::domain::EXPORT_MAGIC)?;
    new_file::write(&arguments.output, &state).map_err(|error| {
        let path = arguments.output.display();
        Failure::input(format_args!("cannot write the compiled policy {path}"), &error)
    })?;
    if let Some((path, names)) = &names {
        new_file::replace(path, "the names", &subpage_linux::names::MAGIC)?;
        new_file::write(path, names).map_err(|error| {
            Failure::input(format_args!("cannot write the names {}", path.display()), &error)
        })?;
    }
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
    if let Some((path, names)) = &names {
        writeln!(
            err,
            "{}  names  {QUIET}{}{QUIET:#}",
            printable(&path.to_string_lossy()),
            bytes(names.len() as u64)
        )?;
    }
    err.flush()?;
    Ok(Status::Clean)
}

/// The names of a kernel's functions, and the places of its tasks as far as its types tell.
fn kernel_names(path: &Path) -> Result<Vec<u8>, Failure> {
    let untold = |reason: &dyn Display| {
        Failure::Input(format!("no names of functions from {}: {reason}", path.display()))
    };
    let image = KernelImage::open(path).map_err(|error| untold(&error))?;
    let kallsyms = Kallsyms::read(&image).map_err(|error| untold(&error))?;
    let tasks = Btf::read(&image, &kallsyms).and_then(|types| Tasks::of(&kallsyms, &types));
    let file = std::fs::read(path).map_err(|error| untold(&error))?;
    let which = subpage_linux::names::fingerprint(&file);
    subpage_linux::names::write(&kallsyms, tasks.as_ref().map(Tasks::places), which)
        .map_err(|error| untold(&error))
}

/// The write by which the hypervisor knows the first program, if a rule waits for that. A rule that waits
/// for something that the hypervisor does not know is a mistake.
fn first_program(policy: &Policy, symbols: Option<&Path>) -> Result<Option<FirstProgram>, Failure> {
    let mut waiting = policy.rules.iter().filter(|rule| rule.waits());
    let Some(first) = waiting.clone().next() else { return Ok(None) };
    let place = |rule: &PolicyRule| {
        format!("{}: the rule \"{}\"", printable(&rule.place()), printable(rule.rule.name.as_str()))
    };
    if let Some(other) = waiting.find(|rule| rule.arm != Some(Moment::Init)) {
        return Err(Failure::Input(format!(
            "{} waits for a moment that the hypervisor does not know; its rules arm at `entry` or `init`",
            place(other)
        )));
    }
    let untold = |reason: &dyn Display| {
        Failure::Input(format!(
            "{} arms at `init`, and that moment is not known: {reason}",
            place(first)
        ))
    };
    let path = symbols.ok_or_else(|| untold(&"give the kernel's image with `--symbols`"))?;
    let image = KernelImage::open(path).map_err(|error| untold(&error))?;
    let names = Kallsyms::read(&image).map_err(|error| untold(&error))?;
    FirstProgram::of(&image, &names).map(Some).map_err(|error| untold(&error))
}

/// The rule by which a hypervisor knows the first program: `subpage_vmx::policy::FIRST_PROGRAM`.
fn first_program_rule(write: FirstProgram) -> Option<Rule> {
    let range = Gpa::try_new(write.at).and_then(|first| ByteRange::new(first, 4)).ok()?;
    let name = RuleName::new(&format!("system_state={}", write.running)).ok()?;
    Some(Rule { name, range, owner: Owner::HOST, action: Action::Log, locked: false })
}

/// The policy as the exported state of a domain that holds it and nothing else. Rules that arm at a
/// kernel's first program are not in force in it; `first` is the write that tells of that.
///
/// Equal policies give equal bytes. Fails if it guards more than [`MAX_PAGES`] or memory is short.
pub fn compile(policy: &Policy, first: Option<FirstProgram>) -> Result<Vec<u8>, Failure> {
    let mut rules: Vec<(Rule, bool)> =
        policy.rules.iter().map(|rule| (rule.rule, !rule.waits())).collect();
    rules.extend(first.and_then(first_program_rule).map(|rule| (rule, true)));
    let pages =
        rules.iter().fold(0_u64, |sum, (rule, _)| sum.saturating_add(rule.range.gfns().pages()));
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
    let (_, token) = domain.add_some_armed(&rules).map_err(refused)?;
    // No processor walks these tables.
    domain.finish(&token.without_processors());
    domain.export().map_err(refused)
}
