//! A software model of the memory side of a processor with EPT and sub-page write permissions.
//!
//! It is the written form of the hardware facts that the engine rests on, and the oracle that the
//! engine is tested against: it shares the layouts of addresses, entries and qualifications with
//! the engine and nothing else. A [`Vcpu`] performs [`Access`]es against tables that someone else
//! owns; each ends in a [`Translation`] or in a [`VmExit`].
//!
//! # Where to find a fact
//!
//! Section titles are those of the SDM, Vol. 3C, chapter "VMX Support for Address Translation",
//! unless another is named; numbers are sections of `docs/spp.md`.
//!
//! | fact | source | where |
//! |---|---|---|
//! | which tables a VM entry accepts | "VM-Execution Control Fields"; 1.1 | [`Roots::check`] |
//! | walk of the EPT, presence, page sizes | "EPT Translation Mechanism" | [`ept_walk::walk`] |
//! | illegal entries, reserved bits, memory types | "EPT Misconfigurations" | [`ept_walk::walk`] |
//! | presence before form before rights | "Prioritization of EPT Misconfigurations and EPT Violations" | [`ept_walk::walk`] |
//! | which right an access needs; page walks; PDPTE loads | "EPT Violations"; 1.2 | [`decision::Demand`] |
//! | which writes the SPPT decides | "Sub-Page Write Permissions for EPT"; 1.2 | [`decision::is_eligible`] |
//! | walk of the SPPT, miss, misconfiguration | "Sub-Page Permission Table"; 1.3 to 1.5 | [`sppt_walk::walk`] |
//! | every touched sub-page must permit | "Determining an Access's Sub-Page Write Permission"; 1.7 | [`decision::sub_pages_permit`] |
//! | all of it in order | 8.1 | [`decision::decide`] |
//! | accessed and dirty flags | "Accessed and Dirty Flags for EPT"; 1.8 | [`Vcpu::access`] |
//! | log of modified pages | "Page-Modification Logging"; 1.8 | [`PageModificationLog`] |
//! | qualifications of exits 48 and 66 | "Exit Qualification for EPT Violations", "SPP-Induced VM Exits"; 1.5, 1.6 | [`VmExit`] |
//! | what is remembered, what forgets it | "Caching Translation Information", "Operations that Invalidate Cached Mappings"; 1.9 | [`Staleness`] |
//! | two pages are checked before a byte moves | 1.7 | [`Vcpu::write`] |
//! | how Bochs differs | 1.7, 1.10 | [`Deviations`] |
//!
//! # Left out
//!
//! Five-level EPT, memory types beyond their legality, #VE, shadow stacks, guest-paging
//! verification, APIC virtualization, transactions and enclaves; NMI unblocking (bit 12 of a
//! qualification), which belongs to the instruction, not to the access. A single access has at most
//! [`MAX_ACCESS_BYTES`]; wider stores are several accesses ([`Vcpu::write_parts`]).
//!
//! # Memory for flags
//!
//! Accessed and dirty flags are set by compare-and-exchange in entries that are present. With
//! [`HeapFrames`](subpage::frames::HeapFrames), which stores a frame as a fill value and a few
//! others, that needs room only where many entries of a frame share a present fill value; a caller that
//! fills an EPT table so must call `make_room` first.
#![forbid(unsafe_code)]

mod access;
mod cache;
pub mod decision;
mod deviations;
pub mod ept_walk;
mod exit;
mod features;
mod machine;
mod memory;
#[cfg(feature = "mutations")]
mod mutation;
mod pml;
mod rights;
pub mod sppt_walk;
mod transfer;
mod vcpu;

pub use access::{Access, AccessError, AccessKind, GuestRights, MAX_ACCESS_BYTES, Piece};
pub use cache::Staleness;
pub use deviations::Deviations;
pub use exit::VmExit;
pub use features::{EntryError, Features, Roots};
pub use machine::{AccessOutcome, Machine, Setup, Traps};
pub use memory::{GuestMemory, SparseMemory};
#[cfg(feature = "mutations")]
#[doc(hidden)]
pub use mutation::Mutation;
pub use pml::{PML_ENTRIES, PageModificationLog};
pub use rights::Rights;
pub use vcpu::{Translation, Vcpu};
