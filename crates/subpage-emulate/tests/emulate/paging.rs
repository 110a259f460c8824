//! The guest's page walk, in every format, against the rules as the SDM words them.

use proptest::prelude::*;
use subpage::address::Gpa;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Access, Exception, Fault, translate, translate_marked, translate_span, walk_marks,
};

use crate::flat::Flat;
use crate::machine::{PAGING, state_64};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

const WP: u64 = 1 << 16;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const NXE: u64 = 1 << 11;
const LMA: u64 = 1 << 10;
const AC: u64 = 1 << 18;

/// Tables at 1000H to 4000H that lead the linear address `LINEAR` to page 7000H.
const LINEAR: u64 = 0x0000_7f92_4567_8abc;

fn index(level: u32) -> u64 {
    LINEAR >> (12 + 9 * (level - 1)) & 0x1ff
}

fn at(level: u32) -> u64 {
    (5 - u64::from(level)) * 0x1000 + index(level) * 8
}

fn four_levels(flags: [u64; 4]) -> Flat {
    let memory = Flat::new(0x10000);
    for (level, flags) in [4, 3, 2, 1].into_iter().zip(flags) {
        let next = if level == 1 { 0x7000 } else { (6 - u64::from(level)) * 0x1000 };
        memory.put(at(level), &(next | flags).to_le_bytes());
    }
    memory
}

fn long() -> State {
    let mut state = state_64();
    state.cr0 = 0x8000_0011;
    state.cr4 = PAE;
    state.efer = LMA | 0x101;
    state
}

const READ: Access = Access { write: false, user: false, fetch: false, implicit: false };

fn page_fault(address: u64, code: u32) -> Fault {
    Exception::page_fault(address, code).into()
}

/// All combinations of rights in two levels, of an access and of the bits that govern rights.
#[test]
fn every_combination_of_rights_is_judged_as_the_manual_says() {
    let mut judged = 0_u32;
    for bits in 0..1_u32 << 15 {
        let bit = |number: u32| bits >> number & 1 != 0;
        let entry = |from: u32| {
            P | if bit(from) { W } else { 0 }
                | if bit(from + 1) { U } else { 0 }
                | if bit(from + 2) { NX } else { 0 }
        };
        let (upper, leaf) = (entry(0), entry(3));
        let access = Access { write: bit(6), user: bit(7), fetch: bit(8), implicit: bit(14) };
        if access.write && access.fetch || access.implicit && (access.user || access.fetch) {
            continue;
        }
        let mut state = long();
        state.cr0 |= if bit(9) { WP } else { 0 };
        state.cr4 |= if bit(10) { SMEP } else { 0 } | if bit(11) { SMAP } else { 0 };
        state.efer |= if bit(12) { NXE } else { 0 };
        state.rflags = if bit(13) { AC } else { 0 };
        let memory = four_levels([P | W | U, upper, P | W | U, leaf]);

        let user_page = upper & leaf & U != 0;
        let writable = upper & leaf & W != 0;
        let no_execute = (upper | leaf) & NX != 0;
        let code = u32::from(access.write) << 1
            | u32::from(access.user) << 2
            | u32::from(access.fetch && (bit(10) || bit(12))) << 4;
        let expected = if no_execute && !bit(12) {
            Err(page_fault(LINEAR, code | 0b1001))
        } else {
            // SDM Vol. 3A, "Determination of Access Rights".
            let permitted = match (access.user, user_page) {
                (true, false) => false,
                (true, true) => (!access.write || writable) && !(access.fetch && no_execute),
                (false, true) if access.fetch => !bit(10) && !no_execute,
                (false, true) => {
                    (!bit(11) || bit(13) && !access.implicit)
                        && (!access.write || writable || !bit(9))
                }
                (false, false) => {
                    (!access.write || writable || !bit(9)) && !(access.fetch && no_execute)
                }
            };
            if permitted { Ok(Gpa::new(0x7abc)) } else { Err(page_fault(LINEAR, code | 1)) }
        };
        let got = translate(&memory, PAGING, &state, LINEAR, access).map(|way| way.gpa);
        assert_eq!(got, expected, "{access:?}, bits {bits:#b}");
        judged += 1;
    }
    assert!(judged > 10_000, "most combinations exist");
}

#[test]
fn a_missing_entry_at_any_level_faults_without_the_present_bit() {
    for missing in 0..4 {
        let mut flags = [P | W | U; 4];
        // All else of an absent entry is the guest's own.
        flags[missing] = NX | 0xffe;
        let memory = four_levels(flags);
        let write = Access { write: true, user: true, ..READ };
        assert_eq!(
            translate(&memory, PAGING, &long(), LINEAR, write).unwrap_err(),
            page_fault(LINEAR, 0b110),
        );
    }
}

#[test]
fn reserved_bits_fault_at_every_level() {
    let reserved = [
        vec![1 << 40, 1 << 51, PS],
        vec![1 << 40, 1 << 51, PS | 1 << 13, PS | 1 << 29],
        vec![1 << 40, 1 << 51, PS | 1 << 13, PS | 1 << 20],
        vec![1 << 40, 1 << 51],
    ];
    for (level, bits) in reserved.iter().enumerate() {
        for bit in bits {
            let mut flags = [P | W | U; 4];
            flags[level] |= bit;
            let got = translate(&four_levels(flags), PAGING, &long(), LINEAR, READ);
            assert_eq!(got.unwrap_err(), page_fault(LINEAR, 0b1001), "level {level}, {bit:#x}");
        }
        // What software may use, the walk ignores.
        let mut flags = [P | W | U; 4];
        flags[level] |= 0x7ff << 52 & !NX | 0xe00;
        assert!(translate(&four_levels(flags), PAGING, &long(), LINEAR, READ).is_ok());
    }
    let mut no_gigabytes = PAGING;
    no_gigabytes.gigabyte_pages = false;
    let memory = four_levels([P | W | U; 4]);
    memory.put(at(3), &(PS | P).to_le_bytes());
    assert!(translate(&memory, PAGING, &long(), LINEAR, READ).is_ok());
    assert_eq!(
        translate(&memory, no_gigabytes, &long(), LINEAR, READ).unwrap_err(),
        page_fault(LINEAR, 0b1001),
    );
}

#[test]
fn large_pages_keep_the_address_bits_below_their_size() {
    let memory = four_levels([P | W | U; 4]);
    memory.put(at(2), &(0x60_1000 | PS | P).to_le_bytes());
    let way = translate(&memory, PAGING, &long(), LINEAR, READ).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x60_0000 | LINEAR & 0x1f_ffff, "bit 12 is the PAT bit");
    assert_eq!(way.marks.len(), 3);

    memory.put(at(3), &(0x40_0000_1000 | PS | P).to_le_bytes());
    let way = translate(&memory, PAGING, &long(), LINEAR, READ).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x40_0000_0000 | LINEAR & 0x3fff_ffff);
    assert_eq!(way.marks.len(), 2);
}

#[test]
fn addresses_that_are_not_canonical_are_general_protection() {
    let memory = four_levels([P | W | U; 4]);
    for linear in [1 << 47, !0 << 48, 0x8000_0000_0000_0000] {
        assert_eq!(
            translate(&memory, PAGING, &long(), linear, READ).unwrap_err(),
            Exception::general_protection(0).into(),
        );
    }
}

#[test]
fn a_table_outside_of_memory_is_not_the_guests_exception() {
    let memory = four_levels([P | W | U; 4]);
    memory.put(at(3), &(0x55_5000 | P).to_le_bytes());
    let got = translate(&memory, PAGING, &long(), LINEAR, READ).unwrap_err();
    assert_eq!(got, Fault::NotMemory(0x55_5000 + index(2) * 8));
    let mut state = long();
    state.cr3 = 0x000f_ffff_ffff_f000;
    let got = translate(&memory, PAGING, &state, LINEAR, READ).unwrap_err();
    assert!(matches!(got, Fault::NotMemory(_)));
}

#[test]
fn marks_are_the_flags_that_are_missing_and_setting_them_is_all_that_changes() {
    for present in 0..16_u64 {
        let flag = |level: u32| if present >> (level - 1) & 1 != 0 { A } else { 0 };
        let all = P | W | U;
        let memory = four_levels([all | flag(4), all | flag(3), all | flag(2), all | flag(1)]);
        let write = Access { write: true, ..READ };
        let before = memory.0.borrow().clone();
        let way = translate(&memory, PAGING, &long(), LINEAR, write).unwrap();
        let mut expected = Vec::new();
        for level in [4, 3, 2, 1] {
            let flags = A & !flag(level) | if level == 1 { D } else { 0 };
            if flags != 0 {
                expected.push((at(level), 8, flags));
            }
        }
        let marks: Vec<_> = way
            .marks
            .iter()
            .map(|mark| (mark.entry.as_u64(), mark.entry_bytes, mark.flags))
            .collect();
        assert_eq!(marks, expected);
        assert!(*memory.0.borrow() == before, "a walk changes nothing");

        assert_eq!(way.mark_accessed(&memory), Ok(true));
        let mut wanted = before;
        for (entry, _, flags) in expected {
            wanted[usize::try_from(entry).unwrap()] |= flags as u8;
        }
        assert!(*memory.0.borrow() == wanted);
        let again = translate(&memory, PAGING, &long(), LINEAR, write).unwrap();
        assert!(again.marks.is_empty());
    }
}

#[test]
fn a_walk_that_ends_in_a_fault_marks_what_led_there() {
    let write = Access { write: true, user: true, ..READ };
    for (level, flags) in
        [(4, 0), (3, 0), (2, W), (1, 0), (1, P | W), (1, P | U), (2, PS | P | 1 << 14)]
    {
        let mut all = [P | W | U; 4];
        all[4 - level as usize] = flags;
        let memory = four_levels(all);
        assert!(translate(&memory, PAGING, &long(), LINEAR, write).is_err());
        let marks = walk_marks(&memory, PAGING, &long(), LINEAR, write);
        let marks: Vec<_> = marks.iter().map(|mark| (mark.entry.as_u64(), mark.flags)).collect();
        let expected: Vec<_> = (level + 1..=4).rev().map(|above| (at(above), A)).collect();
        assert_eq!(marks, expected, "fault at level {level}");
    }
    let memory = four_levels([P | W | U; 4]);
    let way = translate(&memory, PAGING, &long(), LINEAR, write).unwrap();
    assert_eq!(walk_marks(&memory, PAGING, &long(), LINEAR, write), way.marks);
}

#[test]
fn flags_do_not_go_to_an_entry_that_has_changed() {
    let memory = four_levels([P | W | U; 4]);
    let way = translate(&memory, PAGING, &long(), LINEAR, READ).unwrap();
    memory.put(at(2), &0_u64.to_le_bytes());
    assert_eq!(way.mark_accessed(&memory), Ok(false));
    assert_eq!(memory.get::<8>(at(2)), [0; 8], "an entry that is gone stays gone");
    assert_eq!(memory.get::<1>(at(1))[0] & A as u8, 0, "the rest is not reached");
}

#[test]
fn legacy_paging_has_entries_of_four_bytes_and_pages_of_four_megabytes() {
    let memory = Flat::new(0x10000);
    let linear = 0x1234_5678_u64;
    let (directory, table) = (linear >> 22, linear >> 12 & 0x3ff);
    let mut state = long();
    state.efer = 0;
    state.cr4 = PSE;
    state.cr3 = 0x1018;
    memory.put(0x1000 + directory * 4, &0x2007_u32.to_le_bytes());
    memory.put(0x2000 + table * 4, &0x7007_u32.to_le_bytes());
    // The neighbour in the same eight bytes stays as it is.
    let neighbour = 0x2000 + (table ^ 1) * 4;
    memory.put(neighbour, &0xdead_beef_u32.to_le_bytes());
    let write = Access { write: true, user: true, ..READ };
    // The upper half of a linear address does not exist.
    let way = translate(&memory, PAGING, &state, linear | 0xffff << 32, write).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x7678);
    assert_eq!(way.mark_accessed(&memory), Ok(true));
    assert_eq!(u32::from_le_bytes(memory.get(0x1000 + directory * 4)), 0x2027);
    assert_eq!(u32::from_le_bytes(memory.get(0x2000 + table * 4)), 0x7067);
    assert_eq!(u32::from_le_bytes(memory.get(neighbour)), 0xdead_beef);

    // 4 MiB, with address bits 39:32 in bits 20:13.
    memory.put(0x1000 + directory * 4, &(0x00c0_0087_u32 | 0xab << 13).to_le_bytes());
    let way = translate(&memory, PAGING, &state, linear, write).unwrap();
    assert_eq!(way.gpa.as_u64(), 0xab_00c0_0000 | linear & 0x3f_ffff);
    memory.put(0x1000 + directory * 4, &(0x00c0_0087_u32 | 1 << 21).to_le_bytes());
    let got = translate(&memory, PAGING, &state, linear, write).unwrap_err();
    assert_eq!(got, page_fault(linear, 0b1111));
    // Without CR4.PSE bit 7 means nothing.
    state.cr4 = 0;
    memory.put(0x1000 + directory * 4, &0x2087_u32.to_le_bytes());
    let way = translate(&memory, PAGING, &state, linear, READ).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x7678);
}

#[test]
fn pae_paging_has_four_pointers_without_rights() {
    let memory = Flat::new(0x10000);
    let linear = 0xc123_4567_u64;
    let mut state = long();
    state.efer = NXE;
    state.cr3 = 0x1020;
    memory.put(0x1020 + 3 * 8, &(0x2000 | P).to_le_bytes());
    memory.put(0x2000 + (linear >> 21 & 0x1ff) * 8, &(0x3000 | P | W | U).to_le_bytes());
    let leaf = 0x3000 + (linear >> 12 & 0x1ff) * 8;
    memory.put(leaf, &(0x7000 | P | W | U).to_le_bytes());
    let write = Access { write: true, user: true, ..READ };
    let way = translate(&memory, PAGING, &state, linear, write).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x7567, "the pointer's clear W and U do not count");
    assert_eq!(way.marks.len(), 2, "and it has no flags");
    memory.put(leaf, &(0x7000 | P | W | U | 1 << 52).to_le_bytes());
    let got = translate(&memory, PAGING, &state, linear, write).unwrap_err();
    assert_eq!(got, page_fault(linear, 0b1111), "bits 62:52 are reserved here");
    memory.put(leaf, &(0x7000 | P | NX).to_le_bytes());
    let fetch = Access { fetch: true, ..READ };
    let got = translate(&memory, PAGING, &state, linear, fetch).unwrap_err();
    assert_eq!(got, page_fault(linear, 0b1_0001));
    memory.put(0x1020 + 3 * 8, &(0x2000 | P | W).to_le_bytes());
    let got = translate(&memory, PAGING, &state, linear, READ).unwrap_err();
    assert_eq!(got, page_fault(linear, 0b1001), "bit 1 of a pointer is reserved");
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut state = long();
    state.cr0 = 0x11;
    state.efer = 0;
    let way = translate(&Flat::new(0), PAGING, &state, 0x1_2345_6789, READ).unwrap();
    assert_eq!(way.gpa.as_u64(), 0x2345_6789);
    assert!(way.marks.is_empty());
}

#[test]
fn a_store_across_a_page_end_has_two_parts_that_need_not_be_neighbours() {
    let memory = four_levels([P | W | U; 4]);
    let write = Access { write: true, user: true, ..READ };
    let span =
        |bytes| translate_span(&memory, PAGING, &long(), LINEAR & !0xfff | 0xff8, bytes, write);
    let places = |bytes| {
        let parts = span(bytes).unwrap();
        parts.iter().map(|part| (part.translation.gpa.as_u64(), part.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(places(8), [(0x7ff8, 8)]);
    // The next page is absent, then it is somewhere else.
    let next = (LINEAR | 0xfff) + 1;
    assert_eq!(span(9).unwrap_err(), page_fault(next, 0b110));
    memory.put(at(1) + 8, &(0x3000 | P | W | U).to_le_bytes());
    assert_eq!(places(9), [(0x7ff8, 8), (0x3000, 1)]);
    assert_eq!(places(512), [(0x7ff8, 8), (0x3000, 504)]);
    memory.put(at(1) + 8, &(0x3000 | P | U).to_le_bytes());
    assert_eq!(span(9).unwrap_err(), page_fault(next, 0b111));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    /// Random tables and registers: always an answer, and one that lies in the page that it names.
    #[test]
    fn random_tables_never_panic(
        words in prop::collection::vec(any::<u64>(), 1024),
        cr3 in 0_u64..0x2000,
        (cr0, cr4, efer, rflags) in any::<(u64, u64, u64, u64)>(),
        linear in any::<u64>(),
        (write, user, fetch, implicit) in any::<(bool, bool, bool, bool)>(),
    ) {
        let memory = Flat::new(0x2000);
        for (number, word) in words.iter().enumerate() {
            // Mostly present, mostly leading back into the memory.
            let word = if word % 4 == 0 { *word } else { word & 0x1fff | 1 };
            memory.put(number as u64 * 8, &word.to_le_bytes());
        }
        let state = State { cr0, cr3, cr4, efer, rflags, ..State::default() };
        let access = Access { write, user, fetch, implicit };
        if let Ok(way) = translate(&memory, PAGING, &state, linear, access) {
            prop_assert_eq!(way.gpa.as_u64() & 0xfff, linear & 0xfff);
            prop_assert_eq!(way.mark_accessed(&memory).is_ok(), true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200_000))]

    /// The walk for the common case gives what the walk for all cases gives where that has nothing to
    /// mark, and nothing elsewhere.
    #[test]
    fn the_common_case_is_told_exactly(
        flags in prop::array::uniform4(prop::array::uniform11(any::<bool>())),
        usual in prop::array::uniform4(0..4_u8),
        registers in prop::array::uniform7(any::<bool>()),
        access in prop::array::uniform4(any::<bool>()),
        not_canonical in 0..20_u8,
    ) {
        const BITS: [u64; 11] =
            [P, W, U, A, D, PS, NX, 1 << 40, 1 << 12, 1 << 13, 1 << 52];
        let entries = [0, 1, 2, 3].map(|level| {
            // Most of the time an entry is an ordinary one.
            let ordinary = P | W | U | A | D;
            let one = if usual[level] == 0 { ordinary } else { 0 };
            (0..11).filter(|&bit| flags[level][bit]).fold(one, |all, bit| {
                if usual[level] < 3 { ordinary | BITS[bit % 5] } else { all | BITS[bit] }
            })
        });
        let memory = four_levels(entries);
        let mut state = long();
        for (on, bit) in registers.into_iter().zip([WP, 0, 0, 0, 0, 0, 0]) {
            state.cr0 |= if on { bit } else { 0 };
        }
        state.cr4 |= if registers[1] { SMEP } else { 0 } | if registers[2] { SMAP } else { 0 };
        state.efer |= if registers[3] { NXE } else { 0 };
        state.rflags |= if registers[4] { AC } else { 0 };
        state.cpl = if registers[5] { 3 } else { 0 };
        if registers[6] && not_canonical == 1 {
            state.efer &= !LMA;
        }
        let [write, user, fetch, implicit] = access;
        let access = Access { write: write && !fetch, user, fetch, implicit };
        let linear = if not_canonical == 0 { LINEAR ^ 1 << 50 } else { LINEAR };
        let marked = translate_marked(&memory, PAGING, &state, linear, access);
        let expected = match translate(&memory, PAGING, &state, linear, access) {
            Ok(walk) if walk.marks.is_empty() && state.efer & LMA != 0 => Some(walk.gpa),
            _ => None,
        };
        prop_assert_eq!(marked, expected, "{:x?}", entries);
    }
}
