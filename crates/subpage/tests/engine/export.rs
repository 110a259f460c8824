//! Export and import, bit for bit, and hostile bytes.

use proptest::prelude::*;
use subpage::domain::{Decision, ImportError};
use subpage::rules::{Action, Owner};
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{BASE, Normal, TestDomain, bare, bytes, done, gfns, guest, picture, rule, set};

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

/// Puts a right checksum under damaged content, so that the fields themselves are tested.
fn seal(mut content: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&content);
    content.extend_from_slice(&checksum.to_le_bytes());
    content
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
