//! May this access take place? The rules as pure functions, apart from tables and caches.
//!
//! | question | answered by |
//! |---|---|
//! | Which right does the access need? | [`Demand::of`] |
//! | Do the EPT's rights give it? | [`Demand::is_met_by`] |
//! | If not, does the SPPT decide? | [`is_eligible`] |
//! | What does the SPPT say? | [`sub_pages_permit`] |
//! | All of it in order | [`decide`] |

use subpage::access::AccessMap;
use subpage::level::PageSize;

use crate::access::{Access, AccessKind, Piece};
use crate::deviations::Deviations;
use crate::features::{Features, Roots};
use crate::rights::Rights;
use crate::sppt_walk::SpptOutcome;

/// The right that an access needs in every EPT entry of its walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Bit 0.
    Read,
    /// Bit 1; the access also sets the dirty flag.
    Write,
    /// Bit 2.
    Execute,
    /// Bit 10.
    UserExecute,
}

impl Demand {
    /// SDM Vol. 3C, "EPT Violations" and "Accessed and Dirty Flags for EPT"; `docs/spp.md` 1.2.
    ///
    /// - Accesses to guest paging-structure entries are writes if EPTP bit 6 is 1, whatever the
    ///   walk does there; otherwise reading one is a read, and setting its accessed or dirty flag
    ///   is a write.
    /// - Loading a PDPTE register is a read in either case.
    /// - A read-modify-write needs bit 1; a legal entry with bit 1 has bit 0 too.
    #[inline]
    // In the order of the rules above, not by answer.
    #[allow(clippy::match_same_arms)]
    pub const fn of(
        access: &Access,
        ept_accessed_dirty: bool,
        features: &Features,
        deviations: Deviations,
    ) -> Self {
        match access.kind() {
            AccessKind::Read | AccessKind::PdpteLoad => Self::Read,
            AccessKind::Write | AccessKind::ReadModifyWrite => Self::Write,
            AccessKind::Fetch if features.mode_based_execute && access.guest_rights().user => {
                Self::UserExecute
            }
            AccessKind::Fetch => Self::Execute,
            AccessKind::WalkRead | AccessKind::WalkUpdate if ept_accessed_dirty => Self::Write,
            AccessKind::WalkRead => Self::Read,
            AccessKind::WalkUpdate if deviations.guest_ad_writes_bypass_ept => Self::Read,
            AccessKind::WalkUpdate => Self::Write,
        }
    }

    /// Whether accumulated EPT rights allow the access by themselves.
    #[inline]
    pub const fn is_met_by(self, rights: Rights) -> bool {
        match self {
            Self::Read => rights.read(),
            Self::Write => rights.write(),
            Self::Execute => rights.execute(),
            Self::UserExecute => rights.user_execute(),
        }
    }
}

/// What the EPT says about a page, as a walk or a cached translation gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRights {
    /// AND of the rights of every entry of the walk.
    pub rights: Rights,
    /// Size of the page that the leaf maps.
    pub size: PageSize,
    /// Bit 61 of the leaf.
    pub sub_page_write: bool,
}

/// Whether the SPPT decides an access that EPT rights do not allow.
///
/// SDM Vol. 3C, "Sub-Page Write Permissions for EPT" (which writes are eligible);
/// `docs/spp.md` 1.2, conditions 1 to 5:
/// 1. the control is set;
/// 2. the access is a write;
/// 3. the leaf maps 4 KiB and has bit 61 set (in larger leaves the bit is ignored);
/// 4. the accumulated rights have R = 1 and W = 0;
/// 5. there is a linear address, and the access is not one of the guest's page walk.
pub const fn is_eligible(roots: &Roots, access: &Access, page: PageRights) -> bool {
    let control = roots.sppt.is_some();
    let write = matches!(access.kind(), AccessKind::Write | AccessKind::ReadModifyWrite);
    let leaf = matches!(page.size, PageSize::Size4K) && page.sub_page_write;
    let rights = page.rights.read() && !page.rights.write();
    control && write && leaf && rights && access.has_linear()
}

/// Whether a page's vector lets every byte of `piece` be written.
///
/// SDM Vol. 3C, "Determining an Access's Sub-Page Write Permission"; `docs/spp.md` 1.7: each
/// touched sub-page must be writable. With [`first_byte_only`](Deviations::first_byte_only) only the
/// first one is asked.
#[inline]
pub fn sub_pages_permit(vector: AccessMap, piece: Piece, deviations: Deviations) -> bool {
    #[cfg(feature = "mutations")]
    if let Some(wrong) = deviations.mutation.and_then(|mutation| mutation.permits(vector, piece)) {
        return wrong;
    }
    let offset = u32::from(piece.gpa().page_offset());
    // Bits 11:7 of the address.
    let first = offset / 128;
    let last = if deviations.first_byte_only {
        first
    } else {
        (offset + u32::from(piece.length()) - 1) / 128
    };
    let touched = u32::MAX << first & u32::MAX >> (31 - last);
    touched & !vector.bits() == 0
}

/// What becomes of the bytes of an access in one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The access may continue.
    Allowed,
    /// Exit 48: EPT rights forbid it, or the SPPT does.
    EptViolation,
    /// Exit 66, qualification bit 11 = 1: an upper SPPT entry is not valid.
    SppMiss,
    /// Exit 66, qualification bit 11 = 0: an SPPT entry has a reserved bit set.
    SppMisconfiguration,
}

/// Decides the bytes of `access` in one page that translates without a misconfiguration.
///
/// `sppt` is asked only if the access is eligible, so a page that EPT rights allow never touches
/// the SPPT, reserved bits in it included.
pub fn decide(
    roots: &Roots,
    access: &Access,
    piece: Piece,
    page: PageRights,
    features: &Features,
    deviations: Deviations,
    sppt: impl FnOnce() -> SpptOutcome,
) -> Decision {
    let demand = Demand::of(access, roots.ept_accessed_dirty, features, deviations);
    if demand.is_met_by(page.rights) {
        return Decision::Allowed;
    }
    let eligible = is_eligible(roots, access, page);
    #[cfg(feature = "mutations")]
    let eligible = deviations
        .mutation
        .map_or(eligible, |mutation| mutation.is_eligible(eligible, roots, access, page));
    if !eligible {
        return Decision::EptViolation;
    }
    let outcome = sppt();
    #[cfg(feature = "mutations")]
    let outcome = deviations.mutation.map_or(outcome, |mutation| mutation.outcome(outcome));
    match outcome {
        SpptOutcome::Vector(vector) if sub_pages_permit(vector, piece, deviations) => {
            Decision::Allowed
        }
        SpptOutcome::Vector(_) => Decision::EptViolation,
        SpptOutcome::Miss => Decision::SppMiss,
        SpptOutcome::Misconfiguration => Decision::SppMisconfiguration,
    }
}
