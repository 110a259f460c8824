//! The tests that a host leaves out, each with its reason.

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
        host: Host::Amd,
        program: "kvm",
        test: "differential::permitted_streams_leave_the_machine_as_without_a_guard",
        reason: "QEMU saves other flags in the frame of a fault of SETcc, RF in that of a step in REP, and \
                 ignores a prefix that AMD's processors do not; the test now finds that out beforehand, \
                 but has not run there since",
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
