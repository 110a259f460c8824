//! Addresses: kinds that cannot be mixed up, and ranges that cannot wrap.

use std::error::Error;

use subpage::address::{AddressError, ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};

fn main() -> Result<(), Box<dyn Error>> {
    // An address from a guest or a file may be anything: try_new refuses what EPT cannot map.
    let gpa = Gpa::try_new(0x10_e180)?;
    assert_eq!(gpa.gfn(), Gfn::new(0x10e));
    assert_eq!(gpa.page_offset(), 0x180);
    assert_eq!(Gpa::try_new(1 << 48), Err(AddressError::GpaTooWide { gpa: 1 << 48, bits: 48 }));

    // Ranges have inclusive ends, so the last byte of the address space is no special case.
    let last = ByteRange::new(Gpa::MAX, 1)?;
    assert_eq!(last.last(), Gpa::MAX);
    assert!(ByteRange::new(Gpa::MAX, 2).is_err());

    // A write across a page end, cut where the processor translates anew.
    let write = ByteRange::new(Gpa::new(0x1ffc), 8)?;
    let pieces: Vec<_> =
        write.pages().map(|piece| (piece.first().as_u64(), piece.bytes())).collect();
    assert_eq!(pieces, [(0x1ffc, 4), (0x2000, 4)]);

    // What one processor can protect may be less than 48 bits.
    let width = PhysicalWidth::try_new(39)?;
    let pages = GfnRange::new(Gfn::new(1 << 27), 1)?;
    assert!(width.check(pages.last()).is_err());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
