//! The software model as an enforcer: the engine's tables, walked by a modelled processor.

use subpage::address::{ByteRange, Gfn, GfnRange, PhysicalWidth};
use subpage::domain::{Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Rule, RuleId};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_model::{Access, AccessKind, AccessOutcome, Features, Machine, Setup};
use subpage_trap::Verdict;

use super::Enforcer;
use crate::failure::Failure;
use crate::policy::Policy;
use crate::terminal::grouped;

/// Most guarded pages, counted rule by rule: 64 GiB, for which tables take up to 128 MiB.
pub const MAX_PAGES: u64 = 1 << 24;

/// One modelled processor whose guest-physical addresses are those of the trace.
pub struct Model {
    machine: Machine<()>,
    /// Number of the policy's first rule; the others follow in order.
    first: RuleId,
    actions: Vec<Action>,
}

impl Model {
    /// Puts the policy into force, but for the rules that wait. Fails if it guards more than [`MAX_PAGES`] or memory is short.
    pub fn new(policy: &Policy) -> Result<Self, Failure> {
        let rules: Vec<Rule> = policy.rules.iter().map(|rule| rule.rule).collect();
        let pages =
            rules.iter().fold(0_u64, |sum, rule| sum.saturating_add(rule.range.gfns().pages()));
        if pages > MAX_PAGES {
            return Err(Failure::Input(format!(
                "the policy guards {} pages of 4 KiB; the model takes at most {} (64 GiB): guard \
                 smaller ranges",
                grouped(pages),
                grouped(MAX_PAGES),
            )));
        }
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        let all = GfnRange::new(Gfn::new(0), Gfn::MAX.as_u64() + 1).expect("the address space");
        domain
            .add_slot(AddressSpace::Normal, SlotId(0), all, SlotFlags::default())
            .map_err(no_memory)?;
        let setup = Setup::new(Features::new(PhysicalWidth::MAX));
        let mut machine =
            Machine::new(setup, domain, ()).map_err(|error| no_memory(error.into()))?;
        let some: Vec<_> =
            policy.rules.iter().map(|rule| (rule.rule, rule.holds_from_start())).collect();
        let (first, token) = machine.domain_mut().add_some_armed(&some).map_err(no_memory)?;
        let _in_force = machine.complete(token);
        Ok(Self { machine, first, actions: rules.iter().map(|rule| rule.action).collect() })
    }

    #[allow(clippy::cast_possible_truncation)] // Rule numbers count the policy's rules.
    fn index(&self, rule: RuleId) -> usize {
        (rule.0 - self.first.0) as usize
    }
}

fn no_memory(error: DomainError) -> Failure {
    Failure::Internal(format!("cannot put the policy into force: {error}"))
}

impl Enforcer for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    #[inline]
    fn write(&mut self, bytes: ByteRange) -> Result<Option<(usize, Verdict)>, Failure> {
        let access = Access::new(AccessKind::Write, bytes.first(), bytes.bytes())
            .expect("a trace holds writes of 1 to 64 bytes below 2^48");
        match self.machine.touch(0, &access) {
            AccessOutcome::Done => Ok(None),
            AccessOutcome::Reported { rule, .. } => {
                let index = self.index(rule);
                Ok(Some(match self.actions[index] {
                    Action::AllowOnce => (index, Verdict::AllowedOnce),
                    _ => (index, Verdict::Logged),
                }))
            }
            AccessOutcome::Denied(denial) => {
                let rule = denial.rule.expect("only rules deny: no access map was set");
                let verdict = if denial.stop { Verdict::Stopped } else { Verdict::Denied };
                Ok(Some((self.index(rule), verdict)))
            }
            AccessOutcome::Failed(error) => Err(Failure::Internal(format!(
                "the model cannot continue at {:#x}: {error:?}",
                bytes.first().as_u64()
            ))),
            other => panic!("a slot holds every address, but {bytes:?} met {other:?}"),
        }
    }

    fn arm(&mut self, rules: &[usize]) -> Result<(), Failure> {
        let ids: Vec<_> = rules.iter().map(|&rule| RuleId(self.first.0 + rule as u64)).collect();
        let token = self.machine.domain_mut().arm_rules(&ids).map_err(no_memory)?;
        let _in_force = self.machine.complete(token);
        Ok(())
    }
}
