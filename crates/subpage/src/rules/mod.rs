//! Rules: what people write, and the reason behind every denied sub-page.

mod rule;

pub use rule::{Action, Owner, Rule, RuleId, RuleName, RuleNameError};
