//! A change is in force when every processor has forgotten what it cached, and not before.

use std::error::Error;

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange, Hpa, PhysicalWidth};
use subpage::domain::{Domain, HostPage};
use subpage::ept::MemoryType;
use subpage::frames::HeapFrames;
use subpage::invalidate::Shootdown;
use subpage::level::PageSize;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;
    let page = Gfn::new(0);
    domain.add_slot(Normal, SlotId(0), GfnRange::new(page, 2)?, SlotFlags::default())?;
    let host = HostPage {
        hpa: Hpa::new(0x4000_0000),
        size: PageSize::Size4K,
        writable: true,
        executable: true,
        memory_type: MemoryType::WriteBack,
    };
    domain.map(Normal, page, host)?;

    // Two processors. Number 0 enters the guest, number 1 stays outside.
    let board = Shootdown::new(2)?;
    let epoch = board.enter(0);
    // ... INVEPT here ...
    board.acknowledge(0, epoch);

    // Taking a right away asks for an invalidation: processor 0 may have cached the old leaf.
    let token = domain.set_access(page, &[AccessMap::NONE; 2])?;
    assert!(token.is_required());
    board.request(&token);
    // ... send processor 0 an interrupt here ...
    let token = board.poll(token).expect_err("processor 0 has not acknowledged");

    // What processor 0 does when it is interrupted. Number 1 will do it before it enters.
    let epoch = board.pending(0).ok_or("it was asked")?;
    // ... INVEPT here ...
    board.acknowledge(0, epoch);

    // Only now may the call return to its user, and unlinked tables be freed.
    let done = board.poll(token).map_err(|_| "everybody has acknowledged")?;
    domain.finish(&done);

    // Giving a right back asks for nothing: an old translation costs one exit and a retry.
    let token = domain.set_access(page, &[AccessMap::ALL])?;
    assert!(!token.is_required());
    let done = board.poll(token).map_err(|_| "nothing is asked for")?;
    domain.finish(&done);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
