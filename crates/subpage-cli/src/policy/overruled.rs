//! Rules that can never decide.

use std::collections::BTreeMap;

use super::{Policy, PolicyRule};
use crate::events::{WarningEvent, WarningKind};

/// Runs of bytes that belong to some rule, each by its first byte: the byte behind its last one.
#[derive(Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Whether all bytes of `start..end` belong to some rule.
    fn holds(&self, start: u64, end: u64) -> bool {
        self.0.range(..=start).next_back().is_some_and(|(_, reach)| end <= *reach)
    }

    /// Adds `start..end`, and joins it with the runs that it touches.
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&first, &reach)) = self.0.range(..=end).next_back() {
            if reach < start {
                break;
            }
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(reach);
        }
        self.0.insert(start, end);
    }
}

impl Policy {
    /// A warning for every rule whose bytes all belong to stronger rules, or to equally strong ones
    /// before it, in the order of the policy: such a rule never decides.
    pub fn overruled(&self) -> Vec<WarningEvent> {
        let mut order: Vec<usize> = (0..self.rules.len()).collect();
        order.sort_by_key(|place| (std::cmp::Reverse(self.rules[*place].rule.action), *place));
        let mut covered = Covered::default();
        let mut found = Vec::new();
        for place in order {
            let range = self.rules[place].rule.range;
            let (start, end) = (range.first().as_u64(), range.last().as_u64() + 1);
            if covered.holds(start, end) {
                found.push(place);
            } else {
                covered.add(start, end);
            }
        }
        found.sort_unstable();
        found.into_iter().map(|place| warning(&self.rules[place])).collect()
    }
}

fn warning(rule: &PolicyRule) -> WarningEvent {
    let (name, action) = (rule.rule.name.as_str(), rule.rule.action.word());
    WarningEvent {
        warning: WarningKind::RuleOverruled,
        message: format!(
            "the rule `{name}` ({}) never decides: all of its bytes belong to rules that come \
             before its `{action}`",
            rule.place()
        ),
        rule: Some(name.to_owned()),
        file: Some(rule.file.to_string()),
        line: Some(rule.line as u64),
        help: "`stop` comes before `deny`, `allow-once` and `log`, and of equal actions the first rule \
               of the policy: remove this rule, or make it stronger"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use subpage::address::{ByteRange, Gpa};
    use subpage::rules::{Action, Owner, Rule, RuleName};

    use super::*;

    fn overruled(rules: &[(Action, u64, u64)]) -> Vec<String> {
        let rule = |(index, (action, start, end)): (usize, &(Action, u64, u64))| PolicyRule {
            rule: Rule {
                name: RuleName::new(&index.to_string()).expect("a name"),
                range: ByteRange::new(Gpa::new(*start), end - start).expect("a range"),
                owner: Owner::HOST,
                action: *action,
                locked: false,
            },
            arm: None,
            file: "policy.toml".into(),
            line: index + 1,
        };
        let policy = Policy { rules: rules.iter().enumerate().map(rule).collect() };
        policy.overruled().into_iter().filter_map(|warning| warning.rule).collect()
    }

    #[test]
    fn rules_whose_bytes_are_all_taken_are_told() {
        use Action::{AllowOnce, Deny, Log, Stop};
        assert_eq!(overruled(&[(Log, 0, 8), (Deny, 0, 8)]), ["0"]);
        assert_eq!(overruled(&[(Deny, 0, 8), (Deny, 0, 8)]), ["1"]);
        assert_eq!(overruled(&[(Deny, 0, 8), (Log, 0, 9)]), [""; 0]);
        assert_eq!(overruled(&[(Deny, 0, 8), (Log, 1, 8), (AllowOnce, 7, 8)]), ["1", "2"]);
        // By two together, which only touch.
        assert_eq!(overruled(&[(Log, 4, 12), (Deny, 0, 8), (Stop, 8, 16)]), ["0"]);
        assert_eq!(overruled(&[(Log, 4, 12), (Deny, 0, 8), (Stop, 9, 16)]), [""; 0]);
        // Many that join.
        let mut rules: Vec<_> = (0..50).map(|i| (Deny, 2 * i, 2 * i + 1)).collect();
        rules.extend((0..50).map(|i| (Stop, 2 * i + 1, 2 * i + 2)));
        rules.push((AllowOnce, 0, 100));
        rules.push((Log, 99, 101));
        assert_eq!(overruled(&rules), ["100"]);
    }
}
