//! Figures of all guests, as a table and as JSON.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde_json::json;

use super::{
    Rules, Turn,
    guest::{Guest, Measured, RuleCost},
};

/// What a boot with the default pack may cost at most, over one without.
const GOAL: f64 = 1.10;

/// How many rules are shown.
const SHOWN: usize = 10;

/// The same measured without rules and with them.
#[derive(Debug)]
struct Compared {
    name: &'static str,
    without: Vec<f64>,
    with: Vec<f64>,
    ratio: f64,
}

/// What was measured, and what came to nothing.
#[derive(Debug)]
pub(super) struct Figures {
    /// Rounds of the workload.
    work: u32,
    measured: BTreeMap<Turn, Measured>,
    /// Guests that gave no figure, in order, and why.
    failed: Vec<(Turn, String)>,
}

impl Figures {
    pub(super) fn new(work: u32) -> Self {
        Self { work, measured: BTreeMap::new(), failed: Vec::new() }
    }

    /// Whether a guest has given its figures.
    pub(super) fn has(&self, turn: Turn) -> bool {
        self.measured.contains_key(&turn)
    }

    /// Takes what a guest gives; in words.
    pub(super) fn take(&mut self, turn: Turn, guest: &Guest) -> String {
        match guest.measured() {
            Ok(measured) => {
                let Measured { boot, work, exits, .. } = measured;
                self.measured.insert(turn, measured);
                format!("boot {boot:.1} s, work {work:.2} s, {exits} exits")
            }
            Err(why) => {
                let told = format!("no figure: {why}");
                self.failed.push((turn, why));
                told
            }
        }
    }

    fn of(&self, rules: Rules) -> impl Iterator<Item = &Measured> {
        self.measured.iter().filter(move |(turn, _)| turn.rules == rules).map(|(_, guest)| guest)
    }

    /// What all rounds gave, ascending.
    fn all(&self, rules: Rules, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
        let mut all: Vec<_> = self.of(rules).map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all
    }

    /// Without rules, with them, and the ratio of the medians.
    fn compared(&self, name: &'static str, of: impl Fn(&Measured) -> f64) -> Option<Compared> {
        let (without, with) = (self.all(Rules::Without, &of), self.all(Rules::With, &of));
        let ratio = median(&with)? / median(&without)?;
        Some(Compared { name, without, with, ratio })
    }

    /// What rules cost in the last guest that had some, the dearest first.
    fn rules(&self) -> Vec<&RuleCost> {
        let last = self.of(Rules::With).last();
        let mut rules: Vec<_> =
            last.into_iter().flat_map(|guest| &guest.rules).filter(|rule| rule.exits > 0).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.exits));
        rules.truncate(SHOWN);
        rules
    }

    fn ratios(&self) -> Vec<Compared> {
        let boot = self.compared("boot", |guest| guest.boot);
        boot.into_iter().chain(self.compared("work", |guest| guest.work)).collect()
    }

    /// Exits a second of the guests with rules.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    fn exits_per_second(&self) -> Option<f64> {
        median(&self.all(Rules::With, |guest| guest.exits as f64 / guest.seconds))
    }

    /// An object a line.
    pub(super) fn print_json(&self, out: &mut dyn Write) -> io::Result<()> {
        for Compared { name, without, with, ratio } in self.ratios() {
            let mut object = json!({
                "name": name, "ratio": thousandths(ratio),
                "without": without.into_iter().map(thousandths).collect::<Vec<_>>(),
                "with": with.into_iter().map(thousandths).collect::<Vec<_>>(),
                "unit": "seconds of the emulator's processor time",
            });
            if name == "boot" {
                object["goal"] = GOAL.into();
            } else {
                object["rounds"] = self.work.into();
            }
            writeln!(out, "{object}")?;
        }
        if let Some(rate) = self.exits_per_second() {
            let object =
                json!({"name": "exits", "value": thousandths(rate), "unit": "exits a second"});
            writeln!(out, "{object}")?;
        }
        for rule in self.rules() {
            let RuleCost { name, exits, alone, sub_page, own, denied, per_second, page } = rule;
            let object = json!({
                "name": "rule", "rule": name, "exits": exits, "alone": alone, "sub_page": sub_page,
                "own": own, "denied": denied, "hottest_page": page, "per_second": per_second,
            });
            writeln!(out, "{object}")?;
        }
        for (turn, why) in &self.failed {
            let repeated = self.has(*turn);
            let object = json!({"name": "no figure", "guest": turn.title(), "reason": why, "repeated": repeated});
            writeln!(out, "{object}")?;
        }
        Ok(())
    }

    /// The same for people.
    pub(super) fn print_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let work = format!("work {}", self.work);
        writeln!(out, "{:10}  {:>10}  {:>10}  {:>6}", "", "without, s", "with, s", "ratio")?;
        for Compared { name, without, with, ratio } in self.ratios() {
            let (name, goal) = if name == "boot" {
                (name, format!("  at most {GOAL:.2}"))
            } else {
                (work.as_str(), String::new())
            };
            let seconds = |all: &[f64]| median(all).unwrap_or_default();
            let (without, with) = (seconds(&without), seconds(&with));
            writeln!(out, "{name:10}  {without:>10.2}  {with:>10.2}  {ratio:>6.3}{goal}")?;
        }
        if let Some(rate) = self.exits_per_second() {
            writeln!(out, "\nwith the default pack {rate:.1} exits a second")?;
        }
        let rules = self.rules();
        if !rules.is_empty() {
            writeln!(out)?;
            let heads = ["exits", "a second", "alone", "sub-page", "own"];
            write!(out, "{:32}", "the ten most expensive rules")?;
            for head in heads {
                write!(out, "  {head:>9}")?;
            }
            writeln!(out, "  hottest page")?;
        }
        for rule in rules {
            let RuleCost { name, exits, alone, sub_page, own, per_second, page, .. } = rule;
            writeln!(
                out,
                "{name:32}  {exits:>9}  {per_second:>9.1}  {alone:>9}  {sub_page:>9}  {own:>9}  {page}"
            )?;
        }
        for (turn, why) in &self.failed {
            let what = if self.has(*turn) { "repeated once" } else { "no figure" };
            writeln!(out, "{what}: {}: {why}", turn.title())?;
        }
        Ok(())
    }
}

/// The middle of what is in order, or of its two middle values.
fn median(ascending: &[f64]) -> Option<f64> {
    let middle = ascending.len().checked_sub(1)?;
    Some(f64::midpoint(ascending[middle / 2], ascending[middle.div_ceil(2)]))
}

fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{super::guest::tests::guest, *};

    fn figures() -> Figures {
        let mut figures = Figures::new(100);
        let turn = |round, rules| Turn { round, rules };
        figures.take(turn(1, Rules::Without), &Guest::default());
        figures.take(turn(1, Rules::Without), &guest(40, 4, [0, 0]));
        figures.take(turn(1, Rules::With), &guest(43, 5, [3000, 7000]));
        figures.take(turn(2, Rules::With), &guest(45, 5, [4000, 9000]));
        figures.take(turn(2, Rules::Without), &guest(40, 6, [0, 0]));
        figures.take(turn(3, Rules::Without), &guest(900, 900, [0, 0]));
        figures
    }

    #[test]
    fn ratios_are_of_medians_and_rules_of_the_last_guest() {
        let mut out = Vec::new();
        figures().print_json(&mut out).expect("a vector can be written");
        let text = String::from_utf8(out).expect("our text is UTF-8");
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let names: Vec<_> =
            lines.iter().map(|line| line["name"].as_str().unwrap_or_default()).collect();
        assert_eq!(names, ["boot", "work", "exits", "rule", "rule", "no figure"]);
        assert_eq!((&lines[0]["ratio"], &lines[0]["goal"]), (&json!(1.1), &json!(1.1)));
        assert_eq!(lines[0]["without"], json!([40.0, 40.0, 900.0]));
        assert_eq!((&lines[1]["ratio"], &lines[1]["rounds"]), (&json!(0.833), &json!(100)));
        assert_eq!(lines[2]["value"], 115.0);
        assert_eq!((&lines[3]["rule"], &lines[3]["exits"]), (&json!("hooks"), &json!(9000)));
        assert_eq!(lines[5]["repeated"], true, "a repeated guest is told");
    }

    #[test]
    fn the_table_tells_the_same() {
        let mut out = Vec::new();
        figures().print_table(&mut out).expect("a vector can be written");
        let text = String::from_utf8(out).expect("our text is UTF-8");
        let words: Vec<Vec<_>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["boot", "40.00", "44.00", "1.100", "at", "most", "1.10"]);
        assert_eq!(words[2], ["work", "100", "6.00", "5.00", "0.833"]);
        assert_eq!(words[7][..2], ["hooks", "9000"]);
        assert!(
            text.ends_with("repeated once: without rules, round 1: it did not start\n"),
            "{text}"
        );
    }
}
