//! Memory slots: where memory is, what is read-only, and which pages were written.

use std::error::Error;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{Decision, Domain};
use subpage::frames::HeapFrames;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;

    // A rule may lie where no memory is yet. It holds from the first moment that there is some.
    let path = ByteRange::new(Gpa::new(0x2080), 128)?;
    let ram = GfnRange::new(Gfn::new(0), 16)?;
    let log = SlotFlags { log_dirty: true, ..SlotFlags::default() };
    domain.add_slot(Normal, SlotId(0), ram, log)?;
    let token = domain.set_access(Gfn::new(2), &[AccessMap::from_bits(!0b10)])?;
    domain.finish(&token.without_processors());

    // Permissions belong to addresses: a slot that goes and comes back changes none.
    let token = domain.remove_slot(Normal, SlotId(0))?;
    domain.finish(&token.without_processors());
    assert!(matches!(domain.check_write(Normal, path), Decision::NotMapped { .. }));
    domain.add_slot(Normal, SlotId(0), ram, log)?;
    assert!(matches!(domain.check_write(Normal, path), Decision::Denied { .. }));

    // A write that is done is dirty, a denied one is not.
    assert!(!domain.authorize_write(Normal, path)?.permits());
    assert!(domain.authorize_write(Normal, ByteRange::new(Gpa::new(0x5000), 8)?)?.permits());
    let (pending, token) = domain.harvest_dirty(Normal, SlotId(0))?;
    let done = token.without_processors();
    domain.finish(&done);
    let dirty = pending.ready(&done).map_err(|_| "the token is completed")?;
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Gfn::new(5)]);

    // To memory that is read-only for the guest, sub-page permissions do not apply.
    let rom = GfnRange::new(Gfn::new(0xf0), 16)?;
    let read_only = SlotFlags { read_only: true, ..SlotFlags::default() };
    domain.add_slot(Normal, SlotId(1), rom, read_only)?;
    let store = ByteRange::new(Gpa::new(0xf0000), 4)?;
    assert!(matches!(domain.check_write(Normal, store), Decision::NotEligible { .. }));
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
