//! `cargo xtask linux storm`: what rules cost a kernel that works, counted.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    command_line, compile,
    counts::{Counts, part},
};
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

/// What the kernel does: processes, pipes, sockets, files, mounts.
const WORK: &str = "work 1000";
const NO_WORK: &str = "work 0";

/// A run takes half a minute on an idle host, and longer on a busy one.
const LIMIT: Duration = Duration::from_secs(240);

const MODPROBE_PATH: &str = include_str!("../../../examples/linux/policy.toml");
const FIVE_RULES: &str = include_str!("../../../examples/linux-module/policy.toml");

/// The one sub-page that is `modprobe_path`'s alone in Debian's kernel.
const WHOLE_SUB_PAGE: &str = "version = 1\n[[rule]]\nname = \"sub-page\"\nsymbol = \"modprobe_path\"\n\
                              offset = 64\nlength = 128\n";

/// The run that is not expected to come to its end.
const STUCK: &str = "five rules, by SPP, `ept-ad=on`";
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// How the last rule of [`FIVE_RULES`] begins.
const LAST_RULE: &str = "# The entries that lead";

/// One run.
struct Row {
    /// What the kernel does.
    work: &'static str,
    name: &'static str,
    policy: Option<String>,
    options: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |name, policy: Option<&str>, options| Row {
        work: WORK,
        name,
        policy: policy.map(str::to_owned),
        options,
    };
    let without_tables = FIVE_RULES.split(LAST_RULE).next();
    vec![
        Row { work: NO_WORK, ..row("no rule, and no work", None, "") },
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

/// The table's head.
const HEAD: &str = "\n| rules | all exits | EPT violations | guarded bytes | same sub-page | same page | page walks | \
                    single steps | SPP events | hypervisor's ticks | all ticks, idle included | more than without \
                    a rule | of all | of the work |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

/// The rest of a line without counts.
const BLANK: &str = " | | | | | | | | | | | | |";

/// Runs without a rule, with which others are compared.
#[derive(Clone, Copy)]
struct Bases {
    /// It has only booted.
    boot: Counts,
    /// It has worked.
    work: Counts,
}

/// One line of the table.
fn line(name: &str, counts: &Counts, bases: Option<&Bases>) -> String {
    let numbers = [
        counts.exits,
        counts.violations,
        counts.denied + counts.reported,
        counts.same_sub_page(),
        counts.open,
        counts.walks,
        counts.steps,
        counts.sub_page_events,
        counts.hypervisor,
        counts.ticks,
    ];
    let numbers: Vec<_> = numbers.into_iter().map(grouped).collect();
    let more = bases.map_or_else(
        || "| |".to_owned(),
        |Bases { boot, work }| {
            let more = counts.more(work);
            let [of_all, of_work] = [work.ticks, work.ticks.saturating_sub(boot.ticks)]
                .map(|whole| hundredths(part(more, whole)));
            format!("{} | {of_all} | {of_work}", grouped(more))
        },
    );
    format!("| {name} | {} | {more} |", numbers.join(" | "))
}

fn hundredths(part: u64) -> String {
    format!("+{}.{:02} %", part / 100, part % 100)
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
        command_line: String::new(),
        logging: Logging::Fatal,
    };
    let mut machines = Vec::new();
    for row in rows() {
        let options = format!("cpus=1 events=ring {}", row.options);
        let command_line = command_line(1, &[row.work, "poweroff"]);
        let mut machine = LinuxMachine { options, command_line, ..plain.clone() };
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
    session.say(HEAD)?;
    let mut boot = None;
    let mut bases = None;
    let mut code = ExitCode::SUCCESS;
    for (name, machine) in machines {
        let limit = if name == STUCK { STUCK_LIMIT } else { LIMIT };
        let interrupt = session.interrupt().clone();
        let LinuxRun { run, .. } = machine.start(emulator, limit, &interrupt, &mut |_| {})?;
        let ended = last_words::ended(&run, "every processor has halted");
        match (ended, Counts::of(&run.lines)) {
            (Ok(()), Some(counts)) => {
                // The first two have no rule.
                match boot {
                    None => boot = Some(counts),
                    Some(boot) => {
                        bases.get_or_insert(Bases { boot, work: counts });
                    }
                }
                session.say(&line(name, &counts, bases.as_ref()))?;
            }
            // With EPT's flags each walk of the guarded table is a step: the kernel gets nowhere.
            (Err(_), _) if name == STUCK && run.ending == Ending::TimeLimit => {
                let limit = limit.as_secs();
                session.say(&format!("| {name} | not over after {limit} s{BLANK}"))?;
            }
            (ended, _) => {
                let reason = ended.err().unwrap_or_else(|| "it told no counts".into());
                session.say(&format!("| {name} | {reason}{BLANK}"))?;
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
    use crate::linux::counts::tests::LINES;

    #[test]
    fn counts_are_a_line_of_the_table() {
        let counts = Counts::of(&LINES.map(str::to_owned)).expect("all are there");
        let work = Counts { ticks: 1_000_000, hypervisor: 40_000, ..counts };
        let bases = Bases { boot: Counts { ticks: 800_000, ..counts }, work };
        let told = line("rule", &counts, Some(&bases));
        let same = "| rule | 6,912 | 5,240 | 6 | 362 | 4,000 | 7 | 3 | 0 | 50,000 | 1,010,000 |";
        assert_eq!(told, format!("{same} 10,000 | +1.00 % | +5.00 % |"));
        assert_eq!(line("rule", &counts, None), format!("{same} | | |"));
        let columns = |text: &str| text.matches('|').count();
        let last = HEAD.lines().last().expect("there is one");
        assert_eq!(columns(last), columns(&told));
        assert_eq!(columns(last), columns(&format!("| name | reason{BLANK}")));
        assert_eq!(columns(last), columns(HEAD.lines().nth(1).expect("there is one")));
    }

    #[test]
    fn the_rules_are_those_of_the_examples() {
        let rows = rows();
        let rules = |at: usize| {
            let policy = rows.get(at).and_then(|row| row.policy.as_deref()).unwrap_or("");
            policy.matches("[[rule]]").count()
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(rules), [0, 0, 1, 1, 1, 4, 5, 5, 4, 5]);
    }
}
