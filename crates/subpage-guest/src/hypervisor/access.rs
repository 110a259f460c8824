//! Access maps: `struct kvm_subpage` in guest memory.

use spin::{Mutex, Once};
use subpage_vmx::abi::Call;

use super::call;
use crate::memory::{Bytes, PAGE, frames};

/// A page for requests; the map begins at byte 16.
static REQUEST: Once<Mutex<Bytes>> = Once::new();

/// Most pages of one request.
const MAX_PAGES: usize = 512;

/// An access map of one page: bit i permits writes to sub-page i.
pub type Access = u32;

fn request() -> &'static Mutex<Bytes> {
    REQUEST.call_once(|| Mutex::new(frames::pages((16 + 4 * MAX_PAGES as u64).div_ceil(PAGE))))
}

/// Sets one map for each page from `gfn` on; returns the hypervisor's answer.
pub fn set_maps(gfn: u64, maps: &[Access]) -> i64 {
    let request = request().lock();
    request.write(0, gfn);
    request.write(8, maps.len() as u32);
    request.write(12, 0_u32);
    for (index, map) in maps.iter().enumerate().take(MAX_PAGES) {
        request.write(16 + 4 * index as u64, *map);
    }
    call(Call::SetAccess.0, [request.address(), 0, 0, 0])
}

/// Sets the map of the page at the beginning of `page`.
///
/// # Panics
/// If the hypervisor refuses.
pub fn set_access(page: Bytes, map: Access) {
    let result = set_maps(page.gfn(), &[map]);
    assert_eq!(result, 1, "setting the map of {:#x} to {map:#010x}", page.address());
}

/// What may be written of a page.
///
/// # Panics
/// If the hypervisor refuses.
pub fn get_access(page: Bytes) -> Access {
    let request = request().lock();
    request.write(0, page.gfn());
    request.write(8, 1_u32);
    request.write(12, 0_u32);
    request.write(16, 0xdead_beef_u32);
    let result = call(Call::GetAccess.0, [request.address(), 0, 0, 0]);
    assert_eq!(result, 1, "getting the map of {:#x}", page.address());
    request.read(16)
}
