//! Second stage: names become addresses.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Moment, Rule};

use super::diagnostic::{Diagnostic, Mistakes};
use super::draft::{Draft, DraftFile};
use super::names::{LookupError, NamedRange, Names, did_you_mean, list_candidates};
use super::notation;
use super::place::{AddressSpace, Part, Place, SymbolFormat, Written};
use super::rule::DraftRule;
use super::symbol_files::SymbolFiles;

/// Most mistakes for which the nearest names are searched: each search looks at every name.
const MAX_SEARCHES: usize = 100;

/// A rule of the engine and where the policy says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// The rule.
    pub rule: Rule,
    /// From when on it holds, if the policy says so.
    pub arm: Option<Moment>,
    /// The file of the policy that has it, as the user named it.
    pub file: Arc<str>,
    /// Line of its name in that file, from 1.
    pub line: usize,
}

impl PolicyRule {
    /// Whether it does not hold from the start of a guest on, or from its kernel's entry.
    pub fn waits(&self) -> bool {
        matches!(self.arm, Some(Moment::Init | Moment::Write | Moment::Command))
    }

    /// Whether it holds from the first write of a guest on.
    pub fn holds_from_start(&self) -> bool {
        matches!(self.arm, None | Some(Moment::Start))
    }

    /// Where the policy says it, for messages: `policy.toml:4`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// A policy without mistakes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The rules in the order of the files, with names that differ.
    pub rules: Vec<PolicyRule>,
}

impl Draft {
    /// Finds the address of every rule, or every mistake; `regions` are the names that a trace brings.
    ///
    /// Reads the files of symbols that the policy names, each once.
    pub fn resolve(self, regions: &Names) -> Result<Policy, Mistakes> {
        self.resolve_listed(regions, "subpage plan TRACE --names")
    }

    /// The same; `list` is the command that lists the names of this very trace.
    pub fn resolve_listed(self, regions: &Names, list: &str) -> Result<Policy, Mistakes> {
        if regions.is_empty() {
            let otherwise = "this guest brings no names; give the rule a `range` or a `symbol`";
            return self.find_all(regions, otherwise, true);
        }
        self.find_all(regions, &format!("the names of a trace are listed by `{list}`"), true)
    }

    /// The same for names from elsewhere; `otherwise` says what to do about a name that is not among
    /// them and like none of them.
    pub fn resolve_or(self, regions: &Names, otherwise: &str) -> Result<Policy, Mistakes> {
        self.find_all(regions, otherwise, false)
    }

    fn find_all(
        self,
        regions: &Names,
        otherwise: &str,
        recorded: bool,
    ) -> Result<Policy, Mistakes> {
        let Draft { files, symbols } = self;
        let mut resolver = Resolver { regions, otherwise, recorded, symbols, searches: 0 };
        let mut rules = Vec::new();
        let mut wrong = Vec::new();
        for DraftFile { source, rules: drafts, mut mistakes } in files {
            let file: Arc<str> = source.path().display().to_string().into();
            for draft in drafts {
                let relative = |path: &PathBuf| source.relative(path);
                match resolver.place(&draft, relative) {
                    Ok(range) => rules.push(PolicyRule {
                        rule: Rule {
                            name: draft.name,
                            range,
                            owner: draft.owner,
                            action: draft.action,
                            locked: draft.locked,
                        },
                        arm: draft.arm,
                        file: Arc::clone(&file),
                        line: draft.line,
                    }),
                    Err(mistake) => mistakes.push(mistake),
                }
            }
            wrong.push((source, mistakes));
        }
        if wrong.iter().all(|(_, mistakes)| mistakes.is_empty()) {
            return Ok(Policy { rules });
        }
        Err(Mistakes::new(wrong))
    }
}

struct Resolver<'a> {
    regions: &'a Names,
    /// Advice for a region that is not there.
    otherwise: &'a str,
    /// The guest is a trace: its addresses are those of a process.
    recorded: bool,
    symbols: SymbolFiles,
    searches: usize,
}

impl Resolver<'_> {
    fn place(
        &mut self,
        draft: &DraftRule,
        relative: impl FnOnce(&PathBuf) -> PathBuf,
    ) -> Result<ByteRange, Diagnostic> {
        match &draft.place {
            Place::Range(range) => Ok(*range),
            Place::Notation(text) => {
                self.searches += 1;
                let nearest = self.searches <= MAX_SEARCHES;
                let found =
                    notation::read_place(&text.value, self.regions, self.otherwise, nearest);
                found.map_err(|wrong| {
                    Diagnostic::new(text.span.clone(), wrong.message, "", wrong.help)
                })
            }
            Place::Region { region, part } => {
                let found =
                    find(self.regions, region, "region", self.otherwise, &mut self.searches)?;
                part_of(&found, i128::from(found.start), part, region, AddressSpace::Virtual)
            }
            Place::GuestSymbol { symbol, part } => {
                let found =
                    find(self.regions, symbol, "symbol", self.otherwise, &mut self.searches)?;
                part_of(&found, i128::from(found.start), part, symbol, AddressSpace::Physical)
            }
            Place::Symbol { symbol, file, format, space, bias, part } => {
                let read = self.symbols.names(relative(&file.value), *format, *space);
                let names = read.as_ref().map_err(|reason| {
                    let help = match format {
                        SymbolFormat::Elf => {
                            "give the path of an ELF file, relative to the policy's directory; a \
                             list such as System.map is given by `map`"
                        }
                        SymbolFormat::Map => {
                            "give the path of a list as /proc/kallsyms or System.map, relative to \
                             the policy's directory; an ELF file is given by `elf`"
                        }
                    };
                    Diagnostic::new(file.span.clone(), reason.clone(), "", help)
                })?;
                let otherwise = match format {
                    SymbolFormat::Elf if names.is_empty() => {
                        "the file has no symbols at all; it may be stripped"
                    }
                    SymbolFormat::Elf => {
                        "list the file's symbols with `nm FILE`; a stripped file has none"
                    }
                    SymbolFormat::Map => "each line of the list has one name; look there",
                };
                let found = find(names, symbol, "symbol", otherwise, &mut self.searches)?;
                if self.recorded
                    && *space == AddressSpace::Virtual
                    && names.is_position_independent()
                    && bias.is_none()
                {
                    return Err(Diagnostic::new(
                        file.span.clone(),
                        "this file is position-independent: the recorded program lay elsewhere than \
                         the file says",
                        "loaded anywhere",
                        "take the name from the trace (`region`), or give the distance as `bias` \
                         (`bias = 0` if there is none)",
                    ));
                }
                let bias = bias.as_ref().map_or(0, |bias| bias.value);
                part_of(&found, i128::from(found.start) + bias, part, symbol, *space)
            }
        }
    }
}

fn find<'n>(
    names: &'n Names,
    wanted: &Written<String>,
    what: &str,
    otherwise: &str,
    searches: &mut usize,
) -> Result<Cow<'n, NamedRange>, Diagnostic> {
    *searches += 1;
    names.locate(&wanted.value, *searches <= MAX_SEARCHES).map_err(|error| match error {
        LookupError::Missing { near } => Diagnostic::new(
            wanted.span.clone(),
            format!("there is no {what} `{}`", wanted.value),
            "",
            did_you_mean(&near, otherwise),
        ),
        LookupError::Unplaced { reason } => Diagnostic::new(
            wanted.span.clone(),
            format!("`{}` has no guest-physical address here", wanted.value),
            "",
            reason,
        ),
        LookupError::NoPart(wrong) => {
            Diagnostic::new(wanted.span.clone(), wrong.message, "", wrong.help)
        }
        LookupError::Ambiguous { candidates, count } => Diagnostic::new(
            wanted.span.clone(),
            format!("{count} {what}s are called `{}`", wanted.value),
            "which one?",
            format!(
                "give the `range` of the one you mean: {}",
                list_candidates(&candidates, count)
            ),
        ),
    })
}

/// The bytes of `part` in a thing that begins at `start` and is as long as `found`.
fn part_of(
    found: &NamedRange,
    start: i128,
    part: &Part,
    wanted: &Written<String>,
    space: AddressSpace,
) -> Result<ByteRange, Diagnostic> {
    let name = &wanted.value;
    let offset = part.offset.as_ref().map_or(0, |offset| offset.value);
    let length = match &part.length {
        // A symbol of unknown length: the writer of the policy has to know.
        Some(length) if found.length == 0 => length.value,
        None if found.length == 0 => {
            return Err(Diagnostic::new(
                wanted.span.clone(),
                format!("the file does not say how long `{name}` is"),
                "length unknown",
                "add `length = BYTES` to the rule",
            ));
        }
        length => {
            let rest = found.length.checked_sub(offset).filter(|rest| *rest > 0);
            let Some(rest) = rest else {
                let span = part.offset.as_ref().map_or(&wanted.span, |offset| &offset.span);
                return Err(beyond(span.clone(), found));
            };
            match length {
                Some(length) if length.value > rest => {
                    return Err(beyond(length.span.clone(), found));
                }
                Some(length) => length.value,
                None => rest,
            }
        }
    };
    u64::try_from(start + i128::from(offset))
        .ok()
        .and_then(|first| Gpa::try_new(first).ok())
        .and_then(|first| ByteRange::new(first, length).ok())
        .ok_or_else(|| {
            let help = match space {
                AddressSpace::Virtual => {
                    "a kernel's own addresses are virtual: `address = \"physical\"` takes where \
                     the file's load segments put it, `address = \"kernel\"` takes off \
                     0xffffffff80000000, `bias` shifts it"
                }
                AddressSpace::Kernel => {
                    "correct the `bias`; it is added after 0xffffffff80000000 has been taken off \
                     the symbol's value"
                }
                AddressSpace::Physical => "correct the `bias`; it is added to the symbol's address",
            };
            let first = start + i128::from(offset);
            let sign = if first < 0 { "-" } else { "" };
            let message = format!(
                "`{name}` lies at {sign}{:#x}, outside the 48 bits of a guest-physical address",
                first.unsigned_abs()
            );
            Diagnostic::new(wanted.span.clone(), message, "", help)
        })
}

fn beyond(span: std::ops::Range<usize>, found: &NamedRange) -> Diagnostic {
    Diagnostic::new(
        span,
        format!("this reaches beyond the end of `{}`", found.name),
        format!("`{}` has {} bytes", found.name, found.length),
        "offset and length together stay within what is named; use a `range` for more",
    )
}
