//! The hardware kit in Bochs: from its image by BIOS and GRUB, on CPU models with and without SPP, and with
//! the predictions of wrong models, each of which it has to show.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Plan;
use crate::{
    bochs::{
        configuration::{Logging, Medium, Run},
        emulator::Emulator,
        images::{Images, Purpose},
        machine::{BochsMachine, Contents, MEMORY_MIB},
        medium::MediumMachine,
        probe,
    },
    count::Count,
    image::{
        kit::{self, Files},
        tools::Tools,
    },
    session::{self, Interrupt, Session},
    workspace::Workspace,
};

/// A run takes a few seconds of an idle machine's time.
const LIMIT: Duration = Duration::from_secs(120);

/// How many runs of Bochs there are at the same time.
const AT_ONCE: usize = 2;

/// Begins each line of a report.
const MARK: &str = "kit: ";

/// Fewer compared steps than this prove too little.
const LEAST_STEPS: u64 = 4_000;

/// Fewer wrong models than this prove too little.
const LEAST_FAULTS: usize = 12;

/// How much of a report is shown of a test that failed.
const SHOWN_LINES: usize = 25;

/// The predictions that Bochs has to fulfil.
const BOCHS: &str = "bochs";

/// What a report has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// All steps compared, none of them deviates; timings; the end.
    Agreement,
    /// Some steps deviate, and each is told.
    Deviations,
    /// It ends early with these words.
    Stopped(&'static str),
}

#[derive(Debug)]
struct Job {
    name: String,
    machine: BochsMachine,
    expected: Expected,
}

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let emulator = match &plan.prerequisites.emulator {
        Ok(emulator) => emulator,
        Err(reason) => {
            session.say(&format!("   skipped, all tests of this suite: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let Some(images) = Images::build(session, &plan.workspace, Purpose::Kit)? else {
        return Ok(Count::FAILED);
    };
    let Some(files) = Files::make(session, &plan.workspace, true)? else {
        return Ok(Count::FAILED);
    };
    let jobs = jobs(&images, &files)?;
    let mut count = Count::default();
    let faults = jobs.iter().filter(|job| job.expected == Expected::Deviations).count();
    if faults < LEAST_FAULTS {
        session.say(&format!("   failed: there are only {faults} wrong models"))?;
        count += Count::FAILED;
    }
    count += by_grub(session, &plan.workspace, emulator, &images, &files)?;
    let deadline = session.deadline();
    let interrupt = session.interrupt().clone();
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let (sender, next, interrupt, jobs) = (sender.clone(), &next, &interrupt, &jobs);
            scope.spawn(move || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let limit = LIMIT.min(deadline.saturating_duration_since(begun));
                    let run = job.machine.start(emulator, limit, interrupt, &mut |_| {});
                    if interrupt.raised() || sender.send((job, run, begun.elapsed())).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (job, run, took) in results {
            let run = run.with_context(|| job.name.clone())?;
            let verdict = verdict(job.expected, &run.lines);
            count += report(session, &job.name, took, verdict, &run)?;
        }
        Ok(count)
    })
}

/// One start for each thing that can be in a kit, or be missing in a processor.
fn jobs(images: &Images, files: &Files) -> Result<Vec<Job>> {
    let job = |name: String, model: &str, predicted: PathBuf, expected| -> Result<Job> {
        let timing = std::fs::read(files.timing()).context("cannot read the kit's files")?;
        let machine = BochsMachine {
            model: model.to_owned(),
            processors: 1,
            memory_mib: MEMORY_MIB,
            rom: images.rom(),
            image: images.kit(),
            command_line: "subpage-kit".into(),
            modules: vec![
                ("cases".to_owned(), Contents::File(files.cases())),
                ("predicted".to_owned(), Contents::File(predicted)),
                ("timing".to_owned(), Contents::Bytes(timing)),
            ],
            damage: None,
            logging: Logging::Fatal,
        };
        Ok(Job { name, machine, expected })
    };
    let right = || files.predicted(Some(BOCHS));
    let mut jobs = Vec::new();
    for model in [probe::WITH_SPP, "corei7_icelake_u", "sapphire_rapids", "arrow_lake"] {
        jobs.push(job(format!("agreement on {model}"), model, right(), Expected::Agreement)?);
    }
    let no_spp = Expected::Stopped("this processor has no sub-page write permissions");
    for model in [probe::WITHOUT_SPP, "corei7_haswell_4770"] {
        jobs.push(job(format!("no SPP on {model}"), model, right(), no_spp)?);
    }
    let no_vmx = Expected::Stopped("this processor has no VMX");
    let model = probe::WITHOUT_VMX;
    jobs.push(job(format!("no VMX on {model}"), model, right(), no_vmx)?);
    // A kit that compares nothing must not end as if all were well.
    let empty = Expected::Stopped("nothing was compared");
    let model = probe::WITH_SPP;
    jobs.push(job("no prediction".into(), model, files.no_prediction()?, empty)?);
    for fault in files.models()?.into_iter().filter(|name| name != BOCHS) {
        let predicted = files.predicted(Some(&fault));
        jobs.push(job(format!("fault {fault}"), model, predicted, Expected::Deviations)?);
    }
    Ok(jobs)
}

/// The image as it is written to a stick: the architecture is predicted, from which Bochs deviates.
fn by_grub(
    session: &mut Session<'_>,
    workspace: &Workspace,
    emulator: &Emulator,
    images: &Images,
    files: &Files,
) -> Result<Count> {
    const NAME: &str = "the image, by BIOS and GRUB";
    let tools = match Tools::prepare(session)? {
        Ok(tools) => tools,
        Err(reason) => {
            session.say(&format!("   skipped {NAME}: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let image = images.directory().join("kit.iso");
    if !kit::contents(images, files).write(session, &tools, &image)? {
        return Ok(Count::FAILED);
    }
    let begun = Instant::now();
    let machine = MediumMachine {
        model: probe::WITH_SPP,
        processors: 1,
        memory_mib: 512,
        bios: tools.bios(),
        vga_bios: tools.vga_bios(),
        image: &image,
        medium: Medium::Stick,
    };
    let limit = LIMIT.min(session.deadline().saturating_duration_since(begun));
    let interrupt: Interrupt = session.interrupt().clone();
    let done = machine.start(emulator, limit, &interrupt)?;
    // Its report comes by the serial port.
    let verdict = verdict(Expected::Deviations, &done.serial);
    let is_right = verdict.is_ok();
    let mut count = report(session, NAME, begun.elapsed(), verdict, &done.run)?;
    if is_right {
        count += stored(session, workspace, &done.serial)?;
    }
    Ok(count)
}

fn report(
    session: &mut Session<'_>,
    name: &str,
    took: Duration,
    verdict: Result<String, String>,
    run: &Run,
) -> Result<Count> {
    let took = session::duration(took);
    match verdict {
        Ok(what) => {
            session.say(&format!("   passed {name} in {took}: {what}"))?;
            Ok(Count::PASSED)
        }
        Err(reason) => {
            session.say(&format!("   failed {name} after {took}: {reason}"))?;
            let lines = [&run.lines[..], &run.log].concat();
            session.show(&lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"))?;
            Ok(Count::FAILED)
        }
    }
}

/// What the comparison came to, if the report is as expected.
fn verdict(expected: Expected, lines: &[String]) -> Result<String, String> {
    let lines: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix(MARK)).collect();
    let last = lines.last().ok_or("there is no report")?;
    if let Expected::Stopped(words) = expected {
        return match last.strip_prefix("stopped: ") {
            Some(reason) if reason.contains(words) => Ok(reason.to_owned()),
            _ => Err(format!("it ends with {last:?} instead of {words:?}")),
        };
    }
    if *last != "done" {
        return Err(format!("it ends with {last:?}"));
    }
    let (steps, deviations, unanswered) = lines
        .iter()
        .find_map(|line| compared(line))
        .ok_or("it does not say how much was compared")?;
    let told = lines.iter().filter(|line| line.starts_with("deviation in case ")).count() as u64;
    let timings = lines.iter().filter(|line| line.starts_with("timing: ")).count();
    let measured = lines.iter().filter(|line| line.contains(": median ")).count();
    match expected {
        _ if told != deviations.min(200) => Err(format!("{told} of {deviations} deviations told")),
        _ if timings != 6 || measured != 6 => Err(format!("{measured} of {timings} timings")),
        _ if unanswered != 0 => Err(format!("{unanswered} predictions without an answer")),
        Expected::Agreement if deviations != 0 => Err(format!("{deviations} deviations")),
        Expected::Agreement if steps < LEAST_STEPS => Err(format!("only {steps} steps compared")),
        Expected::Deviations if deviations == 0 => Err("it shows no deviation".into()),
        _ => Ok(format!("{steps} steps, {deviations} deviations")),
    }
}

/// Reads `compared N steps: M deviations, U predictions without an answer`.
fn compared(line: &str) -> Option<(u64, u64, u64)> {
    let (steps, rest) = line.strip_prefix("compared ")?.split_once(" steps: ")?;
    let (deviations, rest) = rest.split_once(" deviations, ")?;
    let unanswered = rest.strip_suffix(" predictions without an answer")?;
    Some((steps.parse().ok()?, deviations.parse().ok()?, unanswered.parse().ok()?))
}

/// Compares a report with the one that `subpage kit show` has of Bochs, but for the timings, which follow
/// the compiler. `UPDATE_EXPECT=1` writes it anew.
fn stored(session: &mut Session<'_>, workspace: &Workspace, serial: &[String]) -> Result<Count> {
    const NAME: &str = "the stored report of Bochs";
    let path = workspace.root().join("crates/subpage-cli/src/kit/bochs.report");
    // GRUB's last line may end in a carriage return, which then stands before the first.
    let lines = serial.iter().map(|line| line.trim_matches('\r'));
    let lines: Vec<_> = lines.filter(|line| line.starts_with(MARK)).collect();
    let told = std::fs::read_to_string(&path).context("cannot read the stored report")?;
    if let Some(reason) = first_difference(&told.lines().collect::<Vec<_>>(), &lines) {
        if std::env::var_os("UPDATE_EXPECT").is_none_or(|value| value != "1") {
            session.say(&format!(
                "   failed {NAME}: {reason}; UPDATE_EXPECT=1 cargo xtask test kit writes it anew"
            ))?;
            return Ok(Count::FAILED);
        }
        let text = lines.join("\n") + "\n";
        std::fs::write(&path, text).context("cannot write the stored report")?;
        session.say(&format!("   {NAME} was written anew: {reason}"))?;
    }
    session.say(&format!("   passed {NAME}"))?;
    Ok(Count::PASSED)
}

/// The first line in which two reports differ, timings left out.
fn first_difference(stored: &[&str], told: &[&str]) -> Option<String> {
    let plain = |lines: &[&str]| -> Vec<String> {
        let lines = lines.iter().filter(|line| !line.contains("timing: "));
        lines.map(|line| (*line).to_owned()).collect()
    };
    let (stored, told) = (plain(stored), plain(told));
    let length = stored.len().max(told.len());
    let nothing = || "nothing".to_owned();
    let at = (0..length).find(|&at| stored.get(at) != told.get(at))?;
    let line = |of: &[String]| of.get(at).cloned().unwrap_or_else(nothing);
    Some(format!("it has {:?}, and Bochs says {:?}", line(&stored), line(&told)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(compared: &str, deviations: usize) -> Vec<String> {
        let mut lines = vec!["GRUB".to_owned(), "kit: begins; version 0.1.0".to_owned()];
        lines
            .extend((0..deviations).map(|case| format!("kit: deviation in case {case} step 0: x")));
        lines.push(format!("kit: {compared}"));
        lines.extend((0..6).map(|_| "kit: timing: x: median 7, least 5 ticks".to_owned()));
        lines.push("kit: done".into());
        lines
    }

    #[test]
    fn a_kit_that_compared_nothing_fails() {
        let good = lines("compared 4710 steps: 0 deviations, 0 predictions without an answer", 0);
        assert!(verdict(Expected::Agreement, &good).is_ok());
        assert!(verdict(Expected::Deviations, &good).is_err());
        let nothing = lines("compared 0 steps: 0 deviations, 0 predictions without an answer", 0);
        assert!(verdict(Expected::Agreement, &nothing).is_err());
        assert!(verdict(Expected::Agreement, &[]).is_err());
        assert!(verdict(Expected::Agreement, &good[..good.len() - 1]).is_err());
        assert!(verdict(Expected::Agreement, &good[..good.len() - 2]).is_err());
    }

    #[test]
    fn each_deviation_is_told() {
        let found = lines("compared 4710 steps: 2 deviations, 0 predictions without an answer", 2);
        assert!(verdict(Expected::Deviations, &found).is_ok());
        assert!(verdict(Expected::Agreement, &found).is_err());
        let one = lines("compared 4710 steps: 2 deviations, 0 predictions without an answer", 1);
        assert!(verdict(Expected::Deviations, &one).is_err());
        let silent = lines("compared 4710 steps: 2 deviations, 1 predictions without an answer", 2);
        assert!(verdict(Expected::Deviations, &silent).is_err());
    }

    #[test]
    fn a_stored_report_is_that_of_today_but_for_timings() {
        let stored = ["kit: begins; a", "kit: timing: x: median 5", "kit: done"];
        let told = ["kit: begins; a", "kit: timing: x: median 6", "kit: done"];
        assert_eq!(first_difference(&stored, &told), None);
        let reason = first_difference(&stored, &["kit: begins; b", "kit: done"]);
        assert!(reason.expect("another kit").contains("begins; b"));
        let reason = first_difference(&stored, &told[..2]).expect("cut off");
        assert!(reason.contains("Bochs says \"nothing\""), "{reason}");
    }

    #[test]
    fn an_early_end_has_its_reason() {
        let stopped = ["kit: stopped: this processor has no VMX (CPUID)".to_owned()];
        assert!(verdict(Expected::Stopped("no VMX"), &stopped).is_ok());
        assert!(verdict(Expected::Stopped("no SPP"), &stopped).is_err());
        assert!(verdict(Expected::Agreement, &stopped).is_err());
    }
}
