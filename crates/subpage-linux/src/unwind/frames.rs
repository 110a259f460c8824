//! Stacks of kernels that keep frame pointers (CONFIG_UNWINDER_FRAME_POINTER).

use super::{MAX_FRAME, Place};
use crate::memory::{Memory, long};

/// The call above: RBP leads to the caller's RBP, with the return address behind it. A function that has
/// not yet made its frame hides its caller.
pub(super) fn above(memory: &dyn Memory, place: &Place) -> Option<Place> {
    let bytes = place.rbp.checked_sub(place.rsp)?;
    if bytes > MAX_FRAME || !place.rbp.is_multiple_of(8) {
        return None;
    }
    let (rbp, rip) = (long(memory, place.rbp)?, long(memory, place.rbp.checked_add(8)?)?);
    let rsp = place.rbp.checked_add(16)?;
    Some(Place { rip, rsp, rbp, all: None, exact: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::RuntimeAddress;

    /// Every eight bytes hold their own address and 0x20.
    struct Next;

    impl Memory for Next {
        fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
            buffer.copy_from_slice(&(address.as_u64() + 0x20).to_le_bytes()[..buffer.len()]);
            address.as_u64() < 0x9000
        }
    }

    #[test]
    fn a_frame_leads_to_the_one_above() {
        let place = |rsp, rbp| Place { rip: 0x100, rsp, rbp, all: None, exact: true };
        let next = above(&Next, &place(0x1000, 0x1010)).expect("a frame");
        assert_eq!((next.rip, next.rsp, next.rbp, next.exact), (0x1038, 0x1020, 0x1030, false));
        for (rsp, rbp) in [(0x1020, 0x1010), (0x1000, 0x1011), (0x1000, 0x5008), (0x9000, 0x9010)] {
            assert!(above(&Next, &place(rsp, rbp)).is_none(), "{rbp:#x}");
        }
    }
}
