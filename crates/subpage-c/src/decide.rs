//! The decision about a write that software does for the guest.

use core::mem::MaybeUninit;
use core::time::Duration;

use subpage::domain::{Decision as Decided, WriteParts};
use subpage_trap::{Account, Met, Origin as Writer, When};

use crate::buffers;
use crate::domain::{Domain, space_of};
use crate::events::SUBPAGE_EVENT_BYTES;
use crate::rules::bytes_at;
use crate::status::{done, given};

/// Every byte may be written.
pub const SUBPAGE_ALLOWED: u32 = 0;
/// Every byte may be written, and a rule wants to know.
pub const SUBPAGE_REPORTED: u32 = 1;
/// No byte may be written.
pub const SUBPAGE_DENIED: u32 = 2;
/// The slot is read-only for the guest; permissions do not apply.
pub const SUBPAGE_NOT_ELIGIBLE: u32 = 3;
/// A byte belongs to no slot.
pub const SUBPAGE_NOT_MAPPED: u32 = 4;

/// `rule` and, in an origin, `rip` and the others: not known.
pub const SUBPAGE_UNKNOWN: u64 = u64::MAX;

/// What a write meets.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Decision {
    /// SUBPAGE_ALLOWED and so on.
    pub kind: u32,
    /// The rule wants the guest stopped.
    pub stop: bool,
    /// Number of the rule that decides; SUBPAGE_UNKNOWN if none does, or an access map.
    pub rule: u64,
    /// The first byte that decides; that of the write if it is allowed.
    pub at: u64,
}

/// Who wrote, as far as the caller knows.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Origin {
    /// Number of the virtual processor.
    pub vcpu: u32,
    /// Privilege level, 0 to 3; above: not known.
    pub cpl: u32,
    /// Address of the instruction, or SUBPAGE_UNKNOWN.
    pub rip: u64,
    /// The guest's page-table base, or SUBPAGE_UNKNOWN.
    pub cr3: u64,
    /// Linear address of the write, or SUBPAGE_UNKNOWN.
    pub gla: u64,
    /// Nanoseconds since the first moment of 1970, UTC, and since the guest was made; both 0 if not
    /// known.
    pub unix_ns: u64,
    /// See `unix_ns`.
    pub since_start_ns: u64,
}

/// A number that may be unknown.
fn known(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number != SUBPAGE_UNKNOWN)
}

impl Origin {
    /// What is known of a write by who wrote it; of one by nobody, nothing but the bytes it goes to.
    pub(crate) fn account<'a>(
        origin: Option<&Self>,
        parts: &'a WriteParts,
        length: Option<u64>,
    ) -> Account<'a> {
        let nobody = Writer { vcpu: 0, rip: None, rip_exact: true, cr3: None, cpl: None };
        let writer = origin.map_or(nobody, |origin| Writer {
            vcpu: origin.vcpu,
            rip: known(origin.rip),
            rip_exact: true,
            cr3: known(origin.cr3),
            cpl: u8::try_from(origin.cpl).ok().filter(|cpl| *cpl <= 3),
        });
        let clock = origin.filter(|origin| (origin.unix_ns, origin.since_start_ns) != (0, 0));
        Account {
            origin: writer,
            when: clock.map_or(When::Unknown, |origin| When::Clock {
                unix: Duration::from_nanos(origin.unix_ns),
                since_start: Duration::from_nanos(origin.since_start_ns),
            }),
            parts,
            gla: origin.and_then(|origin| known(origin.gla)),
            length,
            bytes: &[],
            instruction: &[],
            during_delivery: false,
            qualification: None,
            in_software: false,
        }
    }
}

impl Decision {
    fn of(decided: Decided, first: u64) -> Self {
        let (kind, stop, rule, at) = match decided {
            Decided::Allowed => (SUBPAGE_ALLOWED, false, None, first),
            Decided::Reported { rule, at } => (SUBPAGE_REPORTED, false, Some(rule), at.as_u64()),
            Decided::Denied { rule, at, stop } => (SUBPAGE_DENIED, stop, rule, at.as_u64()),
            Decided::NotEligible { at } => (SUBPAGE_NOT_ELIGIBLE, false, None, at.as_u64()),
            Decided::NotMapped { at } => (SUBPAGE_NOT_MAPPED, false, None, at.as_u64()),
        };
        Self { kind, stop, rule: rule.map_or(SUBPAGE_UNKNOWN, |rule| rule.0), at }
    }
}

/// Decides about a write of `length` bytes at `gpa`, with no effect and no event.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_check_write(
    domain: Option<&Domain>,
    space: u32,
    gpa: u64,
    length: u64,
    decision: Option<&mut MaybeUninit<Decision>>,
) -> i64 {
    done((|| {
        let (space, write) = (space_of(space)?, bytes_at(gpa, length)?);
        let decided = given(domain)?.engine.check_write(space, write);
        given(decision)?.write(Decision::of(decided, gpa));
        Ok(())
    })())
}

/// Decides about a write that the caller is about to do for the guest, and notes what follows from it:
/// an allowed-once rule is spent, the page is dirty, and what met a rule or a map becomes an event.
///
/// Write all of the bytes, or none of them, before the lock over the domain is let go. `bytes`, those
/// that would be written, and `origin` are for the event; either may be NULL. -ENOMEM: nothing was
/// decided; do not write.
///
/// # Safety
/// `bytes` is NULL or has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_authorize_write(
    domain: Option<&mut Domain>,
    space: u32,
    gpa: u64,
    length: u64,
    bytes: *const u8,
    origin: Option<&Origin>,
    decision: Option<&mut MaybeUninit<Decision>>,
) -> i64 {
    done((|| {
        let (space, write) = (space_of(space)?, bytes_at(gpa, length)?);
        let (domain, out) = (given(domain)?, given(decision)?);
        // SAFETY: the caller's promise.
        let bytes = unsafe { buffers::input(bytes, held(bytes, length)) }?;
        let decided = domain.engine.authorize_write(space, write)?;
        domain.events.count_write();
        if let Some(met) = Met::of(decided) {
            domain.note(
                met,
                &Account {
                    bytes,
                    in_software: true,
                    ..Origin::account(origin, &WriteParts::one(write), Some(length))
                },
            );
        }
        out.write(Decision::of(decided, gpa));
        Ok(())
    })())
}

/// How many of the bytes at `pointer` an event keeps.
fn held(pointer: *const u8, length: u64) -> usize {
    if pointer.is_null() {
        0
    } else {
        usize::try_from(length).unwrap_or(usize::MAX).min(SUBPAGE_EVENT_BYTES)
    }
}
