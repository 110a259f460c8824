//! First stage: the text alone.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use subpage::rules::RuleName;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Mistakes};
use super::fields::{Fields, type_name};
use super::include::{Opened, TOO_LONG, TOO_LONG_HELP, included};
use super::notation::check_form;
use super::place::{Place, Written};
use super::rule::{DraftRule, read_rule};
use super::symbol_files::SymbolFiles;
use super::{FORMAT_VERSION, MAX_RULES, PolicySource, SourceError};

pub(super) const TOP_KEYS: &[&str] = &["version", "include", "rule"];
const VERSION_HELP: &str = "begin the file with `version = 1`";
/// A policy whose text has been read, with the mistakes found so far.
#[derive(Debug, Clone)]
pub struct Draft {
    pub(super) files: Vec<DraftFile>,
    pub(super) symbols: SymbolFiles,
}

/// One of its files.
#[derive(Debug, Clone)]
pub(super) struct DraftFile {
    pub(super) source: PolicySource,
    pub(super) rules: Vec<DraftRule>,
    pub(super) mistakes: Vec<Diagnostic>,
}

/// What the files before have taken of what the policy has once.
#[derive(Default)]
struct Taken {
    /// Each name, with the file that it is in, by its place in the policy, and its line.
    names: HashMap<RuleName, (usize, usize)>,
    /// Rules, right or wrong.
    rules: usize,
    /// Whether it has been said that there are too many.
    too_many: bool,
}

impl Draft {
    /// Reads a policy of one file. Mistakes are kept and reported by [`Draft::resolve`].
    pub fn parse(source: PolicySource) -> Self {
        Self::of(vec![source])
    }

    /// Reads the files at these paths as one policy.
    pub fn read(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let sources: Result<_, _> = paths.iter().map(|path| PolicySource::read(path)).collect();
        sources.map(Self::of)
    }

    /// Reads a policy of several files: their rules, in the order of the files, with names that differ.
    ///
    /// Reads the files that they include as well; their rules stand before those of the file that
    /// includes them. A file that is given or included again counts once.
    pub fn of(sources: Vec<PolicySource>) -> Self {
        let mut reading = Reading::default();
        for source in sources {
            if reading.opened.begin(source.path()) {
                let fits = reading.opened.count(&source);
                reading.file(source, fits);
            }
        }
        Self { files: reading.files, symbols: SymbolFiles::default() }
    }

    /// The mistakes of the text alone, if there are any.
    pub fn mistakes(mut self) -> Result<Self, Mistakes> {
        for file in &mut self.files {
            for rule in &file.rules {
                let Place::Notation(Written { value, span }) = &rule.place else { continue };
                if let Err(wrong) = check_form(value) {
                    let help = format!(
                        "{}; a name that contains `+` or `..` is known with its guest only: give \
                         it as well",
                        wrong.help
                    );
                    file.mistakes.push(Diagnostic::new(span.clone(), wrong.message, "", help));
                }
            }
        }
        if self.files.iter().all(|file| file.mistakes.is_empty()) {
            return Ok(self);
        }
        Err(Mistakes::new(self.files.into_iter().map(|file| (file.source, file.mistakes))))
    }

    /// What the policy is called: its files.
    pub fn name(&self) -> String {
        let names: Vec<_> = self.sources().map(|it| it.path().display().to_string()).collect();
        names.join(", ")
    }

    /// The texts of its files.
    pub fn sources(&self) -> impl Iterator<Item = &PolicySource> {
        self.files.iter().map(|file| &file.source)
    }

    /// The rules that are right so far, in the order of the files.
    pub fn rules(&self) -> impl Iterator<Item = &DraftRule> {
        self.files.iter().flat_map(|file| &file.rules)
    }
}

/// A policy that is being read.
#[derive(Default)]
struct Reading {
    /// Those that are read, in the order of their rules.
    files: Vec<DraftFile>,
    taken: Taken,
    opened: Opened,
}

impl Reading {
    /// Reads a file that was begun, and those that it includes.
    fn file(&mut self, source: PolicySource, fits: bool) {
        let mut mistakes = Vec::new();
        let mut rules = Vec::new();
        if fits {
            self.text(&source, &mut rules, &mut mistakes);
        } else {
            mistakes.push(Diagnostic::new(0..0, TOO_LONG, "", TOO_LONG_HELP));
        }
        self.files.push(DraftFile { source, rules, mistakes });
        self.opened.end();
    }

    fn text(
        &mut self,
        source: &PolicySource,
        rules: &mut Vec<DraftRule>,
        mistakes: &mut Vec<Diagnostic>,
    ) {
        let (document, errors) = DeTable::parse_recoverable(source.text());
        let has_syntax_errors = !errors.is_empty();
        for error in errors {
            mistakes.push(Diagnostic::new(
                error.span().unwrap_or(0..0),
                error.message().trim().replace('\n', "; "),
                "",
                "a policy is TOML: `key = value` lines under `[[rule]]`; texts stand in quotes",
            ));
        }
        if has_syntax_errors {
            // What could be read of the rest may not be what is meant.
            return;
        }
        let mut fields = Fields::new(document.get_ref(), "a policy", TOP_KEYS, mistakes);
        check_version(&mut fields);
        for file in included(&mut fields) {
            match self.opened.read(source, &file) {
                Ok(Some(source)) => {
                    self.opened.begin(source.path());
                    self.file(source, true);
                }
                Ok(None) => {}
                Err(mistake) => fields.report(mistake),
            }
        }
        let tables = rule_tables(&mut fields, &mut self.taken);
        let mut lines = Lines::of(source.text());
        for (table, span) in tables {
            let (name, rule) = read_rule(table, &span, |at| lines.line(at), mistakes);
            // Whatever else is wrong with either rule.
            if let Some((name, line)) = name {
                self.take_name(name, line, mistakes);
            }
            rules.extend(rule);
        }
    }

    /// Sees to it that no two rules have one name.
    fn take_name(&mut self, name: Written<RuleName>, line: usize, mistakes: &mut Vec<Diagnostic>) {
        let Some((file, line)) = self.taken.names.get(&name.value) else {
            self.taken.names.insert(name.value, (self.files.len(), line));
            return;
        };
        let (label, help) = match self.files.get(*file) {
            None => (
                format!("already in line {line}"),
                "give each rule a name of its own; reports tell rules apart by their names",
            ),
            Some(other) => (
                format!("already in {}:{line}", other.source.path().display()),
                "give each rule a name of its own, also in another file of the same policy",
            ),
        };
        let message = format!("two rules are called `{}`", name.value);
        mistakes.push(Diagnostic::new(name.span, message, label, help));
    }
}

/// Counts the lines of a text up to places that mostly ascend.
struct Lines<'t> {
    text: &'t [u8],
    seen: usize,
    line: usize,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        Self { text: text.as_bytes(), seen: 0, line: 1 }
    }

    /// The line, from 1, of the byte at `at`.
    fn line(&mut self, at: usize) -> usize {
        if at < self.seen {
            (self.seen, self.line) = (0, 1);
        }
        let at = at.min(self.text.len());
        self.line += self.text[self.seen..at].split(|byte| *byte == b'\n').count() - 1;
        self.seen = at;
        self.line
    }
}

fn check_version(fields: &mut Fields<'_, '_>) {
    if !fields.has("version") {
        fields.mistake(0..0, "the key `version` is missing", "", VERSION_HELP);
        return;
    }
    if let Some(version) = fields.unsigned("version", VERSION_HELP)
        && version.value != FORMAT_VERSION
    {
        fields.mistake(
            version.span,
            format!("this is version {} of the policy format", version.value),
            "not known here",
            "this program reads version 1; a later one may read yours",
        );
    }
}

fn rule_tables<'t>(
    fields: &mut Fields<'t, '_>,
    taken: &mut Taken,
) -> Vec<(&'t DeTable<'t>, Range<usize>)> {
    const HELP: &str = "write each rule as a table of its own under a line `[[rule]]`; a policy \
                        without rules, as for a control run, says `rule = []`";
    let Some(value) = fields.value("rule") else {
        if !fields.has("include") {
            fields.mistake(0..0, "the policy has no rule", "", HELP);
        }
        return Vec::new();
    };
    let list = match value.get_ref() {
        DeValue::Array(list) => list,
        other => {
            let label =
                if matches!(other, DeValue::Table(_)) { "one pair of brackets" } else { "" };
            let message = format!("`rule` is {}, not a list of tables", type_name(other));
            fields.mistake(fields.key_span("rule").unwrap_or(0..0), message, label, HELP);
            return Vec::new();
        }
    };
    let mut tables = Vec::new();
    for item in list {
        match item.get_ref() {
            DeValue::Table(_) if taken.rules == MAX_RULES => {
                if !taken.too_many {
                    taken.too_many = true;
                    fields.mistake(
                        item.span(),
                        "the policy has more than 100,000 rules",
                        "the first too many",
                        "let one rule cover a longer range, or name a region",
                    );
                }
                break;
            }
            DeValue::Table(table) => {
                taken.rules += 1;
                tables.push((table, item.span()));
            }
            other => {
                let message = format!("a rule is {}, not a table", type_name(other));
                fields.mistake(item.span(), message, "", HELP);
            }
        }
    }
    tables
}
