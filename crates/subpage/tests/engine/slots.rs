//! Slots: what one does never reaches another, nor a rule (contract C5).

use subpage::domain::DomainError;
use subpage::level::{Level, PageSize};
use subpage::slots::{AddressSpace, SlotError, SlotFlags, SlotId};

use crate::guest::{
    BASE, Normal, bytes, done, get, gfn, gfns, guest, host_page, mapped, picture, set,
};

const FLAGS: SlotFlags = SlotFlags { read_only: false, log_dirty: false };

#[test]
fn rules_belong_to_addresses_and_not_to_slots() {
    let (mut domain, _) = guest(16);
    set(&mut domain, BASE + 1, &[0xF0]);
    let token = domain.move_slot(Normal, SlotId(0), gfn(BASE + 1000)).expect("a free place");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE + 1001), u32::MAX, "D32: protection does not move along");
    let token = domain.remove_slot(Normal, SlotId(0)).expect("there is one");
    done(&mut domain, token);
    domain.add_slot(Normal, SlotId(3), gfns(BASE, 16), FLAGS).expect("a free place");
    assert_eq!(
        get(&domain, BASE + 1),
        0xF0,
        "D12, D31: a new slot finds the maps of its addresses"
    );
}

#[test]
fn removing_one_slot_leaves_the_other_as_it_is() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    domain.add_slot(Normal, SlotId(1), gfns(BASE + 512, 512), FLAGS).expect("a free place");
    let other = gfn(BASE + 512);
    domain.map(Normal, other, host_page(other, PageSize::Size2M)).expect("memory");
    set(&mut domain, BASE, &[1]);
    let kept = domain.mapping(Normal, gfn(BASE)).map(|place| place.entry);
    let token = domain.remove_slot(Normal, SlotId(1)).expect("there is one");
    done(&mut domain, token);
    assert_eq!(domain.mapping(Normal, gfn(BASE)).map(|place| place.entry), kept);
    assert_eq!(domain.mapping(Normal, other).map(|place| place.level), None);
    assert_eq!(get(&domain, BASE), 1);
}

#[test]
fn a_vector_binds_in_both_address_spaces() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    domain.add_slot(AddressSpace::Smm, SlotId(0), gfns(BASE, 512), FLAGS).expect("own numbers");
    let first = gfn(BASE);
    domain.map(AddressSpace::Smm, first, host_page(first, PageSize::Size2M)).expect("memory");
    set(&mut domain, BASE, &[!1]);
    for space in AddressSpace::BOTH {
        assert!(!domain.check_write(space, bytes(BASE * 4096, 4)).permits(), "{space:?}");
        let place = domain.mapping(space, first).expect("mapped");
        assert_eq!(place.level, Level::L1);
        assert!(place.entry.sub_page_write() && !place.entry.write());
    }
    let token = domain.remove_slot(AddressSpace::Smm, SlotId(0)).expect("there is one");
    done(&mut domain, token);
    assert!(domain.mapping(Normal, first).is_some());
}

#[test]
fn wrong_slots_are_refused_and_change_nothing() {
    let (mut domain, _) = guest(16);
    let before = picture(&domain);
    let slot = |error| Some(DomainError::Slot(error));
    let own = SlotId(0);
    assert_eq!(domain.add_slot(Normal, own, gfns(5, 1), FLAGS).err(), slot(SlotError::Exists(own)));
    assert_eq!(
        domain.add_slot(Normal, SlotId(1), gfns(BASE + 15, 9), FLAGS).err(),
        slot(SlotError::Overlaps(own))
    );
    let missing = SlotId(4);
    assert_eq!(domain.remove_slot(Normal, missing).err(), slot(SlotError::Missing(missing)));
    assert_eq!(domain.move_slot(Normal, missing, gfn(0)).err(), slot(SlotError::Missing(missing)));
    assert_eq!(
        domain.set_slot_flags(Normal, missing, FLAGS).err(),
        slot(SlotError::Missing(missing))
    );
    assert!(domain.move_slot(Normal, own, gfn((1 << 36) - 3)).is_err());
    assert_eq!(domain.harvest_dirty(Normal, own).err(), slot(SlotError::NotLogging(own)));
    assert_eq!(picture(&domain), before);
}

#[test]
fn making_a_slot_read_only_closes_its_leaves() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[1]);
    let flags = SlotFlags { read_only: true, log_dirty: false };
    let token = domain.set_slot_flags(Normal, SlotId(0), flags).expect("there is one");
    assert!(token.is_required());
    done(&mut domain, token);
    for page in 0..2 {
        let entry = domain.mapping(Normal, gfn(BASE + page)).expect("mapped").entry;
        assert!(!entry.write() && !entry.sub_page_write());
    }
    let token = domain.set_slot_flags(Normal, SlotId(0), FLAGS).expect("there is one");
    done(&mut domain, token);
    assert!(domain.mapping(Normal, gfn(BASE)).expect("mapped").entry.sub_page_write());
    assert!(domain.mapping(Normal, gfn(BASE + 1)).expect("mapped").entry.write());
}

/// A dirty log moves along with its slot, and slots are listed by their addresses.
#[test]
fn a_moved_slot_keeps_its_log() {
    let (mut domain, _) = guest(4);
    let logging = SlotFlags { read_only: false, log_dirty: true };
    domain.add_slot(Normal, SlotId(1), gfns(BASE - 100, 70), logging).expect("a free place");
    let listed = |domain: &crate::guest::TestDomain| -> Vec<_> {
        domain.slots(Normal).iter().map(|slot| (slot.id(), slot.pages())).collect()
    };
    let own = (SlotId(0), gfns(BASE, 4));
    assert_eq!(listed(&domain), [(SlotId(1), gfns(BASE - 100, 70)), own]);
    for page in [0, 63, 64, 69] {
        let write = bytes((BASE - 100 + page) * 4096, 1);
        assert!(domain.authorize_write(Normal, write).expect("memory").permits());
    }
    let token = domain.move_slot(Normal, SlotId(1), gfn(BASE + 1000)).expect("a free place");
    done(&mut domain, token);
    assert_eq!(listed(&domain), [own, (SlotId(1), gfns(BASE + 1000, 70))]);
    let (pending, token) = domain.harvest_dirty(Normal, SlotId(1)).expect("it logs");
    let completed = token.without_processors();
    domain.finish(&completed);
    let dirty = pending.ready(&completed).expect("completed");
    let dirty: Vec<_> = dirty.iter().map(|gfn| gfn.as_u64() - BASE - 1000).collect();
    assert_eq!(dirty, [0, 63, 64, 69]);
}
