//! Writes of the VMM's devices: every byte for itself.
//!
//! A device that writes a buffer of which some bytes are guarded goes on: those keep what they were,
//! the others are written, and there is one event for each run that a rule denies.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Decision, WriteParts};
use subpage_trap::{Event, Met, Origin, Response, Verdict};

use super::guard::{Core, SPACE};
use super::report::Publisher;

/// Who writes, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer {
    /// The processor on whose thread the VMM writes; 0 on other threads.
    pub(crate) vcpu: u32,
}

/// What became of a device's write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// A rule stops the guest.
    pub(crate) stop: bool,
}

impl Core {
    /// Writes those of some bytes, by place, that may be written.
    pub(crate) fn write(
        &mut self,
        publisher: &Publisher,
        writer: Writer,
        place: u64,
        bytes: &[u8],
    ) -> Judged {
        let mut judged = Judged::default();
        self.writes += 1;
        let mut rest = bytes;
        let mut at = place;
        while let Some(range) = range(at, rest.len()) {
            let (count, denied) = match self.permitted_from(range) {
                0 => (self.denied_from(range), true),
                count => (count, false),
            };
            let (now, later) = rest.split_at(count);
            let run = ByteRange::new(range.first(), count as u64).expect("a part of a range");
            let parts = WriteParts::one(run);
            // Without memory for its records nothing is written.
            let decided = self.domain.authorize_write_parts(SPACE, &parts);
            if let Ok(decision) = decided {
                if !denied
                    && decision.permits()
                    && let Some(raw) = self.memory.alias(at, count as u64)
                {
                    raw.write(now);
                }
                if let Some(met) = Met::of(decision) {
                    judged.stop |= matches!(met, Met::Forbidden { stop: true, .. });
                    self.tell(publisher, writer, met, run, now);
                }
            }
            at += count as u64;
            rest = later;
        }
        judged
    }

    /// How many bytes of a range, from its first on, may be written together.
    fn permitted_from(&self, range: ByteRange) -> usize {
        let mut count = range.bytes();
        // A decision names the strongest rule, which need not be the first in the range.
        while let Ok(run) = ByteRange::new(range.first(), count)
            && let Decision::Denied { at, .. } = self.domain.check_write(SPACE, run)
        {
            count = at.as_u64() - range.first().as_u64();
        }
        usize::try_from(count).expect("a buffer's length")
    }

    /// How many bytes of a range, from its first on, are denied each by itself.
    fn denied_from(&self, range: ByteRange) -> usize {
        let is_denied = |at: Gpa| {
            let byte = ByteRange::new(at, 1).expect("a byte of a range");
            matches!(self.domain.check_write(SPACE, byte), Decision::Denied { .. })
        };
        let bytes = usize::try_from(range.bytes()).expect("a buffer's length");
        (1..bytes)
            .find(|skip| !is_denied(Gpa::new(range.first().as_u64() + *skip as u64)))
            .unwrap_or(bytes)
    }

    fn tell(
        &mut self,
        publisher: &Publisher,
        writer: Writer,
        met: Met,
        run: ByteRange,
        bytes: &[u8],
    ) {
        let (rule, at, action, verdict) = match met {
            Met::Watched { rule, at } => (Some(rule), at, None, Verdict::Logged),
            Met::Forbidden { rule, at, stop } => {
                (rule, at, None, if stop { Verdict::Stopped } else { Verdict::Denied })
            }
        };
        let action = action
            .or_else(|| Some(self.domain.rules().get(rule?)?.rule.action))
            .unwrap_or(subpage::rules::Action::Deny);
        let event = Event {
            verdict,
            response: Response::Skip,
            rule,
            at,
            bytes,
            when: publisher.when(),
            origin: Origin { vcpu: writer.vcpu, rip: None, rip_exact: true, cr3: None, cpl: None },
            in_software: true,
            ..Event::bare(verdict, action, run)
        };
        publisher.record(self, None, &event);
    }
}

fn range(at: u64, length: usize) -> Option<ByteRange> {
    ByteRange::new(Gpa::try_new(at).ok()?, length as u64).ok()
}
