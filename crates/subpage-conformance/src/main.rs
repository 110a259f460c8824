//! Compares the processor model with a processor: random tables, random accesses.
//!
//! A [generator](generate) makes cases: the words of EPT, SPPT and guest paging structures, and
//! instructions that access memory through them. The [model](predict) says how each step ends and
//! which words it changes; a bare-metal executor performs the same words on a processor and answers
//! with the exit and with every word that changed. Each difference is a disagreement, and the first
//! of each kind is [shrunk](shrink) to the smallest case that shows it.
#![forbid(unsafe_code)]

mod arena;
mod case;
mod code;
mod describe;
mod emulator;
mod generate;
mod instruction;
mod judge;
mod kit;
mod layout;
#[cfg(feature = "mutations")]
mod mutants;
mod outcome;
mod predict;
mod session;
mod shrink;
mod stepped_cpu;
mod translation;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use subpage_model::Deviations;

use crate::case::Case;
use crate::emulator::{Bochs, Emulator as _};
use crate::generate::Predicted;
use crate::judge::judge;
use crate::outcome::Reason;
use crate::predict::{ModelledProcessor, Useless};
use crate::session::Tally;
use crate::shrink::Shown;

/// Compares the processor model with a processor.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Operation,
}

#[derive(Subcommand)]
enum Operation {
    /// Compare random cases; the exit status is 0 only if there is no disagreement.
    Run {
        #[command(flatten)]
        target: Target,
        /// CPU models of Bochs; the accesses are shared out between them.
        #[arg(long = "cpu-model", value_name = "MODEL",
              default_values = ["tigerlake", "corei7_skylake_x", "corei7_haswell_4770"])]
        models: Vec<String>,
        /// Accesses to compare, at least.
        #[arg(long, default_value_t = 60_000)]
        accesses: usize,
        /// Makes the cases of an earlier run again; otherwise each run makes its own.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Show that models with known wrong behaviours are contradicted; the exit status is 0 only if
    /// each is, and the model without any is not.
    #[cfg(feature = "mutations")]
    Mutations {
        #[command(flatten)]
        target: Target,
        /// CPU model of Bochs; it must have sub-page write permissions.
        #[arg(long = "cpu-model", value_name = "MODEL", default_value = "tigerlake")]
        model: String,
        /// Accesses within which each has to be contradicted.
        #[arg(long, default_value_t = 20_000)]
        accesses: usize,
        /// Makes the cases of an earlier run again; otherwise each run makes its own.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Make what a hardware kit brings along: cases, and what the model predicts of them.
    Kit {
        /// Directory that the files go to.
        #[arg(short, long, value_name = "DIRECTORY")]
        output: PathBuf,
        /// Steps, at least.
        #[arg(long, default_value_t = 4_700)]
        steps: usize,
        /// Makes the same kit as an earlier run; otherwise it is 1.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Compare one case: the JSON text behind "case:" of an earlier run.
    Replay {
        #[command(flatten)]
        target: Target,
        /// CPU model of Bochs.
        #[arg(long = "cpu-model", value_name = "MODEL", default_value = "tigerlake")]
        model: String,
        /// File with the case; `-` is standard input.
        #[arg(long)]
        case: PathBuf,
    },
}

#[derive(Args)]
struct Target {
    /// Program that performs cases as `PROGRAM bochs run-cases --model MODEL --cases FILE`.
    #[arg(long, value_name = "PROGRAM")]
    emulator: String,
    /// What the model takes over from Bochs. `none` predicts the architecture, to show that
    /// disagreements are found.
    #[arg(long, value_enum, default_value_t = Predict::Bochs, hide = true)]
    deviations: Predict,
}

#[derive(Clone, Copy, ValueEnum)]
enum Predict {
    Bochs,
    None,
}

impl Target {
    fn processor(&self, model: &str) -> ModelledProcessor {
        let deviations = match self.deviations {
            Predict::Bochs => Deviations::BOCHS,
            Predict::None => Deviations::NONE,
        };
        // CPU models of Bochs 3.0 with AVX and flags for EPT, by what else they have (`cpu/cpudb/intel`).
        let sub_page =
            matches!(model, "tigerlake" | "corei7_icelake_u" | "sapphire_rapids" | "arrow_lake");
        let old = matches!(model, "corei7_haswell_4770" | "broadwell_ult");
        ModelledProcessor {
            sub_page,
            advanced_information: !old,
            smap: !old,
            shadow_stacks: sub_page && model != "corei7_icelake_u",
            deviations,
        }
    }

    fn bochs(&self, model: &str) -> Bochs {
        Bochs { program: self.emulator.clone(), model: model.to_owned() }
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Operation::Run { target, models, accesses, seed } => run(&target, &models, accesses, seed),
        #[cfg(feature = "mutations")]
        Operation::Mutations { target, model, accesses, seed } => {
            contradict(&target, &model, accesses, seed)
        }
        Operation::Kit { output, steps, seed } => make_kit(&output, steps, seed),
        Operation::Replay { target, model, case } => replay(&target, &model, &case),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(target: &Target, models: &[String], accesses: usize, seed: Option<u64>) -> Result<bool> {
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut out = std::io::stdout().lock();
    writeln!(out, "seed {seed} (repeat with --seed {seed})")?;
    let mut total = Tally::default();
    let share = accesses.div_ceil(models.len().max(1));
    for (number, model) in (0..).zip(models) {
        let (processor, mut bochs) = (target.processor(model), target.bochs(model));
        let seed = seed.wrapping_add(number);
        let tally = session::run(model, seed, share, processor, &mut bochs, &mut out)?;
        total.accesses += tally.accesses;
        total.disagreements += tally.disagreements;
    }
    let Tally { accesses, disagreements } = total;
    writeln!(out, "conformance: {accesses} accesses, {disagreements} disagreements")?;
    Ok(disagreements == 0)
}

#[cfg(feature = "mutations")]
fn contradict(target: &Target, model: &str, accesses: usize, seed: Option<u64>) -> Result<bool> {
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut out = std::io::stdout().lock();
    writeln!(out, "seed {seed} (repeat with --seed {seed})")?;
    let (processor, mut bochs) = (target.processor(model), target.bochs(model));
    mutants::run(seed, accesses, processor, &mut bochs, &mut out)
}

fn make_kit(directory: &Path, steps: usize, seed: u64) -> Result<bool> {
    let others = vec![("bochs".to_owned(), Deviations::BOCHS)];
    #[cfg(feature = "mutations")]
    let others = [others, mutants::deviations(Deviations::BOCHS)].concat();
    kit::write(directory, seed, steps, &others, &mut std::io::stdout().lock())?;
    Ok(true)
}

fn replay(target: &Target, model: &str, file: &PathBuf) -> Result<bool> {
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    let text = text.trim().trim_start_matches("case:");
    let case: Case = serde_json::from_str(text).context("this is not a case")?;
    case.check()?;
    let Ok(outcomes) = target.processor(model).predict(&case) else {
        let Useless = Useless;
        bail!("the model predicts nothing for this case: it leaves the memory set aside for it");
    };
    let predicted = [Predicted { case, outcomes }];
    let answers = target.bochs(model).perform(std::slice::from_ref(&predicted[0].case))?;
    let found = judge(&predicted, &answers);
    let [predicted] = predicted;
    let mut out = std::io::stdout().lock();
    for (step, outcome) in predicted.outcomes.iter().enumerate() {
        writeln!(out, "step {step}: predicted {}", Reason(outcome.reason))?;
    }
    let accesses = predicted.accesses();
    let disagreements = found.len();
    if let Some(disagreement) = found.into_iter().next() {
        session::show(&Shown { predicted, disagreement }, &mut out)?;
    }
    writeln!(out, "conformance: {accesses} accesses, {disagreements} disagreements")?;
    Ok(disagreements == 0)
}
