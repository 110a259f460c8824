//! Tracking: which sub-pages were written since the last harvest.

use std::error::Error;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;
    let memory = GfnRange::new(Gfn::new(0), 64)?;
    domain.add_slot(Normal, SlotId(0), memory, SlotFlags::default())?;

    // Tracking arms every sub-page: its first write traps, later ones run at full speed.
    let (track, token) = domain.track(ByteRange::of_pages(memory))?;
    domain.finish(&token.without_processors());

    for gpa in [0x3000, 0x3008, 0x3f80] {
        let write = ByteRange::new(Gpa::new(gpa), 8)?;
        assert!(domain.authorize_write(Normal, write)?.permits());
    }
    assert_eq!(
        domain.counters().tracked,
        2,
        "two sub-pages were opened, one of them written twice"
    );

    // A harvest can be read when no processor writes through an old translation any more.
    let (pending, token) = domain.harvest_written(track)?;
    let done = token.without_processors();
    domain.finish(&done);
    let written = pending.ready(&done).map_err(|_| "the token is completed")?;
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].gfn, Gfn::new(3));
    assert_eq!(written[0].written.bits(), 1 << 31 | 1);

    // Nothing was written since.
    assert_eq!(domain.written_pages(track)?, 0);
    let token = domain.untrack(track)?;
    domain.finish(&token.without_processors());
    assert_eq!(domain.next_restricted(Gfn::new(0)), None);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
