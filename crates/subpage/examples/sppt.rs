//! The sub-page permission table, read as the processor reads it.

use std::error::Error;

use subpage::access::{AccessMap, SppVector};
use subpage::address::{Gfn, GfnRange, PhysicalWidth};
use subpage::domain::Domain;
use subpage::frames::{HeapFrames, TableFrames as _};
use subpage::level::Level;
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage::sppt::SpptEntry;

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;
    let memory = GfnRange::new(Gfn::new(0), 1 << 18)?;
    domain.add_slot(AddressSpace::Normal, SlotId(0), memory, SlotFlags::default())?;
    let sppt = domain.sppt().ok_or("enabled above")?;

    // Absent means unrestricted: a fresh table is one frame, and all of it may be mapped large.
    let page = Gfn::new(0x12345);
    assert!(sppt.is_unrestricted(domain.frames(), Level::L3, page));
    assert_eq!(domain.frames().frames_in_use(), 1);

    let map = AccessMap::from_bits(!(1 << 3));
    let token = domain.set_access(page, &[map])?;
    domain.finish(&token.without_processors());

    // The walk: three entries that link tables, then the vector.
    let mut table = sppt.root();
    for level in [Level::L4, Level::L3, Level::L2] {
        let entry = SpptEntry::from(domain.frames().load(table, level.index(page)));
        table = entry.table().ok_or("a restricted page has a table")?;
    }
    let leaf = domain.frames().load(table, Level::L1.index(page));
    assert_eq!(SppVector::try_from_bits(leaf)?.to_map(), map);

    // The same by one call, and the list of restricted pages, which is nowhere stored.
    assert_eq!(sppt.vector(domain.frames(), page).to_map(), map);
    assert_eq!(sppt.next_restricted(domain.frames(), Gfn::new(0)), Some(page));
    assert!(!sppt.is_unrestricted(domain.frames(), Level::L2, page));
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
