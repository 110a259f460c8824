//! `cargo xtask linux storm`: what rules cost a kernel that works, counted.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use super::{command_line, compile};
use crate::{
    bochs::{
        configuration::Logging,
        emulator::Emulator,
        images::Images,
        last_words,
        linux::{self, LinuxMachine, LinuxRun, MEMORY_MIB},
        probe,
    },
    execute::Ending,
    session::Session,
    workspace::Workspace,
};

/// What the kernel does: processes, pipes, files, mounts.
const WORK: &str = "work 1000";

/// A run takes half a minute of an idle machine's time.
const LIMIT: Duration = Duration::from_secs(120);

const MODPROBE_PATH: &str = include_str!("../../../examples/linux/policy.toml");
const FIVE_RULES: &str = include_str!("../../../examples/linux-module/policy.toml");

/// The one sub-page that is `modprobe_path`'s alone in Debian's kernel.
const WHOLE_SUB_PAGE: &str = "version = 1\n[[rule]]\nname = \"sub-page\"\nsymbol = \"modprobe_path\"\n\
                              offset = 64\nlength = 128\n";

/// The run that is not expected to come to its end.
const STUCK: &str = "five rules, by SPP, `ept-ad=on`";

/// How the last rule of [`FIVE_RULES`] begins.
const LAST_RULE: &str = "# The entries that lead";

/// One run.
struct Row {
    name: &'static str,
    policy: Option<String>,
    options: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |name, policy: Option<&str>, options| Row {
        name,
        policy: policy.map(str::to_owned),
        options,
    };
    let without_tables = FIVE_RULES.split(LAST_RULE).next();
    vec![
        row("no rule", None, ""),
        row("`modprobe_path`, by SPP", Some(MODPROBE_PATH), ""),
        row("one of its whole sub-pages, by SPP", Some(WHOLE_SUB_PAGE), ""),
        row("`modprobe_path`, by pages (`spp=off`)", Some(MODPROBE_PATH), "spp=off"),
        row("four rules, no page table, by SPP", without_tables, ""),
        row("five rules, with a page table, by SPP", Some(FIVE_RULES), ""),
        row("five rules, by pages (`spp=off`)", Some(FIVE_RULES), "spp=off"),
        row("four rules, by SPP, `ept-ad=on`", without_tables, "ept-ad=on"),
        row(STUCK, Some(FIVE_RULES), "ept-ad=on"),
    ]
}

/// What a run's last lines tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    exits: u64,
    violations: u64,
    sub_page_events: u64,
    steps: u64,
    reported: u64,
    beside: u64,
    ticks: u64,
}

impl Counts {
    /// From the lines of the hypervisor; `None` if one is missing.
    fn of(lines: &[String]) -> Option<Self> {
        let rest = |start: &str| lines.iter().find_map(|line| line.strip_prefix(start));
        let exits = rest("hypervisor: exits by basic reason: ")?;
        let of = |reason: &str| {
            let mut parts = exits.split(", ");
            let count = parts.find_map(|part| part.strip_prefix(reason)?.parse().ok());
            count.unwrap_or(0)
        };
        let writes = rest("hypervisor: writes that trapped: ")?;
        let before = |what: &str| {
            let (count, _) = writes.split_once(what)?;
            count.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let (_, ticks) = writes.split_once("time-stamp counter ")?;
        Some(Self {
            exits: of("all "),
            violations: of("48: "),
            sub_page_events: of("66: "),
            steps: of("37: "),
            reported: before(" reported")?,
            beside: before(" completed in software")?,
            ticks: ticks.parse().ok()?,
        })
    }

    /// One line of the table; `base` is the run without a rule.
    fn line(&self, name: &str, base: &Self) -> String {
        let Self { exits, violations, sub_page_events, steps, reported, beside, ticks } = self;
        let more = ticks.saturating_sub(base.ticks);
        // Hundredths of a percent, rounded.
        let hundredths = (more * 10_000 + base.ticks / 2) / base.ticks.max(1);
        format!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | +{}.{:02} % |",
            grouped(*exits),
            grouped(*violations),
            grouped(*sub_page_events),
            grouped(*steps),
            grouped(beside.saturating_sub(*reported)),
            grouped(*ticks),
            grouped(more),
            hundredths / 100,
            hundredths % 100,
        )
    }
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Runs all, and prints each line as it is known.
pub(super) fn run(
    session: &mut Session<'_>,
    workspace: &Workspace,
    emulator: &Emulator,
    images: &Images,
    (kernel, initrd): (&Path, Vec<u8>),
) -> Result<ExitCode> {
    let plain = LinuxMachine {
        model: probe::WITH_SPP.into(),
        processors: 1,
        memory_mib: MEMORY_MIB,
        told_memory_mib: None,
        high_memory_mib: 0,
        rom: images.rom(),
        image: images.hypervisor(),
        options: String::new(),
        kernel: linux::read(kernel)?,
        initrd: Some(initrd),
        policy: None,
        names: None,
        command_line: command_line(1, &[WORK, "poweroff"]),
        logging: Logging::Fatal,
    };
    let mut machines = Vec::new();
    for row in rows() {
        let options = format!("cpus=1 events=ring {}", row.options);
        let mut machine = LinuxMachine { options, ..plain.clone() };
        if let Some(policy) = &row.policy {
            let source = workspace.separate_target("bare-metal").join("storm.toml");
            fs::write(&source, policy)
                .with_context(|| format!("cannot write {}", source.display()))?;
            machine.policy = compile(session, workspace, &source, Some(kernel))?;
            if machine.policy.is_none() {
                return Ok(ExitCode::FAILURE);
            }
        }
        machines.push((row.name, machine));
    }
    session.say(
        "\n| rules | all exits | EPT violations | SPP events | single steps | stores beside a rule, in software \
         | instructions, hypervisor included | more than without a rule | |\n|---|---|---|---|---|---|---|---|---|",
    )?;
    let mut base: Option<Counts> = None;
    let mut code = ExitCode::SUCCESS;
    for (name, machine) in machines {
        let interrupt = session.interrupt().clone();
        let LinuxRun { run, .. } = machine.start(emulator, LIMIT, &interrupt, &mut |_| {})?;
        let ended = last_words::ended(&run, "every processor has halted");
        match (ended, Counts::of(&run.lines)) {
            (Ok(()), Some(counts)) => {
                let base = base.get_or_insert(counts);
                session.say(&counts.line(name, base))?;
            }
            // With EPT's flags each walk of the guarded table is a step: the kernel gets nowhere.
            (Err(_), _) if name == STUCK && run.ending == Ending::TimeLimit => {
                let limit = LIMIT.as_secs();
                session.say(&format!("| {name} | not over after {limit} s | | | | | | | |"))?;
            }
            (ended, _) => {
                let reason = ended.err().unwrap_or_else(|| "it told no counts".into());
                session.say(&format!("| {name} | {reason} | | | | | | | |"))?;
                code = ExitCode::FAILURE;
            }
        }
        if session.interrupted() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_last_lines_are_a_line_of_the_table() {
        let lines = [
            "hypervisor: exits by basic reason: all 6912, 10: 10, 48: 5240, 37: 3",
            "hypervisor: writes that trapped: 2 denied, 4 reported, 4366 completed in software; 0 \
             retried, 0 SPP misses; time-stamp counter 1010000",
        ];
        let counts = Counts::of(&lines.map(str::to_owned)).expect("both are there");
        let expected = Counts {
            exits: 6912,
            violations: 5240,
            sub_page_events: 0,
            steps: 3,
            reported: 4,
            beside: 4366,
            ticks: 1_010_000,
        };
        assert_eq!(counts, expected);
        let base = Counts { ticks: 1_000_000, ..Counts::default() };
        assert_eq!(
            counts.line("rule", &base),
            "| rule | 6,912 | 5,240 | 0 | 3 | 4,362 | 1,010,000 | 10,000 | +1.00 % |"
        );
        assert_eq!(Counts::of(&[]), None);
    }

    #[test]
    fn the_rules_are_those_of_the_examples() {
        let rows = rows();
        let rules = |at: usize| {
            let policy = rows.get(at).and_then(|row| row.policy.as_deref()).unwrap_or("");
            policy.matches("[[rule]]").count()
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8].map(rules), [0, 1, 1, 1, 4, 5, 5, 4, 5]);
    }
}
