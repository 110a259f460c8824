//! Sums of test results.

use std::{fmt, ops::AddAssign};

/// How many tests or checks passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Count {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };

    /// One check.
    pub(crate) fn check(passed: bool) -> Self {
        if passed { Self::PASSED } else { Self::FAILED }
    }

    /// Whether anything ran: a run of nothing proves nothing.
    pub(crate) fn ran(self) -> bool {
        self.passed > 0 || self.failed > 0
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_is_said_only_where_something_was() {
        let mut count = Count { passed: 12, failed: 0, skipped: 0 };
        assert_eq!(count.to_string(), "12 passed, 0 failed");
        count += Count { passed: 1, failed: 2, skipped: 3 };
        assert_eq!(count.to_string(), "13 passed, 2 failed, 3 skipped");
    }

    #[test]
    fn skipping_is_not_running() {
        assert!(!Count::SKIPPED.ran());
        assert!(Count::check(true).ran() && Count::check(false).ran());
    }
}
