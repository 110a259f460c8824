//! What the hypervisor costs: the guest measures itself in Bochs, where the time-stamp counter
//! counts instructions, so that every run gives the same figures.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Number, json};

use crate::{
    bochs::{
        configuration::Logging,
        emulator,
        images::{Images, Purpose},
        last_words,
        machine::GUEST_MARK,
        probe,
    },
    session::{Interrupt, Session},
    suites,
    workspace::Workspace,
};

/// Each start: CPU model and processors.
const STARTS: [(&str, u32); 4] =
    [(probe::WITH_SPP, 1), (probe::WITH_SPP, 2), (probe::WITH_SPP, 4), (probe::WITHOUT_SPP, 1)];

/// For one start; a million writes decided in software take more than a minute.
const LIMIT: Duration = Duration::from_secs(1200);

/// A line `bench: NAME VALUE UNIT` and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Figure {
    name: String,
    value: Number,
    unit: String,
    model: &'static str,
    processors: u32,
}

/// `cargo xtask bench vmx`: a table or JSON on standard output, all else on standard error.
pub(crate) fn run(workspace: &Workspace, json: bool) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let mut errors = io::stderr();
    let mut session = Session::new(&mut errors, interrupt, 2 * LIMIT);
    let emulator = match emulator::prepare(&mut session, false)? {
        Ok(emulator) => emulator,
        Err(reason) => {
            session.say(&format!("   no Bochs: {reason}"))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let Some(images) = Images::build(&mut session, workspace, Purpose::Test)? else {
        return Ok(ExitCode::FAILURE);
    };
    let mut figures = Vec::new();
    let mut complete = true;
    for (model, processors) in STARTS {
        session.say(&format!("   {model}, {processors} CPU"))?;
        let mut machine = suites::bochs::guest(&images, model, processors, "bench");
        machine.logging = Logging::Fatal;
        let interrupt = session.interrupt().clone();
        let mut printed = Ok(());
        let run = machine.start(&emulator, LIMIT, &interrupt, &mut |line| {
            // As they come: the next one may take a while.
            if printed.is_ok() && figure(line, model, processors).is_some() {
                printed = session.say(&format!("   {line}"));
            }
        })?;
        printed?;
        let found: Vec<_> =
            run.lines.iter().filter_map(|line| figure(line, model, processors)).collect();
        let ended = last_words::ended(&run, last_words::CONTENT);
        if found.is_empty() || ended.is_err() {
            complete = false;
            let reason = ended.err().unwrap_or_else(|| "it printed no figure".into());
            session.say(&format!("   failed: {reason}"))?;
            suites::bochs::show(&mut session, &run)?;
        }
        figures.extend(found);
    }
    let mut out = io::stdout().lock();
    if json {
        print_json(&mut out, &figures)?;
    } else {
        print_table(&mut out, &figures)?;
    }
    out.flush()?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn figure(line: &str, model: &'static str, processors: u32) -> Option<Figure> {
    let mut words =
        line.strip_prefix(GUEST_MARK)?.strip_prefix("bench: ")?.split_ascii_whitespace();
    let name = words.next()?.to_owned();
    let value = words.next()?;
    let value = match value.parse::<u64>() {
        Ok(value) => value.into(),
        Err(_) => Number::from_f64(value.parse().ok()?)?,
    };
    let unit = words.collect::<Vec<_>>().join(" ");
    Some(Figure { name, value, unit, model, processors })
}

fn print_json(out: &mut dyn Write, figures: &[Figure]) -> io::Result<()> {
    for figure in figures {
        let object = json!({
            "name": figure.name,
            "value": figure.value,
            "unit": figure.unit,
            "model": figure.model,
            "processors": figure.processors,
        });
        writeln!(out, "{object}")?;
    }
    Ok(())
}

/// A row for each figure, a column for each start.
fn print_table(out: &mut dyn Write, figures: &[Figure]) -> io::Result<()> {
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for figure in figures {
        let row = (figure.name.as_str(), figure.unit.as_str());
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let mut lines = vec![vec![String::new(); 2 + STARTS.len()]];
    for (column, (model, processors)) in STARTS.iter().enumerate() {
        lines[0][2 + column] = format!("{model} ×{processors}");
    }
    for (name, unit) in rows {
        let mut line = vec![name.to_owned(), unit.to_owned()];
        for (model, processors) in STARTS {
            let here = |figure: &&Figure| {
                (figure.name.as_str(), figure.unit.as_str()) == (name, unit)
                    && (figure.model, figure.processors) == (model, processors)
            };
            line.push(
                figures.iter().find(here).map_or("–".into(), |figure| figure.value.to_string()),
            );
        }
        lines.push(line);
    }
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..2 + STARTS.len()).map(width).collect();
    for line in &lines {
        write!(out, "{:1$}", line[0], widths[0])?;
        write!(out, "  {:1$}", line[1], widths[1])?;
        for (cell, width) in line.iter().zip(&widths).skip(2) {
            write!(out, "  {cell:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_lines() {
        let found = figure("guest| bench: cpuid_exit 1234 instructions", probe::WITH_SPP, 2);
        let expected = Figure {
            name: "cpuid_exit".into(),
            value: 1234.into(),
            unit: "instructions".into(),
            model: probe::WITH_SPP,
            processors: 2,
        };
        assert_eq!(found, Some(expected));
        let fraction = figure("guest| bench: ratio 1.5", probe::WITH_SPP, 1).expect("a figure");
        assert_eq!((fraction.value.as_f64(), fraction.unit.as_str()), (Some(1.5), ""));
        for line in [
            "guest| bench: ",
            "guest| bench: a",
            "guest| bench: a many",
            "guest| bench: a NaN",
            "guest| a 1 instructions",
            "bench: a 1 instructions",
        ] {
            assert_eq!(figure(line, probe::WITH_SPP, 1), None, "{line}");
        }
    }

    #[test]
    fn the_table_has_a_column_for_each_start() {
        let figures: Vec<_> = [
            ("guest| bench: cpuid_exit 300 instructions", STARTS[0]),
            ("guest| bench: cpuid_exit 280 instructions", STARTS[3]),
            ("guest| bench: set_one_page 12000 instructions", STARTS[2]),
        ]
        .into_iter()
        .filter_map(|(line, (model, processors))| figure(line, model, processors))
        .collect();
        let mut out = Vec::new();
        print_table(&mut out, &figures).expect("a vector can be written");
        let text = String::from_utf8(out).expect("our text is UTF-8");
        let lines: Vec<Vec<_>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["cpuid_exit", "instructions", "300", "–", "–", "280"]);
        assert_eq!(lines[2], ["set_one_page", "instructions", "–", "–", "12000", "–"]);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn json_is_an_object_a_line() {
        let figures: Vec<_> =
            figure("guest| bench: cpuid_exit 300 instructions", probe::WITH_SPP, 4)
                .into_iter()
                .collect();
        let mut out = Vec::new();
        print_json(&mut out, &figures).expect("a vector can be written");
        let object: serde_json::Value = serde_json::from_slice(&out).expect("it is JSON");
        assert_eq!(object["value"], 300);
        assert_eq!(object["processors"], 4);
        assert_eq!(object["model"], "tigerlake");
    }
}
