//! What is done to a guarded kernel step by step, and whether each step went as it has to.

use std::slice;

use crate::bochs::{last_words, linux::LinuxRun};

/// The kernel has powered off: without ACPI it halts.
pub(crate) const HALTED: &str = "every processor has halted";

/// How much of what the kernel printed is shown where something went wrong.
const SHOWN_LINES: usize = 25;

/// Denied writes, one behind the other.
#[derive(Clone, Debug)]
struct Denied {
    times: usize,
    /// The rule, as an event's line has it.
    rule: &'static str,
    /// The kernel's function that wrote, as an event's line has it; empty if no names are at hand.
    function: &'static str,
}

/// What a step brings.
#[derive(Clone, Debug, Default)]
struct Outcome {
    /// Text that stands in a line that the kernel or its first program prints.
    printed: Option<String>,
    denied: Option<Denied>,
}

/// One step: commands of the first program, and what they bring with rules and without.
#[derive(Clone, Debug)]
struct Step {
    name: String,
    commands: Vec<String>,
    guarded: Outcome,
    unguarded: Outcome,
}

/// How a step went.
#[derive(Debug)]
pub(crate) struct Judged {
    name: String,
    /// What was seen, or why that is not what has to be.
    result: Result<String, String>,
}

impl Judged {
    /// One line of the report; `number` counts from 1.
    pub(crate) fn line(&self, number: usize) -> String {
        let (word, told) = match &self.result {
            Ok(told) => ("passed", told),
            Err(reason) => ("FAILED", reason),
        };
        format!("   {number:2} {word} {}: {told}", self.name)
    }

    pub(crate) fn failed(&self) -> bool {
        self.result.is_err()
    }
}

/// The steps from power-on to power-off.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Begins the line in which the hypervisor says how many rules it has, one for the word that tells of the
    /// first program too.
    begun: &'static str,
    /// The line in which it says that the others do, if there are others.
    armed: Option<&'static str>,
    steps: Vec<Step>,
}

/// The kernel's function through which a module of examples/linux-module stores.
const BY_MODULE: &str = " function=copy_to_kernel_nofault+0x";

/// The kernel's function behind /proc/sys.
const BY_SYSCTL: &str = " function=proc_dostring+0x";

impl Scenario {
    /// All of it, under the rules of examples/linux-module and with its modules.
    pub(crate) fn whole() -> Self {
        let modprobe = "rule=1 \"modprobe_path\"";
        let pattern = "rule=2 \"core_pattern\"";
        Self {
            begun: "hypervisor: the kernel begins; policy: 6 rules",
            armed: Some("hypervisor: the first program starts; 4 rules more are in force"),
            steps: vec![
                work(20),
                Step::new("a module that attacks is loaded", &["insmod /attack.ko"]),
                by_module("modprobe_path", modprobe),
                by_module("core_pattern", pattern),
                by_module("system_call", "rule=3 \"system calls\""),
                by_module("interrupt_gate", "rule=4 \"interrupt gates\""),
                by_module("alias", modprobe),
                by_module("own_entry", modprobe),
                by_module("entry_of_modprobe_path", "rule=5 \"page table of the kernel\""),
                by_sysctl("modprobe", "/tmp/evil", "/sbin/modprobe", modprobe, BY_SYSCTL),
                by_sysctl("core_pattern", "|/tmp/evil", "core", pattern, BY_SYSCTL),
                Step::new("a module that guards is loaded", &["insmod /locked.ko"]),
                Step::new(
                    "its owner removes rule 2",
                    &["echo remove 2 > /proc/locked", "cat /proc/locked"],
                )
                .prints("remove 2: 0", "remove 2: -2"),
                after_removal(),
                work(20),
            ],
        }
    }

    /// The same without modules, under the rule of examples/linux, for any kernel.
    pub(crate) fn short() -> Self {
        let rule = "rule=1 \"modprobe path\"";
        Self {
            begun: "hypervisor: the kernel begins; policy: 1 rules",
            armed: None,
            steps: vec![
                work(5),
                by_sysctl("modprobe", "/tmp/evil", "/sbin/modprobe", rule, ""),
                work(5),
            ],
        }
    }

    /// What the kernel's first program is told.
    pub(crate) fn commands(&self) -> Vec<&str> {
        let commands = self.steps.iter().flat_map(|step| &step.commands);
        commands.map(String::as_str).chain(["poweroff"]).collect()
    }

    /// Judges a run, with a policy or without.
    pub(crate) fn judge(&self, run: &LinuxRun, guarded: bool) -> Vec<Judged> {
        let sections = sections(&run.console, &self.commands());
        let mut sections = sections.iter();
        let mut events =
            run.run.lines.iter().map(String::as_str).filter(|line| line.contains(" denied rule="));
        let mut judged = vec![Judged { name: "boot".into(), result: self.booted(run, guarded) }];
        for step in &self.steps {
            let outcome = if guarded { &step.guarded } else { &step.unguarded };
            let printed: Vec<_> = sections.by_ref().take(step.commands.len()).copied().collect();
            let result = match &outcome.denied {
                // A step that was not reached takes no event from another.
                _ if printed.iter().any(Option::is_none) => Err("it was not reached".into()),
                Some(denied) => denied.judge(&mut events).and_then(|told| {
                    outcome.judge_printed(&printed).map(|line| format!("{line} {told}"))
                }),
                None => outcome.judge_printed(&printed),
            };
            judged.push(Judged { name: step.name.clone(), result });
        }
        // A step that failed may leave what it would have taken.
        let passed = !judged.iter().any(Judged::failed);
        let left = events
            .next()
            .filter(|_| passed)
            .map(|event| Err(format!("an event more than expected: {event}")));
        let ended = || last_words::ended(&run.run, HALTED).map(|()| HALTED.to_owned());
        judged.push(Judged { name: "power off".into(), result: left.unwrap_or_else(ended) });
        judged
    }

    fn booted(&self, run: &LinuxRun, guarded: bool) -> Result<String, String> {
        let version = run.console.iter().find_map(|line| {
            let (_, rest) = line.split_once("Linux version ")?;
            rest.split(' ').next()
        });
        let version = version.ok_or("the kernel did not print its version")?;
        let lines = &run.run.lines;
        let expected = if guarded {
            slice::from_ref(&self.begun).iter().chain(&self.armed).copied().collect()
        } else {
            vec!["hypervisor: the kernel begins, without a policy"]
        };
        for start in &expected {
            if !lines.iter().any(|line| line.starts_with(start)) {
                return Err(format!("the hypervisor did not say {start:?}"));
            }
        }
        let held = if guarded { "its rules are in force" } else { "no rule" };
        Ok(format!("Linux {version}, {held}"))
    }
}

impl Step {
    fn new(name: &str, commands: &[&str]) -> Self {
        Self {
            name: name.into(),
            commands: commands.iter().map(|&command| command.to_owned()).collect(),
            guarded: Outcome::default(),
            unguarded: Outcome::default(),
        }
    }

    fn prints(mut self, guarded: &str, unguarded: &str) -> Self {
        self.guarded.printed = Some(guarded.into());
        self.unguarded.printed = Some(unguarded.into());
        self
    }

    fn denied(mut self, times: usize, rule: &'static str, function: &'static str) -> Self {
        self.guarded.denied = Some(Denied { times, rule, function });
        self
    }
}

/// Processes, pipes, sockets, files and mounts, all of which have to succeed.
fn work(rounds: u32) -> Step {
    let done = format!("work: {rounds} rounds in ");
    Step::new("work", &[&format!("work {rounds}")]).prints(&done, &done)
}

/// An attack of the module examples/linux-module/attack.c.
fn by_module(attack: &str, rule: &'static str) -> Step {
    let commands = [&format!("echo {attack} > /proc/attack"), "cat /proc/attack"];
    Step::new("attack", &commands)
        .prints(&format!("{attack}: unchanged, "), &format!("{attack}: changed, "))
        .denied(1, rule, BY_MODULE)
}

/// An attack as root, without code in the kernel; it writes byte by byte, a zero behind the text.
fn by_sysctl(
    name: &str,
    evil: &str,
    old: &str,
    rule: &'static str,
    function: &'static str,
) -> Step {
    let file = format!("/proc/sys/kernel/{name}");
    Step::new(
        &format!("attack, {file}"),
        &[&format!("echo {evil} > {file}"), &format!("cat {file}")],
    )
    .prints(old, evil)
    .denied(evil.len() + 1, rule, function)
}

/// What was denied before and is no longer, since the rule is gone.
fn after_removal() -> Step {
    let changed = "core_pattern: changed, ";
    // Without a policy the same bytes are there from the first time.
    Step::new("core_pattern once more", &["echo core_pattern > /proc/attack", "cat /proc/attack"])
        .prints(changed, changed)
}

impl Denied {
    /// Takes what belongs to it from the events.
    fn judge<'a>(&self, events: &mut impl Iterator<Item = &'a str>) -> Result<String, String> {
        let Self { times, rule, function } = self;
        let mut last = "";
        for _ in 0..*times {
            last = events.next().ok_or_else(|| format!("not denied: no event of {rule}"))?;
            if !last.contains(&format!(" denied {rule} ")) || !last.contains(function) {
                return Err(format!("an event of {rule}{function} is missing before: {last}"));
            }
        }
        let mut told = match times {
            1 => format!("(denied, {rule}"),
            _ => format!("(denied {times} times, {rule}"),
        };
        for key in [" function=", " comm="] {
            if let Some((_, value)) = last.split_once(key) {
                told += key;
                told += value.split(' ').next().unwrap_or_default();
            }
        }
        Ok(told + ")")
    }
}

impl Outcome {
    /// Judges what the commands of a step have printed.
    fn judge_printed(&self, sections: &[Option<&[String]>]) -> Result<String, String> {
        let lines = || sections.iter().flatten().copied().flatten();
        if let Some(line) = lines().find(|line| line.contains(": error ")) {
            return Err(line.clone());
        }
        let Some(text) = &self.printed else { return Ok("done".into()) };
        if let Some(line) = lines().find(|line| line.contains(text)) {
            return Ok(line.clone());
        }
        let last = lines().next_back().map_or("nothing", String::as_str);
        Err(format!("{text:?} was expected, printed was: {last}"))
    }
}

/// What stands behind each command's own line, up to the next one's.
fn sections<'a>(console: &'a [String], commands: &[&str]) -> Vec<Option<&'a [String]>> {
    let mut rest = console;
    let mut begins = Vec::new();
    for command in commands {
        let at = rest.iter().position(|line| line.strip_prefix("# ") == Some(command));
        let Some(at) = at else { break };
        rest = &rest[at + 1..];
        begins.push(rest);
    }
    let mut sections: Vec<_> = begins
        .iter()
        .enumerate()
        .map(|(number, begin)| {
            let behind = begins.get(number + 1).map_or(0, |next| next.len() + 1);
            Some(&begin[..begin.len() - behind])
        })
        .collect();
    sections.resize(commands.len(), None);
    sections
}

/// The lines of a kernel's panic, with those before that lead to it; none if there is no panic.
pub(crate) fn panic(console: &[String]) -> Option<&[String]> {
    let at = console.iter().position(|line| line.contains("Kernel panic"))?;
    let end = console.len().min(at + SHOWN_LINES);
    Some(&console[at.saturating_sub(SHOWN_LINES)..end])
}

/// The last of what the kernel has printed.
pub(crate) fn last_lines(console: &[String]) -> &[String] {
    &console[console.len().saturating_sub(SHOWN_LINES)..]
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;
    use crate::{bochs::configuration::Run, execute::Ending};

    const CONSOLE: [&str; 8] = [
        "[    0.000000] Linux version 6.1.0 (somebody) #1",
        "# work 5",
        "work: 5 rounds in 7 us",
        "# echo /tmp/evil > /proc/sys/kernel/modprobe",
        "# cat /proc/sys/kernel/modprobe",
        "/sbin/modprobe",
        "# work 5",
        "work: 5 rounds in 7 us",
    ];

    const EVENT: &str = "event 1 denied rule=1 \"modprobe path\" gpa=0x1 function=proc_dostring+0x1 \
                         pid=1 comm=\"init\" uid=0";

    /// A run of the short scenario in which all is as it has to be.
    fn run() -> LinuxRun {
        let begun = "hypervisor: the kernel begins; policy: 1 rules, ...";
        let lines = [begun]
            .into_iter()
            .chain([EVENT; 10])
            .chain(["hypervisor: stopped: every processor has halted"]);
        let run = Run {
            banner: String::new(),
            lines: lines.map(str::to_owned).collect(),
            ending: Ending::Exited(ExitStatus::from_raw(0)),
            log: Vec::new(),
        };
        let console = CONSOLE.into_iter().chain(["# poweroff"]).map(str::to_owned).collect();
        LinuxRun { run, console }
    }

    /// The lines of the steps that failed.
    fn failed(run: &LinuxRun) -> Vec<String> {
        let steps = Scenario::short().judge(run, true);
        assert_eq!(steps.len(), 5);
        steps.iter().filter(|step| step.failed()).map(|step| step.line(1)).collect()
    }

    #[test]
    fn a_run_as_it_has_to_be() {
        let steps = Scenario::short().judge(&run(), true);
        let lines: Vec<_> = steps.iter().enumerate().map(|(at, step)| step.line(at + 1)).collect();
        let expected = [
            "    1 passed boot: Linux 6.1.0, its rules are in force",
            "    2 passed work: work: 5 rounds in 7 us",
            "    3 passed attack, /proc/sys/kernel/modprobe: /sbin/modprobe (denied 10 times, \
             rule=1 \"modprobe path\" function=proc_dostring+0x1 comm=\"init\")",
            "    4 passed work: work: 5 rounds in 7 us",
            "    5 passed power off: every processor has halted",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn each_thing_that_goes_wrong_is_told() {
        let altered = |alter: &dyn Fn(&mut LinuxRun)| {
            let mut run = run();
            alter(&mut run);
            failed(&run)
        };
        let one = |told: Vec<String>, words: &str| {
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(words), "{told:?}");
        };
        one(altered(&|run| run.console[5] = "/tmp/evil".into()), "printed was: /tmp/evil");
        one(altered(&|run| run.console[7] = "work: failed in fork after 2".into()), "was expected");
        one(altered(&|run| run.console[5] += "x: error 1"), ": error 1");
        one(altered(&|run| drop(run.run.lines.remove(5))), "not denied: no event of rule=1");
        one(altered(&|run| run.run.lines.insert(5, EVENT.into())), "an event more than expected");
        one(altered(&|run| run.run.lines[0].clear()), "did not say");
        one(altered(&|run| drop(run.console.remove(0))), "did not print its version");
        one(altered(&|run| run.run.ending = Ending::TimeLimit), "time limit");
        let other = EVENT.replace("rule=1 \"modprobe path\"", "rule=2 \"other\"");
        let told = altered(&|run| run.run.lines[5].clone_from(&other));
        assert!(told[0].contains("is missing before: event 1 denied rule=2"), "{told:?}");
        // It panicked during the attack: nothing behind it was reached.
        let told = altered(&|run| run.console.truncate(4));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|line| line.contains("not reached")), "{told:?}");
    }

    #[test]
    fn the_commands_fit_into_what_a_kernel_takes() {
        // CONFIG_INIT_ENV_ARG_LIMIT, of which the program's own name is one.
        assert!(Scenario::whole().commands().len() < 32);
    }

    #[test]
    fn a_panic_is_found_with_what_leads_to_it() {
        let mut console: Vec<_> = (0..40).map(|number| format!("line {number}")).collect();
        assert_eq!(panic(&console), None);
        console[30] = "[ 1.0] Kernel panic - not syncing: x".into();
        let lines = panic(&console).expect("there is one");
        assert_eq!((lines[0].as_str(), lines.len()), ("line 5", 35));
    }
}
