//! What rules cost a whole Linux guest: on a stock Linux with KVM, inside an emulator.
//!
//! The emulator runs all of it, so seconds mean nothing, and ratios of one run do. They are of its processor
//! time.

mod figures;
mod guest;
mod processor_time;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    lab::{
        self, Host, Rig,
        frames::Line,
        image::Contents,
        ingredients::Kernel,
        job::{Job, Part, Work},
        linux::{LinuxGuest, Policy},
        programs::{self, Programs},
        run::{JobEnd, Patience},
    },
    session::{Interrupt, Session},
    workspace::Workspace,
};
use figures::Figures;
use guest::Guest;

/// How often each guest runs, one after the other.
const ROUNDS: u32 = 3;

/// The fixed workload, in rounds of the example's `work`.
const WORK: u32 = 200;

/// How long a guest may take by the host's clock.
const GUEST_SECONDS: u32 = 150;

/// For one host and all of its guests.
const LIMIT: Duration = Duration::from_secs(1500);

/// A run of a guest that came to no end is repeated once.
const STARTS: u32 = 2;

/// With which rules a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rules {
    Without,
    With,
}

/// A guest of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) round: u32,
    pub(super) rules: Rules,
}

impl Turn {
    /// All of them: what runs first changes from round to round.
    fn all() -> impl Iterator<Item = Self> {
        (1..=ROUNDS).flat_map(|round| {
            let mut rules = [Rules::Without, Rules::With];
            if round % 2 == 0 {
                rules.reverse();
            }
            rules.map(|rules| Self { round, rules })
        })
    }

    /// The title of its part.
    pub(super) fn title(self) -> String {
        let rules = match self.rules {
            Rules::Without => "without rules",
            Rules::With => "with the default pack",
        };
        format!("{rules}, round {}", self.round)
    }

    fn part(self, workspace: &Workspace) -> Part {
        let policy = match self.rules {
            Rules::Without => Policy::File("none.toml"),
            Rules::With => Policy::DefaultPack,
        };
        let guest = LinuxGuest {
            example: &workspace.root().join("examples/linux"),
            processors: "2",
            policy,
            told: &format!("-- \"work {WORK}\" poweroff"),
            options: &format!("--json --timeout {GUEST_SECONDS}"),
            console_last: false,
        };
        Part { title: self.title(), work: Work::Command(guest.command()) }
    }
}

/// `cargo xtask bench lab`: a table or JSON on standard output, all else on standard error.
pub(crate) fn run(workspace: &Workspace, json: bool) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let mut errors = io::stderr();
    let mut session = Session::new(&mut errors, interrupt, STARTS * LIMIT);
    let rig = match Rig::prepare(&mut session, Host::Amd, Kernel::Stable, false)? {
        Ok(rig) => rig,
        Err(reason) => {
            session.say(&format!("   no lab: {reason}"))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let Some(tool) = programs::tool(&mut session, workspace)? else {
        return Ok(ExitCode::FAILURE);
    };
    let programs = Programs::from([("subpage".to_owned(), tool)]);
    let mirrored = lab::mirrored(workspace);
    let contents = Contents {
        host: Host::Amd,
        programs: &programs,
        module_options: &[],
        files: &[],
        mirrored: &mirrored,
    };
    let mut figures = Figures::new(WORK);
    for _ in 0..STARTS {
        let left: Vec<_> = Turn::all().filter(|turn| !figures.has(*turn)).collect();
        if left.is_empty() || session.interrupted() {
            break;
        }
        one_host(&mut session, workspace, &rig, &contents, &left, &mut figures)?;
    }
    let mut out = io::stdout().lock();
    if json {
        figures.print_json(&mut out)?;
    } else {
        figures.print_table(&mut out)?;
    }
    out.flush()?;
    let complete = Turn::all().all(|turn| figures.has(turn));
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs guests in one host.
fn one_host(
    session: &mut Session<'_>,
    workspace: &Workspace,
    rig: &Rig,
    contents: &Contents<'_>,
    turns: &[Turn],
    figures: &mut Figures,
) -> Result<()> {
    session.say("   the amd host starts")?;
    let parts: Vec<_> = turns.iter().map(|turn| turn.part(workspace)).collect();
    let patience = Patience { whole: LIMIT, silence: LIMIT, heartbeat: LIMIT };
    let interrupt = session.interrupt().clone();
    let mut waiting = turns.iter();
    let mut current: Option<(Turn, Guest)> = None;
    let mut said = Ok(());
    let finished = rig.run(
        contents,
        &Job::Parts(parts),
        Host::Amd.size(),
        patience,
        &interrupt,
        &mut |line| match line {
            Line::Begins(title) => {
                current = waiting.next().map(|turn| (*turn, Guest::default()));
                said = session.say(&format!("   {title}"));
            }
            Line::Output(text) => {
                if let Some((_, guest)) = &mut current {
                    guest.line(text, processor_time::of_descendants);
                }
            }
            Line::Ended { .. } => {
                if let Some((turn, guest)) = current.take() {
                    let told = figures.take(turn, &guest);
                    said = session.say(&format!("      {told}"));
                }
            }
            _ => {}
        },
    )?;
    said.context("cannot write the output")?;
    if let JobEnd::Failed(reason) = &finished.outcome {
        if let Some((turn, guest)) = current.take() {
            figures.take(turn, &guest);
        }
        session.say(&format!("   failed, the amd host: {reason}"))?;
        session.show(&finished.console.join("\n"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_is_always_the_first() {
        let turns: Vec<_> = Turn::all().collect();
        let first: Vec<_> = turns.chunks(2).map(|round| round[0].rules).collect();
        assert_eq!(first, [Rules::Without, Rules::With, Rules::Without]);
        assert_eq!(turns.len(), 6);
    }
}
