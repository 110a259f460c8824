//! The interface of the KVM series: `struct kvm_subpage` from a guest or another process.

use std::error::Error;

use subpage::address::{Gfn, GfnRange, PhysicalWidth};
use subpage::domain::Domain;
use subpage::errno::Errno;
use subpage::frames::HeapFrames;
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};
use subpage::uapi::{Fault, HEADER_BYTES, RequestMemory, get_access, set_access};

/// The requester's memory. A kernel copies from user space here, a hypervisor from its guest.
struct Memory(Vec<u8>);

impl RequestMemory for Memory {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.copy_from_slice(self.0.get(offset..offset + buffer.len()).ok_or(Fault)?);
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.0.get_mut(offset..offset + bytes.len()).ok_or(Fault)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// `gfn_base`, `npages`, `flags` and the maps, little-endian.
fn request(gfn_base: u64, flags: u32, maps: &[u32]) -> Memory {
    let mut bytes = gfn_base.to_le_bytes().to_vec();
    let npages = u32::try_from(maps.len()).expect("a short request");
    for word in [npages, flags].iter().chain(maps) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    Memory(bytes)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    let mut set = request(16, 0, &[!0b1000, 0]);
    assert_eq!(set_access(&mut domain, &mut set), Err(Errno::NoDevice), "not enabled yet");

    domain.enable()?;
    let pages = GfnRange::new(Gfn::new(16), 16)?;
    domain.add_slot(Normal, SlotId(0), pages, SlotFlags::default())?;
    let (count, token) = set_access(&mut domain, &mut set).map_err(Errno::name)?;
    assert_eq!(count, 2);
    domain.finish(&token.without_processors());

    // GET fills in the maps of the request.
    let mut get = request(16, 0, &[0; 3]);
    assert_eq!(get_access(&domain, &mut get), Ok(3));
    let map = |page: usize| {
        let at = HEADER_BYTES + page * 4;
        get.0[at..at + 4].try_into().map(u32::from_le_bytes)
    };
    assert_eq!([map(0)?, map(1)?, map(2)?], [!0b1000, 0, u32::MAX]);

    // Flags are refused, and so is a page without memory: nothing is half done.
    assert_eq!(set_access(&mut domain, &mut request(16, 1, &[0])), Err(Errno::Invalid));
    assert_eq!(set_access(&mut domain, &mut request(31, 0, &[0, 0])), Err(Errno::Fault));
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
