//! Events on their way from the processors to whoever listens.
//!
//! What an event is, `subpage-trap` defines; here it becomes a `Record`.

mod arming;
mod broadcast;
mod functions;
mod witness;

pub use arming::{ArmedBy, Arming};
pub use broadcast::{Broadcast, Received, Subscription};
pub use functions::{Functions, Lines};
pub use witness::{Scene, Testimony, Witness};

#[cfg(test)]
pub(crate) mod tests {
    use subpage::address::{ByteRange, Gpa};
    use subpage::rules::{Action, RuleId};
    use subpage_trap::{Event, Origin, Record, Verdict};

    /// A denied write, number `seq`.
    pub(crate) fn record(seq: u64) -> Record {
        let origin = Origin {
            vcpu: 1,
            rip: Some(0x40_1234),
            rip_exact: true,
            cr3: Some(0x1000),
            cpl: Some(3),
        };
        let written = ByteRange::new(Gpa::new(0x10_e17d), 4).expect("four bytes");
        let event = Event {
            rule: Some(RuleId(7)),
            origin,
            gla: Some(0xffff_8000_0010_e17d),
            at: Gpa::new(0x10_e180),
            bytes: vec![0, 0xab, 1, 0xff],
            instruction: [0x89, 0x07].into_iter().collect(),
            ..Event::bare(Verdict::Denied, Action::Deny, written)
        };
        Record {
            rule_name: Some("helper path".to_owned()),
            text: Some("mov [rdi],eax".to_owned()),
            ..Record::new(seq, 145, event)
        }
    }
}
