//! What the guest is told of its processor.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use subpage::address::PhysicalWidth;
use subpage_emulate::PagingFeatures;

const FEATURES: u32 = 1;
const STRUCTURED: u32 = 7;
const XSTATE: u32 = 0xd;
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const HYPERVISOR: u32 = 0x4000_0000;
const PARAVIRTUAL: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const WIDTHS: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Every bit.
const ALL: u32 = u32::MAX;

/// The given bits.
const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut word = 0;
    let mut at = 0;
    while at < N {
        word |= 1 << numbers[at];
        at += 1;
    }
    word
}

/// XCR0: x87, SSE, AVX and AVX-512. No MPX, protection keys or tiles.
const COMPONENTS: u32 = 0b1110_0111;

/// What a guest may see: leaf, subleaf (none: any), and the bits of EAX, EBX, ECX and EDX that are let
/// through. A leaf that is not listed does not exist for the guest, and a bit that is not listed is 0.
///
/// A feature is listed once the decoder knows its instructions, the page walk in software knows what it
/// changes about translation, and what is saved holds its state. So nothing that a newer KVM adds reaches
/// a guest unseen. Left out for these reasons: nested virtualization (a second-level guest writes through
/// tables that nobody here fills), SGX, LASS, LAM, five-level paging, protection keys, shadow stacks,
/// user interrupts (SENDUIPI writes memory), PEBS and processor trace (the processor writes by itself),
/// RAO-INT and CMPCCXADD (stores), APX and AVX10, AMX (its state), FXSR_OPT (another FXSAVE), key locker,
/// FRED, MONITOR (whose wait KVM does not do), and of what KVM does for its guests all but the clock, since
/// KVM writes memory for it (the clock's page is written here: `store/clock_page`).
#[rustfmt::skip]
const LET_THROUGH: &[(u32, Option<u32>, [u32; 4])] = &[
    (0, None, [ALL; 4]),
    (FEATURES, None, [
        ALL, ALL,
        // SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC
        // deadline, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND, hypervisor.
        bits([0, 1, 9, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]),
        // FPU to APIC, SEP to PSE-36, CLFLUSH, MMX, FXSR, SSE, SSE2, self-snoop, HTT.
        bits([
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27, 28,
        ]),
    ]),
    // Caches and TLBs.
    (2, None, [ALL; 4]),
    (4, None, [ALL; 4]),
    // The local APIC's timer always runs.
    (6, None, [bits([2]), 0, 0, 0]),
    (STRUCTURED, Some(0), [
        ALL,
        // FSGSBASE, TSC_ADJUST, BMI1, HLE, AVX2, FDP_EXCPTN_ONLY, SMEP, BMI2, ERMS, INVPCID, RTM, no
        // FPU CS and DS, AVX512F, AVX512DQ, RDSEED, ADX, SMAP, IFMA, CLFLUSHOPT, CLWB, CD, SHA, BW, VL.
        bits([
            0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
        ]),
        // PREFETCHWT1, VBMI, UMIP, WAITPKG, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ,
        // RDPID, CLDEMOTE, MOVDIRI, MOVDIR64B.
        bits([0, 1, 2, 5, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]),
        // 4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, SRBDS_CTRL, MD_CLEAR, RTM_ALWAYS_ABORT, SERIALIZE,
        // hybrid part, TSXLDTRK, AVX512_FP16, IBRS, STIBP, L1D_FLUSH, the capability MSRs, SSBD.
        bits([2, 3, 4, 8, 9, 10, 11, 14, 15, 16, 23, 26, 27, 28, 29, 30, 31]),
    ]),
    (STRUCTURED, Some(1), [
        // AVX-VNNI, AVX512_BF16, fast short REP MOVSB, STOSB and CMPSB, AVX-IFMA.
        bits([4, 5, 10, 11, 12, 23]),
        0,
        0,
        // AVX-VNNI-INT8, AVX-NE-CONVERT, PREFETCHITI.
        bits([4, 5, 14]),
    ]),
    // Controls of speculation.
    (STRUCTURED, Some(2), [0, 0, 0, bits([0, 1, 2, 3, 4, 5])]),
    // Performance counters.
    (0xa, None, [ALL; 4]),
    (TOPOLOGY[0], None, [ALL; 4]),
    (XSTATE, Some(0), [COMPONENTS, ALL, ALL, 0]),
    // XSAVEOPT, XSAVEC, XGETBV of 1, XSAVES; no supervisor state.
    (XSTATE, Some(1), [bits([0, 1, 2, 3]), ALL, 0, 0]),
    (XSTATE, Some(2), [ALL; 4]),
    (XSTATE, Some(5), [ALL; 4]),
    (XSTATE, Some(6), [ALL; 4]),
    (XSTATE, Some(7), [ALL; 4]),
    // Rates.
    (0x15, None, [ALL; 4]),
    (0x16, None, [ALL; 4]),
    (TOPOLOGY[1], None, [ALL; 4]),
    (HYPERVISOR, None, [ALL; 4]),
    // The clock by MSRs 0x4b564d00 and 0x4b564d01, the same on all processors.
    (PARAVIRTUAL, None, [bits([3, 24]), 0, 0, 0]),
    (0x8000_0000, None, [ALL; 4]),
    (EXTENDED_FEATURES, None, [
        ALL, ALL,
        // LAHF, CMP_LEGACY, CR8 by LOCK, ABM, SSE4A, MISALIGNSSE, 3DNOWPREFETCH, OSVW, XOP, FMA4, TBM,
        // TOPOEXT, PERFCTR_CORE.
        bits([0, 1, 4, 5, 6, 7, 8, 9, 11, 16, 21, 22, 23]),
        // The bits of leaf 1, SYSCALL, NX, MMXEXT, 1 GiB pages, RDTSCP, long mode.
        bits([
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29,
        ]),
    ]),
    // The processor's name, caches.
    (0x8000_0002, None, [ALL; 4]),
    (0x8000_0003, None, [ALL; 4]),
    (0x8000_0004, None, [ALL; 4]),
    (0x8000_0005, None, [ALL; 4]),
    (0x8000_0006, None, [ALL; 4]),
    // Invariant TSC.
    (0x8000_0007, None, [0, 0, 0, bits([8])]),
    (WIDTHS, None, [
        ALL,
        // CLZERO, XSAVEERPTR, WBNOINVD, and controls of speculation.
        bits([0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 25, 26, 28, 29, 30]),
        ALL,
        0,
    ]),
    (0x8000_001a, None, [ALL; 4]),
    (0x8000_001d, None, [ALL; 4]),
    (AMD_TOPOLOGY, None, [ALL; 4]),
    // No nested data breakpoints, LFENCE serializes, null selectors clear bases, automatic IBRS, no SMM
    // control MSR, fast REP STOSB and CMPSB, PREFETCHI, SBPB, no SRSO.
    (0x8000_0021, None, [bits([0, 2, 6, 8, 9, 10, 11, 20, 27, 28, 29]), 0, 0, 0]),
];

/// Adds what KVM does and leaves to its user to tell, and takes away the clock where nobody would keep it.
pub fn complete(supported: &mut CpuId, has_deadline_timer: bool, has_clock: bool) {
    supported.retain(|entry| has_clock || !matches!(entry.function, HYPERVISOR | PARAVIRTUAL));
    for entry in supported.as_mut_slice() {
        if entry.function == FEATURES {
            entry.ecx |= 1 << 31 | u32::from(has_deadline_timer) << 24;
        }
    }
}

/// Of KVM's CPUID what a guarded guest may see (`LET_THROUGH`), for the processor `number` of `cpus`.
pub fn for_guest(supported: &CpuId, number: u32, cpus: u32) -> CpuId {
    let mut entries = supported.as_slice().to_vec();
    entries.retain_mut(let_through);
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (FEATURES, _) => {
                entry.ebx = entry.ebx & 0xff00 | number << 24 | cpus.min(255) << 16;
                entry.edx = entry.edx & !(1 << 28) | u32::from(cpus > 1) << 28;
            }
            // The last subleaf that is listed.
            (STRUCTURED, 0) => entry.eax = entry.eax.min(2),
            // The last leaf that is listed.
            (HYPERVISOR, _) => entry.eax = PARAVIRTUAL,
            (leaf, _) if TOPOLOGY.contains(&leaf) => entry.edx = number,
            (WIDTHS, _) => entry.ecx = entry.ecx & !0xff | (cpus - 1).min(255),
            (AMD_TOPOLOGY, _) => entry.eax = number,
            _ => {}
        }
    }
    CpuId::from_entries(&entries).expect("fewer entries than KVM gave")
}

/// Leaves of an entry what is listed; false if nothing is.
fn let_through(entry: &mut kvm_cpuid_entry2) -> bool {
    let listed = LET_THROUGH.iter().find(|(leaf, subleaf, _)| {
        *leaf == entry.function && subleaf.is_none_or(|subleaf| subleaf == entry.index)
    });
    let Some((.., [eax, ebx, ecx, edx])) = listed else { return false };
    entry.eax &= eax;
    entry.ebx &= ebx;
    entry.ecx &= ecx;
    entry.edx &= edx;
    true
}

/// What page walks in software go by.
pub fn paging_features(cpuid: &CpuId) -> PagingFeatures {
    let leaf = |function: u32| -> Option<&kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|entry| entry.function == function)
    };
    let bits = leaf(WIDTHS).map_or(36, |entry| entry.eax & 0xff);
    PagingFeatures {
        physical_width: PhysicalWidth::try_new(bits.clamp(32, 52)).expect("32 to 52 bits"),
        gigabyte_pages: leaf(EXTENDED_FEATURES).is_some_and(|entry| entry.edx & 1 << 26 != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has everything, in leaves that are known and in some that are not.
    fn everything() -> CpuId {
        let leaves = (0..0x30).chain(0x4000_0000..0x4000_0002).chain(0x8000_0000..0x8000_0030);
        let entries: Vec<_> = leaves
            .flat_map(|function| {
                let subleaves = if matches!(function, STRUCTURED | XSTATE) { 20 } else { 1 };
                (0..subleaves).map(move |index| (function, index))
            })
            .map(|(function, index)| kvm_cpuid_entry2 {
                function,
                index,
                eax: ALL,
                ebx: ALL,
                ecx: ALL,
                edx: ALL,
                ..kvm_cpuid_entry2::default()
            })
            .take(250)
            .collect();
        CpuId::from_entries(&entries).expect("fewer than KVM takes")
    }

    fn word(cpuid: &CpuId, leaf: u32, subleaf: u32, register: usize) -> u32 {
        let found = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (leaf, subleaf);
        let entry = cpuid.as_slice().iter().find(found);
        entry.map_or(0, |it| [it.eax, it.ebx, it.ecx, it.edx][register])
    }

    #[test]
    fn a_guest_sees_nothing_that_is_not_known_here() {
        let cpuid = for_guest(&everything(), 1, 2);
        let (ebx, ecx, edx) = (1, 2, 3);
        for (what, leaf, subleaf, register, bit) in [
            ("VMX", 1, 0, ecx, 5),
            ("DS", 1, 0, edx, 21),
            ("SGX", 7, 0, ebx, 2),
            ("MPX", 7, 0, ebx, 14),
            ("processor trace", 7, 0, ebx, 25),
            ("LA57", 7, 0, ecx, 16),
            ("key locker", 7, 0, ecx, 23),
            ("ENQCMD", 7, 0, ecx, 29),
            ("user interrupts", 7, 0, edx, 5),
            ("RAO-INT", 7, 1, 0, 3),
            ("LASS", 7, 1, 0, 6),
            ("CMPCCXADD", 7, 1, 0, 7),
            ("LAM", 7, 1, 0, 26),
            ("AVX10", 7, 1, edx, 19),
            ("APX", 7, 1, edx, 21),
            ("MPX state", 0xd, 0, 0, 3),
            ("APX state", 0xd, 0, 0, 19),
            ("XFD", 0xd, 1, 0, 4),
            ("SVM", 0x8000_0001, 0, ecx, 2),
            ("FXSR_OPT", 0x8000_0001, 0, edx, 25),
            ("INVLPGB", 0x8000_0008, 0, ebx, 3),
            ("upper address ignore", 0x8000_0021, 0, 0, 7),
            ("KVM's asynchronous page faults", PARAVIRTUAL, 0, 0, 4),
            ("KVM's steal time", PARAVIRTUAL, 0, 0, 5),
            ("KVM's end of interrupt by memory", PARAVIRTUAL, 0, 0, 6),
        ] {
            assert_eq!(word(&cpuid, leaf, subleaf, register) >> bit & 1, 0, "{what}");
        }
        for leaf in [0x12, 0x14, 0x19, 0x1d, 0x24, 0x8000_000a, 0x8000_001f] {
            assert!(cpuid.as_slice().iter().all(|entry| entry.function != leaf), "{leaf:#x}");
        }
        assert!(cpuid.as_slice().iter().all(|it| it.function != 7 || it.index <= 2));
        assert_eq!(word(&cpuid, 7, 0, 0), 2, "the last subleaf");
    }

    /// A feature that can be asked for can be had.
    #[test]
    fn what_can_be_chosen_is_let_through() {
        let mut cpuid = for_guest(&everything(), 0, 1);
        let all: Vec<_> = crate::vcpu::features::all().collect();
        let choice: crate::vcpu::FeatureChoice = all.join(",").parse().expect("names");
        assert_eq!(choice.check(&mut cpuid), Ok(()));
    }

    #[test]
    fn a_guest_sees_what_systems_need() {
        let cpuid = for_guest(&everything(), 1, 2);
        let (ebx, ecx, edx) = (1, 2, 3);
        for (what, leaf, subleaf, register, bit) in [
            ("SSE2", 1, 0, edx, 26),
            ("CMPXCHG16B", 1, 0, ecx, 13),
            ("XSAVE", 1, 0, ecx, 26),
            ("AVX", 1, 0, ecx, 28),
            ("AVX2", 7, 0, ebx, 5),
            ("SMAP", 7, 0, ebx, 20),
            ("AVX512F", 7, 0, ebx, 16),
            ("NX", 0x8000_0001, 0, edx, 20),
            ("1 GiB pages", 0x8000_0001, 0, edx, 26),
            ("long mode", 0x8000_0001, 0, edx, 29),
            ("KVM's clock", PARAVIRTUAL, 0, 0, 3),
        ] {
            assert_eq!(word(&cpuid, leaf, subleaf, register) >> bit & 1, 1, "{what}");
        }
        assert_eq!(word(&cpuid, 1, 0, ebx) >> 24, 1, "the number of its local APIC");
        assert_eq!(word(&cpuid, HYPERVISOR, 0, 0), PARAVIRTUAL, "the last leaf of KVM's");
    }

    #[test]
    fn a_guest_sees_that_it_is_one_and_a_clock_only_where_it_is_kept() {
        let mut nothing = everything();
        nothing.as_mut_slice().iter_mut().for_each(|entry| entry.ecx = 0);
        for (deadline, clock) in [(false, false), (true, false), (false, true)] {
            let mut cpuid = nothing.clone();
            complete(&mut cpuid, deadline, clock);
            let ecx = word(&cpuid, 1, 0, 2);
            assert_eq!((ecx >> 31, ecx >> 24 & 1), (1, u32::from(deadline)));
            assert_eq!(word(&cpuid, PARAVIRTUAL, 0, 0) >> 3 & 1, u32::from(clock));
            assert_eq!(word(&cpuid, HYPERVISOR, 0, 0) != 0, clock);
        }
    }
}
