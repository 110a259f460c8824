//! How a run ended, for people and for programs.

use subpage_kvm::vm::Ending;

use crate::summary::EndingKind;

/// Who ended a guest that did not end itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Its time was up.
    TimedOut,
    /// This program was told to end.
    Interrupted,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunEnd {
    /// What it was.
    pub(super) kind: EndingKind,
    /// The guest's own status.
    pub(super) exit_code: Option<u8>,
    /// For people.
    pub(super) message: String,
    /// Number of the write that stopped it.
    pub(super) stopped_at: Option<u64>,
}

impl RunEnd {
    /// The end of a guest, which this program may have brought about.
    pub(super) fn of(ending: &Ending, cut: Option<Cut>) -> Self {
        let kind = match (ending, cut) {
            (Ending::PoweredOff, _) => EndingKind::PoweredOff,
            (Ending::Exited { .. }, _) => EndingKind::Exited,
            (Ending::Halted, _) => EndingKind::Halted,
            (Ending::Reset, _) => EndingKind::Reset,
            (Ending::Panicked { .. }, _) => EndingKind::Panicked,
            (Ending::Stopped { .. }, _) => EndingKind::Stopped,
            (Ending::TripleFault { .. }, _) => EndingKind::TripleFault,
            (Ending::Failed(_), _) => EndingKind::Failed,
            (Ending::Requested, Some(Cut::TimedOut)) => EndingKind::TimedOut,
            (Ending::Requested, Some(Cut::Interrupted)) => EndingKind::Interrupted,
            (Ending::Requested, None) => EndingKind::Requested,
        };
        let message = match kind {
            EndingKind::TimedOut => "time limit reached; the guest was ended".to_owned(),
            EndingKind::Interrupted => "the guest was ended by a signal to this program".to_owned(),
            _ => ending.to_string(),
        };
        let exit_code = if let Ending::Exited { code } = ending { Some(*code) } else { None };
        let stopped_at =
            if let Ending::Stopped { event } = ending { Some(event.write) } else { None };
        Self { kind, exit_code, message, stopped_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_asked_for_is_a_failure() {
        let failed = |ending: &Ending, cut| RunEnd::of(ending, cut).kind.is_failure();
        for ending in [
            Ending::PoweredOff,
            Ending::Exited { code: 7 },
            Ending::Halted,
            Ending::Reset,
            Ending::Requested,
        ] {
            assert!(!failed(&ending, None), "{ending}");
        }
        let console = Vec::new();
        assert!(failed(&Ending::Panicked { reason: "why".to_owned(), console }, None));
        assert!(failed(&Ending::TripleFault { rip: 1, in_traps: Vec::new() }, None));
        assert!(failed(&Ending::Requested, Some(Cut::TimedOut)));
        assert!(!failed(&Ending::Requested, Some(Cut::Interrupted)));
        // A guest that ended itself in the same moment did so.
        let end = RunEnd::of(&Ending::Exited { code: 7 }, Some(Cut::TimedOut));
        assert_eq!((end.kind, end.exit_code), (EndingKind::Exited, Some(7)));
    }
}
