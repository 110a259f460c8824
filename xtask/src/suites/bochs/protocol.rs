//! What the guest with the tests and the hypervisor print, and what it means.

use std::{collections::BTreeSet, time::Duration};

use crate::bochs::{
    configuration::Run,
    last_words::{CONTENT, ended, guest_lines, no_failure},
};

/// Most processors that a test may ask for.
const MOST_PROCESSORS: u32 = 16;
/// A test that says nothing about its time has this much.
const LIMIT: Duration = Duration::from_secs(20);
/// The most time that it may ask for.
const LONGEST: Duration = Duration::from_secs(300);

/// The processors on which a test makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hardware {
    Any,
    WithSpp,
    WithoutSpp,
}

/// A test that the guest has listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) hardware: Hardware,
    pub(super) processors: u32,
    pub(super) limit: Duration,
    /// The hypervisor has to stop the guest, for a reason that has this word in it.
    pub(super) stop: Option<String>,
    /// The hypervisor has to print an event that has this word in it.
    pub(super) event: Option<String>,
}

/// Reads the lines
/// `test: NAME [any|spp|nospp] [cpus=N] [limit=SECONDS] [stop=WORD] [event=WORD]`.
pub(super) fn list(run: &Run) -> Result<Vec<Listed>, String> {
    ended(run, CONTENT)?;
    let mut tests = Vec::new();
    let mut names = BTreeSet::new();
    for line in guest_lines(run).filter_map(|line| line.strip_prefix("test: ")) {
        let test = listed(line).ok_or_else(|| format!("the guest lists {line:?}"))?;
        if !names.insert(test.name.clone()) {
            return Err(format!("the guest lists {} twice", test.name));
        }
        tests.push(test);
    }
    if tests.is_empty() {
        return Err("the guest lists no test".into());
    }
    Ok(tests)
}

fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_ascii_whitespace();
    let mut test = Listed {
        name: words.next()?.to_owned(),
        hardware: Hardware::Any,
        processors: 1,
        limit: LIMIT,
        stop: None,
        event: None,
    };
    for word in words {
        match word.split_once('=') {
            None => {
                test.hardware = match word {
                    "any" => Hardware::Any,
                    "spp" => Hardware::WithSpp,
                    "nospp" => Hardware::WithoutSpp,
                    _ => return None,
                }
            }
            Some(("cpus", count)) => {
                test.processors = count.parse().ok()?;
                if !(1..=MOST_PROCESSORS).contains(&test.processors) {
                    return None;
                }
            }
            Some(("limit", seconds)) => {
                test.limit = Duration::from_secs(seconds.parse().ok()?);
                if test.limit.is_zero() || test.limit > LONGEST {
                    return None;
                }
            }
            Some(("stop", word)) if !word.is_empty() => test.stop = Some(word.to_owned()),
            Some(("event", word)) if !word.is_empty() => test.event = Some(word.to_owned()),
            Some(_) => return None,
        }
    }
    Some(test)
}

/// Whether the test passed: it says so, and only that, and then the hypervisor ends for the right
/// reason.
pub(super) fn verdict(test: &Listed, run: &Run) -> Result<(), String> {
    if let Some(reason) = guest_lines(run).find_map(|line| failure(line, &test.name)) {
        return Err(reason.to_owned());
    }
    // A panic outside of a test.
    no_failure(run)?;
    ended(run, test.stop.as_deref().unwrap_or(CONTENT))?;
    if let Some(word) = test.event.as_deref() {
        let tells = |line: &String| line.starts_with("event ") && line.contains(word);
        if !run.lines.iter().any(tells) {
            return Err(format!("the hypervisor printed no event with {word}"));
        }
    }
    if guest_lines(run).any(|line| line.strip_prefix("PASS ") == Some(&test.name)) {
        Ok(())
    } else {
        Err("it ended without a result".into())
    }
}

/// The reason in a line `FAIL NAME: reason`.
fn failure<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.strip_prefix("FAIL ")?.strip_prefix(name)?;
    if rest.is_empty() { Some("it gives no reason") } else { rest.strip_prefix(": ") }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;
    use crate::execute::Ending;

    fn run(lines: &[&str]) -> Run {
        Run {
            banner: String::new(),
            lines: lines.iter().map(|&line| line.to_owned()).collect(),
            ending: Ending::Exited(ExitStatus::from_raw(1 << 8)),
            log: Vec::new(),
        }
    }

    const END: &str = "hypervisor: stopped: guest ended with status 0";

    fn test(name: &str) -> Listed {
        listed(name).expect("a name is enough")
    }

    #[test]
    fn a_list_says_all_about_a_test() {
        let output = run(&[
            "hypervisor: SPP by the processor",
            "guest| test: plain",
            "guest| test: shootdown spp cpus=3 limit=45",
            "guest| test: triple_fault nospp stop=triple",
            END,
        ]);
        let expected = [
            Listed {
                name: "plain".into(),
                hardware: Hardware::Any,
                processors: 1,
                limit: LIMIT,
                stop: None,
                event: None,
            },
            Listed {
                name: "shootdown".into(),
                hardware: Hardware::WithSpp,
                processors: 3,
                limit: Duration::from_secs(45),
                stop: None,
                event: None,
            },
            Listed {
                name: "triple_fault".into(),
                hardware: Hardware::WithoutSpp,
                processors: 1,
                limit: LIMIT,
                stop: Some("triple".into()),
                event: None,
            },
        ];
        assert_eq!(list(&output).expect("a good list"), expected);
    }

    #[test]
    fn a_list_that_is_not_whole_is_none() {
        for lines in [
            vec![END],
            vec!["guest| test: a", "guest| test: a", END],
            vec!["guest| test: a"],
            vec!["guest| test: a", "hypervisor: stopped: triple fault"],
            vec!["guest| test: ", END],
            vec!["guest| test: a fast", END],
            vec!["guest| test: a cpus=0", END],
            vec!["guest| test: a cpus=17", END],
            vec!["guest| test: a limit=0", END],
            vec!["guest| test: a limit=301", END],
            vec!["guest| test: a stop=", END],
            vec!["guest| test: a colour=red", END],
        ] {
            assert!(list(&run(&lines)).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_test_passes_with_word_and_end() {
        assert_eq!(verdict(&test("a"), &run(&["guest| PASS a", END])), Ok(()));
        assert_eq!(
            verdict(&test("a"), &run(&["guest| noise", "guest| PASS a", "guest| noise", END, ""])),
            Ok(())
        );
        let stopped = run(&["guest| PASS a", "hypervisor: stopped: triple fault of processor 0"]);
        assert_eq!(verdict(&test("a stop=triple"), &stopped), Ok(()));
        let told = run(&["event 1 denied rule=1 \"it\"", "guest| PASS a", END]);
        assert_eq!(verdict(&test("a event=\"it\""), &told), Ok(()));
        assert!(verdict(&test("a event=\"other\""), &told).is_err());
        assert!(verdict(&test("a event=\"it\""), &run(&["guest| PASS a", END])).is_err());
    }

    #[test]
    fn everything_else_fails() {
        for lines in [
            vec![],
            vec!["guest| PASS a"],
            vec!["PASS a", END],
            vec!["guest| PASS a", "guest| hypervisor: stopped: guest ended with status 0"],
            vec![END],
            vec!["guest| PASS ab", END],
            vec!["guest| PASS b", END],
            vec!["guest|  PASS a", END],
            vec!["guest| PASS a", END, "guest| more"],
            vec!["guest| PASS a", "hypervisor: stopped: guest ended with status 1"],
            vec!["guest| PASS a", "hypervisor: stopped: triple fault"],
            vec!["guest| PASS a", "guest| FAIL a: late", END],
            vec!["guest| FAIL guest: no such test", "guest| PASS a", END],
        ] {
            assert!(verdict(&test("a"), &run(&lines)).is_err(), "{lines:?}");
        }
        assert!(verdict(&test("a stop=triple"), &run(&["guest| PASS a", END])).is_err());
        for ending in [Ending::TimeLimit, Ending::Runaway, Ending::LeftBehind] {
            let killed = Run { ending, ..run(&["guest| PASS a", END]) };
            assert!(verdict(&test("a"), &killed).is_err(), "{ending:?}");
        }
    }

    #[test]
    fn the_reason_is_the_tests_own() {
        let failed = run(&["guest| FAIL ab: other", "guest| FAIL a: two and two are five", END]);
        assert_eq!(verdict(&test("a"), &failed), Err("two and two are five".into()));
    }
}
