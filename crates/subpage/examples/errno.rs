//! Errors of the engine as the numbers that Linux returns.

use std::error::Error;

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange, PhysicalWidth};
use subpage::domain::{Domain, DomainError};
use subpage::errno::Errno;
use subpage::frames::HeapFrames;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

/// What a call of a system or of a hypervisor returns: 0 or more, or a negative number.
fn result(call: Result<u64, DomainError>) -> i64 {
    match call {
        Ok(value) => i64::try_from(value).expect("results are small"),
        Err(error) => Errno::from(error).to_result(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // No frame is left after the root.
    let mut domain = Domain::new(HeapFrames::with_limit(1), PhysicalWidth::MAX);
    let set = |domain: &mut Domain<HeapFrames>, gfn: u64| {
        let token = domain.set_access(Gfn::new(gfn), &[AccessMap::NONE])?;
        domain.finish(&token.without_processors());
        Ok(1)
    };
    assert_eq!(result(set(&mut domain, 0)), -19, "ENODEV: not enabled");

    domain.enable()?;
    assert_eq!(result(set(&mut domain, 0)), -14, "EFAULT: no memory slot");

    domain.add_slot(Normal, SlotId(0), GfnRange::new(Gfn::new(0), 1)?, SlotFlags::default())?;
    assert_eq!(result(set(&mut domain, 0)), -12, "ENOMEM: no frame for a table");
    assert_eq!(Errno::from(DomainError::OutOfMemory).name(), "ENOMEM");
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
