//! Rules: what people write, and the reason behind every denied sub-page.

mod hidden;
mod rule;
mod set;

pub(crate) use hidden::HiddenDenials;
pub use rule::{Action, Owner, Rule, RuleId, RuleName, RuleNameError};
pub use set::{ActiveRule, RuleSet};
