//! Changes that are not in force yet: a number for C in place of the engine's token.

use alloc::vec::Vec;

use subpage::errno::Errno;
use subpage::invalidate::{Completed, Invalidation};

use crate::status::Failed;

/// Tokens whose completion is awaited, in the order of their numbers.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    last: u64,
    tokens: Vec<(u64, Invalidation)>,
}

/// There is room for one more token: a change that is made can be kept.
#[must_use]
pub(crate) struct Room(());

impl Pending {
    /// Makes room before a change, where failing is still allowed.
    pub(crate) fn room(&mut self) -> Result<Room, Failed> {
        self.tokens.try_reserve(1).map_err(|_| Failed(Errno::NoMemory))?;
        Ok(Room(()))
    }

    /// Keeps the token of a change; the number that the caller gets. What needs no invalidation, or lies
    /// in tables that no processor walks, is complete at once and has number 0.
    pub(crate) fn keep(
        &mut self,
        _: Room,
        token: Invalidation,
        walked: bool,
    ) -> (u64, Option<Completed>) {
        if !walked || !token.is_required() {
            return (0, Some(token.without_processors()));
        }
        self.last += 1;
        self.tokens.push((self.last, token));
        (self.last, None)
    }

    /// All up to `number` are complete. Fails, and completes none, for a number that was not given out.
    pub(crate) fn complete(&mut self, number: u64) -> Result<Option<Completed>, Failed> {
        if number > self.last {
            return Err(Failed(Errno::Invalid));
        }
        let done = self.tokens.partition_point(|(kept, _)| *kept <= number);
        let joined = self.tokens.drain(..done).map(|(_, token)| token).reduce(Invalidation::and);
        Ok(joined.map(Invalidation::without_processors))
    }

    /// How many are awaited.
    pub(crate) const fn len(&self) -> usize {
        self.tokens.len()
    }
}
