//! A distribution's kernel under the hypervisor, in Bochs: what it prints, what the hypervisor says, and
//! the starts that it refuses.

mod attacks;
mod refusals;
mod storm;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Plan, bochs};
use crate::{
    bochs::{
        configuration::Logging,
        emulator::Emulator,
        images::{Images, Purpose},
        last_words,
        linux::{self, LinuxMachine, LinuxRun, MEMORY_MIB},
        probe,
    },
    count::Count,
    lab::ingredients::{Ingredients, Kernel},
    linux::{
        INITRD, POLICY, command_line, compile, compile_named,
        modules::{self, Built},
        scenario::{self, HALTED, Scenario},
    },
    session::{self, Session},
};

/// A boot takes ten seconds of an idle machine's time.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What the kernel's first program does where nothing else is said: the attack of the example, and work.
pub(super) const COMMANDS: [&str; 6] = [
    "id",
    "cat /proc/sys/kernel/modprobe",
    "echo /tmp/evil > /proc/sys/kernel/modprobe",
    "cat /proc/sys/kernel/modprobe",
    "work 5",
    "poweroff",
];

/// What is expected of a start: texts that stand in lines of the kernel and of the hypervisor, in this
/// order, and words of the hypervisor's last line.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) console: &'static [&'static str],
    lines: &'static [&'static str],
    last: &'static str,
}

/// By what a start is judged.
#[derive(Clone, Debug)]
enum Expectation {
    Lines(Expected),
    /// Each step of the whole scenario, with rules or without, and a text in a line of the hypervisor.
    Scenario {
        guarded: bool,
        line: &'static str,
    },
}

#[derive(Debug)]
struct Test {
    name: String,
    machine: LinuxMachine,
    limit: Duration,
    expected: Expectation,
}

pub(super) const GUARDED: Expected = Expected {
    console: &[
        "Linux version ",
        "# cat /proc/sys/kernel/modprobe",
        "/sbin/modprobe",
        "# echo /tmp/evil > /proc/sys/kernel/modprobe",
        "# cat /proc/sys/kernel/modprobe",
        "/sbin/modprobe",
        "work: 5 rounds",
        "# poweroff",
    ],
    lines: &[
        "hypervisor: the kernel begins; policy: 1 rules",
        "event 1 denied rule=1 \"modprobe path\" gpa=",
        " data=2f then=skip",
        "event 10 denied rule=1 ",
        "hypervisor: writes that trapped: 10 denied, 0 reported, ",
    ],
    last: HALTED,
};

/// What the kernel runs as root, attacked one after the other; writes to the second are only logged.
const PACK_COMMANDS: [&str; 6] = [
    "echo /tmp/evil > /proc/sys/kernel/modprobe",
    "cat /proc/sys/kernel/modprobe",
    "echo |/tmp/evil > /proc/sys/kernel/core_pattern",
    "cat /proc/sys/kernel/core_pattern",
    "work 5",
    "poweroff",
];

/// The rules that the tool itself writes for this kernel, of which some hold from its first program on.
const PACK: Expected = Expected {
    console: &[
        "# cat /proc/sys/kernel/modprobe",
        "/sbin/modprobe",
        "# cat /proc/sys/kernel/core_pattern",
        "|/tmp/evil",
        "work: 5 rounds",
        "# poweroff",
    ],
    lines: &[
        "hypervisor: the kernel begins; policy: ",
        " rules hold from the first program on",
        " logged rule=",
        "\"system_state=3\"",
        "hypervisor: the first program starts; ",
        " rules more are in force",
        " denied rule=",
        "\"modprobe_path\"",
        " logged rule=",
        "\"core_pattern\"",
    ],
    last: HALTED,
};

/// The last line of the hypervisor if the guest resets the machine: a stock kernel does it so.
const RESET: &str = "the guest resets the machine (port 64H)";

/// The guest's own panic: it resets the machine, and the hypervisor says so.
const PANICKED: Expected = Expected {
    console: &["sysrq: Trigger a crash", "Kernel panic - not syncing: sysrq triggered crash"],
    lines: &["hypervisor: the kernel begins; policy: 1 rules"],
    last: RESET,
};

const REBOOTED: Expected = Expected {
    console: &["# reboot"],
    lines: &["; 2 processors;", "hypervisor: the kernel begins; policy: 1 rules"],
    last: RESET,
};

/// What the kernel does with several processors: besides the attack, NMIs of its own, from one processor to
/// the others.
const NMI_COMMANDS: [&str; 5] = [
    "echo /tmp/evil > /proc/sys/kernel/modprobe",
    "work 5",
    "echo 8 > /proc/sysrq-trigger",
    "echo l > /proc/sysrq-trigger",
    "poweroff",
];

/// What the first program prints is not looked for: the kernel's lines stand between its letters then.
const NMIS: Expected = Expected {
    console: &["Sending NMI from CPU", "NMI backtrace for cpu"],
    lines: &["hypervisor: the kernel begins; policy: 1 rules", "event 1 denied rule=1 "],
    last: HALTED,
};

/// The machine's PCI, which the kernel finds by ports that exit: Bochs has a bridge of Intel's 440FX. The
/// processor has AMX, which the hypervisor does not offer.
const DEVICES: Expected = Expected {
    console: &["# cat /proc/bus/pci/devices", "0000\t80861237\t", "# poweroff"],
    lines: &["hypervisor: the kernel begins, without a policy"],
    last: HALTED,
};

/// A processor that is listed and not used. The kernel is told not to wake it, since it would wait for ten
/// seconds of its time.
const HELD: Expected = Expected {
    console: &["# cat /proc/sys/kernel/modprobe", "/sbin/modprobe", "# poweroff"],
    lines: &[
        "hypervisor: 1 processors more are held",
        "hypervisor: the kernel begins; policy: 1 rules",
        "event 1 denied rule=1 \"modprobe path\" gpa=",
    ],
    last: HALTED,
};

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let emulator = match &plan.prerequisites.emulator {
        Ok(emulator) => emulator,
        Err(reason) => {
            session.say(&format!("   skipped, all tests of this suite: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let ingredients = match Ingredients::prepare(session, Kernel::Stable)? {
        Ok(ingredients) => ingredients,
        Err(reason) => {
            session.say(&format!("   skipped, all tests of this suite: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let kernel = ingredients.kernel();
    let Some(images) = Images::build(session, &plan.workspace, Purpose::Linux)? else {
        return Ok(Count::FAILED);
    };
    let policy = plan.workspace.root().join(POLICY);
    let Some(policy) = compile(session, &plan.workspace, &policy, Some(&kernel))? else {
        return Ok(Count::FAILED);
    };
    let Some(pack) = pack(session, plan, &kernel)? else { return Ok(Count::FAILED) };
    let Some(low) = low_rule(session, plan)? else { return Ok(Count::FAILED) };
    let plain = LinuxMachine {
        model: probe::WITH_SPP.into(),
        processors: 1,
        memory_mib: MEMORY_MIB,
        told_memory_mib: None,
        high_memory_mib: 0,
        rom: images.rom(),
        image: images.hypervisor(),
        options: "cpus=1 events=serial".into(),
        kernel: linux::read(&kernel)?,
        initrd: Some(linux::read(&plan.workspace.root().join(INITRD))?),
        policy: None,
        names: None,
        command_line: command_line(1, &COMMANDS),
        logging: Logging::Fatal,
    };
    let mut tests = refusals::all(&plain, &policy, &low);
    tests.extend(boots(&plain, &policy, &pack));
    let mut count = Count::default();
    if attacks::NAMES.iter().any(|name| plan.selects(name)) {
        match with_modules(session, plan, &ingredients, &plain)? {
            Modules::Tests(more) => tests.extend(more),
            Modules::Without(instead) => count += instead,
        }
    }
    let selected: Vec<_> = tests.iter().filter(|test| plan.selects(&test.name)).collect();
    if selected.is_empty() && count == Count::default() && !plan.selects(storm::NAME) {
        session.say("   no test has such a name")?;
        return Ok(Count::FAILED);
    }
    for test in selected {
        count += run(session, emulator, test)?;
        if session.interrupted() {
            return Ok(count);
        }
    }
    if plan.selects(storm::NAME) {
        let five = plan.workspace.root().join(modules::POLICY);
        let Some(five) = compile(session, &plan.workspace, &five, Some(&kernel))? else {
            return Ok(Count::FAILED);
        };
        count += storm::check(session, emulator, &plain, &five)?;
    }
    Ok(count)
}

/// The tests with modules, or how they count that cannot be run, which has been said.
enum Modules {
    Tests(Vec<Test>),
    Without(Count),
}

fn with_modules(
    session: &mut Session<'_>,
    plan: &Plan,
    ingredients: &Ingredients,
    plain: &LinuxMachine,
) -> Result<Modules> {
    if let Err(reason) = &plan.prerequisites.compiler {
        session.say(&format!("   skipped, the tests with modules: {reason}"))?;
        return Ok(Modules::Without(Count::SKIPPED));
    }
    let workspace = &plan.workspace;
    let initrd = workspace.root().join(INITRD);
    let initrd = match modules::initrd(session, workspace, ingredients, &initrd)? {
        Built::Initrd(initrd) => initrd,
        Built::NoHeaders(reason) => {
            session.say(&format!("   skipped, the tests with modules: {reason}"))?;
            return Ok(Modules::Without(Count::SKIPPED));
        }
        Built::Broken => {
            session.say("   failed: the modules of examples/linux-module do not compile")?;
            return Ok(Modules::Without(Count::FAILED));
        }
    };
    let policy = workspace.root().join(modules::POLICY);
    let kernel = ingredients.kernel();
    let Some((policy, names)) = compile_named(session, workspace, &policy, &kernel)? else {
        return Ok(Modules::Without(Count::FAILED));
    };
    let plain = LinuxMachine { initrd: Some(initrd), names: Some(names), ..plain.clone() };
    Ok(Modules::Tests(attacks::all(&plain, &policy)))
}

/// A guarded start with several processors.
fn processors(plain: &LinuxMachine, policy: &[u8], processors: u32) -> LinuxMachine {
    LinuxMachine {
        processors,
        options: plain.options.replace("cpus=1", &format!("cpus={processors}")),
        command_line: command_line(processors, &COMMANDS),
        policy: Some(policy.to_vec()),
        ..plain.clone()
    }
}

fn boots(plain: &LinuxMachine, policy: &[u8], pack: &[u8]) -> Vec<Test> {
    let guarded = LinuxMachine { policy: Some(policy.to_vec()), ..plain.clone() };
    let test = |name: &str, machine, expected| Test {
        name: name.into(),
        machine,
        limit: BOOT_LIMIT,
        expected: Expectation::Lines(expected),
    };
    let told = |machine: LinuxMachine, command| {
        let command_line = command_line(machine.processors, &[command]);
        LinuxMachine { command_line, ..machine }
    };
    vec![
        test("guarded_by_the_processor", guarded.clone(), GUARDED),
        test(
            "guarded_in_software",
            LinuxMachine { model: probe::WITHOUT_SPP.into(), ..guarded.clone() },
            GUARDED,
        ),
        test("two_processors", processors(plain, policy, 2), GUARDED),
        test(
            "memory_above_4_gib",
            LinuxMachine { high_memory_mib: 512, ..guarded.clone() },
            GUARDED,
        ),
        test(
            "four_processors",
            LinuxMachine {
                command_line: command_line(4, &NMI_COMMANDS),
                ..processors(plain, policy, 4)
            },
            NMIS,
        ),
        test(
            "the_default_pack",
            LinuxMachine {
                policy: Some(pack.to_vec()),
                command_line: command_line(1, &PACK_COMMANDS),
                ..plain.clone()
            },
            PACK,
        ),
        test(
            "a_processor_is_held",
            LinuxMachine {
                options: plain.options.clone(),
                command_line: command_line(2, &COMMANDS).replace("nokaslr", "nokaslr nr_cpus=1"),
                ..processors(plain, policy, 2)
            },
            HELD,
        ),
        test(
            "devices",
            LinuxMachine {
                model: "sapphire_rapids".into(),
                command_line: command_line(1, &["cat /proc/bus/pci/devices", "poweroff"]),
                ..plain.clone()
            },
            DEVICES,
        ),
        test("panic", told(guarded, "panic"), PANICKED),
        test("reboot", told(processors(plain, policy, 2), "reboot"), REBOOTED),
    ]
}

/// The rules that the tool writes for the kernel, as a module; none if that fails, which has been said.
fn pack(session: &mut Session<'_>, plan: &Plan, kernel: &Path) -> Result<Option<Vec<u8>>> {
    let source = plan.workspace.separate_target("bare-metal").join("pack.toml");
    let mut command = plan.cargo(&["run", "--quiet", "--release", "--package", "subpage-cli"]);
    command.args(["--", "policy", "linux", "--kernel"]).arg(kernel);
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        session.show(&String::from_utf8_lossy(&output.stderr))?;
        return Ok(None);
    }
    std::fs::write(&source, &output.stdout)
        .with_context(|| format!("cannot write {}", source.display()))?;
    compile(session, &plan.workspace, &source, Some(kernel))
}

/// A module with a rule on memory that the kernel begins with; none if that fails, which has been said.
fn low_rule(session: &mut Session<'_>, plan: &Plan) -> Result<Option<Vec<u8>>> {
    const SOURCE: &str = "version = 1\n\n[[rule]]\nname = \"low\"\nrange = \"0x12000+8\"\n";
    let source = plan.workspace.separate_target("bare-metal").join("low.toml");
    std::fs::write(&source, SOURCE)
        .with_context(|| format!("cannot write {}", source.display()))?;
    compile(session, &plan.workspace, &source, None)
}

fn run(session: &mut Session<'_>, emulator: &Emulator, test: &Test) -> Result<Count> {
    let begun = Instant::now();
    let left = session.deadline().saturating_duration_since(begun);
    let interrupt = session.interrupt().clone();
    let done = test.machine.start(emulator, test.limit.min(left), &interrupt, &mut |_| {});
    let done = done.with_context(|| test.name.clone())?;
    let (name, took) = (&test.name, session::duration(begun.elapsed()));
    match verdict(&test.expected, &done) {
        Ok(()) => {
            session.say(&format!("   passed {name} in {took}"))?;
            Ok(Count::PASSED)
        }
        Err(reason) => {
            session.say(&format!("   failed {name} after {took}: {reason}"))?;
            let last = scenario::panic(&done.console)
                .unwrap_or_else(|| scenario::last_lines(&done.console));
            let console: Vec<_> = last.iter().map(|line| format!("linux| {line}")).collect();
            session.show(&console.join("\n"))?;
            bochs::show(session, &done.run)?;
            Ok(Count::FAILED)
        }
    }
}

fn verdict(expected: &Expectation, done: &LinuxRun) -> Result<(), String> {
    let expected = match expected {
        Expectation::Lines(expected) => expected,
        Expectation::Scenario { guarded, line } => {
            in_order("the hypervisor", &done.run.lines, &[line])?;
            return scenario_verdict(*guarded, done);
        }
    };
    in_order("the kernel", &done.console, expected.console)?;
    in_order("the hypervisor", &done.run.lines, expected.lines)?;
    last_words::ended(&done.run, expected.last)
}

fn scenario_verdict(guarded: bool, done: &LinuxRun) -> Result<(), String> {
    let steps = Scenario::whole().judge(done, guarded);
    let failed = steps.iter().enumerate().filter(|(_, step)| step.failed());
    let lines: Vec<_> = failed.map(|(number, step)| step.line(number + 1)).collect();
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("steps of the scenario:\n{}", lines.join("\n")))
    }
}

/// Whether lines contain the texts, in this order; two may stand in one line.
pub(super) fn in_order(who: &str, lines: &[String], texts: &[&str]) -> Result<(), String> {
    let mut rest = lines.iter().map(String::as_str);
    let mut line = "";
    for text in texts {
        loop {
            if let Some(at) = line.find(text) {
                line = &line[at + text.len()..];
                break;
            }
            line =
                rest.next().ok_or_else(|| format!("{who} did not print {text:?} in its place"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_in_their_order() {
        let lines = ["a b".to_owned(), "c".to_owned(), "b".to_owned()];
        assert_eq!(in_order("it", &lines, &["a", "b", "b"]), Ok(()));
        assert_eq!(in_order("it", &lines, &["c", "b"]), Ok(()));
        assert_eq!(
            in_order("it", &lines, &["c", "a"]),
            Err("it did not print \"a\" in its place".into())
        );
        assert!(in_order("it", &lines, &["b", "b", "b"]).is_err());
    }
}
