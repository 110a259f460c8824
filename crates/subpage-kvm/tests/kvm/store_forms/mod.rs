//! Every store form, on guarded pages: the same as on plain ones if it is permitted, and as on a ROM
//! if not.

mod bench;
mod extended;
mod form;
mod general;
mod implied;
mod refused;
mod spot;

use bench::compare;
use kvm_bindings::kvm_cpuid_entry2;

use crate::guest::{Guest, exit, kvm, small};

#[test]
fn stores_of_general_registers() {
    compare(general::MOVES);
    compare(general::ARITHMETIC);
}

#[test]
fn stores_that_not_every_guest_has() {
    if !kvm() {
        return;
    }
    let has_movbe = guest_has(1, |leaf| leaf.ecx & 1 << 22 != 0);
    let has_avx2 = guest_has(7, |leaf| leaf.ebx & 1 << 5 != 0);
    let has_xsave_kin = guest_says(0xd, 1, |leaf| leaf.eax & 3 == 3);
    let has_sse4a = guest_has(0x8000_0001, |leaf| leaf.ecx & 1 << 6 != 0);
    let has_clzero = guest_has(0x8000_0008, |leaf| leaf.ebx & 1 != 0);
    for (present, what, forms) in [
        (has_movbe, "MOVBE", general::MOVBE),
        (has_avx2, "AVX2", extended::AVX),
        (has_avx2 && has_xsave_kin, "XSAVE", extended::XSAVE),
        (has_sse4a, "SSE4A", extended::SSE4A),
        (has_clzero, "CLZERO", extended::CLZERO),
    ] {
        if present {
            compare(forms);
        } else {
            println!("skipped: guests of this KVM have no {what}");
        }
    }
}

/// Whether a leaf of the guest's CPUID says so.
fn guest_has(leaf: u32, says: impl Fn(&kvm_cpuid_entry2) -> bool) -> bool {
    guest_says(leaf, 0, says)
}

fn guest_says(leaf: u32, subleaf: u32, says: impl Fn(&kvm_cpuid_entry2) -> bool) -> bool {
    let guest = Guest::new(&small(), |code| exit(code, 0));
    let cpuid = guest.vm.with_processors(|processors| processors[0].fd.get_cpuid2(100).unwrap());
    cpuid
        .as_slice()
        .iter()
        .any(|entry| entry.function == leaf && entry.index == subleaf && says(entry))
}

#[test]
fn locked_stores_and_bit_tests() {
    compare(general::LOCKED);
    compare(general::BITS);
}

#[test]
fn stores_to_implied_places() {
    compare(implied::STACK);
    compare(implied::STRINGS);
}

#[test]
fn stores_of_system_registers() {
    compare(implied::SYSTEM);
}

#[test]
fn stores_of_extended_registers() {
    compare(extended::SSE);
}

#[test]
fn stores_by_mask() {
    compare(extended::MASKED);
}

#[test]
fn stores_of_x87_registers() {
    compare(extended::X87);
}
