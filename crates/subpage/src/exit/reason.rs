//! Basic exit reasons, open to numbers this code does not know.

use core::fmt;

/// Bits 15:0 of the VM-exit reason field (SDM Vol. 3D, appendix "VMX Basic Exit Reasons").
///
/// A processor may report any number, so this is a number with names, not a closed `enum`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitReason(pub u16);

impl ExitReason {
    /// Reason 48: an access was not allowed by EPT, or a write not by the SPPT.
    pub const EPT_VIOLATION: Self = Self(48);
    /// Reason 49: an EPT entry was not of a legal form.
    pub const EPT_MISCONFIGURATION: Self = Self(49);
    /// Reason 62: the page-modification log is full.
    pub const PAGE_MODIFICATION_LOG_FULL: Self = Self(62);
    /// Reason 66: SPP miss or SPP misconfiguration.
    pub const SPP_EVENT: Self = Self(66);

    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EPT_VIOLATION => "EPT violation",
            Self::EPT_MISCONFIGURATION => "EPT misconfiguration",
            Self::PAGE_MODIFICATION_LOG_FULL => "page-modification log full",
            Self::SPP_EVENT => "SPP-related event",
            _ => return None,
        })
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "exit reason {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn known_reasons_have_names() {
        for (reason, text) in [
            (ExitReason::EPT_VIOLATION, "EPT violation (48)"),
            (ExitReason::EPT_MISCONFIGURATION, "EPT misconfiguration (49)"),
            (ExitReason::PAGE_MODIFICATION_LOG_FULL, "page-modification log full (62)"),
            (ExitReason::SPP_EVENT, "SPP-related event (66)"),
            (ExitReason(7), "exit reason 7"),
        ] {
            assert_eq!(format!("{reason:?}"), text);
        }
    }
}
