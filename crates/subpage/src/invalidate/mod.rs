//! From "the tables say no" to "no processor says yes": tokens, acknowledgements, and frames that
//! wait until nobody can reach them.
//!
//! A call that takes a right away returns an [`Invalidation`]. The right is gone only once every
//! processor has invalidated what it cached (contract C1), so the token is `#[must_use]` and turns
//! into a [`Completed`] in exactly three ways: it asked for nothing; no processor walks these
//! tables; or a [`Shootdown`] has every processor's acknowledgement.

mod retired;
mod shootdown;

pub(crate) use retired::{Retired, RetiredTable};
pub use shootdown::Shootdown;

/// Number of a change that made cached translations too permissive; grows by one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub(crate) u64);

impl Epoch {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What must be invalidated before a change is in force.
#[must_use = "the permission is not in force until every processor has invalidated its translations"]
#[derive(Debug, PartialEq, Eq)]
pub struct Invalidation {
    pub(crate) epoch: Epoch,
    pub(crate) required: bool,
}

impl Invalidation {
    /// Whether processors hold translations that permit too much.
    ///
    /// When `false`, the change only added rights: a stale translation causes at most an exit that
    /// is answered with a retry.
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// The token of a change that took nothing away. Its epoch is 0, so that completing it frees
    /// nothing that an earlier, unfinished change left.
    pub(crate) const fn none() -> Self {
        Self { epoch: Epoch(0), required: false }
    }

    /// The change's number: a processor that invalidated after seeing this number is done.
    /// 0 if nothing is required.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Completes at once because no processor walks or caches the engine's tables: the backend
    /// asks the engine about every write, under the same lock as changes.
    pub const fn without_processors(self) -> Completed {
        Completed { epoch: self.epoch }
    }

    /// Joins the tokens of two calls of the same domain: completing the result completes both.
    #[allow(clippy::needless_pass_by_value)] // Both tokens are used up.
    pub fn and(self, other: Self) -> Self {
        Self { epoch: self.epoch.max(other.epoch), required: self.required || other.required }
    }
}

/// Proof that every processor invalidated its translations at or after a change.
///
/// Give it to [`Domain::finish`](crate::domain::Domain::finish), which frees what the change left.
#[must_use = "frames that the change unlinked stay allocated until the domain is told"]
#[derive(Debug, PartialEq, Eq)]
pub struct Completed {
    pub(crate) epoch: Epoch,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn token(epoch: u64, required: bool) -> Invalidation {
        Invalidation { epoch: Epoch(epoch), required }
    }

    #[test]
    fn what_is_joined_is_required_if_one_is() {
        for (one, other, both) in [
            (token(3, true), token(5, false), token(5, true)),
            (token(3, false), token(5, true), token(5, true)),
            (token(9, true), token(5, true), token(9, true)),
            (token(3, false), Invalidation::none(), token(3, false)),
        ] {
            assert_eq!(one.and(other), both);
        }
        assert_eq!(token(7, true).epoch().get(), 7);
    }

    /// A processor in the guest has to acknowledge; one that has left, or never entered, has not.
    #[test]
    fn who_is_outside_is_not_waited_for() {
        let board = Shootdown::new(2).expect("memory");
        let seen = board.enter(1);
        assert_eq!(seen.get(), 0);
        board.request(&token(4, true));
        assert_eq!(board.pending(0), None);
        assert_eq!(board.pending(1), Some(Epoch(4)));
        assert_eq!(board.poll(token(4, true)), Err(token(4, true)));
        // Nothing that is required waits for nobody.
        assert_eq!(board.poll(token(4, false)), Ok(Completed { epoch: Epoch(4) }));
        board.acknowledge(1, Epoch(4));
        assert_eq!(board.pending(1), None);
        // An acknowledgement that comes late takes nothing back.
        board.acknowledge(1, seen);
        assert_eq!(board.poll(token(4, true)), Ok(Completed { epoch: Epoch(4) }));
        board.request(&token(5, true));
        assert_eq!(board.poll(token(5, true)), Err(token(5, true)));
        board.leave(1);
        assert_eq!(board.pending(1), None);
        assert_eq!(board.poll(token(5, true)), Ok(Completed { epoch: Epoch(5) }));
        assert_eq!(board.enter(1).get(), 5);
        assert_eq!(board.pending(1), Some(Epoch(5)));
    }
}
