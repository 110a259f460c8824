//! Numbers of KVM's calls, and the structures that pass through (Linux, `include/uapi/linux/kvm.h`).
//!
//! Unsafe because structures are read and written where the VMM points.
#![allow(unsafe_code)]

use std::ffi::c_void;

pub(crate) use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MMIO, KVM_INTERNAL_ERROR_EMULATION, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, kvm_clear_dirty_log, kvm_cpuid_entry2, kvm_cpuid2, kvm_dirty_log,
    kvm_enable_cap, kvm_userspace_memory_region,
};

pub(crate) const CREATE_VM: u64 = 0xae01;
pub(crate) const CHECK_EXTENSION: u64 = 0xae03;
pub(crate) const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
pub(crate) const CREATE_VCPU: u64 = 0xae41;
pub(crate) const GET_DIRTY_LOG: u64 = 0x4010_ae42;
pub(crate) const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
pub(crate) const SET_USER_MEMORY_REGION2: u64 = 0x40a0_ae49;
pub(crate) const RUN: u64 = 0xae80;
pub(crate) const SET_CPUID2: u64 = 0x4008_ae90;
pub(crate) const ENABLE_CAP: u64 = 0x4068_aea3;
pub(crate) const GET_XSAVE: u64 = 0x9000_aea4;
pub(crate) const SET_XSAVE: u64 = 0x5000_aea5;
pub(crate) const GET_XCRS: u64 = 0x8188_aea6;
pub(crate) const CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;

/// The type of KVM's calls, in bits 8 to 15.
pub(crate) const TYPE: u64 = 0xae;
/// The type of vhost's calls.
pub(crate) const VHOST: u64 = 0xaf;
/// `VHOST_SET_MEM_TABLE`.
pub(crate) const VHOST_SET_MEM_TABLE: u64 = 0x4008_af03;
/// `VFIO_IOMMU_MAP_DMA`.
pub(crate) const VFIO_MAP_DMA: u64 = 0x3b71;

/// `KVM_CAP_DIRTY_LOG_RING` and `KVM_CAP_DIRTY_LOG_RING_ACQ_REL`: rings into which only KVM can write.
pub(crate) const HIDDEN_CAPABILITIES: [u64; 2] = [192, 223];
/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
pub(crate) const MANUAL_DIRTY_LOG: u32 = 168;
/// `KVM_CAP_ENFORCE_PV_FEATURE_CPUID`.
pub(crate) const ENFORCE_PV_FEATURES: u32 = 190;

/// CPUID leaf of KVM's services.
const SERVICES: u32 = 0x4000_0001;
/// Those by which KVM writes guest memory: the clock (0, 3), asynchronous page faults (4, 10, 14), steal
/// time (5), end of interrupt (6).
const WRITING_SERVICES: u32 = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 14;

/// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7. Bit 23 is AVX512-FP16, whose stores are known.
const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;

/// Of a leaf and subleaf, the bits of EAX, EBX, ECX and EDX of what software here does not know about
/// stores and page walks, so that guests do not get it: nested virtualization, protection keys, page tables
/// of five levels, shadow stacks, masked linear addresses, FRED, user interrupts, tiles.
const UNKNOWN: [(u32, Option<u32>, [u32; 4]); 5] = [
    (1, None, [0, 0, 1 << 5, 0]),
    (7, Some(0), [0, 0, 1 << 3 | 1 << 4 | 1 << 7 | 1 << 16 | 1 << 31, 1 << 5 | 1 << 20 | TILES]),
    (7, Some(1), [1 << 17 | 1 << 18 | 1 << 26, 0, 0, 1 << 18]),
    (0xd, Some(0), [1 << 9 | 3 << 17, 0, 0, 0]),
    (0x8000_0001, None, [0, 0, 1 << 2, 0]),
];

/// Clears what software here does not know, and services by which KVM writes guest memory.
fn clear(entry: &mut kvm_cpuid_entry2) {
    if entry.function == SERVICES {
        entry.eax &= !WRITING_SERVICES;
    }
    for (function, index, [eax, ebx, ecx, edx]) in UNKNOWN {
        if entry.function == function && index.is_none_or(|index| index == entry.index) {
            entry.eax &= !eax;
            entry.ebx &= !ebx;
            entry.ecx &= !ecx;
            entry.edx &= !edx;
        }
    }
}

/// Clears the same in a list of the VMM.
///
/// # Safety
/// `at` points to a `kvm_cpuid2` with as many entries as it says, which may be written.
pub(crate) unsafe fn clear_all(at: *mut c_void) {
    // SAFETY: the caller's promise.
    let entries = unsafe { cpuid(at) };
    for (number, mut entry) in entries.into_iter().enumerate() {
        clear(&mut entry);
        let to = at.wrapping_byte_add(size_of::<kvm_cpuid2>()).cast::<kvm_cpuid_entry2>();
        // SAFETY: the caller's promise.
        unsafe { to.wrapping_add(number).write_unaligned(entry) };
    }
}

/// A structure of the VMM.
///
/// # Safety
/// `at` points to a value of the type, as a call of KVM demands it.
pub(crate) unsafe fn get<T>(at: *const c_void) -> T {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<T>().read_unaligned() }
}

/// The entries of a list of CPUID, at most 256.
///
/// # Safety
/// `at` points to a `kvm_cpuid2` with as many entries as it says.
pub(crate) unsafe fn cpuid(at: *const c_void) -> Vec<kvm_cpuid_entry2> {
    // SAFETY: the caller's promise.
    let head: kvm_cpuid2 = unsafe { get(at) };
    let entries = at.wrapping_byte_add(size_of::<kvm_cpuid2>()).cast::<kvm_cpuid_entry2>();
    let one = |number: u32| {
        let at = entries.wrapping_add(number as usize);
        // SAFETY: the caller's promise.
        unsafe { at.read_unaligned() }
    };
    (0..head.nent.min(256)).map(one).collect()
}

/// The same list without what guests do not get, in the form of the call.
pub(crate) fn without_services(entries: &[kvm_cpuid_entry2]) -> Vec<u64> {
    let bytes = size_of::<kvm_cpuid2>() + size_of_val(entries);
    let mut list = vec![0u64; bytes.div_ceil(8)];
    let head = kvm_cpuid2 {
        nent: u32::try_from(entries.len()).expect("256 at most"),
        ..kvm_cpuid2::default()
    };
    let to: *mut u8 = list.as_mut_ptr().cast();
    // SAFETY: the list has room for the head.
    unsafe { to.cast::<kvm_cpuid2>().write_unaligned(head) };
    for (number, entry) in entries.iter().enumerate() {
        let mut entry = *entry;
        clear(&mut entry);
        let at = size_of::<kvm_cpuid2>() + number * size_of::<kvm_cpuid_entry2>();
        // SAFETY: the list has room for all entries.
        unsafe { to.wrapping_add(at).cast::<kvm_cpuid_entry2>().write_unaligned(entry) };
    }
    list
}

/// Sets bits of a dirty log: `pages` are numbers of pages from the first bit on.
///
/// # Safety
/// The bitmap has these bits.
pub(crate) unsafe fn set_bits(bitmap: *mut c_void, pages: impl Iterator<Item = u64>) {
    for page in pages {
        let word = bitmap.cast::<u64>().wrapping_add(usize::try_from(page / 64).expect("64 bits"));
        // SAFETY: the caller's promise.
        let before = unsafe { word.read_unaligned() };
        // SAFETY: as above.
        unsafe { word.write_unaligned(before | 1 << (page % 64)) };
    }
}

/// Whether a bit of a dirty log is set.
///
/// # Safety
/// The bitmap has this bit.
pub(crate) unsafe fn bit(bitmap: *const c_void, page: u64) -> bool {
    let word = bitmap.cast::<u64>().wrapping_add(usize::try_from(page / 64).expect("64 bits"));
    // SAFETY: the caller's promise.
    let word = unsafe { word.read_unaligned() };
    word >> (page % 64) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest's kernel is not told of what KVM would write behind the guard's back.
    #[test]
    fn services_that_write_are_hidden_and_nothing_else() {
        let entries = [
            kvm_cpuid_entry2 { function: 2, eax: u32::MAX, ..kvm_cpuid_entry2::default() },
            kvm_cpuid_entry2 { function: SERVICES, eax: u32::MAX, ..kvm_cpuid_entry2::default() },
        ];
        let list = without_services(&entries);
        // SAFETY: made above.
        let read = unsafe { cpuid(list.as_ptr().cast()) };
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].function, read[0].eax), (2, u32::MAX));
        assert_eq!((read[1].function, read[1].eax), (SERVICES, !WRITING_SERVICES));
    }

    #[test]
    fn of_the_extended_features_only_unknown_ones_are_hidden() {
        let all = [u32::MAX; 4];
        let [eax, ebx, ecx, edx] = all;
        let entry = kvm_cpuid_entry2 { function: 7, eax, ebx, ecx, edx, ..Default::default() };
        let list = without_services(&[entry]);
        // SAFETY: made above.
        let read = unsafe { cpuid(list.as_ptr().cast()) }[0];
        assert_eq!((read.eax, read.ebx), (u32::MAX, u32::MAX));
        // Protection keys (3, 4), shadow stacks (7), LA57 (16), keys of supervisors (31).
        assert_eq!(!read.ecx, 1 << 3 | 1 << 4 | 1 << 7 | 1 << 16 | 1 << 31);
        // User interrupts (5), indirect-branch tracking (20), tiles (22, 24, 25).
        assert_eq!(!read.edx, 1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25);
    }

    #[test]
    fn bits_of_a_log() {
        let mut log = [0u64; 2];
        let at: *mut c_void = log.as_mut_ptr().cast();
        // SAFETY: 128 bits.
        unsafe { set_bits(at, [0, 63, 64, 127].into_iter()) };
        assert_eq!(log, [1 | 1 << 63, 1 | 1 << 63]);
        // SAFETY: as above.
        let read: Vec<_> = (0..128).filter(|page| unsafe { bit(at, *page) }).collect();
        assert_eq!(read, [0, 63, 64, 127]);
    }
}
