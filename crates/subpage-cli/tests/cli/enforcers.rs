//! The model against the rules taken byte by byte: whatever the policy and the writes, the engine's
//! tables and the modelled processor decide the same.

use proptest::prelude::*;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::Action;
use subpage_cli::guard::{ByteRules, Enforcer, Model};
use subpage_cli::policy::Policy;

use crate::runs::rule;

/// Three pages around the end of a 2 MiB region.
const BASE: u64 = 0x1F_F000;
const SPAN: u64 = 3 * 4096;

fn action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![Action::Log, Action::AllowOnce, Action::Deny, Action::Stop])
}

proptest! {
    #[test]
    fn model_and_byte_rules_agree(
        rules in prop::collection::vec((0..SPAN, 1..600_u64, action()), 1..8),
        writes in prop::collection::vec((0..SPAN, 1..=64_u64), 1..200),
    ) {
        let rules = rules.iter().enumerate().map(|(number, (start, length, action))| {
            rule(&format!("rule {number}"), BASE + start, *length, *action, number + 1)
        });
        let policy = Policy { rules: rules.collect() };
        let mut model = Model::new(&policy).expect("memory");
        let mut bytes = ByteRules::new(&policy);
        for (start, length) in writes {
            let write = ByteRange::new(Gpa::new(BASE + start), length).expect("a range");
            let (by_model, by_bytes) = (model.write(write), bytes.write(write));
            prop_assert_eq!(by_model.expect("memory"), by_bytes.expect("no memory"));
        }
    }
}

#[test]
fn a_policy_that_guards_everything_is_refused() {
    let policy = Policy { rules: vec![rule("all", 0, 1 << 48, Action::Log, 1)] };
    let Err(failure) = Model::new(&policy) else { panic!("2^36 pages were guarded") };
    assert!(format!("{failure:?}").contains("at most 16,777,216"), "{failure:?}");
}
