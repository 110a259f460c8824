//! What keeps an emulated access from happening.

/// An exception that the guest is to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0..=31.
    pub vector: u8,
    /// Error code, if the vector has one.
    pub error_code: Option<u32>,
    /// For a page fault: the linear address, for CR2.
    pub address: Option<u64>,
}

impl Exception {
    /// #DB.
    pub const DEBUG: Self = Self { vector: 1, error_code: None, address: None };

    /// #UD.
    pub const INVALID_OPCODE: Self = Self { vector: 6, error_code: None, address: None };

    const DOUBLE_FAULT: u8 = 8;
    const INVALID_TSS: u8 = 10;
    const NOT_PRESENT: u8 = 11;
    const STACK: u8 = 12;
    const GENERAL_PROTECTION: u8 = 13;
    const PAGE_FAULT: u8 = 14;

    const fn with_code(vector: u8, error_code: u32) -> Self {
        Self { vector, error_code: Some(error_code), address: None }
    }

    /// #GP.
    pub const fn general_protection(error_code: u32) -> Self {
        Self::with_code(Self::GENERAL_PROTECTION, error_code)
    }

    /// #SS.
    pub const fn stack(error_code: u32) -> Self {
        Self::with_code(Self::STACK, error_code)
    }

    /// #NP.
    pub const fn not_present(error_code: u32) -> Self {
        Self::with_code(Self::NOT_PRESENT, error_code)
    }

    /// #TS.
    pub const fn invalid_tss(error_code: u32) -> Self {
        Self::with_code(Self::INVALID_TSS, error_code)
    }

    /// #PF at `linear`.
    pub const fn page_fault(linear: u64, error_code: u32) -> Self {
        Self { vector: Self::PAGE_FAULT, error_code: Some(error_code), address: Some(linear) }
    }

    /// What becomes of this exception if it arose while the exception `first`, one that the processor
    /// found, was being delivered: see [`VectoringEvent::escalate`](super::VectoringEvent::escalate) for other events
    /// (SDM Vol. 3A, "Interrupt 8--Double Fault Exception (#DF)").
    pub const fn while_delivering(self, first: u8) -> Escalation {
        const fn contributory(vector: u8) -> bool {
            matches!(vector, 0 | 10..=13 | 21)
        }
        const fn page(vector: u8) -> bool {
            matches!(vector, 14 | 20)
        }
        let second = self.vector;
        if first == Self::DOUBLE_FAULT && (contributory(second) || page(second)) {
            return Escalation::Shutdown;
        }
        let doubled = (contributory(first) && contributory(second))
            || (page(first) && (contributory(second) || page(second)));
        Escalation::Deliver(if doubled { Self::with_code(Self::DOUBLE_FAULT, 0) } else { self })
    }
}

/// What follows from an exception during the delivery of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escalation {
    /// This one is delivered next.
    Deliver(Exception),
    /// Triple fault.
    Shutdown,
}

/// Why the guest's memory could not be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The guest's own doing.
    Exception(Exception),
    /// The guest's page tables, or the address itself, name a guest-physical address that is no
    /// memory of the guest.
    NotMemory(u64),
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}
