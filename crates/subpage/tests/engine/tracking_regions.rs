//! Tracking of whole regions, of which nothing is recorded page by page: the same as anything else.

use std::collections::BTreeMap;

use proptest::prelude::*;
use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange};
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, RuleId};
use subpage::track::TrackId;

use crate::guest::{
    BASE, Normal, TestDomain, bytes, done, gfn, gfns, guest, mapped, picture, rule,
};

/// Four regions.
const PAGES: u64 = 4 * 512;

/// A step of a run. Places are counted from the first page of the slot.
#[derive(Debug, Clone)]
enum Step {
    Track(ByteRange),
    Untrack(usize),
    Harvest(usize),
    Add(ByteRange),
    Remove(usize),
    Set(u64, u32),
    Write(ByteRange),
    Migrate,
}

/// Bytes that begin and end near the ends of regions and blocks, most often.
fn range() -> impl Strategy<Value = ByteRange> {
    let edge =
        (0..=PAGES / 64, -2_i64..3, 0..4096_u64, 0..3_u8).prop_map(|(at, by, offset, kind)| {
            let page = at * 64;
            let page = (page / 512 * 512 * u64::from(kind == 0) + page * u64::from(kind != 0))
                .saturating_add_signed(if kind == 2 { by } else { 0 });
            page.min(PAGES) * 4096 + if kind == 2 { offset } else { 0 }
        });
    (edge.clone(), edge).prop_filter_map("not empty", |(a, b)| {
        let (a, b) = (a.min(b), a.max(b).min(PAGES * 4096));
        (a < b).then(|| bytes(BASE * 4096 + a, b - a))
    })
}

fn small() -> impl Strategy<Value = ByteRange> {
    (0..PAGES * 4096 - 8000, 1..8000_u64).prop_map(|(at, length)| bytes(BASE * 4096 + at, length))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => range().prop_map(Step::Track),
        2 => (0..4_usize).prop_map(Step::Untrack),
        3 => (0..4_usize).prop_map(Step::Harvest),
        2 => prop_oneof![small(), range()].prop_map(Step::Add),
        1 => (0..4_usize).prop_map(Step::Remove),
        2 => (0..PAGES, prop_oneof![Just(u32::MAX), any::<u32>()]).prop_map(|(p, m)| Step::Set(p, m)),
        6 => small().prop_map(Step::Write),
        1 => Just(Step::Migrate),
    ]
}

/// What should be, kept in the plainest way.
#[derive(Default)]
struct Expected {
    rules: Vec<(RuleId, ByteRange)>,
    maps: BTreeMap<u64, AccessMap>,
    tracked: Vec<(TrackId, ByteRange, BTreeMap<u64, AccessMap>)>,
}

fn touched(range: ByteRange, page: u64) -> AccessMap {
    range.in_page(gfn(page)).map_or(AccessMap::NONE, AccessMap::touched_by)
}

impl Expected {
    fn permitted(&self, page: u64) -> AccessMap {
        let map = self.maps.get(&page).copied().unwrap_or(AccessMap::ALL);
        self.rules.iter().fold(map, |map, (_, rule)| map & !touched(*rule, page))
    }

    /// The vector: what is permitted and not armed.
    fn open(&self, page: u64) -> AccessMap {
        let armed = self.tracked.iter().map(|(_, range, written)| {
            touched(*range, page) & !written.get(&page).copied().unwrap_or(AccessMap::NONE)
        });
        armed.fold(self.permitted(page), |open, armed| open & !armed)
    }
}

fn take(domain: &mut TestDomain, step: &Step, expected: &mut Expected) {
    match step {
        Step::Track(range) => {
            let overlaps = |(_, other, _): &(_, ByteRange, _)| {
                other.gfns().intersection(range.gfns()).is_some()
            };
            match domain.track(*range) {
                Ok((id, token)) => {
                    assert!(!expected.tracked.iter().any(overlaps));
                    done(domain, token);
                    expected.tracked.push((id, *range, BTreeMap::new()));
                }
                Err(_) => assert!(expected.tracked.iter().any(overlaps)),
            }
        }
        Step::Untrack(at) if *at < expected.tracked.len() => {
            let token = domain.untrack(expected.tracked.remove(*at).0).expect("tracked");
            done(domain, token);
        }
        Step::Harvest(at) if *at < expected.tracked.len() => {
            let (id, _, written) = &mut expected.tracked[*at];
            let (pending, token) = domain.harvest_written(*id).expect("tracked");
            let completed = token.without_processors();
            domain.finish(&completed);
            let told = pending.ready(&completed).expect("completed");
            let told: Vec<_> = told.iter().map(|it| (it.gfn.as_u64(), it.written)).collect();
            assert_eq!(told, std::mem::take(written).into_iter().collect::<Vec<_>>());
        }
        Step::Add(range) => {
            let (id, token) = domain.add_rule(rule(*range, Action::Deny)).expect("memory");
            done(domain, token);
            expected.rules.push((id, *range));
        }
        Step::Remove(at) if *at < expected.rules.len() => {
            let token =
                domain.remove_rule(expected.rules.remove(*at).0, Owner::HOST).expect("a rule");
            done(domain, token);
        }
        Step::Set(page, map) => {
            let map = AccessMap::from_bits(*map);
            let token = domain.set_access(gfn(BASE + page), &[map]).expect("memory");
            done(domain, token);
            expected.maps.insert(BASE + page, map);
        }
        Step::Write(range) => {
            let permits = domain.authorize_write(Normal, *range).expect("memory").permits();
            let bytes_of_rules =
                expected.rules.iter().any(|(_, rule)| rule.intersection(*range).is_some());
            let by_map = range.gfns().iter().any(|page| {
                let map = expected.maps.get(&page.as_u64()).copied().unwrap_or(AccessMap::ALL);
                !map.covers(touched(*range, page.as_u64()))
            });
            assert_eq!(permits, !bytes_of_rules && !by_map, "{range:?}");
            for (_, tracked, written) in expected.tracked.iter_mut().filter(|_| permits) {
                for page in range.gfns().iter().map(Gfn::as_u64) {
                    let news = touched(*range, page) & touched(*tracked, page);
                    if !news.is_empty() {
                        let before = written.entry(page).or_insert(AccessMap::NONE);
                        *before = *before | news;
                    }
                }
            }
        }
        // The state as exported is taken in by another, which the next steps are for.
        Step::Migrate => {
            let state = domain.export().expect("memory");
            let (mut other, _) = guest(PAGES);
            other.frames_mut().glances = domain.frames().glances;
            let token = other.import(&state, PAGES).expect("what was exported");
            done(&mut other, token);
            assert_eq!(other.export().expect("memory"), state);
            if domain.mapping(Normal, gfn(BASE)).is_none() {
                *domain = other;
            }
        }
        Step::Untrack(_) | Step::Harvest(_) | Step::Remove(_) => {}
    }
}

fn check(domain: &TestDomain, expected: &Expected) {
    let sppt = domain.sppt().expect("enabled");
    let (mut restricted, mut denying) = (Vec::new(), Vec::new());
    for page in BASE..BASE + PAGES {
        let (open, permitted) = (expected.open(page), expected.permitted(page));
        assert_eq!(sppt.vector(domain.frames(), gfn(page)).to_map(), open, "page {page:#x}");
        assert_eq!(domain.permitted(gfn(page)), permitted, "page {page:#x}");
        restricted.extend((!open.is_unrestricted()).then_some(page));
        denying.extend((!permitted.is_unrestricted()).then_some(page));
    }
    for range in [gfns(BASE, PAGES), gfns(0, 1 << 36), gfns(BASE + 100, 1000)] {
        let within = |pages: &[u64]| -> Vec<u64> {
            pages.iter().copied().filter(|page| range.contains(gfn(*page))).collect()
        };
        let runs: Vec<u64> =
            domain.restricted_runs(range).flat_map(GfnRange::iter).map(Gfn::as_u64).collect();
        assert_eq!(runs, within(&restricted));
        let denied: Vec<u64> = domain.denying_pages(range).map(Gfn::as_u64).collect();
        assert_eq!(denied, within(&denying));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whole regions are changed at once where a table shows that it can be done, and page by page
    /// where it does not; both are what a plain record says.
    #[test]
    fn regions_at_once_are_pages_one_by_one(
        steps in prop::collection::vec(step(), 1..24),
        large in any::<bool>(),
    ) {
        let make = |glances| {
            let (mut domain, _) =
                if large { mapped(PAGES, PageSize::Size2M) } else { guest(PAGES) };
            domain.frames_mut().glances = glances;
            (domain, Expected::default())
        };
        let (mut quick, mut expected) = make(true);
        let (mut slow, mut same) = make(false);
        for step in &steps {
            take(&mut quick, step, &mut expected);
            take(&mut slow, step, &mut same);
            check(&quick, &expected);
        }
        prop_assert_eq!(picture(&quick), picture(&slow));
    }
}

/// What nobody writes costs neither a record nor a table of its own size.
#[test]
fn tracking_sixty_four_gibibytes_takes_little_memory() {
    let (mut domain, _) = guest(1 << 24);
    let before = domain.frames().heap.bytes();
    let (id, token) = domain.track(bytes(BASE * 4096, 64 << 30)).expect("memory");
    done(&mut domain, token);
    let tables = domain.frames().heap.bytes() - before;
    assert!(tables < 8 << 20, "{tables} bytes for 32,768 regions");
    let write = bytes((BASE + 70_000) * 4096 + 130, 4);
    assert!(domain.authorize_write(Normal, write).expect("memory").permits());
    assert_eq!(domain.written_pages(id), Ok(1));
    let (pending, token) = domain.harvest_written(id).expect("tracked");
    let completed = token.without_processors();
    domain.finish(&completed);
    let written = pending.ready(&completed).expect("completed");
    let written: Vec<_> = written.iter().map(|page| (page.gfn, page.written.bits())).collect();
    assert_eq!(written, [(gfn(BASE + 70_000), 0b10)]);
    let token = domain.untrack(id).expect("tracked");
    done(&mut domain, token);
    assert_eq!(domain.next_restricted(gfn(0)), None);
    assert_eq!(domain.frames().heap.frames_in_use(), 1, "the root");
}
