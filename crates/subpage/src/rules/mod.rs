//! Rules: what people write, and the reason behind every denied sub-page.

mod masked_denials;
mod rule;
mod set;
mod tree;

pub(crate) use masked_denials::MaskedDenials;
pub use rule::{Action, Moment, Owner, Rule, RuleId, RuleName, RuleNameError};
pub use set::{ActiveRule, RuleSet};
