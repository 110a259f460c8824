//! `subpage kit show`: a report of the hardware kit, beside that of Bochs.

mod comparison;
mod report;

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use crate::failure::{Failure, Status};
use crate::terminal::{grouped, plural, printable};
use comparison::Comparison;
pub(crate) use comparison::line_schema;
use report::Report;

/// What the kit says on Bochs 3.0, CPU model `tigerlake`, by `cargo xtask test kit`.
const BOCHS: &str = include_str!("bochs.report");

/// The most that is read of a serial line's recording.
const MOST: u64 = 64 << 20;

/// Deviations that are shown of those that Bochs does not have.
const SHOWN: usize = 40;

/// Reads a recording and shows the last report in it, for people or as one line of JSON.
pub fn show(path: &Path, json: bool, out: &mut impl Write) -> Result<Status, Failure> {
    let unreadable =
        |error: io::Error| Failure::input(format_args!("cannot read {}", path.display()), &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MOST).read_to_end(&mut bytes).map_err(unreadable)?;
    let Some(report) = Report::last_in(&String::from_utf8_lossy(&bytes)) else {
        return Err(Failure::Input(format!(
            "{} holds no report of the hardware kit: no line is `kit: begins`; give the recording of \
             the serial line",
            path.display()
        )));
    };
    let bochs = Report::last_in(BOCHS).unwrap_or_default();
    if json {
        comparison::write_json(&report, &bochs, out)?;
    } else {
        write(&report, &bochs, out)?;
    }
    Ok(Status::Clean)
}

fn write(report: &Report, bochs: &Report, out: &mut impl Write) -> io::Result<()> {
    let value = |text: Option<&str>| text.map_or("-".into(), |text| printable(text).into_owned());
    let rows: Vec<_> = [("", "this machine".to_owned(), "Bochs 3.0, tigerlake".to_owned())]
        .into_iter()
        .chain(
            report.fields().map(|(name, text)| (name, value(Some(text)), value(bochs.field(name)))),
        )
        .collect();
    let width = |of: &dyn Fn(&(&str, String, String)) -> usize| rows.iter().map(of).max();
    let first = width(&|row| printable(row.0).chars().count()).unwrap_or(0);
    let second = width(&|row| row.1.chars().count()).unwrap_or(0);
    for (name, here, there) in &rows {
        let name = printable(name);
        writeln!(out, "{}", format!("{name:first$}  {here:second$}  {there}").trim_end())?;
    }
    writeln!(out)?;
    let count = |number: usize| {
        let number = number as u64;
        format!("{} {}", grouped(number), plural(number, "deviation"))
    };
    let Comparison { common, here, there } = match Comparison::of(report, bochs) {
        Ok(comparison) => comparison,
        Err(reason) => {
            let all = count(report.deviations.len());
            return writeln!(out, "{all}, not compared with Bochs's: {reason}");
        }
    };
    writeln!(out, "{} in both, {} here only", count(common), grouped(here.len() as u64))?;
    for line in here.iter().take(SHOWN) {
        writeln!(out, "  {}", printable(line))?;
    }
    if here.len() > SHOWN {
        writeln!(out, "  ... and {} more", grouped((here.len() - SHOWN) as u64))?;
    }
    writeln!(out, "{} on Bochs only", count(there.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut out = Vec::new();
        let report = Report::last_in(text).expect("a report");
        let bochs = Report::last_in(BOCHS).expect("Bochs has reported");
        write(&report, &bochs, &mut out).expect("a vector can be written");
        String::from_utf8(out).expect("our text is UTF-8")
    }

    #[test]
    fn the_report_of_bochs_is_whole() {
        let text = shown(BOCHS);
        assert!(text.contains("deviations in both, 0 here only\n"), "{text}");
        assert!(text.ends_with("\n0 deviations on Bochs only\n"), "{text}");
        let bochs = Report::last_in(BOCHS).expect("Bochs has reported");
        assert_eq!(bochs.field("end"), Some("done"));
        assert!(bochs.deviations.len() > 100);
    }

    #[test]
    fn a_processor_that_follows_the_architecture_has_no_deviation() {
        let lines = BOCHS.lines().filter(|line| !line.contains("deviation in case"));
        let text = shown(&lines.collect::<Vec<_>>().join("\r\n"));
        assert!(text.contains("\n0 deviations in both, 0 here only\n"), "{text}");
        assert!(!text.ends_with("\n0 deviations on Bochs only\n"), "{text}");
    }

    #[test]
    fn what_only_this_machine_does_is_shown() {
        let text = shown(&BOCHS.replacen("observed 0xaa", "observed 0x\x1bff", 1));
        assert!(text.contains("1 here only\n  in case "), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn another_kit_is_not_compared() {
        let text = shown("kit: begins; version 9; 1 steps of 1 cases\nkit: done\n");
        assert!(
            text.contains("0 deviations, not compared with Bochs's: it is of another kit"),
            "{text}"
        );
    }

    #[test]
    fn a_report_that_is_cut_off_is_not_compared() {
        let cut = BOCHS.strip_suffix("kit: done\n").expect("the last line");
        assert!(shown(cut).contains("not compared with Bochs's: this report is not whole"));
        // It has not told all of its deviations, so none of Bochs's is only there.
        assert!(!shown(cut).contains("on Bochs only"));
    }

    #[test]
    fn programs_get_the_same_as_people() {
        let json = |text: &str| -> serde_json::Value {
            let mut out = Vec::new();
            let bochs = Report::last_in(BOCHS).expect("Bochs has reported");
            let report = Report::last_in(text).expect("a report");
            comparison::write_json(&report, &bochs, &mut out).expect("a vector can be written");
            serde_json::from_slice(&out).expect("JSON")
        };
        let same = json(BOCHS);
        assert_eq!((&same["type"], &same["whole"]), (&"kit".into(), &true.into()));
        assert_eq!(same["fields"][0]["name"], "kit");
        assert_eq!(same["fields"][0]["bochs"], same["fields"][0]["value"]);
        let compared = &same["compared"];
        let none = serde_json::json!([]);
        assert_eq!((&compared["here"], &compared["there"]), (&none, &none));
        assert_eq!(compared["common"], same["deviations"]);
        let other = json("kit: begins; version 9; 1 steps of 1 cases\nkit: done\n");
        assert!(other["compared"].is_null());
        assert_eq!(other["not_compared"], "it is of another kit");
    }

    #[test]
    fn without_a_report_it_is_bad_input() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("serial.log");
        std::fs::write(&path, b"GNU GRUB\xff\nkit: done\n").expect("files can be written");
        let failure = show(&path, false, &mut Vec::new()).expect_err("no report");
        assert!(matches!(failure, Failure::Input(text) if text.contains("no report")));
        let failure =
            show(&directory.path().join("none"), false, &mut Vec::new()).expect_err("no file");
        assert!(matches!(failure, Failure::Input(text) if text.contains("cannot read")));
    }
}
