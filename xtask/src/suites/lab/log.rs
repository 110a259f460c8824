//! What a host's job has printed, part by part and test by test.

use std::collections::BTreeMap;

use crate::{count::Count, lab::frames::Line};

/// The log, read line by line as it is written.
#[derive(Debug, Default)]
pub(super) struct Log {
    parts: BTreeMap<String, Part>,
    current: Option<String>,
}

#[derive(Debug, Default)]
struct Part {
    lines: Vec<String>,
    /// Tests that libtest has announced, if it is such a program.
    announced: Option<u64>,
    results: Count,
    /// The last test that had a result.
    last: Option<String>,
    status: Option<u8>,
}

impl Log {
    /// Takes the next line; where it tells the result of a test, returns what to print of it.
    pub(super) fn line(&mut self, line: Line<'_>) -> Option<String> {
        match line {
            Line::Begins(title) => {
                self.parts.insert(title.to_owned(), Part::default());
                self.current = Some(title.to_owned());
                None
            }
            Line::Ended { status } => {
                let part = self.current.take().and_then(|title| self.parts.get_mut(&title))?;
                part.status = Some(status);
                None
            }
            Line::Output(text) => {
                let part = self.parts.get_mut(self.current.as_ref()?)?;
                part.lines.push(text.to_owned());
                if part.announced.is_none() {
                    part.announced = announced(text);
                }
                let (name, result) = test_result(text)?;
                part.results += result;
                part.last = Some(name.to_owned());
                let word = if result.failed > 0 { "failed" } else { "passed" };
                Some(format!("{word} {name}"))
            }
            Line::Ready | Line::Failed(_) | Line::Over { .. } => None,
        }
    }

    /// What a part came to, with the reason if it is not what was expected. Of a program with
    /// `tests` these count, and a test without a result has failed.
    pub(super) fn judge(&self, title: &str, status: u8, tests: bool) -> (Count, Option<String>) {
        let Some(part) = self.parts.get(title) else {
            return (Count::FAILED, Some("it did not run".into()));
        };
        let mut count =
            if tests { part.results } else { Count::check(part.status == Some(status)) };
        let ended = match part.status {
            None => Some(match &part.last {
                Some(last) => format!("it did not end; the last test with a result was {last}"),
                None => "it did not end".into(),
            }),
            Some(found) if found != status => {
                Some(format!("it ended with status {found} instead of {status}"))
            }
            Some(_) => None,
        };
        if !tests {
            return (count, ended);
        }
        let seen = count.passed + count.failed + count.skipped;
        let missing = part.announced.unwrap_or(0).saturating_sub(seen);
        count.failed += missing;
        let reason = if missing > 0 {
            Some(format!("{missing} tests without a result; {}", ended.unwrap_or_default()))
        } else {
            ended
        };
        if count.failed == 0 && (reason.is_some() || !count.ran()) {
            count += Count::FAILED;
            return (count, reason.or(Some("there was no test to run".into())));
        }
        (count, reason)
    }

    pub(super) fn end_of(&self, title: &str, most: usize) -> String {
        let lines = self.parts.get(title).map_or(&[][..], |part| part.lines.as_slice());
        lines[lines.len().saturating_sub(most)..].join("\n")
    }
}

/// From `running 62 tests`.
fn announced(line: &str) -> Option<u64> {
    let (number, word) = line.strip_prefix("running ")?.split_once(' ')?;
    word.starts_with("test").then(|| number.parse().ok())?
}

/// From `test walks::go_on ... ok`.
fn test_result(line: &str) -> Option<(&str, Count)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    // A test whose thread prints past libtest's capture has its line cut in two.
    let count = match result.rsplit(' ').next()? {
        "ok" => Count::PASSED,
        "FAILED" => Count::FAILED,
        "ignored" => Count::SKIPPED,
        _ => return None,
    };
    Some((name, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[Line<'_>]) -> Log {
        let mut log = Log::default();
        for line in lines {
            log.line(*line);
        }
        log
    }

    const BEGUN: [Line<'_>; 4] = [
        Line::Begins("tests"),
        Line::Output("running 2 tests"),
        Line::Output("test a::b ... ok"),
        Line::Output("test a::c has been running for over 60 seconds"),
    ];

    #[test]
    fn tests_are_counted_one_by_one() {
        let rest = [Line::Output("test a::c ... FAILED"), Line::Ended { status: 101 }];
        let log = read(&[&BEGUN[..], &rest].concat());
        let (count, reason) = log.judge("tests", 0, true);
        assert_eq!(count, Count { passed: 1, failed: 1, skipped: 0 });
        assert!(reason.expect("a status").contains("status 101"));
    }

    #[test]
    fn a_test_that_hangs_has_failed_and_the_one_before_is_named() {
        let (count, reason) = read(&BEGUN).judge("tests", 0, true);
        assert_eq!(count, Count { passed: 1, failed: 1, skipped: 0 });
        let reason = reason.expect("it did not end");
        assert!(reason.contains("1 tests without a result") && reason.contains("a::b"), "{reason}");
    }

    #[test]
    fn a_crash_after_the_last_test_is_a_failure() {
        let log = read(&[
            Line::Begins("tests"),
            Line::Output("running 1 test"),
            Line::Output("test a ... ok"),
            Line::Ended { status: 134 },
        ]);
        assert_eq!(log.judge("tests", 0, true).0, Count { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn what_did_not_run_has_failed() {
        let log = read(&[Line::Begins("check"), Line::Ended { status: 0 }]);
        assert_eq!(log.judge("check", 0, false), (Count::PASSED, None));
        assert_eq!(log.judge("check", 3, false).0, Count::FAILED);
        assert_eq!(log.judge("check", 0, true).0, Count::FAILED);
        assert_eq!(log.judge("other", 0, false).0, Count::FAILED);
    }

    #[test]
    fn output_outside_of_a_part_is_nothing() {
        let mut log = Log::default();
        assert_eq!(log.line(Line::Output("test a ... ok")), None);
        log.line(Line::Begins("tests"));
        assert_eq!(log.line(Line::Output("test a ... ok")).as_deref(), Some("passed a"));
    }
}
