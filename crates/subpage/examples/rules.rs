//! Rules: bytes with a name, an owner and an action. They may overlap.

use std::error::Error;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{Decision, Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

fn rule(name: &str, first: u64, bytes: u64, action: Action) -> Result<Rule, Box<dyn Error>> {
    let range = ByteRange::new(Gpa::try_new(first)?, bytes)?;
    Ok(Rule { name: RuleName::new(name)?, range, owner: Owner(1), action, locked: false })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;
    let memory = GfnRange::new(Gfn::new(0), 16)?;
    domain.add_slot(Normal, SlotId(0), memory, SlotFlags::default())?;

    // All of a structure is watched, eight bytes of it are guarded. Numbers are in the order given.
    let structure = rule("structure", 0x1000, 256, Action::Log)?;
    let pointer = rule("pointer", 0x1010, 8, Action::Deny)?;
    let (watched, token) = domain.add_rules(&[structure, pointer])?;
    domain.finish(&token.without_processors());
    let guarded = domain.rules().iter().find(|active| active.rule == pointer).ok_or("added")?.id;

    // Of the rules whose bytes a write touches, the strongest decides.
    let at = |first, bytes| ByteRange::new(Gpa::new(first), bytes);
    let decide = |write| domain.check_write(Normal, write);
    assert!(
        matches!(decide(at(0x1014, 4)?), Decision::Denied { rule, .. } if rule == Some(guarded))
    );
    assert!(matches!(decide(at(0x1018, 8)?), Decision::Reported { rule, .. } if rule == watched));
    assert_eq!(decide(at(0x1100, 8)?), Decision::Allowed);

    // Only its owner or the host removes a rule, and nobody a locked one.
    let stranger = domain.remove_rule(guarded, Owner(2));
    assert!(matches!(stranger, Err(DomainError::NotOwner { .. })));
    domain.lock_rule(guarded, Owner(1))?;
    assert_eq!(domain.remove_rule(guarded, Owner::HOST), Err(DomainError::Locked(guarded)));

    // The other one goes, and the bytes next to the guarded ones are free again.
    let token = domain.remove_rule(watched, Owner(1))?;
    domain.finish(&token.without_processors());
    assert_eq!(domain.check_write(Normal, at(0x1018, 8)?), Decision::Allowed);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
