//! The tests that a host leaves out, each with its reason, and those that it runs by name alone.

use crate::lab::Host;

/// A test of one program that a host does not run.
#[derive(Debug)]
pub(super) struct LeftOut {
    host: Host,
    pub(super) program: &'static str,
    /// Its name.
    pub(super) test: &'static str,
    pub(super) reason: &'static str,
}

const ALL: [LeftOut; 6] = [
    LeftOut {
        host: Host::Amd,
        program: "example",
        test: "a_guest_built_from_the_source_behaves_the_same",
        reason: "there is no compiler in the host",
    },
    LeftOut {
        host: Host::Amd,
        program: "kvm",
        test: "held_steps::breakpoints_outlast_a_reset",
        reason: "QEMU's INT3 does not look at the intercept of breakpoints, but at that of INT",
    },
    LeftOut {
        host: Host::Amd,
        program: "kvm",
        test: "store_forms::stores_by_mask",
        reason: "QEMU's MASKMOVDQU across a page end writes what lies in the first page before the \
                 second page faults",
    },
    LeftOut {
        host: Host::Amd,
        program: "kvm",
        test: "store_forms::stores_of_x87_registers",
        reason: "QEMU's FSTP across a page end writes the first half before the second page faults",
    },
    LeftOut {
        host: Host::Amd,
        program: "kvm",
        test: "store_forms::stores_that_not_every_guest_has",
        reason: "QEMU's 32-byte stores across a page end write the first half before the second page \
                 faults",
    },
    LeftOut {
        host: Host::Intel,
        program: "example",
        test: "a_guest_built_from_the_source_behaves_the_same",
        reason: "there is no compiler in the host",
    },
];

/// What this host leaves out.
pub(super) fn on(host: Host) -> impl Iterator<Item = &'static LeftOut> {
    ALL.iter().filter(move |left| left.host == host)
}

/// Tests of the program `kvm` that a host runs if they are named, and else not.
#[derive(Debug)]
pub(super) struct ByName {
    host: Host,
    /// How their names begin.
    pub(super) tests: &'static str,
    /// How those begin that run nevertheless.
    but: &'static [&'static str],
    pub(super) reason: &'static str,
}

impl ByName {
    /// Whether it is about this test.
    pub(super) fn has(&self, test: &str) -> bool {
        test.starts_with(self.tests) && !self.but.iter().any(|but| test.starts_with(but))
    }
}

const UNTRIED: &str = "not run in Bochs yet, where a test can take minutes";

const fn slow(tests: &'static str, reason: &'static str) -> ByName {
    ByName { host: Host::Intel, tests, but: &[], reason }
}

const BY_NAME: [ByName; 21] = [
    slow("atomics::", UNTRIED),
    slow("clock::a_restored", "no result after 3 minutes in Bochs, on a busy machine"),
    slow("differential::", "random streams take long in Bochs"),
    ByName { but: &["endings::halting"], ..slow("endings::", UNTRIED) },
    slow("far_calls::", "no result after 6 minutes in Bochs, on a busy machine"),
    slow("gdb_packets::", "its first had no result after 90 seconds in Bochs, on a busy machine"),
    slow("held_steps::", UNTRIED),
    slow("hostile::", UNTRIED),
    slow("in_force::", UNTRIED),
    ByName {
        but: &["live_tables::a_notice", "live_tables::icebp", "live_tables::refusing"],
        ..slow("live_tables::", "tests of minutes in Bochs; with eptad=0 nine of ten passed")
    },
    slow("names::", "its first had no result after 4 minutes in Bochs, on a busy machine"),
    slow("scenarios::", UNTRIED),
    slow("self_test::", "no result after 2 minutes in Bochs, on a busy machine"),
    slow("slots::", UNTRIED),
    slow("snapshot::", UNTRIED),
    slow("steps::", UNTRIED),
    slow("store_forms::", UNTRIED),
    slow("strings::", UNTRIED),
    slow("tracking::", UNTRIED),
    slow("unable::", UNTRIED),
    slow("watch::", UNTRIED),
];

/// What this host runs by name alone.
pub(super) fn by_name(host: Host) -> impl Iterator<Item = &'static ByName> {
    BY_NAME.iter().filter(move |slow| slow.host == host)
}

/// Whether a host runs a test of a program although it is not named.
pub(super) fn unasked(host: Host, program: &str, test: &str) -> bool {
    program != PROGRAM || !by_name(host).any(|slow| slow.has(test))
}

/// The program of [`ByName`].
pub(super) const PROGRAM: &str = "kvm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_test_is_named_by_two_entries() {
        for (at, one) in BY_NAME.iter().enumerate() {
            for other in &BY_NAME[at + 1..] {
                let apart = one.host != other.host;
                let begins = |tests: &str, with: &str| tests.starts_with(with);
                assert!(
                    apart || !begins(one.tests, other.tests) && !begins(other.tests, one.tests),
                    "{one:?} and {other:?}"
                );
            }
            assert!(
                ALL.iter().all(|left| left.host != one.host || !left.test.starts_with(one.tests))
            );
        }
    }
}
