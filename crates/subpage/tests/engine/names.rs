//! One memory under several guest-physical addresses: rules hold under every name.

use subpage::address::{ByteRange, Gfn, GfnRange};
use subpage::domain::{Decision, DomainError, WriteParts};
use subpage::level::{Level, PageSize};
use subpage::rules::{Action, Owner, RuleId};
use subpage::slots::{AddressSpace, SlotError, SlotFlags, SlotId};

use crate::guest::{
    BASE, Normal, TestDomain, bare, bytes, done, get, gfn, gfns, guest, host_page, mapped, picture,
    rule, set,
};

const FLAGS: SlotFlags = SlotFlags { read_only: false, log_dirty: false };
/// The second name of the slot's pages from 2 on.
const ALIAS: u64 = BASE + 0x2000;
const PAGES: u64 = 4;

fn alias(domain: &mut TestDomain) {
    let pages = gfns(ALIAS, PAGES);
    let token = domain.add_alias(Normal, SlotId(1), pages, FLAGS, gfn(BASE + 2)).expect("memory");
    done(domain, token);
}

/// A guest of eight pages, of which four have a second name.
fn aliased() -> TestDomain {
    let (mut domain, _) = guest(8);
    alias(&mut domain);
    domain
}

fn add(domain: &mut TestDomain, first: u64, length: u64, action: Action) -> RuleId {
    let (id, token) = domain.add_rule(rule(bytes(first, length), action)).expect("memory");
    done(domain, token);
    id
}

fn denied(rule: Option<RuleId>, at: u64) -> Decision {
    Decision::Denied { rule, at: subpage::address::Gpa::new(at), stop: false }
}

#[test]
fn a_rule_by_one_name_denies_by_the_other() {
    let mut domain = aliased();
    let (own, other) = ((BASE + 3) * 4096, (ALIAS + 1) * 4096);
    let first = add(&mut domain, own + 256, 8, Action::Deny);
    let write = |domain: &TestDomain, at| domain.check_write(Normal, bytes(at, 16));
    assert_eq!(write(&domain, own + 248), denied(Some(first), own + 256));
    assert_eq!(write(&domain, other + 248), denied(Some(first), other + 256));
    assert_eq!(write(&domain, other + 264), Decision::Allowed, "same sub-page, other bytes");
    assert_eq!(get(&domain, ALIAS + 1), !(1 << 2));
    let second = add(&mut domain, other + 4000, 300, Action::Deny);
    let next = own + 4096;
    assert_eq!(write(&domain, own + 4090), denied(Some(second), own + 4090));
    assert_eq!(write(&domain, next + 200), denied(Some(second), next + 200));
    for id in [first, second] {
        let token = domain.remove_rule(id, Owner(7)).expect("there is one");
        done(&mut domain, token);
    }
    for at in [own + 248, other + 248, own + 4090, next + 200] {
        assert_eq!(write(&domain, at), Decision::Allowed);
    }
    assert_eq!(domain.next_restricted(gfn(0)), None);
}

#[test]
fn an_alias_has_its_originals_name() {
    let domain = aliased();
    for page in 0..PAGES {
        assert_eq!(domain.original(gfn(ALIAS + page)), gfn(BASE + 2 + page));
        assert_eq!(domain.original(gfn(BASE + 2 + page)), gfn(BASE + 2 + page));
    }
    assert_eq!(domain.original(gfn(ALIAS + PAGES)), gfn(ALIAS + PAGES));
}

#[test]
fn leaves_and_vectors_of_both_names_say_the_same() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    let pages = gfns(BASE + 512, 512);
    let token = domain.add_alias(Normal, SlotId(1), pages, FLAGS, gfn(BASE)).expect("memory");
    done(&mut domain, token);
    let further = host_page(gfn(BASE), PageSize::Size2M);
    domain.map(Normal, gfn(BASE + 512), further).expect("memory");
    for (page, at) in [(3, BASE + 3), (5, BASE + 512 + 5)] {
        add(&mut domain, at * 4096, 128, Action::Deny);
        for name in [BASE + page, BASE + 512 + page] {
            let place = domain.mapping(Normal, gfn(name)).expect("mapped");
            assert_eq!(place.level, Level::L1);
            assert!(place.entry.sub_page_write() && !place.entry.write(), "{name:#x}");
            let vector = domain.sppt().expect("enabled").vector(domain.frames(), gfn(name));
            assert_eq!(vector.to_map().bits(), !1);
        }
    }
    let hpa = |name| domain.mapping(Normal, gfn(name)).map(|place| place.entry.hpa());
    assert_eq!(hpa(BASE + 3), hpa(BASE + 512 + 3), "the same memory");
}

#[test]
fn memory_that_is_named_again_is_guarded_by_what_holds_either_name() {
    let (mut domain, _) = guest(8);
    set(&mut domain, BASE + 2, &[!0b1]);
    set(&mut domain, BASE + 3, &[!0b1]);
    // Addresses that hold no memory yet.
    let early = add(&mut domain, ALIAS * 4096 + 256, 4, Action::Deny);
    let late = add(&mut domain, (BASE + 4) * 4096, 4, Action::Log);
    alias(&mut domain);
    for name in [BASE + 2, ALIAS] {
        assert_eq!(get(&domain, name), !0b101);
        let write = bytes(name * 4096 + 256, 1);
        assert_eq!(domain.check_write(Normal, write), denied(Some(early), name * 4096 + 256));
    }
    let reported = domain.check_write(Normal, bytes((ALIAS + 2) * 4096 + 2, 8));
    assert!(matches!(reported, Decision::Reported { rule, .. } if rule == late), "{reported:?}");
    let token = domain.remove_slot(Normal, SlotId(1)).expect("there is one");
    done(&mut domain, token);
    assert_eq!(get(&domain, BASE + 2), !0b1, "the rule of the address that is gone holds no more");
    let maps: Vec<_> = [ALIAS, ALIAS + 1].map(|page| domain.permitted(gfn(page)).bits()).into();
    assert_eq!(maps, [!0b100, u32::MAX], "the rule stays with its address");
    alias(&mut domain);
    assert_eq!(get(&domain, BASE + 2), !0b101);
}

/// A processor that still knew the alias would find its memory open.
#[test]
fn an_alias_that_is_mapped_is_not_removed() {
    let mut domain = aliased();
    let rule = add(&mut domain, (BASE + 2) * 4096, 8, Action::Deny);
    domain.map(Normal, gfn(ALIAS), host_page(gfn(BASE + 2), PageSize::Size4K)).expect("memory");
    let before = picture(&domain);
    let refused = domain.remove_slot(Normal, SlotId(1)).expect_err("a frame is mapped");
    assert_eq!(refused, DomainError::AlreadyMapped(gfn(ALIAS)));
    assert_eq!(picture(&domain), before);
    let write = bytes(ALIAS * 4096, 8);
    assert_eq!(domain.check_write(Normal, write), denied(Some(rule), ALIAS * 4096));
    let token = domain.unmap(Normal, gfns(ALIAS, PAGES)).expect("memory");
    done(&mut domain, token);
    let token = domain.remove_slot(Normal, SlotId(1)).expect("nothing is mapped");
    done(&mut domain, token);
    assert_eq!(
        domain.check_write(Normal, bytes((BASE + 2) * 4096, 8)),
        denied(Some(rule), (BASE + 2) * 4096)
    );
}

#[test]
fn maps_are_set_under_all_names() {
    let mut domain = aliased();
    set(&mut domain, ALIAS, &[1, 2, 3, 4]);
    assert_eq!(
        (BASE + 1..BASE + 7).map(|page| get(&domain, page)).collect::<Vec<_>>(),
        [u32::MAX, 1, 2, 3, 4, u32::MAX]
    );
    set(&mut domain, BASE, &[u32::MAX; 8]);
    assert_eq!(get(&domain, ALIAS + 3), u32::MAX);
    let locked =
        subpage::rules::Rule { locked: true, ..rule(bytes((BASE + 2) * 4096, 1), Action::Deny) };
    let (id, token) = domain.add_rule(locked).expect("memory");
    done(&mut domain, token);
    let maps = [subpage::access::AccessMap::ALL];
    let refused = domain.set_access(gfn(ALIAS), &maps).expect_err("locked under the other name");
    assert_eq!(refused, DomainError::Locked(id));
}

#[test]
fn one_write_is_allowed_once_whatever_its_name() {
    let mut domain = aliased();
    let id = add(&mut domain, (BASE + 2) * 4096 + 8, 8, Action::AllowOnce);
    let write = |domain: &mut TestDomain, page: u64| {
        let run = WriteParts::one(bytes(page * 4096 + 12, 1));
        domain.authorize_write_parts(Normal, &run).expect("memory")
    };
    assert!(matches!(write(&mut domain, ALIAS), Decision::Reported { rule, .. } if rule == id));
    assert_eq!(write(&mut domain, ALIAS), denied(Some(id), ALIAS * 4096 + 12));
    assert_eq!(write(&mut domain, BASE + 2), denied(Some(id), (BASE + 2) * 4096 + 12));
}

#[test]
fn the_strongest_rule_of_all_names_decides() {
    let mut domain = aliased();
    add(&mut domain, (BASE + 2) * 4096, 128, Action::Log);
    let stop = add(&mut domain, ALIAS * 4096 + 4, 4, Action::Stop);
    add(&mut domain, (BASE + 2) * 4096 + 4, 4, Action::Deny);
    for name in [BASE + 2, ALIAS] {
        let decision = domain.check_write(Normal, bytes(name * 4096 + 2, 8));
        let at = subpage::address::Gpa::new(name * 4096 + 4);
        assert_eq!(decision, Decision::Denied { rule: Some(stop), at, stop: true });
    }
}

#[test]
fn writes_by_any_name_are_harvested_under_the_original_one() {
    let mut domain = aliased();
    let (id, token) = domain.track(bytes(ALIAS * 4096 + 128, 8192)).expect("memory");
    done(&mut domain, token);
    let range = bytes((BASE + 2) * 4096 + 128, 8192);
    assert_eq!(domain.tracked().collect::<Vec<_>>(), [(id, range)]);
    let armed = |domain: &TestDomain, page| {
        domain.sppt().expect("enabled").vector(domain.frames(), gfn(page)).to_map().bits()
    };
    for page in [BASE + 2, ALIAS] {
        assert_eq!(
            (get(&domain, page), armed(&domain, page)),
            (u32::MAX, 1),
            "armed is not denied"
        );
    }
    for at in [ALIAS * 4096 + 4092, (BASE + 2) * 4096 + 300] {
        assert_eq!(domain.authorize_write(Normal, bytes(at, 8)), Ok(Decision::Allowed));
    }
    let open = 1 | 1 << 31 | 1 << 2;
    assert_eq!((armed(&domain, BASE + 2), armed(&domain, ALIAS)), (open, open));
    let (pending, token) = domain.harvest_written(id).expect("tracked");
    let completed = token.without_processors();
    domain.finish(&completed);
    let written: Vec<_> = pending.ready(&completed).expect("completed");
    let written: Vec<_> =
        written.iter().map(|page| (page.gfn.as_u64() - BASE, page.written.bits())).collect();
    assert_eq!(written, [(2, 1 << 31 | 1 << 2), (3, 1)]);
    assert_eq!((armed(&domain, BASE + 2), armed(&domain, ALIAS)), (1, 1));
    let token = domain.untrack(id).expect("tracked");
    done(&mut domain, token);
    assert_eq!(domain.next_restricted(gfn(0)), None);
}

#[test]
fn state_is_taken_in_under_all_names() {
    let mut domain = aliased();
    set(&mut domain, BASE + 2, &[!0b10]);
    add(&mut domain, (ALIAS + 1) * 4096, 128, Action::Deny);
    let state = domain.export().expect("memory");
    let mut copy = aliased();
    let token = copy.import(&state, 100).expect("good state");
    done(&mut copy, token);
    assert_eq!(copy.export().expect("memory"), state);
    assert_eq!(picture(&copy), picture(&domain));
}

/// All names of bytes and of pages, asked for by any of them.
#[test]
fn every_name_of_some_memory_is_told() {
    let mut domain = aliased();
    let second = ALIAS + 0x1000;
    let token =
        domain.add_alias(Normal, SlotId(2), gfns(second, 2), FLAGS, gfn(BASE + 3)).expect("memory");
    done(&mut domain, token);
    let run = |page: u64| bytes(page * 4096 + 100, 8);
    for (asked, mut further) in [
        (BASE + 3, vec![ALIAS + 1, second]),
        (ALIAS + 1, vec![BASE + 3, second]),
        (second, vec![BASE + 3, ALIAS + 1]),
        (BASE + 2, vec![ALIAS]),
        (BASE + 1, vec![]),
    ] {
        let mut told: Vec<_> = domain.names_of(run(asked)).map(ByteRange::first).collect();
        assert_eq!(told.remove(0), run(asked).first(), "its own first");
        told.sort();
        further.sort_unstable();
        let expected: Vec<_> = further.iter().map(|&page| run(page).first()).collect();
        assert_eq!(told, expected, "{asked:#x}");
        let pages = domain.names_of_pages(gfns(asked, 1)).flat_map(GfnRange::iter);
        let mut pages: Vec<_> = pages.map(Gfn::as_u64).collect();
        pages.sort_unstable();
        pages.dedup();
        further.push(asked);
        further.sort_unstable();
        assert_eq!(pages, further, "{asked:#x}");
    }
    assert_eq!(guest(8).0.names_of(run(BASE)).collect::<Vec<_>>(), [run(BASE)]);
}

/// A call may begin in front of an alias and reach into it, also at the lowest frame of all.
#[test]
fn a_call_may_reach_from_an_ordinary_frame_into_an_alias() {
    for base in [BASE, 0] {
        let (mut domain, _) = bare();
        domain.enable().expect("memory");
        domain.add_slot(Normal, SlotId(0), gfns(base, 8), FLAGS).expect("a free place");
        let pages = gfns(base + 8, 2);
        let token = domain.add_alias(Normal, SlotId(1), pages, FLAGS, gfn(base)).expect("memory");
        done(&mut domain, token);
        let maps = |domain: &TestDomain| -> Vec<_> {
            (base..base + 10).map(|page| get(domain, page)).collect()
        };
        let open = u32::MAX;
        set(&mut domain, base + 5, &[1, 2, 3, 4, 5]);
        assert_eq!(maps(&domain), [4, 5, open, open, open, 1, 2, 3, 4, 5]);
        set(&mut domain, base, &[open, open, open, open, open, open, open, open, open, 7]);
        assert_eq!(maps(&domain), [open, 7, open, open, open, open, open, open, open, 7]);
    }
}

/// Where a call is about memory with several names and with one, both are tracked.
#[test]
fn pages_with_one_name_are_tracked_beside_those_with_two() {
    let mut domain = aliased();
    let (id, token) = domain.track(bytes(BASE * 4096, 8 * 4096)).expect("memory");
    done(&mut domain, token);
    let harvest = |domain: &mut TestDomain| -> Vec<_> {
        let (pending, token) = domain.harvest_written(id).expect("tracked");
        let completed = token.without_processors();
        domain.finish(&completed);
        let written = pending.ready(&completed).expect("completed");
        written.iter().map(|page| page.gfn.as_u64() - BASE).collect()
    };
    for page in [BASE, BASE + 1, BASE + 3, ALIAS + 3, BASE + 7] {
        assert_eq!(domain.authorize_write(Normal, bytes(page * 4096, 1)), Ok(Decision::Allowed));
    }
    assert_eq!(harvest(&mut domain), [0, 1, 3, 5, 7]);
    assert_eq!(harvest(&mut domain), []);
    // All of it, so that no table is left to be armed in.
    let all = bytes(BASE * 4096, 8 * 4096);
    assert_eq!(domain.authorize_write(Normal, all), Ok(Decision::Allowed));
    assert_eq!(domain.next_restricted(gfn(0)), None);
    assert_eq!(harvest(&mut domain), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(harvest(&mut domain), []);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let mut domain = aliased();
    let mut refused = |id, first, pages, original| {
        let before = picture(&domain);
        let pages = gfns(first, pages);
        let error = domain
            .add_alias(Normal, SlotId(id), pages, FLAGS, gfn(original))
            .map(subpage::invalidate::Invalidation::without_processors)
            .expect_err("not a name");
        assert_eq!(picture(&domain), before);
        error
    };
    let alias = |id| DomainError::Slot(SlotError::Alias(SlotId(id)));
    assert_eq!(refused(2, BASE + 0x5000, 8, BASE + 1), DomainError::NoSlot(gfn(BASE + 8)));
    assert_eq!(refused(2, BASE + 0x5000, 2, ALIAS), alias(1), "a name of a name");
    assert_eq!(refused(2, BASE + 1, 1, BASE + 1), alias(2), "its own name");
    assert_eq!(refused(1, BASE + 0x5000, 1, BASE), SlotError::Exists(SlotId(1)).into());
    assert_eq!(refused(2, BASE + 7, 1, BASE), SlotError::Overlaps(SlotId(0)).into());
    let in_smm = domain.add_alias(AddressSpace::Smm, SlotId(0), gfns(ALIAS, 1), FLAGS, gfn(BASE));
    assert_eq!(in_smm.expect_err("two memories"), alias(1));
    assert_eq!(domain.remove_slot(Normal, SlotId(0)).expect_err("the original"), alias(1));
    let moved = domain.move_slot(Normal, SlotId(1), gfn(BASE + 0x9000));
    assert_eq!(moved.expect_err("an alias"), alias(1));
    let across = domain.track(bytes((ALIAS + 3) * 4096, 8192));
    assert_eq!(across.expect_err("two names"), alias(1));
}

/// Random calls by random names, against a memory that has none.
#[test]
fn names_make_no_difference() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..60 {
        let mut domain = aliased();
        let token = domain
            .add_alias(Normal, SlotId(2), gfns(ALIAS + 512 - 2, 4), FLAGS, gfn(BASE + 4))
            .expect("memory");
        done(&mut domain, token);
        let (mut plain, _) = guest(8);
        // Pages by the name of the plain guest, and by a random one.
        let page = |random: &mut dyn FnMut(u64) -> u64| {
            let original = BASE + random(8);
            let names: Vec<u64> = [
                Some(original),
                (BASE + 2..BASE + 6).contains(&original).then(|| original - BASE - 2 + ALIAS),
                (BASE + 4..BASE + 8).contains(&original).then(|| original - BASE - 4 + ALIAS + 510),
            ]
            .into_iter()
            .flatten()
            .collect();
            let pick = usize::try_from(random(names.len() as u64)).expect("three at most");
            (original, names[pick])
        };
        let mut ids = Vec::new();
        for _ in 0..80 {
            let (original, name) = page(&mut random);
            let offset = random(4096);
            let length = 1 + random(300).min(4095 - offset);
            match random(6) {
                0 => {
                    let actions = [Action::Log, Action::AllowOnce, Action::Deny, Action::Stop];
                    let action = actions[usize::try_from(random(4)).expect("four")];
                    ids.push(add(&mut domain, name * 4096 + offset, length, action));
                    add(&mut plain, original * 4096 + offset, length, action);
                }
                1 => {
                    let map = u32::try_from(random(1 << 31)).expect("31 bits");
                    set(&mut domain, name, &[map]);
                    set(&mut plain, original, &[map]);
                }
                2 if !ids.is_empty() => {
                    let at = usize::try_from(random(ids.len() as u64)).expect("few");
                    let id = ids.swap_remove(at);
                    for domain in [&mut domain, &mut plain] {
                        let token = domain.remove_rule(id, Owner(7)).expect("there is one");
                        done(domain, token);
                    }
                }
                _ => {
                    let write = |domain: &mut TestDomain, page: u64| {
                        let run = bytes(page * 4096 + offset, length);
                        domain.authorize_write(Normal, run).expect("memory")
                    };
                    let decision = write(&mut domain, name);
                    let expected = write(&mut plain, original);
                    let moved = |at: subpage::address::Gpa| {
                        subpage::address::Gpa::new(at.as_u64() - original * 4096 + name * 4096)
                    };
                    let expected = match expected {
                        Decision::Denied { rule, at, stop } => {
                            Decision::Denied { rule, at: moved(at), stop }
                        }
                        Decision::Reported { rule, at } => {
                            Decision::Reported { rule, at: moved(at) }
                        }
                        other => other,
                    };
                    assert_eq!(decision, expected);
                }
            }
            for (alias, original, pages) in [(ALIAS, BASE + 2, 4), (ALIAS + 510, BASE + 4, 4)] {
                for page in 0..pages {
                    let permitted = get(&plain, original + page);
                    assert_eq!(get(&domain, original + page), permitted);
                    assert_eq!(get(&domain, alias + page), permitted);
                    let base = plain.base_map(gfn(original + page));
                    assert_eq!(domain.base_map(gfn(alias + page)), base);
                }
            }
        }
        for id in [2, 1] {
            let token = domain.remove_slot(Normal, SlotId(id)).expect("there is one");
            done(&mut domain, token);
        }
        for page in BASE..BASE + 8 {
            assert_eq!(domain.base_map(gfn(page)), plain.base_map(gfn(page)), "maps stay");
        }
    }
}
