//! The hypervisor's heap.
//!
//! Unsafe because it hands out raw memory.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::NonNull;

use spin::Mutex;

/// An allocator for memory that is given to it once.
///
/// NMI handlers must not allocate: they may have interrupted an allocation of their own processor.
#[allow(missing_debug_implementations)] // The inner allocator has none.
pub struct Heap(Mutex<linked_list_allocator::Heap>);

impl Heap {
    /// Without memory yet: every request fails.
    pub const fn new() -> Self {
        Self(Mutex::new(linked_list_allocator::Heap::empty()))
    }

    /// Gives it its memory.
    ///
    /// # Safety
    /// Once; nobody else uses the memory, which is mapped at the same addresses forever.
    pub unsafe fn give(&self, memory: Range<u64>) {
        let bytes = (memory.end - memory.start) as usize;
        // SAFETY: by the contract.
        unsafe { self.0.lock().init(memory.start as usize as *mut u8, bytes) };
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: the inner allocator gives out disjoint memory of the layout asked for, under a lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = self.0.lock().allocate_first_fit(layout);
        memory.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let Some(memory) = NonNull::new(memory) else { return };
        // SAFETY: by this method's contract the memory came from `alloc` with the same layout.
        unsafe { self.0.lock().deallocate(memory, layout) };
    }
}
