//! What may be read of one file's debug information.

use super::super::notation::NotAPlace;

/// Most entries, attributes and bytes of abbreviations that are read, again and again included. A Linux
/// kernel has about 300 million.
const MAX_STEPS: u64 = 2_000_000_000;

/// What is left of the work that a file may cause.
#[derive(Debug)]
pub(super) struct Work {
    left: u64,
}

impl Work {
    /// As much as a file may cause.
    pub(super) fn of_a_file() -> Self {
        Self { left: MAX_STEPS }
    }

    /// As much as that.
    #[cfg(test)]
    pub(super) fn of(steps: u64) -> Self {
        Self { left: steps }
    }

    /// Counts work before it is done.
    pub(super) fn charge(&mut self, steps: usize) -> Result<(), NotAPlace> {
        if let Some(left) = self.left.checked_sub(steps as u64) {
            self.left = left;
            Ok(())
        } else {
            self.left = 0;
            Err(too_large("takes too long to read"))
        }
    }
}

/// A limit is reached.
pub(super) fn too_large(what: &str) -> NotAPlace {
    NotAPlace {
        message: format!("the debug information {what}"),
        help: "write NAME+OFFSET+LENGTH instead of a field or an index".to_owned(),
    }
}
