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

const ALL: [LeftOut; 5] = [
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
