//! The baseline: how the KVM series did it, in our own words (`docs/spp.md` 2.3 and 2.4).
//!
//! The permission of a page is a `u32` in an array that its memory slot owns, one entry for every
//! page of the guest. The SPPT is a copy, built when the processor misses it:
//!
//! - *enable* allocates the array of every slot, filled with ones;
//! - *get* looks up the slot of each page by a call of a function that is not inlined (KVM exports
//!   it), which tries the slot it found last and then searches binarily;
//! - *set* clears the valid bit of the L2 entry of each 2 MiB region but keeps the address, stores
//!   the maps page by page with a slot lookup each, and walks the EPT from its root for each page to
//!   mark the leaf;
//! - the next write into the region meets an *SPP miss*: the handler goes over all 512 pages of the
//!   region and, for each one that is restricted, walks the SPPT from its root, stores the leaf and
//!   asks for a flush of all processors.
//!
//! Wherever the series leaves a choice or did something dearer, the cheaper way is taken here: maps
//! are spread by masks and not bit by bit, leaves are marked and not dropped and faulted in again,
//! tables are found in an array and not in a hash, no lock is taken, nothing is copied from or to
//! user memory, and a flush is a request to the one processor there is ([`FlushRequests`]), by which the
//! engine's side is measured too.
//!
//! [`FlushRequests`]: crate::guest::FlushRequests

mod series;
mod slots;
mod tables;

pub(crate) use series::Dense;
