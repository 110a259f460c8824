//! The permission of a page: 32 bits for people, 64 bits for the processor.

use std::error::Error;

use subpage::access::{AccessMap, SppVector, SubPage};
use subpage::address::{ByteRange, Gpa};

fn main() -> Result<(), Box<dyn Error>> {
    // Bit i of a map: sub-page i, bytes 128 * i to 128 * i + 127 of the page, may be written.
    let map = AccessMap::from_bits(!(1 << 3));
    let path = SubPage::of(Gpa::new(0x10_e180));
    assert_eq!(path.index(), 3);
    assert!(!map.contains(path));
    assert_eq!(map.count(), 31);

    // A write needs the bit of every sub-page that it touches.
    let touched = AccessMap::touched_by(ByteRange::new(Gpa::new(0x10_e17c), 8)?);
    assert_eq!(touched.bits(), 0b1100);
    assert!(!map.covers(touched));

    // An SPPT leaf holds the same facts in its even bits. The odd ones are reserved, and a vector with
    // one of them set cannot be made.
    let vector = SppVector::from_map(map);
    assert_eq!(vector.bits(), 0x5555_5555_5555_5515);
    assert_eq!(vector.to_map(), map);
    assert!(SppVector::try_from_bits(0b10).is_err());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
