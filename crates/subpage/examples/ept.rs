//! The EPT leaf as a function of what the host allows and of the page's vector.

use std::error::Error;

use subpage::access::{AccessMap, SppVector};
use subpage::address::Hpa;
use subpage::ept::{EptEntry, Meaning, WriteGate, leaf_rights};
use subpage::level::{Level, PageSize};

fn main() -> Result<(), Box<dyn Error>> {
    let open = WriteGate { host_writable: true, slot_read_only: false, dirty_armed: false };
    let some = SppVector::from_map(AccessMap::from_bits(0xffff));

    // An unrestricted page is writable. A page with some writable sub-pages is not, and bit 61 sends
    // the processor to the vector. A page with none needs no vector.
    let rights = |gate, vector| {
        let rights = leaf_rights(gate, vector);
        (rights.write, rights.sub_page_write)
    };
    assert_eq!(rights(open, SppVector::ALL), (true, false));
    assert_eq!(rights(open, some), (false, true));
    assert_eq!(rights(open, SppVector::NONE), (false, false));

    // A page that the host shares must not be written at all: bit 61 would let the guest (D9).
    let shared = WriteGate { host_writable: false, ..open };
    assert_eq!(rights(shared, some), (false, false));

    // An entry means something only together with its level.
    let leaf =
        EptEntry::new().with_read(true).with_large(true).with_hpa(Hpa::try_new(0x4000_0000)?);
    let leaf = leaf_rights(open, SppVector::ALL).apply_to(leaf);
    assert_eq!(leaf.meaning(Level::L2), Meaning::Leaf(PageSize::Size2M));
    assert!(leaf.write() && !leaf.sub_page_write());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
