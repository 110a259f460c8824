//! What a step has changed in the copies of pages that trap: decided, and done on the guest's memory.

use std::sync::Arc;

use subpage::address::{ByteRange, Gfn, Gpa};
use subpage::domain::{Decision, WriteParts};
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_emulate::{Access, translate};
use subpage_trap::Record;

use super::copies::Copies;
use super::plan::Plan;
use crate::guard::{Guard, SPACE};
use crate::memory::Ram;
use crate::memory::Twin;
use crate::store::{Stepped, StoreContext, report_step};
use crate::vcpu::Interrupted;

/// Accessed and dirty.
const MARKS: u64 = 0x60;

/// Present.
const PRESENT: u64 = 1;

/// Eight bytes of a copy that are not as they were.
#[derive(Debug, Clone, Copy)]
struct Changed {
    gfn: Gfn,
    word: usize,
    before: u64,
    now: u64,
}

impl Changed {
    fn gpa(&self) -> Gpa {
        Gpa::new(self.gfn.gpa().as_u64() + self.word as u64 * 8)
    }
}

/// A step that has been made, and all that it may have changed.
pub(super) struct Made<'a> {
    pub(super) context: StoreContext<'a, Ram>,
    pub(super) guard: &'a mut Guard,
    pub(super) copies: &'a mut Copies,
    pub(super) vcpu: u32,
    /// Where the instruction was.
    pub(super) at: &'a Interrupted,
    pub(super) plan: &'a Plan,
}

impl<'a> Made<'a> {
    fn twin(&self) -> &'a Twin {
        self.context.ram.view().twin().expect("a step has been made in it")
    }

    /// Decides about what the step has changed, as about one write, and does it or takes it back. The
    /// event, if a rule stops the guest for it.
    pub(super) fn settle(mut self) -> Result<Option<Arc<Record>>, &'static str> {
        let twin = self.twin();
        let mut changed = Vec::new();
        self.copies.compare(twin, |gfn, word, before, now| {
            changed.push(Changed { gfn, word, before, now });
        });
        if changed.is_empty() {
            return Ok(None);
        }
        changed.sort_unstable_by_key(Changed::gpa);
        let (marks, stored): (Vec<Changed>, Vec<Changed>) =
            changed.into_iter().partition(|change| self.is_walk(change));
        for mark in &marks {
            self.guard.domain_mut().note_marked(SPACE, mark.gpa()).map_err(|_| NO_MEMORY)?;
            // A walk's flags go to the entry that it has read.
            let _ = self.context.ram.set_bits(mark.gpa(), mark.before, mark.now & !mark.before);
            self.copies.note(mark.gfn, mark.word, mark.now);
            self.open(mark.gpa());
        }
        let event = self.store(&stored)?;
        // Pages that need not trap any more have no copy.
        self.copies.retain(&twin.copied());
        Ok(event)
    }

    /// Whether a change is what a walk of the page tables does to an entry: it sets flags of one that is
    /// present, which the instruction does not write.
    fn is_walk(&self, change: &Changed) -> bool {
        let (ram, at) = (self.context.ram, self.at);
        let set = change.before ^ change.now;
        let is_entry = set & !MARKS == 0 && change.now & set == set && change.before & PRESENT != 0;
        let written = || {
            self.plan.writes.iter().any(|&(linear, bytes)| {
                let access = Access::write_by(&at.state);
                let walk = translate(ram, self.context.paging, &at.state, linear, access);
                walk.is_ok_and(|walk| {
                    let (start, first) = (walk.gpa.as_u64(), change.gpa().as_u64());
                    start < first + 8 && first < start.saturating_add(bytes)
                })
            })
        };
        is_entry && !written()
    }

    /// Opens the page of what was written, if nothing in it has to trap any more.
    fn open(&mut self, at: Gpa) {
        let range = ByteRange::new(at, 1).expect("a byte of memory");
        // By mprotect pages open at once: there is nothing to settle later.
        let _ = self.guard.after_write(self.context.ram, &WriteParts::one(range));
    }

    /// Decides about the stored bytes together, and does them or takes them back.
    fn store(&mut self, stored: &[Changed]) -> Result<Option<Arc<Record>>, &'static str> {
        let (context, twin) = (self.context, self.twin());
        let runs = runs(stored);
        let each: Vec<Decision> =
            runs.iter().map(|(range, _)| self.guard.domain().check_write(SPACE, *range)).collect();
        let decided = each.iter().copied().fold(Decision::Allowed, Decision::and);
        let mut stopped = None;
        for ((range, bytes), alone) in runs.iter().zip(each) {
            let parts = WriteParts::one(*range);
            // Of a denied store, the bytes that may be written are not written either.
            if !decided.permits() && alone.permits() {
                continue;
            }
            self.guard.count_trapped(&parts);
            context.metrics.checks(1);
            let committed =
                self.guard.domain_mut().authorize_write(SPACE, *range).map_err(|_| NO_MEMORY)?;
            // An "allow once" that this store has just spent counts for all of it.
            let decision = if alone.permits() { alone } else { committed };
            if decision.permits() {
                context
                    .ram
                    .with_window(&parts, |window| window.store(bytes, 1))
                    .expect("what was copied is memory");
            }
            let step = Stepped {
                vcpu: self.vcpu,
                state: &self.at.state,
                range: *range,
                bytes,
                code: self.plan.code,
            };
            let event = report_step(context, self.guard, decision, &step);
            if let Decision::Denied { stop: true, .. } = decision {
                stopped = event;
            }
            if decision.permits() {
                self.guard.note_write(self.vcpu, &parts);
                self.open(range.first());
            }
        }
        for change in stored {
            if decided.permits() {
                self.copies.note(change.gfn, change.word, change.now);
            } else {
                twin.set(change.gfn, change.word, change.before);
            }
        }
        Ok(stopped)
    }
}

const NO_MEMORY: &str = "the engine has no memory left for a record of a write";

/// The runs of changed bytes, ascending.
fn runs(stored: &[Changed]) -> Vec<(ByteRange, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for change in stored {
        let bytes = change.before.to_le_bytes().into_iter().zip(change.now.to_le_bytes());
        for (offset, (before, now)) in (0..).zip(bytes) {
            if before == now {
                continue;
            }
            let at = change.gpa().as_u64() + offset;
            match runs.last_mut() {
                Some((first, bytes)) if *first + bytes.len() as u64 == at => bytes.push(now),
                _ => runs.push((at, vec![now])),
            }
        }
    }
    let range = |(first, bytes): (u64, Vec<u8>)| {
        let range = ByteRange::new(Gpa::new(first), bytes.len() as u64);
        (range.expect("bytes of memory"), bytes)
    };
    runs.into_iter().map(range).collect()
}
