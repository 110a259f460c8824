//! The suites: which there are, and the loop over them.

pub(crate) mod bochs;
mod cargo_test;
mod conformance;
mod documentation;
mod image;
mod kit;
mod kvm;
mod lab;
mod lints;
mod linux;
mod readme;
mod release;

use std::{
    ffi::OsStr,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use clap::{
    ValueEnum,
    builder::{EnumValueParser, PossibleValue, StringValueParser, TypedValueParser},
};

use crate::{
    count::Count,
    prerequisites::Prerequisites,
    session::{self, Session},
    workspace::Workspace,
};

/// A group of tests that is run and counted together, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Suite {
    /// Formatting, as rustfmt has it
    Fmt,
    /// Clippy and the house's lints, warnings being errors
    Clippy,
    /// The tests of all crates that need no KVM, doc tests included
    Unit,
    /// The interleavings of the engine's concurrent parts, by loom
    Concurrency,
    /// A million random operations against a naive model
    Property,
    /// Guests on KVM: the VMM, the example, and the tool with them
    Kvm,
    /// Hosts with an ordinary KVM, in emulators: amd, and intel only if this suite is named; takes
    /// hosts and parts of the names of tests behind it
    Lab,
    /// The hypervisor with a guest that tests it, in Bochs; takes names of tests behind it
    Bochs,
    /// A distribution's kernel under the hypervisor, in Bochs; takes names of tests behind it
    Linux,
    /// The image that machines start from, by BIOS in Bochs and by UEFI in QEMU; takes names of tests
    /// behind it
    Image,
    /// The hardware kit in Bochs, on models with and without SPP, and with wrong predictions, each of which
    /// it has to show
    Kit,
    /// The processor model against Bochs, with random tables and accesses
    Conformance,
    /// The documentation builds, the links in the pages and in the site lead somewhere
    Docs,
    /// The README's first command does what the README says
    Readme,
    /// The crates are fit to be published; the archive and the Debian package hold what they should
    Release,
}

impl Suite {
    fn takes_filter(self) -> bool {
        matches!(self, Self::Unit | Self::Concurrency | Self::Property | Self::Kvm | Self::Bochs)
    }

    /// Whether names can stand behind it.
    fn takes_names(self) -> bool {
        matches!(self, Self::Bochs | Self::Lab | Self::Linux | Self::Image)
    }

    /// Whether it runs in Bochs.
    pub(crate) fn needs_emulator(self) -> bool {
        matches!(self, Self::Bochs | Self::Linux | Self::Image | Self::Kit | Self::Conformance)
    }

    fn run(self, session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
        match self {
            Self::Fmt => lints::fmt(session, plan),
            Self::Clippy => lints::clippy(session, plan),
            Self::Unit => cargo_test::unit(session, plan),
            Self::Concurrency => cargo_test::concurrency(session, plan),
            Self::Property => cargo_test::property(session, plan),
            Self::Kvm => kvm::check(session, plan),
            Self::Lab => lab::check(session, plan),
            Self::Bochs => bochs::check(session, plan),
            Self::Linux => linux::check(session, plan),
            Self::Image => image::check(session, plan),
            Self::Kit => kit::check(session, plan),
            Self::Conformance => conformance::check(session, plan),
            Self::Docs => documentation::check(session, plan),
            Self::Readme => readme::check(session, plan),
            Self::Release => release::check(session, plan),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A word behind `cargo xtask test`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Suite(Suite),
    /// Part of the name of a test in Bochs, in the lab or of Linux, or a host.
    Name(String),
}

/// Takes every word, but tells `--help` only of the suites.
#[derive(Clone)]
pub(crate) struct WordParser;

impl TypedValueParser for WordParser {
    type Value = Word;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Word, clap::Error> {
        let suite = EnumValueParser::<Suite>::new().parse_ref(command, argument, value);
        suite.map(Word::Suite).or_else(|_| {
            StringValueParser::new().parse_ref(command, argument, value).map(Word::Name)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Suite::value_variants().iter().filter_map(ValueEnum::to_possible_value)))
    }
}

/// The suites among the words, and the names behind `bochs`, `linux` and `image` (of tests) and `lab` (of
/// hosts and tests).
pub(crate) fn divide(words: Vec<Word>) -> Result<(Vec<Suite>, Vec<String>)> {
    let (mut suites, mut names) = (Vec::new(), Vec::new());
    for word in words {
        match word {
            Word::Suite(suite) => suites.push(suite),
            Word::Name(name)
                if suites.iter().any(|suite| suite.takes_names()) && !name.is_empty() =>
            {
                names.push(name);
            }
            Word::Name(name) => {
                let all: Vec<_> =
                    Suite::value_variants().iter().map(|suite| suite.name()).collect();
                bail!(
                    "there is no suite {name:?}, only {}; names can stand behind bochs, lab, \
                     linux and image",
                    all.join(", ")
                );
            }
        }
    }
    Ok((suites, names))
}

/// What the suites work with.
pub(crate) struct Plan {
    pub(crate) workspace: Workspace,
    pub(crate) prerequisites: Prerequisites,
    pub(crate) filter: Option<String>,
    /// Whether the user has named suites: then all of each runs, also what takes long.
    pub(crate) named: bool,
    /// Parts of the names of tests in Bochs or in the lab, or names of hosts; none means all.
    pub(crate) names: Vec<String>,
}

impl Plan {
    /// Whether the test in Bochs is one that the user wants.
    fn selects(&self, test: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| test.contains(part))
            && (self.names.is_empty() || self.names.iter().any(|part| test.contains(part)))
    }

    fn selects_by_name(&self) -> bool {
        self.filter.is_some() || !self.names.is_empty()
    }

    /// A cargo command whose output can be read by a program.
    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.workspace.cargo(arguments);
        command
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_QUIET", "false")
            .env("CARGO_TERM_VERBOSE", "false")
            // Tests that print past libtest's capture would cut its result lines in two.
            .env_remove("RUST_TEST_NOCAPTURE");
        command
    }
}

/// The suites to run: those named, or all; with a filter, those of all that can take one.
pub(crate) fn select(named: &[Suite], filter: Option<&str>) -> Result<Vec<Suite>> {
    if named.is_empty() {
        let all = Suite::value_variants().iter().copied();
        let wanted = |suite: &Suite| filter.is_none() || suite.takes_filter();
        return Ok(all.filter(wanted).collect());
    }
    let mut selected = named.to_vec();
    selected.sort_unstable();
    selected.dedup();
    if let Some(suite) = selected.iter().find(|suite| filter.is_some() && !suite.takes_filter()) {
        bail!("--filter selects tests by name, of which the suite {} has none", suite.name());
    }
    Ok(selected)
}

/// Runs the suites, every one also when an earlier one failed, and prints the sum last.
pub(crate) fn run(session: &mut Session<'_>, plan: &Plan, suites: &[Suite]) -> Result<ExitCode> {
    let mut sum = Count::default();
    let mut failed = Vec::new();
    for &suite in suites {
        let start = session.begin(&suite.name())?;
        let result = suite.run(session, plan);
        if session.interrupted() {
            // What has not run cannot be summed: no line that could be taken for a result.
            session.say("interrupted")?;
            return Ok(ExitCode::from(session::INTERRUPTED));
        }
        let count = match result {
            Ok(count) => count,
            Err(error) => {
                session.say(&format!("   error: {error:#}"))?;
                Count::FAILED
            }
        };
        session.say(&format!("   {count} in {}", session::duration(start.elapsed())))?;
        if count.failed > 0 {
            failed.push(suite.name());
        }
        sum += count;
    }
    if let Some(filter) = &plan.filter
        && !sum.ran()
    {
        session.say(&format!("no test has a name that contains {filter:?}"))?;
        sum += Count::FAILED;
    }
    if !failed.is_empty() {
        session.say(&format!("failed: {}", failed.join(", ")))?;
    }
    session.say(&sum.to_string())?;
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_all_run() {
        let selected = select(&[], None).expect("nothing to refuse");
        assert_eq!(selected, Suite::value_variants());
    }

    #[test]
    fn named_suites_run_once_and_in_order() {
        let selected = select(&[Suite::Docs, Suite::Fmt, Suite::Docs], None);
        assert_eq!(selected.expect("nothing to refuse"), [Suite::Fmt, Suite::Docs]);
    }

    #[test]
    fn names_stand_behind_the_suite_that_has_them() {
        let name = || Word::Name("split".into());
        let (suites, names) =
            divide(vec![Word::Suite(Suite::Bochs), name()]).expect("nothing to refuse");
        assert_eq!((suites, names), (vec![Suite::Bochs], vec!["split".to_owned()]));
        for words in [
            vec![name()],
            vec![name(), Word::Suite(Suite::Bochs)],
            vec![Word::Suite(Suite::Unit), name()],
            vec![Word::Suite(Suite::Bochs), Word::Name(String::new())],
        ] {
            let error = divide(words).expect_err("not a suite");
            assert!(error.to_string().contains("there is no suite"), "{error}");
        }
    }

    #[test]
    fn a_filter_is_for_tests_with_names() {
        let selected = select(&[], Some("split")).expect("nothing to refuse");
        let named = [Suite::Unit, Suite::Concurrency, Suite::Property, Suite::Kvm, Suite::Bochs];
        assert_eq!(selected, named);
        let error = select(&[Suite::Unit, Suite::Docs], Some("split")).expect_err("docs has none");
        assert!(error.to_string().contains("suite docs"), "{error}");
    }
}
