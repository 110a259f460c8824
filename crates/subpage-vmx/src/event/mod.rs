//! Events: the writes that met a rule or an access map, as the guest and people hear of them.
//!
//! What an event is, `subpage-trap` defines. Here it becomes an
//! [`EventRecord`](crate::abi::EventRecord) in the bounded [`Ring`] that guests read, and one [`Line`]
//! on the serial port.

mod journal;
mod line;
mod named;
mod record;
mod ring;

pub use journal::Journal;
pub use line::Line;
pub use named::Named;
pub use record::{EventOutcome, record};
pub use ring::{CAPACITY, Ring};

/// Most bytes of a write that an event keeps: 64, the longest ordinary store.
pub const DATA_BYTES: usize = 64;

/// An event while it happens.
pub type Event<'a> = subpage_trap::Event<&'a [u8]>;

#[cfg(test)]
pub(crate) mod samples {
    //! Events for tests.

    use subpage::address::Gpa;
    use subpage::rules::{Action, RuleId};
    use subpage_trap::{Origin, Response, Verdict, When};

    use super::Event;

    /// A denied write with every field told.
    pub(crate) fn full() -> Event<'static> {
        Event {
            verdict: Verdict::Denied,
            response: Response::Fault,
            rule: Some(RuleId(3)),
            action: Action::Deny,
            origin: Origin {
                vcpu: 2,
                rip: Some(0x20_1234),
                rip_exact: true,
                cr3: Some(0x30_0000),
                cpl: Some(3),
            },
            when: When::Counter(0x1122_3344_5566),
            gpa: Gpa::new(0x80_01FC),
            gla: Some(0xFFFF_8000_0080_01FC),
            at: Gpa::new(0x80_0200),
            length: Some(8),
            bytes: &[1, 2, 3, 4, 5, 6, 7, 0xF8],
            instruction: [0x48, 0x89, 0x18].into_iter().collect(),
            during_delivery: true,
            qualification: Some(0x5AA),
            in_software: false,
        }
    }

    /// A write that was let through, of which little is known.
    pub(crate) fn sparse() -> Event<'static> {
        Event {
            verdict: Verdict::Logged,
            response: Response::Skip,
            rule: Some(RuleId(7)),
            action: Action::Log,
            origin: Origin { vcpu: 0, rip: None, rip_exact: true, cr3: None, cpl: None },
            when: When::Unknown,
            gpa: Gpa::new(0x1000),
            gla: None,
            at: Gpa::new(0x1000),
            length: None,
            bytes: &[],
            instruction: arrayvec::ArrayVec::new(),
            during_delivery: false,
            qualification: None,
            in_software: true,
        }
    }
}
