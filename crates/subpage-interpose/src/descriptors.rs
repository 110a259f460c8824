//! Which file descriptors are machines and processors of KVM.
//!
//! Every `ioctl` to KVM and every `close` of the process looks here, so looking takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::machine::Machine;
use crate::processor::Processor;

/// What a descriptor is.
#[derive(Clone)]
pub(crate) enum Known {
    /// A machine.
    Machine(Arc<Machine>),
    /// A processor.
    Processor(Arc<Processor>),
}

/// Descriptors in one block, and blocks.
const BLOCK: usize = 1024;

/// One more than the number of an entry of [`ENTRIES`], by descriptor; 0: unknown to this library.
type Block = [AtomicUsize; BLOCK];

static BLOCKS: [OnceLock<Box<Block>>; BLOCK] = [const { OnceLock::new() }; BLOCK];

/// Everything that was ever known: a descriptor may be in use while another thread closes it, so that
/// nothing is given back. There are as many as machines and processors.
static ENTRIES: [OnceLock<Known>; 4096] = [const { OnceLock::new() }; 4096];

/// The next free entry.
static FREE: Mutex<usize> = Mutex::new(0);

fn place(fd: i32) -> Option<(usize, usize)> {
    let fd = usize::try_from(fd).ok()?;
    (fd / BLOCK < BLOCK).then_some((fd / BLOCK, fd % BLOCK))
}

/// What a descriptor is, if it is a machine or processor.
#[inline]
pub(crate) fn known(fd: i32) -> Option<&'static Known> {
    let (block, at) = place(fd)?;
    let number = BLOCKS[block].get()?[at].load(Ordering::Acquire);
    ENTRIES.get(number.checked_sub(1)?)?.get()
}

/// Notes what a new descriptor is.
///
/// # Panics
/// If the process has made thousands of machines and processors.
pub(crate) fn note(fd: i32, what: Known) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let number = *free;
    assert!(number < ENTRIES.len(), "a process has no more than 4096 machines and processors");
    *free += 1;
    let _ = ENTRIES[number].set(what);
    set(fd, number + 1);
}

/// `to` is the same as `fd` now.
pub(crate) fn copy(fd: i32, to: i32) {
    let number = place(fd)
        .and_then(|(block, at)| Some(BLOCKS[block].get()?[at].load(Ordering::Acquire)))
        .unwrap_or(0);
    if number != 0 || known(to).is_some() {
        set(to, number);
    }
}

/// A descriptor is closed.
#[inline]
pub(crate) fn forget(fd: i32) {
    if known(fd).is_some() {
        set(fd, 0);
    }
}

fn set(fd: i32, number: usize) {
    if let Some((block, at)) = place(fd) {
        let block = BLOCKS[block].get_or_init(|| Box::new([const { AtomicUsize::new(0) }; BLOCK]));
        block[at].store(number, Ordering::Release);
    }
}
