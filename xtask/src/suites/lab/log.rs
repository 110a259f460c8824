//! What a host's job has printed, part by part and test by test.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    count::Count,
    lab::{
        frames::Line,
        job::{NOT_RUN, Part, Work},
    },
    session,
};

/// From here on, the time of a test that has passed is told.
const WORTH_TELLING: u64 = 20;

/// The status of a program that a shell has seen killed by SIGKILL.
const KILLED: u8 = 137;

/// How many lines are kept of what a part prints without a result.
const KEPT_LINES: usize = 400;

/// The log, read line by line as it is written, over all starts of a host.
#[derive(Debug, Default)]
pub(super) struct Log {
    parts: BTreeMap<String, State>,
    current: Option<String>,
}

/// What is known of a part.
#[derive(Debug, Default)]
struct State {
    /// When it began.
    since: Duration,
    /// Since the last frame.
    lines: Vec<String>,
    /// Tests that run, each with when it began.
    running: BTreeMap<String, Duration>,
    /// Tests that have a result: none if passed, or why not.
    results: BTreeMap<String, Option<String>>,
    status: Option<u8>,
}

impl Log {
    /// Takes the next line, which comes so long after the start; returns what to print of it.
    pub(super) fn line(&mut self, line: Line<'_>, now: Duration) -> Option<String> {
        match line {
            Line::Begins(title) => {
                let part = self.parts.entry(title.to_owned()).or_default();
                (part.since, part.status) = (now, None);
                part.lines.clear();
                self.current = Some(title.to_owned());
                return None;
            }
            Line::Silence => {
                return self.under_way(now).map(|what| format!("still running: {what}"));
            }
            _ => {}
        }
        let part = self.parts.get_mut(self.current.as_ref()?)?;
        match line {
            Line::Ended { status } => {
                part.status = Some(status);
                self.current = None;
                None
            }
            Line::Starts(test) => {
                part.running.insert(test.to_owned(), now);
                part.lines.clear();
                None
            }
            Line::Result { status, seconds, test } => {
                part.running.remove(test);
                let failure = failure(status, seconds);
                let told = match &failure {
                    None if seconds < WORTH_TELLING => format!("passed {test}"),
                    None => format!("passed {test} in {seconds} s of the host's clock"),
                    Some(why) => format!("failed {test}: {why}\n{}", part.lines.join("\n")),
                };
                part.lines.clear();
                part.results.insert(test.to_owned(), failure);
                Some(told)
            }
            Line::Output(text) => {
                if part.lines.len() == KEPT_LINES {
                    part.lines.remove(0);
                }
                part.lines.push(text.to_owned());
                None
            }
            _ => None,
        }
    }

    /// What runs now, and since when.
    pub(super) fn under_way(&self, now: Duration) -> Option<String> {
        let title = self.current.as_ref()?;
        let part = self.parts.get(title)?;
        let since = |what: &str, since: Duration| {
            format!("{what} for {}", session::duration(now.saturating_sub(since)))
        };
        if part.running.is_empty() {
            return Some(since(title, part.since));
        }
        let running = part.running.iter().map(|(test, start)| since(test, *start));
        Some(running.collect::<Vec<_>>().join(", "))
    }

    /// The host has ended before its job: what ran then has failed. Whether there was such a thing.
    pub(super) fn cut_off(&mut self, why: &str) -> bool {
        let part = self.current.take().and_then(|title| self.parts.get_mut(&title));
        let Some(part) = part else { return false };
        if part.running.is_empty() {
            // Between two tests, or a command, whose status this is.
            part.status = Some(KILLED);
        }
        for (test, _) in std::mem::take(&mut part.running) {
            part.results.insert(test, Some(format!("it ran when the host ended: {why}")));
        }
        true
    }

    /// What of a part has not come to an end.
    pub(super) fn remaining(&self, part: &Part) -> Option<Part> {
        let Some(state) = self.parts.get(&part.title) else { return Some(part.clone()) };
        let mut left = part.clone();
        match &mut left.work {
            Work::Command(_) => state.status.is_none().then_some(left),
            Work::Tests(tests) => {
                tests.names.retain(|name| !state.results.contains_key(name));
                (!tests.names.is_empty()).then_some(left)
            }
        }
    }

    /// What a part came to, with the reason if it is not what was expected: of a command, this status
    /// and lines that contain the texts of each list, in its order; of tests, that each has passed. One without a
    /// result has failed.
    pub(super) fn judge(
        &self,
        part: &Part,
        status: u8,
        said: &[Vec<String>],
    ) -> (Count, Option<String>) {
        let Some(state) = self.parts.get(&part.title) else {
            return (Count::FAILED, Some("it did not run".into()));
        };
        match &part.work {
            Work::Command(_) => {
                let reason = match state.status {
                    None => Some("it did not end".into()),
                    Some(found) if found != status => {
                        Some(format!("it ended with status {found} instead of {status}"))
                    }
                    Some(_) => unsaid(&state.lines, said),
                };
                (Count::check(reason.is_none()), reason)
            }
            Work::Tests(tests) => {
                let mut count = Count::default();
                let mut reason = String::new();
                for test in &tests.names {
                    let failure = match state.results.get(test) {
                        Some(None) => None,
                        Some(Some(why)) => Some(why.as_str()),
                        None => Some("it has no result"),
                    };
                    count += Count::check(failure.is_none());
                    if let Some(why) = failure {
                        write!(reason, "\n      {test}: {why}").expect("a string can be written");
                    }
                }
                if !count.ran() {
                    return (Count::FAILED, Some("there was no test to run".into()));
                }
                (count, (!reason.is_empty()).then_some(reason))
            }
        }
    }

    /// The last lines that a part has printed behind its last result.
    pub(super) fn end_of(&self, title: &str, most: usize) -> String {
        let lines = self.parts.get(title).map_or(&[][..], |part| part.lines.as_slice());
        lines[lines.len().saturating_sub(most)..].join("\n")
    }
}

/// The first text that no line has, of those behind the line with the text before; each list by itself.
fn unsaid(lines: &[String], said: &[Vec<String>]) -> Option<String> {
    let missing = |texts: &Vec<String>| {
        let mut lines = lines.iter();
        texts.iter().find(|text| !lines.any(|line| line.contains(text.as_str()))).cloned()
    };
    let missing = said.iter().find_map(missing)?;
    Some(format!("it did not say, or not in this order: {missing}"))
}

/// What a test's status means, if it has not passed.
fn failure(status: u8, seconds: u64) -> Option<String> {
    match status {
        0 => None,
        NOT_RUN => Some("its program has no such test".into()),
        KILLED => Some(format!(
            "killed after {seconds} s of the host's clock without a result: its time limit was reached, or memory was short"
        )),
        // libtest's own.
        101 => Some("it failed".into()),
        status => Some(format!("it ended with status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::job::Tests;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn part(names: &[&str]) -> Part {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let tests = Tests { program: "kvm".into(), names, at_once: 2, limit: 300, share: 1 };
        Part { title: "tests".into(), work: Work::Tests(tests) }
    }

    fn command() -> Part {
        Part { title: "check".into(), work: Work::Command(vec!["subpage".into(), "check".into()]) }
    }

    /// Two tests run at the same time, of three; the first has passed.
    fn begun() -> Log {
        let mut log = Log::default();
        for (line, seconds) in [
            (Line::Begins("tests"), 10),
            (Line::Starts("a::b"), 10),
            (Line::Starts("a::c"), 11),
            (Line::Result { status: 0, seconds: 2, test: "a::b" }, 12),
            (Line::Starts("a::d"), 12),
        ] {
            log.line(line, at(seconds));
        }
        log
    }

    const THREE: [&str; 3] = ["a::b", "a::c", "a::d"];

    fn count(passed: u64, failed: u64) -> Count {
        Count { passed, failed, skipped: 0 }
    }

    #[test]
    fn tests_are_counted_one_by_one() {
        let mut log = begun();
        log.line(Line::Output("thread panicked"), at(20));
        let told = log.line(Line::Result { status: 101, seconds: 9, test: "a::c" }, at(20));
        assert_eq!(told.as_deref(), Some("failed a::c: it failed\nthread panicked"));
        let told = log.line(Line::Result { status: 0, seconds: 25, test: "a::d" }, at(21));
        assert_eq!(told.as_deref(), Some("passed a::d in 25 s of the host's clock"));
        log.line(Line::Ended { status: 0 }, at(21));
        let (found, reason) = log.judge(&part(&THREE), 0, &[]);
        assert_eq!(found, count(2, 1));
        assert_eq!(reason.as_deref(), Some("\n      a::c: it failed"));
        assert!(log.remaining(&part(&THREE)).is_none());
    }

    #[test]
    fn a_hanging_test_is_named_and_told_from_a_slow_one() {
        let mut log = begun();
        let told = log.line(Line::Silence, at(52)).expect("something runs");
        assert_eq!(told, "still running: a::c for 41.0 s, a::d for 40.0 s");
        // Slow.
        log.line(Line::Result { status: 0, seconds: 120, test: "a::d" }, at(132));
        // Killed by the host.
        let told = log.line(Line::Result { status: 137, seconds: 300, test: "a::c" }, at(311));
        assert!(told.expect("a result").contains("a::c: killed after 300 s"));
        let (found, reason) = log.judge(&part(&THREE), 0, &[]);
        assert_eq!(found, count(2, 1));
        assert!(reason.expect("one failed").contains("a::c: killed after 300 s"));
    }

    #[test]
    fn what_ran_when_the_host_ended_has_failed_and_the_rest_is_left() {
        let names = ["a::b", "a::c", "a::d", "a::e"];
        let mut log = begun();
        assert!(log.cut_off("Kernel panic"));
        let left = log.remaining(&part(&names)).expect("one test");
        assert_eq!(left.work, part(&["a::e"]).work);
        // Another start does the rest.
        log.line(Line::Begins("tests"), at(60));
        log.line(Line::Starts("a::e"), at(60));
        log.line(Line::Result { status: 0, seconds: 1, test: "a::e" }, at(61));
        log.line(Line::Ended { status: 0 }, at(61));
        let (found, reason) = log.judge(&part(&names), 0, &[]);
        assert_eq!(found, count(2, 2));
        let reason = reason.expect("two failed");
        for test in ["a::c: it ran when the host ended: Kernel panic", "a::d: it ran"] {
            assert!(reason.contains(test), "{reason}");
        }
        assert!(!log.cut_off("again"), "nothing ran");
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        let mut log = begun();
        log.line(Line::Ended { status: 0 }, at(20));
        let (found, reason) = log.judge(&part(&["a::b", "a::x"]), 0, &[]);
        assert_eq!(found, count(1, 1));
        assert!(reason.expect("a failure").contains("a::x: it has no result"));
        assert_eq!(log.judge(&part(&[]), 0, &[]).0, Count::FAILED);
    }

    #[test]
    fn commands_are_judged_by_their_status() {
        let mut log = Log::default();
        log.line(Line::Begins("check"), at(1));
        assert_eq!(
            log.line(Line::Silence, at(41)).as_deref(),
            Some("still running: check for 40.0 s")
        );
        assert_eq!(log.judge(&command(), 0, &[]).0, Count::FAILED);
        log.line(Line::Ended { status: 3 }, at(42));
        assert_eq!(log.judge(&command(), 3, &[]), (Count::PASSED, None));
        assert!(
            log.judge(&command(), 0, &[]).1.expect("a failure").contains("status 3 instead of 0")
        );
        assert!(log.remaining(&command()).is_none());
        assert_eq!(log.judge(&part(&THREE), 0, &[]).0, Count::FAILED);
    }

    #[test]
    fn commands_are_judged_by_what_they_say_in_order() {
        let mut log = Log::default();
        log.line(Line::Begins("check"), at(1));
        for text in ["one fish", "two fish", "red fish"] {
            log.line(Line::Output(text), at(2));
        }
        log.line(Line::Ended { status: 0 }, at(3));
        let said = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            log.judge(&command(), 0, &[texts])
        };
        assert_eq!(said(&["one", "red"]), (Count::PASSED, None));
        for wrong in [["red", "one"], ["one", "one"], ["two", "blue"]] {
            let (count, reason) = said(&wrong);
            assert_eq!(count, Count::FAILED);
            assert!(reason.expect("a reason").ends_with(wrong[1]));
        }
    }

    #[test]
    fn a_command_that_the_host_did_not_survive_is_not_run_again() {
        let mut log = Log::default();
        log.line(Line::Begins("check"), at(1));
        assert!(log.cut_off("Kernel panic"));
        assert!(log.remaining(&command()).is_none());
        assert_eq!(log.judge(&command(), 0, &[]).0, Count::FAILED);
    }

    #[test]
    fn output_outside_of_a_part_is_nothing() {
        let mut log = Log::default();
        let result = Line::Result { status: 0, seconds: 1, test: "a" };
        assert_eq!(log.line(result, at(1)), None);
        assert_eq!(log.line(Line::Silence, at(40)), None);
        log.line(Line::Begins("tests"), at(41));
        assert_eq!(log.line(result, at(42)).as_deref(), Some("passed a"));
    }
}
