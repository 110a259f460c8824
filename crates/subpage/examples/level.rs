//! The four levels that EPT and SPPT share, and the page sizes that a leaf can have.

use std::error::Error;

use subpage::address::{Gfn, Gpa};
use subpage::level::{Level, PageSize};

fn main() -> Result<(), Box<dyn Error>> {
    // The way of a walk: one index a level, from bits 47:39 down to bits 20:12.
    let gfn = Gpa::try_new(0x80_4060_3000)?.gfn();
    let walk = [Level::L4, Level::L3, Level::L2, Level::L1].map(|level| level.index(gfn).get());
    assert_eq!(walk, [1, 1, 3, 3]);

    // One L2 entry stands for 512 frames: the region whose pages share an L1 table.
    assert_eq!(Level::L2.frames(), 512);
    assert_eq!(Level::L2.region_start(gfn), Gfn::new(gfn.as_u64() & !0x1ff));

    // Leaves stand at three levels. A vector judges 4 KiB leaves only.
    assert_eq!(PageSize::at(Level::L3), Some(PageSize::Size1G));
    assert_eq!(PageSize::at(Level::L4), None);
    assert_eq!(PageSize::Size2M.bytes(), 2 << 20);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
