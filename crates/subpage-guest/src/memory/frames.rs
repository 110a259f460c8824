//! Memory behind the image, handed out once and never taken back: a test ends with its machine.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Bytes, LARGE_PAGE, PAGE};

static FIRST: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Tells where free memory begins and where memory ends.
pub fn initialise(free: u64, end: u64) {
    FIRST.store(free.next_multiple_of(PAGE), Ordering::Relaxed);
    NEXT.store(free.next_multiple_of(PAGE), Ordering::Relaxed);
    END.store(end, Ordering::Relaxed);
}

/// Bytes of memory.
pub fn end() -> u64 {
    END.load(Ordering::Relaxed)
}

/// Takes `bytes` at a multiple of `alignment`, filled with zeros.
///
/// # Panics
/// If memory is out.
pub fn take_aligned(bytes: u64, alignment: u64) -> Bytes {
    let first = NEXT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let end = next.next_multiple_of(alignment).checked_add(bytes)?;
            (end <= self::end()).then_some(end)
        })
        .expect("the guest has memory for its tests")
        .next_multiple_of(alignment);
    let taken = Bytes::taken(first, bytes);
    for offset in (0..bytes / 8).map(|word| word * 8) {
        taken.write(offset, 0_u64);
    }
    taken
}

/// Takes one page.
///
/// # Panics
/// If memory is out.
pub fn page() -> Bytes {
    take_aligned(PAGE, PAGE)
}

/// Takes consecutive pages.
///
/// # Panics
/// If memory is out.
pub fn pages(count: u64) -> Bytes {
    take_aligned(count * PAGE, PAGE)
}

/// Takes a whole large page, so that nothing else of the guest is in its EPT leaf.
///
/// # Panics
/// If memory is out.
pub fn large_page() -> Bytes {
    take_aligned(LARGE_PAGE, LARGE_PAGE)
}

/// Names memory again that was taken before, on another processor.
///
/// # Panics
/// If it was not taken.
pub fn again(first: u64, bytes: u64) -> Bytes {
    let taken = first.checked_add(bytes).is_some_and(|end| end <= NEXT.load(Ordering::Relaxed));
    assert!(taken && first >= FIRST.load(Ordering::Relaxed), "{first:#x} was never taken");
    Bytes::taken(first, bytes)
}

/// The last bytes of memory, which are never handed out as long as memory is not out.
///
/// # Panics
/// If they are handed out.
pub fn again_at_end(bytes: u64) -> Bytes {
    let first = end() - bytes;
    assert!(first >= NEXT.load(Ordering::Relaxed), "the end of memory is in use");
    Bytes::taken(first, bytes)
}
