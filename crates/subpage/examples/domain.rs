//! A domain from beginning to end: guard, decide, report, and take the state elsewhere.

use std::error::Error;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{Decision, Denial, Domain, Observer};
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

/// Hears of what happens. The engine itself has no log.
#[derive(Default)]
struct Audit(Vec<Denial>);

impl Observer for Audit {
    fn denied(&mut self, denial: &Denial) {
        self.0.push(*denial);
    }
}

/// A domain over the guest's first 16 MiB.
fn domain() -> Result<Domain<HeapFrames, Audit>, Box<dyn Error>> {
    let frames = HeapFrames::new();
    let mut domain = Domain::with_observer(frames, PhysicalWidth::MAX, Audit::default());
    domain.enable()?;
    let memory = GfnRange::new(Gfn::new(0), 4096)?;
    domain.add_slot(Normal, SlotId(0), memory, SlotFlags::default())?;
    Ok(domain)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut memory = vec![0_u8; 16 << 20];
    let mut domain = domain()?;
    let rule = Rule {
        name: RuleName::new("helper path")?,
        range: ByteRange::new(Gpa::new(0x10_e180), 128)?,
        owner: Owner::HOST,
        action: Action::Deny,
        locked: true,
    };
    let (number, token) = domain.add_rule(rule)?;
    // No processor walks the tables of this example. Where one does, see the example `invalidate`.
    domain.finish(&token.without_processors());

    // Every write that software does for the guest asks first, and is done while nobody can change
    // the rules: `domain` is borrowed, in a VMM locked, until the bytes are there.
    let mut write = |first: u64, bytes: &[u8]| -> Result<Decision, Box<dyn Error>> {
        let range = ByteRange::new(Gpa::try_new(first)?, bytes.len() as u64)?;
        let decision = domain.authorize_write(Normal, range)?;
        if decision.permits() {
            let at = usize::try_from(first)?;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(decision)
    };
    assert_eq!(write(0x10_e000, &[1; 8])?, Decision::Allowed);
    // One byte of the rule denies the whole write: the last byte here.
    let denied = write(0x10_e179, &[2; 8])?;
    assert!(matches!(denied, Decision::Denied { rule, at, .. }
        if rule == Some(number) && at == Gpa::new(0x10_e180)));
    assert_eq!(memory[0x10_e000..0x10_e008], [1; 8]);
    assert_eq!(memory[0x10_e179..0x10_e181], [0; 8]);

    // Rules, access maps and tracking go to another host bit for bit. Slots are the VMM's.
    let state = domain.export()?;
    let mut other = self::domain()?;
    let token = other.import(&state, 4096)?;
    other.finish(&token.without_processors());
    assert_eq!(other.export()?, state);
    let bytes = ByteRange::new(Gpa::new(0x10_e1ff), 1)?;
    assert!(!other.check_write(Normal, bytes).permits());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
