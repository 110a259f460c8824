//! Event delivery and NMI blocking around an exit (defects D35, D38).

use bitfield_struct::bitfield;

/// The IDT-vectoring information field.
///
/// SDM Vol. 3C, "Information for VM Exits That Occur During Event Delivery".
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VectoringInfo {
    /// Bits 7:0: vector of the event.
    pub vector: u8,
    /// Bits 10:8: kind of event (0 external interrupt, 2 NMI, 3 hardware exception, 4 software
    /// interrupt, 6 software exception).
    #[bits(3)]
    pub kind: u8,
    /// Bit 11: an error code belongs to the event.
    pub error_code: bool,
    /// Bits 30:12: not defined here, kept as read.
    #[bits(19)]
    pub rest: u32,
    /// Bit 31: the exit happened while an event was being delivered.
    pub valid: bool,
}

/// What was in progress when the exit happened, as the backend reads it from its control structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivery {
    /// IDT-vectoring information field.
    pub vectoring: VectoringInfo,
    /// IDT-vectoring error code, meaningful if `vectoring` says so.
    pub error_code: u32,
    /// Whether the "virtual NMIs" control is 1.
    pub virtual_nmis: bool,
}

/// What the backend does before the next entry, whatever the answer to the exit was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryFixup {
    /// Inject this event again: the exit interrupted its delivery.
    pub reinject: Option<(VectoringInfo, u32)>,
    /// Set "blocking by NMI" in the guest's interruptibility state: an IRET had already cleared it
    /// when the exit undid that IRET.
    pub block_nmi: bool,
}

impl Delivery {
    /// Works out the fix-up; `nmi_unblocked` is bit 12 of either qualification.
    ///
    /// Bit 12 is defined only if no event was being delivered and virtual NMIs are in use (SDM
    /// Vol. 3C, "Exit Qualification for EPT Violations"); the series used it without the second
    /// condition (D38) and had no re-injection for exit 66 (D35).
    pub const fn fixup(self, nmi_unblocked: bool) -> DeliveryFixup {
        let vectoring = self.vectoring.valid();
        DeliveryFixup {
            reinject: if vectoring { Some((self.vectoring, self.error_code)) } else { None },
            block_nmi: nmi_unblocked && self.virtual_nmis && !vectoring,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocking_is_restored_where_bit_12_is_defined() {
        for bits in 0..8 {
            let [unblocked, virtual_nmis, valid] = [1, 2, 4].map(|bit| bits & bit != 0);
            let vectoring = VectoringInfo::new().with_vector(14).with_kind(3).with_valid(valid);
            let found = Delivery { vectoring, error_code: 6, virtual_nmis }.fixup(unblocked);
            let reinject = valid.then_some((vectoring, 6));
            assert_eq!(found, DeliveryFixup { reinject, block_nmi: bits == 3 });
        }
    }
}
