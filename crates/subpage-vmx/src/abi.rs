//! What guests and the hypervisor agree on: hypercalls, structures, the start of a guest.
//!
//! `docs/hypercalls.md` is the reference for people. All numbers are little-endian; all addresses
//! are guest-physical.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the interface: major in bits 31:16, minor in bits 15:0. A new minor only adds.
pub const VERSION: u32 = 0x0002_0000;

/// EBX, ECX, EDX of CPUID leaf 4000_0000H: `SubpageVT-x\0`.
pub const SIGNATURE: [u8; 12] = *b"SubpageVT-x\0";

/// CPUID leaf that tells the signature (EAX: the highest leaf of this range).
pub const CPUID_SIGNATURE: u32 = 0x4000_0000;

/// CPUID leaf that tells [`VERSION`] in EAX and the [`feature`] bits in EBX.
pub const CPUID_FEATURES: u32 = 0x4000_0001;

/// Bits of the features word (CPUID leaf 4000_0001H, EBX; [`Call::Query`] of [`query::FEATURES`]).
pub mod feature {
    /// The processor enforces sub-page permissions; otherwise the hypervisor decides in software.
    pub const SPP_HARDWARE: u32 = 1 << 0;
    /// EPT has accessed and dirty flags.
    pub const EPT_ACCESSED_DIRTY: u32 = 1 << 1;
    /// The hypervisor was built with calls that break things on purpose.
    pub const TEST_HOOKS: u32 = 1 << 31;
}

/// Items of [`Call::Query`], in RBX.
pub mod query {
    /// Result: [`VERSION`](super::VERSION).
    pub const VERSION: u64 = 0;
    /// Result: [`feature`](super::feature) bits.
    pub const FEATURES: u64 = 1;
    /// Result: number of virtual processors.
    pub const PROCESSORS: u64 = 2;
    /// Result: events that were lost because the ring was full.
    pub const EVENTS_LOST: u64 = 3;
    /// Result: bytes of guest memory, from address 0 on.
    pub const MEMORY: u64 = 4;
}

/// Number of a hypercall, in RAX of VMCALL at CPL 0. Arguments are in RBX, RCX, RDX and RSI, the
/// result comes in RAX: 0 or more, or a negative errno. No other register changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call(pub u64);

#[allow(non_upper_case_globals)]
impl Call {
    /// RBX: a [`query`] item.
    pub const Query: Self = Self(0);
    /// RBX: address of a `struct kvm_subpage`, whose map is filled. Result: pages.
    pub const GetAccess: Self = Self(1);
    /// RBX: address of a `struct kvm_subpage`. Result: pages.
    pub const SetAccess: Self = Self(2);
    /// RBX: address of a [`RuleRequest`]. Result: the rule's number.
    pub const AddRule: Self = Self(3);
    /// RBX: number of a rule.
    pub const RemoveRule: Self = Self(4);
    /// RBX: number of a rule, which nothing can loosen from then on.
    pub const LockRule: Self = Self(5);
    /// RBX: address, RCX: bytes. Result: number of the tracking.
    pub const Track: Self = Self(6);
    /// RBX: number of the tracking, RCX: address for [`WrittenRecord`]s, RDX: room in records.
    /// Result: records written; ENOSPC, with nothing harvested, if there is not room for all.
    pub const Harvest: Self = Self(7);
    /// RBX: number of the tracking.
    pub const Untrack: Self = Self(8);
    /// RBX: address for [`EventRecord`]s, RCX: room in records. Result: records written; they leave
    /// the ring.
    pub const ReadEvents: Self = Self(9);
    /// First number of the calls that only a hypervisor with test hooks has.
    pub const FIRST_TEST_HOOK: u64 = 0x8000;
}

/// Longest name of a rule, in bytes.
pub const NAME_BYTES: usize = 62;

/// Argument of [`Call::AddRule`]: 96 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RuleRequest {
    /// First byte.
    pub gpa: U64,
    /// How many bytes, at least 1.
    pub bytes: U64,
    /// 0 log, 1 allow once, 2 deny, 3 stop.
    pub action: U32,
    /// What becomes of a denied instruction: 0 as the host has set, 1 skip (as a ROM would), 2 #GP.
    pub response: U32,
    /// Bit 0: locked from the first moment on. All others 0.
    pub flags: U32,
    /// Must be 0.
    pub reserved: U16,
    /// Bytes of the name, 1..=62.
    pub name_length: U16,
    /// The name in UTF-8, then zeros.
    pub name: [u8; 64],
}

const _: () = assert!(size_of::<RuleRequest>() == 96);

/// One page of a harvest: 16 bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct WrittenRecord {
    /// Guest frame number.
    pub gfn: U64,
    /// Bit i: sub-page i was written.
    pub written: U32,
    /// 0.
    pub reserved: U32,
}

const _: () = assert!(size_of::<WrittenRecord>() == 16);

/// One event: 168 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EventRecord {
    /// Number of the event, ascending from 1; a gap tells how many were lost.
    pub sequence: U64,
    /// Rule that decided; 0 if an access map did.
    pub rule: U64,
    /// First byte of the write.
    pub gpa: U64,
    /// Linear address of that byte, if [`event_flag::LINEAR`].
    pub gla: U64,
    /// First byte that may not be written, or that a rule wants reported.
    pub at: U64,
    /// Address of the instruction.
    pub rip: U64,
    /// Page-table base of the guest.
    pub cr3: U64,
    /// Exit qualification; 0 if no exit told of the write.
    pub qualification: U64,
    /// Length of the write in bytes; 0 if unknown.
    pub length: U32,
    /// Virtual processor.
    pub cpu: U32,
    /// What happened: 0 let through and reported, 1 denied and skipped, 2 denied with #GP (#DF for
    /// part of a delivery), 3 the guest was stopped.
    pub outcome: U16,
    /// [`event_flag`] bits.
    pub flags: U16,
    /// Length of the instruction, 0..=15; 0 if there is none.
    pub instruction_length: u8,
    /// Privilege level, 0..=3.
    pub cpl: u8,
    /// How many of `data` are meaningful, 0..=64.
    pub data_length: u8,
    /// 0.
    pub reserved: u8,
    /// The first bytes that the write would have stored, or has stored.
    pub data: [u8; 64],
    /// The bytes of the instruction.
    pub instruction: [u8; 16],
    /// The processor's time-stamp counter when it happened.
    pub time: U64,
}

const _: () = assert!(size_of::<EventRecord>() == 168);

/// Bits of [`EventRecord::flags`].
pub mod event_flag {
    /// `gla` is meaningful.
    pub const LINEAR: u16 = 1 << 0;
    /// The write was part of delivering an interrupt or exception.
    pub const DELIVERY: u16 = 1 << 1;
    /// The write was decided in software.
    pub const SOFTWARE: u16 = 1 << 2;
}

/// What RDI points to when a guest starts: 64 bytes, in guest memory.
///
/// The guest starts at its ELF entry point in 64-bit mode at CPL 0, paging on with the first 1 GiB
/// mapped to itself, interrupts off, RSP at the top of the page below [`BootInformation`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BootInformation {
    /// [`SIGNATURE`] and four zeros.
    pub signature: [u8; 16],
    /// [`VERSION`].
    pub version: U32,
    /// Virtual processors; all but number 0 wait for INIT and SIPI from the x2APIC.
    pub processors: U32,
    /// Bytes of memory, from address 0 on.
    pub memory: U64,
    /// Address of the command line.
    pub command_line: U64,
    /// Its length in bytes; no terminating zero counts.
    pub command_line_length: U64,
    /// First byte after the guest's image.
    pub free: U64,
    /// 0.
    pub reserved: U64,
}

const _: () = assert!(size_of::<BootInformation>() == 64);

#[cfg(test)]
mod tests {
    use core::mem::offset_of;
    use std::format;

    use super::*;

    /// The reference for people.
    const REFERENCE: &str = include_str!("../../../docs/hypercalls.md");

    /// Offsets of fields, as the reference tells them and as the type has them.
    macro_rules! layout {
        ($section:literal, $record:ty { $($field:ident: $offset:literal, $bytes:literal;)+ }) => {
            let (_, section) = REFERENCE.split_once($section).expect($section);
            let mut end = 0;
            $(
                assert_eq!(offset_of!($record, $field), $offset, stringify!($field));
                assert_eq!(end, $offset, "a gap before {}", stringify!($field));
                end += $bytes;
                let row = format!("| {} | {} | `{}` |", $offset, $bytes, stringify!($field));
                let place = section.split("\n### ").next().and_then(|part| part.find(&row));
                assert!(place.is_some(), "the reference has no row {row}");
            )+
            assert_eq!(size_of::<$record>(), end);
        };
    }

    #[test]
    fn layouts_are_those_of_the_reference() {
        layout!("## How a guest starts", BootInformation {
            signature: 0, 16; version: 16, 4; processors: 20, 4; memory: 24, 8;
            command_line: 32, 8; command_line_length: 40, 8; free: 48, 8; reserved: 56, 8;
        });
        layout!("### 3 AddRule", RuleRequest {
            gpa: 0, 8; bytes: 8, 8; action: 16, 4; response: 20, 4; flags: 24, 4;
            reserved: 28, 2; name_length: 30, 2; name: 32, 64;
        });
        layout!("### 6 Track", WrittenRecord { gfn: 0, 8; written: 8, 4; reserved: 12, 4; });
        layout!("### 9 ReadEvents", EventRecord {
            sequence: 0, 8; rule: 8, 8; gpa: 16, 8; gla: 24, 8; at: 32, 8; rip: 40, 8;
            cr3: 48, 8; qualification: 56, 8; length: 64, 4; cpu: 68, 4; outcome: 72, 2;
            flags: 74, 2; instruction_length: 76, 1; cpl: 77, 1; data_length: 78, 1;
            reserved: 79, 1; data: 80, 64; instruction: 144, 16; time: 160, 8;
        });
    }

    #[test]
    fn numbers_are_those_of_the_reference() {
        for (call, name) in [
            (Call::Query, "Query"),
            (Call::GetAccess, "GetAccess"),
            (Call::SetAccess, "SetAccess"),
            (Call::AddRule, "AddRule"),
            (Call::RemoveRule, "RemoveRule"),
            (Call::LockRule, "LockRule"),
            (Call::Track, "Track"),
            (Call::Harvest, "Harvest"),
            (Call::Untrack, "Untrack"),
            (Call::ReadEvents, "ReadEvents"),
        ] {
            assert!(REFERENCE.contains(&format!("\n| {} | {name} |", call.0)), "{name}");
        }
        for (word, register) in SIGNATURE.chunks_exact(4).zip(["Subp", "ageV", "T-x\\0"]) {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            assert!(REFERENCE.contains(&format!("`{register}` ({word:08X}H)")), "{register}");
        }
        assert!(REFERENCE.contains(&format!("version: {VERSION:08X}H")));
        let errno = crate::hypercall::Errno::NoCall.to_result();
        assert!(REFERENCE.contains(&format!("| {errno} | ENOSYS |")));
    }
}
