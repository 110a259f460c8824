//! Write protection for any 128 bytes of a virtual machine's memory.
//!
//! A [`Domain`](domain::Domain) is one machine's memory and who may write it. It owns the sub-page
//! permission table ([`sppt`]) and the EPT leaves that go with it ([`ept`]), takes
//! [`rules`] and access maps, answers [`exit`]s, and decides about every write. Memory for tables
//! comes from a backend ([`frames`]); what a change takes away is in force when its token is
//! completed ([`invalidate`]).
//!
//! ```
//! use subpage::access::AccessMap;
//! use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
//! use subpage::domain::Domain;
//! use subpage::frames::HeapFrames;
//! use subpage::slots::{AddressSpace, SlotFlags, SlotId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
//! domain.enable()?;
//! let pages = GfnRange::new(Gfn::new(0x10000), 16)?;
//! domain.add_slot(AddressSpace::Normal, SlotId(0), pages, SlotFlags::default())?;
//!
//! // Sub-page 3 of the first page may no longer be written.
//! let token = domain.set_access(pages.first(), &[AccessMap::from_bits(!(1 << 3))])?;
//! // On hardware: invalidate on every processor first. Here none walks the tables.
//! domain.finish(&token.without_processors());
//!
//! let write = ByteRange::new(Gpa::new(0x1000_0180), 8)?;
//! assert!(!domain.check_write(AddressSpace::Normal, write).permits());
//! # Ok(())
//! # }
//! ```
//!
//! # Where to find a fact of the manual
//!
//! Sections are those of the SDM, Vol. 3C, by title; numbers are facts of `docs/spp.md`.
//!
//! | fact | where |
//! |---|---|
//! | format of an EPT entry, bit 61 | [`ept::EptEntry`] |
//! | which leaf permits what ("Sub-Page Write Permissions for EPT") | [`ept::leaf_rights`] |
//! | format of SPPT entries, levels L4 to L2 (1.4) | [`sppt::SpptEntry`] |
//! | format of an SPP vector, reserved odd bits (1.4) | [`access::SppVector`] |
//! | which address bits index which level (1.3) | [`level::Level`] |
//! | which sub-page a byte lies in (1.3) | [`access::SubPage`] |
//! | a write needs the bit of every touched sub-page (1.7) | [`domain::Domain::check_write`] |
//! | qualification of exit 48 (1.6) and of exit 66 (1.5) | [`exit::EptQualification`], [`exit::SppQualification`] |
//! | exit reasons 48, 49, 62, 66 | [`exit::ExitReason`] |
//! | event delivery and NMI unblocking | [`exit::Delivery`] |
//! | what must be invalidated when (1.9) | [`invalidate`] |
//! | structure and errno values of the KVM series (2.2) | [`uapi`] |
//!
//! What a processor does with these tables, step by step, is written down in the crate
//! `subpage-model`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
pub mod address;
pub mod domain;
pub mod ept;
pub mod errno;
pub mod exit;
pub mod frames;
pub mod invalidate;
pub mod level;
pub mod rules;
pub mod slots;
pub mod sppt;
pub mod track;
pub mod uapi;
