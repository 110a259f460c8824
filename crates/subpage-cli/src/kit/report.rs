//! A report as it came over the serial line.

/// Begins each line.
const MARK: &str = "kit: ";

/// A report, which may be cut off.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Name and value, in order.
    fields: Vec<(String, String)>,
    /// Each step that deviates, from `in case` on.
    pub(super) deviations: Vec<String>,
}

impl Report {
    /// The last report in a recording, which may hold more than one and other lines.
    pub(super) fn last_in(text: &str) -> Option<Self> {
        let mut report = None::<Self>;
        // GRUB's last line ends in a line feed and a carriage return, which then stands before the first.
        for line in text.split(['\n', '\r']).filter_map(|line| line.trim_end().strip_prefix(MARK)) {
            if let Some(what) = line.strip_prefix("begins; ") {
                report = Some(Self::begin(what));
            } else if let Some(report) = &mut report {
                report.add(line);
            }
        }
        let mut report = report?;
        if report.field("end").is_none() {
            report.put("end", "the report is cut off");
        }
        Some(report)
    }

    /// From `version V; WHAT`.
    fn begin(what: &str) -> Self {
        let mut report = Self::default();
        let (version, cases) = what.split_once("; ").unwrap_or((what, ""));
        report.put("kit", version);
        report.put("cases", cases);
        report
    }

    fn add(&mut self, line: &str) {
        if let Some(deviation) = line.strip_prefix("deviation ") {
            self.deviations.push(deviation.to_owned());
        } else if let Some(timing) = line.strip_prefix("timing: ") {
            let (name, ticks) = timing.rsplit_once(": ").unwrap_or((timing, ""));
            self.put(name, ticks);
        } else if let Some(tally) = line.strip_prefix("compared ") {
            self.put("compared", tally);
        } else if line == "done" || line.starts_with("stopped: ") {
            self.put("end", line);
        } else if let Some((name, value)) = line.split_once(": ") {
            self.put(name, value);
        }
    }

    fn put(&mut self, name: &str, value: &str) {
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    /// Every field but the deviations.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// One field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Whether it came to its end.
    pub(super) fn is_whole(&self) -> bool {
        self.field("end") == Some("done")
    }

    /// Whether both have run the same cases against the same predictions.
    pub(super) fn is_of_the_kit_of(&self, other: &Self) -> bool {
        self.field("cases").is_some() && self.field("cases") == other.field("cases")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_counts() {
        let text = "\rkit: begins; version 1; a\nkit: done\n\rkit: begins; version 2; b\r\n\
                    noise\nkit: microcode: 0x7\r\nkit: timing: VMCALL: entry: median 5\n\
                    kit: deviation in case 1 step 2: x\n";
        let report = Report::last_in(text).expect("there is one");
        let fields: Vec<_> = report.fields().collect();
        assert_eq!(
            fields,
            [
                ("kit", "version 2"),
                ("cases", "b"),
                ("microcode", "0x7"),
                ("VMCALL: entry", "median 5"),
                ("end", "the report is cut off"),
            ]
        );
        assert_eq!(report.deviations, ["in case 1 step 2: x"]);
        assert!(Report::last_in("kit: done\n").is_none());
    }
}
