//! How a result is written: a JSON object a line, or a table for people.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::rounds::Ratio;

/// One measured figure.
#[derive(Serialize)]
pub struct Record {
    name: &'static str,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(flatten)]
    further: Map<String, Value>,
}

impl Record {
    /// A figure in a unit, with the baseline's figure in the same unit. Less is better, unless
    /// [`with_ratio`](Self::with_ratio) says how many times better the figure is.
    pub fn new(
        name: &'static str,
        unit: &'static str,
        value: f64,
        baseline_name: &'static str,
        baseline: f64,
    ) -> Self {
        Self {
            name,
            value: significant(value),
            unit,
            baseline: Some(significant(baseline)),
            baseline_name: Some(baseline_name),
            ratio: Some(significant(baseline / value)),
            further: Map::new(),
        }
    }

    /// A figure in a unit, without a baseline.
    pub fn figure(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self {
            name,
            value: significant(value),
            unit,
            baseline: None,
            baseline_name: None,
            ratio: None,
            further: Map::new(),
        }
    }

    /// The same with the ratio of an interleaved measurement and its extremes.
    pub fn with_ratio(mut self, ratio: Ratio) -> Self {
        self.ratio = Some(significant(ratio.median));
        self.with("ratio_min", ratio.min).with("ratio_max", ratio.max)
    }

    /// The same with a ratio of which less is better, and what it should be at most.
    pub fn with_cost(self, ratio: Ratio, target: Option<f64>) -> Self {
        let record = self.with_ratio(ratio);
        match target {
            Some(target) => record.with("target", target),
            None => record,
        }
    }

    /// The same with one more figure.
    pub fn with(mut self, key: &str, value: f64) -> Self {
        self.further.insert(key.to_owned(), number(value));
        self
    }

    /// The same with a remark.
    pub fn with_note(mut self, note: &str) -> Self {
        self.further.insert("note".to_owned(), note.into());
        self
    }
}

/// Four significant digits: more would be noise.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// A figure as JSON; whole numbers without a fraction.
#[allow(clippy::cast_possible_truncation)] // Checked against the fraction and the range first.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        (value as i64).into()
    } else {
        significant(value).into()
    }
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One object a line.
    Json,
    /// Columns for people.
    Table,
}

/// Writes records as they come.
pub struct Report<W> {
    out: W,
    form: Form,
    header_due: bool,
}

impl<W: Write> Report<W> {
    /// Nothing is written yet.
    pub const fn new(out: W, form: Form) -> Self {
        Self { out, form, header_due: true }
    }

    /// Writes one record at once, so that a long run shows where it is.
    pub fn print(&mut self, record: &Record) -> io::Result<()> {
        match self.form {
            Form::Json => writeln!(self.out, "{}", serde_json::to_string(record)?)?,
            Form::Table => self.print_row(record)?,
        }
        self.out.flush()
    }

    /// Says why nothing is measured.
    pub fn skip(&mut self, reason: &str) -> io::Result<()> {
        match self.form {
            Form::Json => writeln!(self.out, "{}", serde_json::json!({ "skipped": reason })),
            Form::Table => writeln!(self.out, "skipped: {reason}"),
        }
    }

    fn print_row(&mut self, record: &Record) -> io::Result<()> {
        if self.header_due {
            self.header_due = false;
            writeln!(
                self.out,
                "{:<24} {:>12} {:>12} {:<8} {:>9}  further",
                "benchmark", "value", "baseline", "unit", "ratio"
            )?;
        }
        let further: Vec<String> = record
            .further
            .iter()
            .map(|(key, value)| match value {
                Value::String(text) => text.clone(),
                figure => format!("{key} {figure}"),
            })
            .collect();
        let line = format!(
            "{:<24} {:>12} {:>12} {:<8} {:>9}  {}",
            record.name,
            record.value,
            record.baseline.map_or_else(String::new, |figure| figure.to_string()),
            record.unit,
            record.ratio.map_or_else(String::new, |figure| figure.to_string()),
            further.join(", ")
        );
        writeln!(self.out, "{}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let ratio = Ratio { median: 4.0, min: 3.0, max: 5.0 };
        Record::new("sample", "ns", 2.00001, "dense", 8.0).with_ratio(ratio).with("frames", 1.0)
    }

    fn printed(form: Form) -> String {
        let mut report = Report::new(Vec::new(), form);
        report.print(&record()).expect("memory takes every byte");
        report.print(&record()).expect("memory takes every byte");
        String::from_utf8(report.out).expect("text")
    }

    #[test]
    fn json_has_one_flat_object_a_line() {
        let text = printed(Form::Json);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        let object: Map<String, Value> = serde_json::from_str(lines[0]).expect("an object");
        assert_eq!(object["name"], "sample");
        assert_eq!(object["value"], 2.0);
        assert_eq!(object["baseline"], 8.0);
        assert_eq!(object["ratio"], 4.0);
        assert_eq!(object["ratio_min"], 3);
        assert_eq!(object["frames"], 1);
    }

    #[test]
    fn the_table_has_one_header_and_aligned_rows() {
        let text = printed(Form::Table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].find("further"), lines[1].find("frames 1"));
    }

    #[test]
    fn what_cannot_be_measured_is_said_in_either_form() {
        for (form, expected) in
            [(Form::Table, "skipped: no device\n"), (Form::Json, "{\"skipped\":\"no device\"}\n")]
        {
            let mut report = Report::new(Vec::new(), form);
            report.skip("no device").expect("memory takes every byte");
            assert_eq!(String::from_utf8(report.out).expect("text"), expected);
        }
    }

    #[test]
    fn a_cost_has_a_ratio_the_other_way_round() {
        let mut report = Report::new(Vec::new(), Form::Json);
        let ratio = Ratio { median: 1.5, min: 1.4, max: 1.75 };
        let record = Record::new("sample", "us", 3.0, "bare", 2.0).with_cost(ratio, Some(1.1));
        report.print(&record).expect("memory takes every byte");
        let object: Map<String, Value> = serde_json::from_slice(&report.out).expect("an object");
        assert_eq!((&object["ratio"], &object["target"]), (&1.5.into(), &1.1.into()));
        assert_eq!((&object["ratio_min"], &object["ratio_max"]), (&1.4.into(), &1.75.into()));
    }

    #[test]
    fn a_figure_may_have_no_baseline() {
        let mut report = Report::new(Vec::new(), Form::Json);
        let record = Record::figure("sample", "us", 2.5).with("p99", 7.0);
        report.print(&record).expect("memory takes every byte");
        let object: Map<String, Value> = serde_json::from_slice(&report.out).expect("an object");
        assert_eq!((&object["value"], &object["p99"]), (&2.5.into(), &7.into()));
        assert!(!object.contains_key("ratio") && !object.contains_key("baseline"));
    }
}
