//! VM exits as the processor reports them.

use subpage::address::Gpa;
use subpage::exit::{EptQualification, ExitReason, SppQualification};

use crate::access::{Access, AccessKind, Piece};
use crate::deviations::Deviations;
use crate::features::Features;
use crate::rights::Rights;

/// What a VM exit leaves in the exit-information fields.
///
/// The access that caused it has changed no byte of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmExit {
    /// Basic exit reason: 48, 49, 62 or 66.
    pub reason: ExitReason,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address: the first byte of the access in the page that caused the exit.
    ///
    /// The architecture leaves the field as it was for reason 62; the model gives the address of
    /// the access there too.
    pub gpa: Gpa,
    /// Guest-linear address, for reasons 48 and 66 of an access that has one.
    pub gla: Option<u64>,
}

impl VmExit {
    /// Reason 48. SDM Vol. 3C, "EPT Violations" and "Exit Qualification for EPT Violations";
    /// `docs/spp.md` 1.6.
    ///
    /// `rights` is the AND over the entries of the walk; an absent entry makes it empty. A write
    /// that the SPPT denies comes out the same as any write to a read-only page.
    pub(crate) fn ept_violation(
        access: &Access,
        piece: Piece,
        rights: Rights,
        accessed_dirty: bool,
        features: &Features,
        deviations: Deviations,
    ) -> Self {
        let kind = access.kind();
        // With EPTP bit 6, an access to a guest paging-structure entry is a write, and its violation
        // sets bits 0 and 1 together.
        let (read, write) = if kind.is_page_walk() && accessed_dirty {
            (!deviations.walk_reports_write_only, true)
        } else {
            (kind.is_read(), kind.is_write())
        };
        let gla = access.linear_at(piece);
        let final_access = gla.is_some() && !kind.is_page_walk();
        let advanced = final_access && features.advanced_information;
        let guest = access.guest_rights();
        let qualification = EptQualification::new()
            .with_read(read)
            .with_write(write)
            .with_fetch(kind == AccessKind::Fetch)
            .with_readable(rights.read())
            .with_writable(rights.write())
            .with_executable(rights.execute())
            .with_user_executable(features.mode_based_execute && rights.user_execute())
            .with_linear_valid(gla.is_some())
            .with_final_access(final_access)
            .with_user_linear(advanced && guest.user)
            .with_linear_writable(advanced && guest.writable)
            .with_linear_execute_disable(advanced && guest.execute_disable);
        Self {
            reason: ExitReason::EPT_VIOLATION,
            qualification: qualification.into(),
            gpa: piece.gpa(),
            gla,
        }
    }

    /// Reason 49. SDM Vol. 3C, "EPT Misconfigurations": the qualification is 0 and the
    /// guest-linear address is not reported.
    pub(crate) fn ept_misconfiguration(piece: Piece) -> Self {
        Self {
            reason: ExitReason::EPT_MISCONFIGURATION,
            qualification: 0,
            gpa: piece.gpa(),
            gla: None,
        }
    }

    /// Reason 62. SDM Vol. 3C, "Page-Modification Logging": the log has no free entry.
    pub(crate) fn log_full(piece: Piece) -> Self {
        Self {
            reason: ExitReason::PAGE_MODIFICATION_LOG_FULL,
            qualification: 0,
            gpa: piece.gpa(),
            gla: None,
        }
    }

    /// Reason 66. SDM Vol. 3C, "SPP-Induced VM Exits"; `docs/spp.md` 1.5.
    pub(crate) fn spp_event(access: &Access, piece: Piece, miss: bool) -> Self {
        Self {
            reason: ExitReason::SPP_EVENT,
            qualification: SppQualification::new().with_miss(miss).into(),
            gpa: piece.gpa(),
            gla: access.linear_at(piece),
        }
    }
}
