//! Where Bochs differs from the architecture, one switch per difference.

/// Differences from the architecture that the model can take over, to predict an emulator.
///
/// The default has none of them: the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Deviations {
    /// Of a write's bytes in a page only the first one's sub-page is checked.
    ///
    /// Bochs 2.6.10 to 3.0 (`docs/spp.md` 1.7). The architecture checks every touched sub-page.
    pub first_byte_only: bool,
    /// With accessed and dirty flags for EPT off, the processor's own update of a guest
    /// paging-structure entry does not ask for the write right.
    ///
    /// Bochs 3.0: guest accessed and dirty bits go straight to a page with W = 0. The architecture
    /// takes such an update as a data write (SDM Vol. 3C, "EPT Violations").
    pub guest_ad_writes_bypass_ept: bool,
    /// A store of several parts writes each part before it checks the next.
    ///
    /// Bochs 3.0: FXSAVE leaves its first 128 bytes behind when the third is denied. The model
    /// checks all parts of [`Vcpu::write_parts`](crate::Vcpu::write_parts) first.
    pub parts_not_atomic: bool,
    /// An EPT violation of a guest page walk with accessed and dirty flags for EPT reports a write
    /// only (bit 1). The architecture reports a read and a write (bits 0 and 1).
    ///
    /// Bochs 3.0.
    pub walk_reports_write_only: bool,
    /// An access across a page end is done with its first page, flags included, before it looks at
    /// the second: if that one exits, the accessed and dirty flags for EPT of the first are set,
    /// though no byte was written.
    ///
    /// Bochs 3.0. The model sets no flag before both pages are checked; the architecture ties the
    /// dirty flag to a write (SDM Vol. 3C, "Accessed and Dirty Flags for EPT").
    pub pages_one_by_one: bool,
    /// Bit 12 of a leaf that maps 2 MiB or 1 GiB is ignored, as if it were the PAT bit of an ordinary
    /// paging-structure entry. The architecture reserves it: such a leaf is an EPT misconfiguration
    /// (SDM Vol. 3C, "EPT Translation Mechanism", formats of the entries that map large pages).
    ///
    /// Bochs 3.0.
    pub large_leaf_bit_12_ignored: bool,
    /// What is wrong on purpose.
    #[cfg(feature = "mutations")]
    #[doc(hidden)]
    pub mutation: Option<crate::Mutation>,
}

impl Deviations {
    /// The architecture.
    pub const NONE: Self = Self {
        first_byte_only: false,
        guest_ad_writes_bypass_ept: false,
        parts_not_atomic: false,
        walk_reports_write_only: false,
        pages_one_by_one: false,
        large_leaf_bit_12_ignored: false,
        #[cfg(feature = "mutations")]
        mutation: None,
    };

    /// Bochs 2.8 to 3.0. Its cache is [`Staleness::UntilExit`](crate::Staleness::UntilExit).
    pub const BOCHS: Self = Self {
        first_byte_only: true,
        guest_ad_writes_bypass_ept: true,
        parts_not_atomic: true,
        walk_reports_write_only: true,
        pages_one_by_one: true,
        large_leaf_bit_12_ignored: true,
        #[cfg(feature = "mutations")]
        mutation: None,
    };
}
