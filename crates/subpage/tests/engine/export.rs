//! Export and import, bit for bit, and hostile bytes.

use proptest::prelude::*;
use subpage::domain::{Decision, ImportError};
use subpage::rules::{Action, Owner};
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{
    BASE, Normal, TestDomain, bare, bytes, done, gfn, gfns, guest, map, picture, rule, set,
};

const PAGE: u64 = BASE * 4096;
const MANY: u64 = 1 << 20;

fn busy() -> TestDomain {
    let (mut domain, _) = guest(64);
    set(&mut domain, BASE + 2, &[0xF0, 0, u32::MAX, 1]);
    let mut locked = rule(bytes(PAGE + 3 * 4096 + 5, 300), Action::Stop);
    locked.locked = true;
    let rules = [
        rule(bytes(PAGE + 2 * 4096, 9000), Action::Log),
        rule(bytes(PAGE + 100, 1), Action::AllowOnce),
        locked,
        rule(bytes(7, 7), Action::Deny),
    ];
    let (_, token) = domain.add_rules(&rules).expect("good rules");
    done(&mut domain, token);
    let (_, token) = domain.track(bytes(PAGE + 10 * 4096 + 1, 9000)).expect("a free range");
    done(&mut domain, token);
    for offset in [100, 10 * 4096 + 50, 12 * 4096 + 1] {
        assert!(domain.authorize_write(Normal, bytes(PAGE + offset, 1)).expect("memory").permits());
    }
    domain
}

fn fresh() -> TestDomain {
    guest(64).0
}

#[test]
fn state_comes_back_bit_for_bit() {
    let domain = busy();
    let state = domain.export().expect("memory");
    let mut copy = fresh();
    let token = copy.import(&state, MANY).expect("good state");
    done(&mut copy, token);
    assert_eq!(copy.export().expect("memory"), state);
    assert_eq!(picture(&copy), picture(&domain));
    assert!(
        !copy.authorize_write(Normal, bytes(PAGE + 100, 1)).expect("memory").permits(),
        "spent"
    );
    let (id, token) = copy.add_rule(rule(bytes(0, 1), Action::Log)).expect("a rule");
    done(&mut copy, token);
    assert_eq!(id.0, 5, "numbers continue where they were");
}

#[test]
fn import_never_replaces() {
    let state = busy().export().expect("memory");
    let mut domain = busy();
    let before = picture(&domain);
    assert_eq!(domain.import(&state, MANY).err(), Some(ImportError::NotEmpty));
    assert_eq!(picture(&domain), before);
    assert!(domain.remove_rule(subpage::rules::RuleId(3), Owner::HOST).is_err());
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let state = busy().export().expect("memory");
    let mut domain = fresh();
    let before = picture(&domain);
    for length in 0..state.len() {
        assert!(domain.import(&state[..length], MANY).is_err(), "cut at {length}");
    }
    for bit in 0..state.len() * 8 {
        let mut damaged = state.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(domain.import(&damaged, MANY).is_err(), "bit {bit}");
    }
    assert_eq!(picture(&domain), before);
}

#[test]
fn too_many_pages_are_refused_before_anything_is_reserved() {
    let (mut huge, _) = bare();
    huge.enable().expect("memory");
    let (_, token) = huge.track(bytes(0, 4096 * 100)).expect("a range");
    done(&mut huge, token);
    let state = huge.export().expect("memory");
    assert_eq!(fresh().import(&state, 99).err(), Some(ImportError::TooManyPages));
    assert!(fresh().import(&state, 100).is_ok());
}

/// Rules and tracking that overlap are about each page once.
#[test]
fn pages_count_once_however_much_is_about_them() {
    let mut domain = fresh();
    let whole = bytes(0, 4096 * 100);
    for _ in 0..3 {
        let (_, token) = domain.add_rule(rule(whole, Action::Deny)).expect("a rule");
        done(&mut domain, token);
    }
    let (_, token) = domain.track(whole).expect("a range");
    done(&mut domain, token);
    let state = domain.export().expect("memory");
    assert_eq!(fresh().import(&state, 99).err(), Some(ImportError::TooManyPages));
    assert!(fresh().import(&state, 100).is_ok());
}

/// Maps of the last page are state like any other, and so is a rule in a region that is tracked as one.
#[test]
fn the_last_page_and_a_rule_in_a_tracked_region_come_back() {
    let (first, last) = (gfns(0, 512), gfns((1 << 36) - 1, 1));
    let guest = || {
        let (mut domain, _) = bare();
        domain.enable().expect("memory");
        for (id, pages) in [(0, first), (1, last)] {
            domain.add_slot(Normal, SlotId(id), pages, SlotFlags::default()).expect("a free place");
        }
        domain
    };
    let mut domain = guest();
    set(&mut domain, last.first().as_u64(), &[!8]);
    let (id, token) = domain.add_rule(rule(bytes(0x5080, 8), Action::Deny)).expect("memory");
    done(&mut domain, token);
    let (_, token) = domain.track(bytes(0, 512 * 4096)).expect("memory");
    done(&mut domain, token);
    let mut copy = guest();
    let token = copy.import(&domain.export().expect("memory"), MANY).expect("good state");
    done(&mut copy, token);
    assert_eq!(copy.permitted(last.first()).bits(), !8);
    let at = bytes(0x5080, 1).first();
    let denied = Decision::Denied { rule: Some(id), at, stop: false };
    assert_eq!(copy.check_write(Normal, bytes(0x5080, 1)), denied);
    assert_eq!(copy.check_write(Normal, bytes(0x5100, 1)), Decision::Allowed);
    assert_eq!(picture(&copy), picture(&domain));
}

/// In a region that is tracked as one, what was written stays open, and no page is armed that was not.
#[test]
fn what_was_written_in_a_tracked_region_comes_back() {
    let guest = || guest(1024).0;
    let mut domain = guest();
    let (_, token) = domain.track(bytes(PAGE, 1024 * 4096)).expect("memory");
    done(&mut domain, token);
    assert!(domain.authorize_write(Normal, bytes(PAGE + 130, 1)).expect("memory").permits());
    let mut copy = guest();
    let token = copy.import(&domain.export().expect("memory"), MANY).expect("good state");
    done(&mut copy, token);
    let vector = |domain: &TestDomain, page| {
        domain.sppt().expect("enabled").vector(domain.frames(), gfn(page)).to_map().bits()
    };
    assert_eq!([0, 1, 512].map(|page| vector(&copy, BASE + page)), [0b10, 0, 0]);
    assert_eq!(picture(&copy), picture(&domain));
}

/// Puts a right checksum under damaged content, so that the fields themselves are tested.
fn seal(mut content: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&content);
    content.extend_from_slice(&checksum.to_le_bytes());
    content
}

/// One wrong field at a time, under a right checksum.
#[test]
fn each_wrong_field_is_refused_by_its_name() {
    const HEADER: usize = 40;
    const RULE: usize = 94;
    const MAP: usize = 12;
    const TRACK: usize = 32;
    let (mut domain, _) = guest(64);
    set(&mut domain, BASE + 1, &[1, 2]);
    let at = bytes(PAGE + 5 * 4096, 8);
    let later = bytes(PAGE + 6 * 4096, 8);
    let (_, token) = domain
        .add_rules(&[rule(at, Action::Log), rule(later, Action::AllowOnce)])
        .expect("good rules");
    done(&mut domain, token);
    let (_, token) = domain.track(bytes(PAGE + 10 * 4096 + 128, 8192)).expect("a free range");
    done(&mut domain, token);
    for page in [10, 11] {
        let write = bytes(PAGE + page * 4096 + 256, 1);
        assert!(domain.authorize_write(Normal, write).expect("memory").permits());
    }
    let mut content = domain.export().expect("memory");
    content.truncate(content.len() - 4);
    let maps = HEADER + 2 * RULE;
    let written = maps + 2 * MAP + TRACK;
    assert_eq!(content.len(), written + 2 * MAP);
    let flags = |record: usize| HEADER + record * RULE + 29;
    let import = |at: usize, field: &[u8]| {
        let mut content = content.clone();
        content[at..at + field.len()].copy_from_slice(field);
        let mut domain = fresh();
        let before = picture(&domain);
        let result = domain.import(&seal(content.clone()), MANY);
        match result {
            Ok(token) => {
                done(&mut domain, token);
                assert_eq!(domain.export(), Ok(seal(content)));
                None
            }
            Err(ImportError::Record { what, record }) => {
                assert_eq!(picture(&domain), before);
                Some((what, record))
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(import(0, b"SUB"), None);
    let map = Some(("map or order of maps", 1));
    assert_eq!(import(maps + MAP, &(BASE + 1).to_le_bytes()), map, "a page twice");
    assert_eq!(import(maps + MAP, &BASE.to_le_bytes()), map, "descending");
    assert_eq!(import(maps + MAP + 8, &u32::MAX.to_le_bytes()), map, "nothing is denied");
    let sub_page = Some(("written sub-page", 0));
    assert_eq!(import(written + MAP, &(BASE + 10).to_le_bytes()), sub_page, "a page twice");
    assert_eq!(import(written + 8, &0_u32.to_le_bytes()), sub_page, "none");
    assert_eq!(import(written + 8, &1_u32.to_le_bytes()), sub_page, "not tracked");
    assert_eq!(import(written + 8, &2_u32.to_le_bytes()), None);
    // 1 is locked, 2 is spent, 4 is not armed.
    let flag = |record| Some(("flag", record));
    for (record, value, expected) in [
        (0, 0, None),
        (0, 1, None),
        (0, 4, None),
        (0, 5, None),
        (0, 2, flag(0)),
        (0, 8, flag(0)),
        (1, 2, None),
        (1, 3, None),
        (1, 6, flag(1)),
        (1, 128, flag(1)),
    ] {
        assert_eq!(import(flags(record), &[value]), expected, "{value} in record {record}");
    }
    let number = &content[HEADER..HEADER + 8];
    assert_eq!(import(HEADER + RULE, number), Some(("rule number (twice)", 0)));
}

/// What is not empty: a rule that is not yet in force, a map, or a tracked range, each alone.
#[test]
fn only_an_empty_domain_takes_state_in() {
    let state = fresh().export().expect("memory");
    assert!(fresh().import(&state, 0).is_ok());
    let at = bytes(PAGE, 8);
    for what in 0..3 {
        let mut domain = fresh();
        let token = match what {
            0 => domain.add_some_armed(&[(rule(at, Action::Deny), false)]).expect("memory").1,
            1 => domain.set_access(at.first().gfn(), &[map(1)]).expect("memory"),
            _ => domain.track(at).expect("memory").1,
        };
        done(&mut domain, token);
        let before = picture(&domain);
        assert_eq!(domain.import(&state, MANY).err(), Some(ImportError::NotEmpty), "{what}");
        assert_eq!(picture(&domain), before);
    }
}

proptest! {
    /// Whatever the bytes say, an import is refused and changes nothing, or what it takes in comes
    /// out again bit for bit.
    #[test]
    fn damaged_fields_are_refused_or_mean_what_they_say(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let state = busy().export().expect("memory");
        let mut content = state[..state.len() - 4].to_vec();
        for (at, byte) in damage {
            let at = at.index(content.len());
            content[at] = byte;
        }
        let sealed = seal(content);
        let mut domain = fresh();
        let before = picture(&domain);
        if let Ok(token) = domain.import(&sealed, MANY) {
            done(&mut domain, token);
            prop_assert_eq!(domain.export().expect("memory"), sealed);
        } else { prop_assert_eq!(picture(&domain), before) }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(fresh().import(&bytes, MANY).is_err());
        prop_assert!(fresh().import(&seal(bytes), MANY).is_err());
    }
}
