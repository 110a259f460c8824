//! The exits whose handling is counted.

use subpage::access::SUB_PAGE_BYTES;
use subpage_kvm::trap::TrapBy;

use crate::guarded::Guarded;
use crate::guest::{DENIED, GUARDED, Level, Work};

const MEMORY: u64 = 16 << 20;

/// Where the bytes lie that may not be written.
const FORBIDDEN: u64 = SUB_PAGE_BYTES * DENIED as u64;

/// A guest that does one thing over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// A permitted MOV that traps by `mprotect`.
    Mov,
    /// A denied one, with its event.
    Denied,
    /// A permitted PUSH.
    Push,
    /// Eight permitted elements of REP MOVS, which take one exit.
    Movs,
    /// A permitted MOV that traps by a slot.
    Slots,
}

impl Case {
    pub(crate) const ALL: [Self; 5] =
        [Self::Mov, Self::Denied, Self::Push, Self::Movs, Self::Slots];

    /// Its name as an argument.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Mov => "mov",
            Self::Denied => "denied",
            Self::Push => "push",
            Self::Movs => "movs",
            Self::Slots => "slots",
        }
    }

    pub(crate) fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|case| case.key() == key)
    }

    /// For people.
    pub(crate) const fn note(self) -> &'static str {
        match self {
            Self::Mov => "mprotect, CPL 3, a permitted MOV",
            Self::Denied => "mprotect, CPL 3, a MOV that a rule denies, with its event",
            Self::Push => "mprotect, CPL 3, a permitted PUSH",
            Self::Movs => "mprotect, CPL 3, 8 permitted elements of REP MOVSQ",
            Self::Slots => "read-only slot, CPL 3, a permitted MOV",
        }
    }

    /// How its stores trap.
    pub(crate) const fn traps_by(self) -> TrapBy {
        match self {
            Self::Slots => TrapBy::Slots,
            Self::Mov | Self::Denied | Self::Push | Self::Movs => TrapBy::Mprotect,
        }
    }

    const fn work(self) -> Work {
        match self {
            Self::Mov | Self::Slots => Work::Trapping { bytes: 4, at: 0 },
            Self::Denied => Work::Trapping { bytes: 4, at: FORBIDDEN },
            Self::Push => Work::Push,
            Self::Movs => Work::Copy,
        }
    }

    /// The guest, which waits for the word to begin and then does not end.
    pub(crate) fn guest(self) -> Guarded {
        let mut guest = Guarded::new(self.traps_by(), Level::User, self.work(), MEMORY);
        guest.add_rules(GUARDED + FORBIDDEN, 1);
        guest.set_count(u32::MAX);
        guest.start();
        guest
    }
}
