//! What a processor reports when it leaves a guest, and what is to be done.

use core::mem::MaybeUninit;

use subpage::address::{ByteRange, Gpa};
use subpage::domain::{
    Answer as Answered, Denial, EptViolation, HostError, RetryState, SppEvent, WriteParts,
};
use subpage::exit::{Delivery, DeliveryFixup, EptQualification, SppQualification, VectoringInfo};
use subpage_trap::{Account, Met};

use crate::decide::{Origin, SUBPAGE_UNKNOWN};
use crate::domain::{Domain, space_of};
use crate::status::{Failed, done, given, valid};

/// The tables permit the access now: enter the guest again.
pub const SUBPAGE_RESUME: u32 = 0;
/// They permitted it all along: invalidate this processor's translations and enter again.
pub const SUBPAGE_RETRY: u32 = 1;
/// Emulate the access; a write by `subpage_authorize_write`.
pub const SUBPAGE_EMULATE: u32 = 2;
/// The processor was setting flags in the guest paging-structure entry at `gpa`: set them in software, or
/// step over the instruction if `on_every_walk`.
pub const SUBPAGE_PAGE_WALK: u32 = 3;
/// The write is denied; there is an event.
pub const SUBPAGE_DENY_WRITE: u32 = 4;
/// No slot holds the address.
pub const SUBPAGE_NO_SLOT: u32 = 5;
/// The host does not let the guest execute the page.
pub const SUBPAGE_NOT_EXECUTABLE: u32 = 6;
/// The guest wrote to a read-only slot.
pub const SUBPAGE_READ_ONLY_SLOT: u32 = 7;
/// Map the page at `gpa` and enter again.
pub const SUBPAGE_MAP_PAGE: u32 = 8;
/// Make the host page at `gpa` writable, map it anew, and enter again.
pub const SUBPAGE_MAKE_WRITABLE: u32 = 9;
/// No memory is left for a table; nothing has changed.
pub const SUBPAGE_OUT_OF_MEMORY: u32 = 10;
/// Somebody else wrote the permission table: stop the guest.
pub const SUBPAGE_DAMAGED_TABLE: u32 = 11;

/// What a processor was last told to retry: one for each, all zeros at first. The fields are the library's.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Retry {
    /// Whether there is one.
    pub retried: bool,
    /// The instruction.
    pub rip: u64,
    /// The address.
    pub gpa: u64,
}

/// Fields of the control structure at exit reason 48 (EPT violation) or 66 (SPP-related event).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Exit {
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Guest-linear address; not used at exit reason 66.
    pub gla: u64,
    /// The guest's instruction pointer.
    pub rip: u64,
    /// Bytes of the access from `gpa` on, cut at the end of the page; 0 if they are not known.
    pub length: u64,
    /// SUBPAGE_SPACE_NORMAL or SUBPAGE_SPACE_SMM.
    pub space: u32,
    /// IDT-vectoring information.
    pub vectoring: u32,
    /// IDT-vectoring error code.
    pub error_code: u32,
    /// The control "virtual NMIs" is 1.
    pub virtual_nmis: bool,
}

/// What is to be done about an exit.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Answer {
    /// SUBPAGE_RESUME and so on.
    pub kind: u32,
    /// With SUBPAGE_PAGE_WALK: setting the flags does not end the traps.
    pub on_every_walk: bool,
    /// With SUBPAGE_DENY_WRITE: the rule wants the guest stopped.
    pub stop: bool,
    /// With SUBPAGE_DENY_WRITE: there is no instruction to skip.
    pub during_delivery: bool,
    /// Whatever the kind: block NMIs again before the next entry.
    pub block_nmi: bool,
    /// Whatever the kind: deliver the event of `vectoring` and `error_code` again.
    pub reinject: bool,
    /// Entry-interruption information of that event.
    pub vectoring: u32,
    /// Its error code.
    pub error_code: u32,
    /// The rule that denies; SUBPAGE_UNKNOWN if an access map does, or nothing.
    pub rule: u64,
    /// The address that the answer is about; with SUBPAGE_DENY_WRITE the first byte that may not be
    /// written.
    pub gpa: u64,
}

impl Retry {
    fn state(&self) -> Result<RetryState, Failed> {
        let last = self.retried.then(|| valid(Gpa::try_new(self.gpa)).map(|gpa| (self.rip, gpa)));
        Ok(RetryState::after(last.transpose()?))
    }

    fn keep(&mut self, state: RetryState) {
        if let Some((rip, gpa)) = state.last() {
            *self = Self { retried: true, rip, gpa: gpa.as_u64() };
        }
    }
}

impl Exit {
    fn delivery(&self) -> Delivery {
        Delivery {
            vectoring: VectoringInfo::from(self.vectoring),
            error_code: self.error_code,
            virtual_nmis: self.virtual_nmis,
        }
    }
}

impl Answer {
    fn of(answered: Answered, fixup: DeliveryFixup, exit: Gpa) -> Self {
        let (kind, gpa) = match answered {
            Answered::Resume => (SUBPAGE_RESUME, exit),
            Answered::Retry => (SUBPAGE_RETRY, exit),
            Answered::Emulate => (SUBPAGE_EMULATE, exit),
            Answered::PageWalk { gpa, .. } => (SUBPAGE_PAGE_WALK, gpa),
            Answered::Deny(denial) => (SUBPAGE_DENY_WRITE, denial.at),
            Answered::NoSlot(gpa) => (SUBPAGE_NO_SLOT, gpa),
            Answered::NotExecutable(gpa) => (SUBPAGE_NOT_EXECUTABLE, gpa),
            Answered::ReadOnlySlot(gpa) => (SUBPAGE_READ_ONLY_SLOT, gpa),
            Answered::Map(gpa) => (SUBPAGE_MAP_PAGE, gpa),
            Answered::MakeWritable(gpa) => (SUBPAGE_MAKE_WRITABLE, gpa),
            Answered::Host(HostError::OutOfMemory) => (SUBPAGE_OUT_OF_MEMORY, exit),
            Answered::Host(HostError::DamagedSppt { .. }) => (SUBPAGE_DAMAGED_TABLE, exit),
        };
        let denial = match answered {
            Answered::Deny(denial) => Some(denial),
            _ => None,
        };
        let (vectoring, error_code) = fixup.reinject.unwrap_or_default();
        Self {
            kind,
            on_every_walk: matches!(answered, Answered::PageWalk { on_every_walk: true, .. }),
            stop: denial.is_some_and(|denial| denial.stop),
            during_delivery: denial.is_some_and(|denial| denial.during_delivery),
            block_nmi: fixup.block_nmi,
            reinject: fixup.reinject.is_some(),
            vectoring: vectoring.into(),
            error_code,
            rule: denial.and_then(|denial| denial.rule).map_or(SUBPAGE_UNKNOWN, |rule| rule.0),
            gpa: gpa.as_u64(),
        }
    }
}

impl Domain {
    /// Keeps the event of a write that the tables denied.
    fn note_denial(&mut self, denial: &Denial, exit: &Exit, origin: Option<&Origin>) {
        let Denial { gpa, at, rule, stop, .. } = *denial;
        let Ok(written) = ByteRange::new(gpa, denial.length.unwrap_or(1)) else { return };
        let parts = WriteParts::one(written);
        let mut account = Account {
            during_delivery: denial.during_delivery,
            qualification: Some(exit.qualification),
            ..Origin::account(origin, &parts, denial.length)
        };
        account.origin.rip = Some(exit.rip);
        account.gla = denial.gla;
        self.note(Met::Forbidden { rule, at, stop }, &account);
    }
}

/// Answers an EPT violation (exit reason 48). `retry` is that of the processor. `origin`, for the event of
/// a denial, may be NULL; `rip` and the linear address are taken from the exit.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_ept_violation(
    domain: Option<&mut Domain>,
    retry: Option<&mut Retry>,
    exit: Option<&Exit>,
    origin: Option<&Origin>,
    answer: Option<&mut MaybeUninit<Answer>>,
) -> i64 {
    done((|| {
        let (domain, retry, exit, answer) =
            (given(domain)?, given(retry)?, given(exit)?, given(answer)?);
        let gpa = valid(Gpa::try_new(exit.gpa))?;
        let violation = EptViolation {
            qualification: EptQualification::from(exit.qualification),
            gpa,
            gla: exit.gla,
            rip: exit.rip,
            length: Some(exit.length).filter(|length| *length > 0),
            space: space_of(exit.space)?,
            delivery: exit.delivery(),
        };
        let mut state = retry.state()?;
        let (answered, fixup) = domain.engine.ept_violation(&mut state, &violation);
        retry.keep(state);
        if let Answered::Deny(denial) = answered {
            domain.events.count_write();
            domain.note_denial(&denial, exit, origin);
        }
        answer.write(Answer::of(answered, fixup, gpa));
        Ok(())
    })())
}

/// Answers an SPP miss or misconfiguration (exit reason 66).
#[unsafe(no_mangle)]
pub extern "C" fn subpage_spp_event(
    domain: Option<&mut Domain>,
    retry: Option<&mut Retry>,
    exit: Option<&Exit>,
    answer: Option<&mut MaybeUninit<Answer>>,
) -> i64 {
    done((|| {
        let (domain, retry, exit, answer) =
            (given(domain)?, given(retry)?, given(exit)?, given(answer)?);
        let gpa = valid(Gpa::try_new(exit.gpa))?;
        let event = SppEvent {
            qualification: SppQualification::from(exit.qualification),
            gpa,
            rip: exit.rip,
            space: space_of(exit.space)?,
            delivery: exit.delivery(),
        };
        let mut state = retry.state()?;
        let (answered, fixup) = domain.engine.spp_event(&mut state, &event);
        retry.keep(state);
        answer.write(Answer::of(answered, fixup, gpa));
        Ok(())
    })())
}
