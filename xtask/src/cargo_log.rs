//! Reads what `cargo test --no-fail-fast` prints: one section for each test program.
//!
//! Cargo announces each program (`Running …`, `Doc-tests …`), libtest closes each with a line
//! `test result: …`. A program that ends without that line has crashed, and cargo says so.

use crate::count::Count;

/// The log, read line by line as it is written.
#[derive(Debug, Default)]
pub(crate) struct CargoLog {
    /// What cargo printed before the first test program: the build.
    build: String,
    sections: Vec<Section>,
}

#[derive(Debug)]
struct Section {
    title: String,
    doc_tests: bool,
    text: String,
    /// Of each line `test result: …`.
    results: Vec<Count>,
    /// Cargo reported the program as failed.
    failed: bool,
}

impl CargoLog {
    /// Takes the next line; where it announces a program, returns the summary of the one before.
    ///
    /// Not earlier: a failed test's repeated output may hold lines that look like results.
    pub(crate) fn line(&mut self, line: &str) -> Option<String> {
        let mut summary = None;
        if let Some(section) = Section::announced(line) {
            summary = self.last_summary();
            self.sections.push(section);
        }
        let Some(section) = self.sections.last_mut() else {
            self.build += line;
            self.build.push('\n');
            return summary;
        };
        section.text += line;
        section.text.push('\n');
        section.failed |= line.starts_with("error: test failed, to rerun pass")
            || line.starts_with("error: doctest failed, to rerun pass");
        section.results.extend(test_result(line));
        summary
    }

    /// A line that sums up the program announced last; `None` if it had no test to run.
    pub(crate) fn last_summary(&self) -> Option<String> {
        let section = self.sections.last()?;
        let count = section.count();
        (count != Count::default()).then(|| format!("{count}: {}", section.title))
    }

    /// The sum over all programs, of which `success` is cargo's own verdict.
    ///
    /// A failure that no test accounts for (no build, a crash) counts as one. Tests that a filter
    /// has kept out are not counted.
    pub(crate) fn count(&self, success: bool) -> Count {
        let mut sum = Count::default();
        for section in &self.sections {
            sum += section.count();
        }
        if !success && sum.failed == 0 {
            sum += Count::FAILED;
        }
        sum
    }

    /// Every failed program's output whole; the build's, and all the rest, where none failed.
    pub(crate) fn failures(&self) -> String {
        let failed = self.sections.iter().filter(|section| section.count().failed > 0);
        let text: String = failed.map(|section| section.text.as_str()).collect();
        if !text.is_empty() {
            return text;
        }
        let all = self.sections.iter().map(|section| section.text.as_str());
        std::iter::once(self.build.as_str()).chain(all).collect()
    }
}

impl Section {
    /// Cargo sets its verbs flush right in twelve columns.
    fn announced(line: &str) -> Option<Self> {
        let (title, doc_tests) = if let Some(rest) = line.strip_prefix("     Running ") {
            // The path in brackets is that of the build product.
            (rest.rsplit_once(" (").map_or(rest, |(title, _)| title).to_owned(), false)
        } else {
            (format!("doc tests of {}", line.strip_prefix("   Doc-tests ")?), true)
        };
        Some(Self { title, doc_tests, text: String::new(), results: Vec::new(), failed: false })
    }

    fn result(&self) -> Count {
        let mut sum = Count::default();
        // rustdoc runs its tests in several groups. Another program has one result, the last:
        // what stands above is the repeated output of a failed test.
        let first = if self.doc_tests { 0 } else { self.results.len().saturating_sub(1) };
        for result in &self.results[first..] {
            sum += *result;
        }
        sum
    }

    fn count(&self) -> Count {
        let mut count = self.result();
        if self.failed && count.failed == 0 {
            // A crash: no test answers for it.
            count += Count::FAILED;
        }
        count
    }
}

/// Reads `test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; …`.
fn test_result(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let rest = rest.strip_prefix("ok. ").or_else(|| rest.strip_prefix("FAILED. "))?;
    let mut parts = rest.split("; ");
    let mut number = |what: &str| -> Option<u64> {
        let (number, name) = parts.next()?.split_once(' ')?;
        (name == what).then(|| number.parse().ok())?
    };
    let passed = number("passed")?;
    let failed = number("failed")?;
    let skipped = number("ignored")?;
    // Benchmarks that `cargo test` runs once to see that they work.
    let measured = number("measured")?;
    number("filtered out")?;
    Some(Count { passed: passed.checked_add(measured)?, failed, skipped })
}

/// The names in what `cargo test -- --list` prints.
pub(crate) fn listed(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.strip_suffix(": test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CargoLog {
        let mut log = CargoLog::default();
        for line in text.lines() {
            log.line(line);
        }
        log
    }

    const BUILD: &str = "   Compiling probe v0.1.0\n    Finished `test` profile\n";

    const PASSED: &str = "     Running unittests src/lib.rs (target/debug/deps/probe-9949)

running 5 tests
test a ... ok

test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.15s

";

    const REPEATED: &str = "     Running tests/nested.rs (target/debug/deps/nested-01)

running 2 tests
failures:

---- b stdout ----
test result: ok. 99 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.15s

error: test failed, to rerun pass `--test nested`
";

    const CRASHED: &str = "     Running tests/crash.rs (target/debug/deps/crash-88df)

running 1 test
error: test failed, to rerun pass `--test crash`

Caused by:
  process didn't exit successfully: `crash-88df` (signal: 6, SIGABRT: process abort signal)
";

    const DOC_TESTS: &str = "   Doc-tests probe

running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.32s

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.22s

all doctests ran in 1.19s; merged doctests compilation took 0.64s
";

    #[test]
    fn sections_are_summed() {
        let log = read(&[BUILD, PASSED, DOC_TESTS].concat());
        assert_eq!(log.count(true), Count { passed: 7, failed: 0, skipped: 1 });
    }

    #[test]
    fn repeated_output_of_a_failed_test_is_not_counted() {
        let log = read(&[BUILD, PASSED, REPEATED].concat());
        assert_eq!(log.count(false), Count { passed: 5, failed: 1, skipped: 1 });
    }

    #[test]
    fn a_crash_is_a_failure() {
        let log = read(&[BUILD, CRASHED, PASSED].concat());
        assert_eq!(log.count(false), Count { passed: 4, failed: 1, skipped: 1 });
    }

    #[test]
    fn a_failed_build_is_a_failure() {
        let text = "error[E0425]: cannot find value `x`\nerror: could not compile `probe`\n";
        let log = read(text);
        assert_eq!(log.count(false), Count::FAILED);
        assert_eq!(log.failures(), text);
    }

    #[test]
    fn failures_show_what_failed_and_only_that() {
        let log = read(&[BUILD, PASSED, REPEATED, CRASHED, DOC_TESTS].concat());
        assert_eq!(log.failures(), [REPEATED, CRASHED].concat());
    }

    #[test]
    fn a_failure_of_no_program_shows_everything() {
        let text = [BUILD, PASSED].concat();
        assert_eq!(read(&text).failures(), text);
    }

    #[test]
    fn each_program_is_summed_up_once_it_is_over() {
        let mut log = CargoLog::default();
        let text = [BUILD, REPEATED, CRASHED, PASSED, DOC_TESTS].concat();
        let mut told: Vec<_> = text.lines().filter_map(|line| log.line(line)).collect();
        told.extend(log.last_summary());
        let expected = [
            "1 passed, 1 failed: tests/nested.rs",
            "0 passed, 1 failed: tests/crash.rs",
            "4 passed, 0 failed, 1 skipped: unittests src/lib.rs",
            "3 passed, 0 failed: doc tests of probe",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn only_a_whole_result_line_counts() {
        for line in [
            "test result: ok. 4 passed",
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured",
            "test result: ok. four passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: ok. 99999999999999999999 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            " test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            assert_eq!(test_result(line), None, "{line}");
        }
        let line = "test result: ok. 4 passed; 0 failed; 0 ignored; 2 measured; 0 filtered out";
        assert_eq!(test_result(line), Some(Count { passed: 6, failed: 0, skipped: 0 }));
    }

    #[test]
    fn listed_tests_are_lines_among_what_cargo_says() {
        let text = "    Finished `test` profile
     Running tests/probe.rs (target/debug/deps/probe-01)
a::b: test
c: benchmark
c::d: test

2 tests, 1 benchmark
";
        assert_eq!(listed(text).collect::<Vec<_>>(), ["a::b", "c::d"]);
    }
}
