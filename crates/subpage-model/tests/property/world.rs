//! A machine and its naive twin, kept in step.

use std::collections::BTreeSet;

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Decision, Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};
use subpage::track::TrackId;
use subpage_model::{
    AccessOutcome, Deviations, Features, GuestMemory, Machine, Setup, SparseMemory, Staleness,
};

use crate::naive::{ALIAS, ALIAS_PAGES, ALIAS_SLOT, Naive, NaiveRule, NaiveSlot, ORIGINAL};
use crate::operation::{HOT, NewRule, Operation};

/// Where slots 0 to 2 are, and where a moved one goes.
const SLOTS: [(u64, u64); 3] = [(0x10000, 0x400), (0x10400, 0x81), (0x40000, 0x400)];
const ASIDE: u64 = 0x5_0000;

pub(crate) struct World {
    machine: Machine<SparseMemory>,
    naive: Naive,
    setup: Setup,
}

/// Unpacks a seed into a kind of machine, so that every kind is met.
fn setup(seed: u64) -> Setup {
    let mut features = Features::new(PhysicalWidth::MAX);
    features.sub_page_write_permissions = !seed.is_multiple_of(5);
    features.page_modification_logging = seed.is_multiple_of(3);
    let staleness = match seed / 16 % 4 {
        0 => Staleness::None,
        1 => Staleness::Longest,
        2 => Staleness::UntilEvicted,
        _ => Staleness::Random(seed),
    };
    let page_size = match seed / 64 % 3 {
        0 => PageSize::Size4K,
        1 => PageSize::Size2M,
        _ => PageSize::Size1G,
    };
    Setup {
        features,
        deviations: Deviations::NONE,
        staleness,
        cpus: 2,
        accessed_dirty: (seed / 256).is_multiple_of(2),
        decodes: true,
        page_size,
    }
}

fn machine(setup: Setup, memory: SparseMemory) -> Machine<SparseMemory> {
    let domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    Machine::new(setup, domain, memory).expect("memory")
}

fn gfn(page: u64) -> Gfn {
    Gfn::new(page)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let setup = setup(seed);
        let machine = machine(setup, SparseMemory::new());
        let mut world = Self { machine, naive: Naive::default(), setup };
        for slot in 0..3 {
            world.step(&Operation::AddSlot { slot });
        }
        world
    }

    pub(crate) fn step(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { cpu, page, offset, length, value } => {
                self.write(*cpu, *page, *offset, *length, *value);
            }
            Operation::Device { page, offset, length, value } => {
                self.device(*page, *offset, *length, *value);
            }
            Operation::Set { page, maps, repeat } => self.set(HOT[*page], maps, *repeat),
            Operation::AddRules { rules } => self.add_rules(rules),
            Operation::RemoveRule { which } => self.remove_rule(*which),
            Operation::Track { page, offset, length } => {
                self.track(HOT[*page] * 4096 + u64::from(*offset), u64::from(*length));
            }
            Operation::Harvest { which } => self.harvest(*which),
            Operation::Untrack { which } => self.untrack(*which),
            Operation::Log { slot, on } => self.set_flags(*slot, |flags| flags.log_dirty = *on),
            Operation::ReadOnly { slot, on } => {
                self.set_flags(*slot, |flags| flags.read_only = *on);
            }
            Operation::HarvestDirty { slot } => self.harvest_dirty(*slot),
            Operation::AddSlot { slot } => self.add_slot(*slot),
            Operation::AddAlias => self.add_alias(),
            Operation::RemoveAlias => self.remove_alias(),
            Operation::RemoveSlot { slot } => {
                if *slot == 0 && self.naive.slots.contains_key(&ALIAS_SLOT) {
                    let result = self.machine.domain_mut().remove_slot(Normal, SlotId(0));
                    assert!(result.is_err(), "its memory has another name");
                    return;
                }
                let result = self.machine.domain_mut().remove_slot(Normal, SlotId((*slot).into()));
                assert_eq!(result.is_ok(), self.naive.slots.remove(slot).is_some());
                self.naive.dirty.retain(|(id, _)| id != slot);
                if let Ok(token) = result {
                    let _done = self.machine.complete(token);
                }
            }
            Operation::MoveSlot { slot, aside } => self.move_slot(*slot, *aside),
            Operation::Unmap { page, pages } => {
                let range = GfnRange::new(gfn(HOT[*page]), (*pages).into()).expect("small");
                let token = self.machine.domain_mut().unmap(Normal, range).expect("memory");
                let _done = self.machine.complete(token);
            }
            Operation::Protect { page, pages } => {
                let range = GfnRange::new(gfn(HOT[*page]), (*pages).into()).expect("small");
                let token =
                    self.machine.domain_mut().protect(Normal, range, false).expect("memory");
                let _done = self.machine.complete(token);
            }
            Operation::Migrate => self.migrate(),
        }
    }

    fn place(page: usize, offset: u16, length: u8, value: u8) -> (u64, Vec<u8>) {
        let first = HOT[page] * 4096 + u64::from(offset);
        (first, (0..length).map(|n| value.wrapping_add(n)).collect())
    }

    fn write(&mut self, cpu: usize, page: usize, offset: u16, length: u8, value: u8) {
        let (first, bytes) = Self::place(page, offset, length, value);
        let expected = self.naive.decide(first, length.into());
        let range = Naive::range(first, length.into());
        assert_eq!(self.machine.domain().check_write(Normal, range), expected, "{first:#x}");
        let outcome = self.machine.write(cpu, Gpa::new(first), &bytes).expect("a legal access");
        if expected.permits() {
            self.naive.write(first, &bytes);
        }
        match (expected, outcome) {
            (Decision::Allowed, AccessOutcome::Done) => {}
            (
                Decision::Reported { rule, at },
                AccessOutcome::Reported { rule: told, at: place },
            ) => {
                assert_eq!((told, place), (rule, at));
            }
            (Decision::Denied { .. }, AccessOutcome::Denied(denial)) => {
                assert!(denial.gpa.as_u64() >= first && denial.gpa <= range.last());
            }
            // The processor meets the pages in order, and may meet a denial before a missing page.
            (expected, outcome) if !expected.permits() => assert!(
                !matches!(
                    outcome,
                    AccessOutcome::Done | AccessOutcome::Reported { .. } | AccessOutcome::Failed(_)
                ),
                "{expected:?} but {outcome:?}"
            ),
            (expected, outcome) => panic!("{first:#x}+{length}: {expected:?} but {outcome:?}"),
        }
        self.compare_memory(first, length.into());
    }

    fn device(&mut self, page: usize, offset: u16, length: u8, value: u8) {
        let (first, bytes) = Self::place(page, offset, length, value);
        let expected = self.naive.decide(first, length.into());
        let range = Naive::range(first, length.into());
        let decision = self.machine.domain_mut().authorize_write(Normal, range).expect("memory");
        assert_eq!(decision, expected);
        if decision.permits() {
            // The test's own device: it writes to both memories, as the decision told it.
            self.naive.write(first, &bytes);
            for (byte, value) in (first..).zip(&bytes) {
                self.poke(byte, *value);
            }
        }
    }

    fn poke(&mut self, byte: u64, value: u8) {
        let byte = self.naive.original(byte);
        self.machine.memory_mut().write(Hpa::new(byte), &[value]);
    }

    fn compare_memory(&self, first: u64, length: u64) {
        for byte in (first..first + length).map(|byte| self.naive.original(byte)) {
            let mut held = [0];
            self.machine.memory().read(Hpa::new(byte), &mut held);
            let expected = self.naive.memory.get(&byte).copied().unwrap_or(0);
            assert_eq!(held[0], expected, "byte {byte:#x}");
        }
    }

    fn set(&mut self, first: u64, maps: &[u32], repeat: u8) {
        let maps: Vec<u32> =
            maps.iter().copied().cycle().take(maps.len() * usize::from(repeat)).collect();
        let pages = || (first..).zip(&maps);
        let expected = if pages().any(|(page, _)| self.naive.slot_of(page).is_none()) {
            Err(())
        } else {
            let locked = |page: u64, map: u32| map & self.naive.locked(page) != 0;
            if pages().any(|(page, map)| locked(page, *map)) { Err(()) } else { Ok(()) }
        };
        let typed: Vec<_> = maps.iter().copied().map(AccessMap::from_bits).collect();
        let result = self.machine.domain_mut().set_access(gfn(first), &typed);
        assert_eq!(result.is_ok(), expected.is_ok(), "{:?}", result.err());
        if let Ok(token) = result {
            let _done = self.machine.complete(token);
            for (page, map) in pages() {
                let page = self.naive.original(page * 4096) / 4096;
                self.naive.maps.insert(page, *map);
            }
        }
        self.compare_maps();
    }

    fn compare_maps(&self) {
        for page in HOT {
            let expected = self.naive.access_map(page);
            assert_eq!(self.machine.domain().permitted(gfn(page)).bits(), expected, "{page:#x}");
            let mut map = [AccessMap::NONE];
            match self.machine.domain().get_access(gfn(page), &mut map) {
                Ok(()) => assert_eq!(map[0].bits(), expected),
                Err(error) => {
                    assert_eq!(error, DomainError::NoSlot(gfn(page)));
                    assert!(self.naive.slot_of(page).is_none());
                }
            }
        }
    }

    fn add_rules(&mut self, rules: &[NewRule]) {
        let actions = [Action::Log, Action::AllowOnce, Action::Deny, Action::Stop];
        let typed: Vec<Rule> = rules
            .iter()
            .map(|rule| Rule {
                name: RuleName::new("random").expect("a good name"),
                range: Naive::range(
                    HOT[rule.page] * 4096 + u64::from(rule.offset),
                    rule.length.into(),
                ),
                owner: Owner(3),
                action: actions[usize::from(rule.action)],
                locked: rule.locked,
            })
            .collect();
        let (first, token) = self.machine.domain_mut().add_rules(&typed).expect("memory");
        let _done = self.machine.complete(token);
        for (number, rule) in (first.0..).zip(&typed) {
            self.naive.rules.push(NaiveRule {
                id: subpage::rules::RuleId(number),
                first: rule.range.first().as_u64(),
                last: rule.range.last().as_u64(),
                action: rule.action,
                locked: rule.locked,
                spent: false,
            });
        }
        self.compare_maps();
    }

    fn remove_rule(&mut self, which: u8) {
        let Some(at) = usize::from(which).checked_rem(self.naive.rules.len()) else { return };
        let rule = self.naive.rules[at].clone();
        let result = self.machine.domain_mut().remove_rule(rule.id, Owner(3));
        assert_eq!(result.is_err(), rule.locked);
        if let Ok(token) = result {
            let _done = self.machine.complete(token);
            self.naive.rules.remove(at);
        }
        self.compare_maps();
    }

    fn track(&mut self, first: u64, length: u64) {
        let asked = first;
        let whole = |page: u64| (ALIAS..ALIAS + ALIAS_PAGES).contains(&page);
        let pages = asked / 4096..=(asked + length - 1) / 4096;
        let aliased = self.naive.slots.contains_key(&ALIAS_SLOT);
        let in_alias = pages.clone().filter(|page| aliased && whole(*page)).count();
        let torn = in_alias != 0 && in_alias != pages.count();
        let first = self.naive.original(first);
        let last = first + length - 1;
        let shares = |(_, from, to, _): &(u64, u64, u64, BTreeSet<u64>)| {
            from / 4096 <= last / 4096 && to / 4096 >= first / 4096
        };
        let free = torn || !self.naive.tracked.iter().any(shares);
        let result = self.machine.domain_mut().track(Naive::range(asked, length));
        assert_eq!(result.is_ok(), free && !torn);
        if let Ok((id, token)) = result {
            let _done = self.machine.complete(token);
            self.naive.tracked.push((id.0, first, last, BTreeSet::new()));
        }
        self.compare_maps();
    }

    fn harvest(&mut self, which: u8) {
        let Some(at) = usize::from(which).checked_rem(self.naive.tracked.len()) else { return };
        let id = TrackId(self.naive.tracked[at].0);
        let (pending, token) = self.machine.domain_mut().harvest_written(id).expect("memory");
        let done = self.machine.complete(token);
        let pages = pending.ready(&done).expect("complete");
        let told: BTreeSet<u64> = pages
            .iter()
            .flat_map(|page| {
                let start = page.gfn.gpa().as_u64();
                page.written.iter().map(move |sub| start + u64::from(sub.index()) * 128)
            })
            .collect();
        assert_eq!(told, std::mem::take(&mut self.naive.tracked[at].3));
    }

    fn untrack(&mut self, which: u8) {
        let Some(at) = usize::from(which).checked_rem(self.naive.tracked.len()) else { return };
        let (id, ..) = self.naive.tracked.remove(at);
        let token = self.machine.domain_mut().untrack(TrackId(id)).expect("memory");
        let _done = self.machine.complete(token);
        self.compare_maps();
    }

    fn set_flags(&mut self, slot: u8, change: impl Fn(&mut SlotFlags)) {
        // What processors logged before counts as dirty only for logs that were on then.
        for cpu in 0..2 {
            self.machine.drain_log(cpu);
        }
        let Some(naive) = self.naive.slots.get_mut(&slot) else { return };
        let mut flags = SlotFlags { read_only: naive.read_only, log_dirty: naive.logging };
        change(&mut flags);
        if !flags.log_dirty {
            self.naive.dirty.retain(|(id, _)| *id != slot);
        }
        (naive.read_only, naive.logging) = (flags.read_only, flags.log_dirty);
        let id = SlotId(slot.into());
        let token = self.machine.domain_mut().set_slot_flags(Normal, id, flags).expect("memory");
        let _done = self.machine.complete(token);
    }

    fn harvest_dirty(&mut self, slot: u8) {
        if !self.naive.slots.get(&slot).is_some_and(|slot| slot.logging) {
            return;
        }
        for cpu in 0..2 {
            self.machine.drain_log(cpu);
        }
        let id = SlotId(slot.into());
        let (pending, token) = self.machine.domain_mut().harvest_dirty(Normal, id).expect("memory");
        let done = self.machine.complete(token);
        let told: BTreeSet<u64> =
            pending.ready(&done).expect("complete").iter().map(Gfn::as_u64).collect();
        let dirty = std::mem::take(&mut self.naive.dirty);
        let (own, rest) = dirty.into_iter().partition(|(id, _)| *id == slot);
        self.naive.dirty = rest;
        let own: BTreeSet<(u8, u64)> = own;
        assert_eq!(told, own.into_iter().map(|(_, page)| page).collect());
    }

    fn add_slot(&mut self, slot: u8) {
        let (first, pages) = SLOTS[usize::from(slot)];
        let range = GfnRange::new(gfn(first), pages).expect("small");
        let id = SlotId(slot.into());
        let free = !self.naive.slots.contains_key(&slot);
        let result = self.machine.domain_mut().add_slot(Normal, id, range, SlotFlags::default());
        assert_eq!(result.is_ok(), free);
        if free {
            let new = NaiveSlot { first, pages, read_only: false, logging: false };
            self.naive.slots.insert(slot, new);
        }
    }

    fn add_alias(&mut self) {
        let tracked = |(_, from, to, _): &(u64, u64, u64, BTreeSet<u64>)| {
            from / 4096 < ALIAS + ALIAS_PAGES && to / 4096 >= ALIAS
        };
        let possible = (ORIGINAL..ORIGINAL + ALIAS_PAGES)
            .all(|page| self.naive.slot_of(page).is_some())
            && !self.naive.slots.contains_key(&ALIAS_SLOT)
            && !self.naive.tracked.iter().any(tracked);
        let (id, pages) = (SlotId(ALIAS_SLOT.into()), GfnRange::new(gfn(ALIAS), ALIAS_PAGES));
        let result = self.machine.domain_mut().add_alias(
            Normal,
            id,
            pages.expect("small"),
            SlotFlags::default(),
            gfn(ORIGINAL),
        );
        assert_eq!(result.is_ok(), possible, "{:?}", result.err());
        if let Ok(token) = result {
            let _done = self.machine.complete(token);
            // What the new name was mapped as before is joined.
            for page in 0..ALIAS_PAGES {
                let map = self.naive.maps.remove(&(ALIAS + page)).unwrap_or(u32::MAX);
                let own = self.naive.maps.entry(ORIGINAL + page).or_insert(u32::MAX);
                *own &= map;
            }
            let new =
                NaiveSlot { first: ALIAS, pages: ALIAS_PAGES, read_only: false, logging: false };
            self.naive.slots.insert(ALIAS_SLOT, new);
        }
        self.compare_maps();
    }

    fn remove_alias(&mut self) {
        let id = SlotId(ALIAS_SLOT.into());
        let pages = GfnRange::new(gfn(ALIAS), ALIAS_PAGES).expect("small");
        let token = self.machine.domain_mut().unmap(Normal, pages).expect("memory");
        let _unmapped = self.machine.complete(token);
        let result = self.machine.domain_mut().remove_slot(Normal, id);
        assert_eq!(result.is_ok(), self.naive.slots.remove(&ALIAS_SLOT).is_some());
        if let Ok(token) = result {
            let _done = self.machine.complete(token);
        }
        self.compare_maps();
    }

    fn move_slot(&mut self, slot: u8, aside: bool) {
        if slot == 0 && self.naive.slots.contains_key(&ALIAS_SLOT) {
            let result = self.machine.domain_mut().move_slot(Normal, SlotId(0), gfn(ASIDE));
            assert!(result.is_err(), "its memory has another name");
            return;
        }
        let Some(naive) = self.naive.slots.get_mut(&slot) else { return };
        let to = if aside { ASIDE + u64::from(slot) * 0x1000 } else { SLOTS[usize::from(slot)].0 };
        let from = std::mem::replace(&mut naive.first, to);
        let moved = std::mem::take(&mut self.naive.dirty).into_iter();
        self.naive.dirty = moved
            .map(|(id, page)| (id, if id == slot { page - from + to } else { page }))
            .collect();
        let id = SlotId(slot.into());
        let token = self.machine.domain_mut().move_slot(Normal, id, gfn(to)).expect("free");
        let _done = self.machine.complete(token);
    }

    /// Carries everything to a new machine: the state as bytes, slots and memory as they are.
    fn migrate(&mut self) {
        let state = self.machine.domain().export().expect("memory");
        let mut copy = machine(self.setup, self.machine.memory().clone());
        let token = copy.domain_mut().import(&state, 1 << 20).expect("good state");
        let _done = copy.complete(token);
        assert_eq!(copy.domain().export().expect("memory"), state, "bit for bit (C7)");
        for (slot, naive) in &self.naive.slots {
            let range = GfnRange::new(gfn(naive.first), naive.pages).expect("small");
            let flags = SlotFlags { read_only: naive.read_only, log_dirty: naive.logging };
            if *slot == ALIAS_SLOT {
                let id = SlotId(ALIAS_SLOT.into());
                let original = gfn(ORIGINAL);
                let token = copy.domain_mut().add_alias(Normal, id, range, flags, original);
                let _done = copy.complete(token.expect("it was added before"));
                continue;
            }
            copy.domain_mut()
                .add_slot(Normal, SlotId((*slot).into()), range, flags)
                .expect("a free place");
        }
        // The dirty log is the VMM's, not part of the state: it begins anew.
        self.naive.dirty.clear();
        self.machine = copy;
        self.compare_maps();
    }

    /// When everything is taken away again, nothing is left: C6, and no frame is lost.
    pub(crate) fn finish(&mut self) {
        self.compare_maps();
        let expected: Vec<u64> = self.naive.memory.keys().copied().collect();
        for byte in expected {
            self.compare_memory(byte, 1);
        }
        while !self.naive.tracked.is_empty() {
            self.untrack(0);
        }
        self.remove_alias();
        let locked = self.naive.rules.iter().any(|rule| rule.locked);
        while let Some(at) = self.naive.rules.iter().position(|rule| !rule.locked) {
            self.remove_rule(u8::try_from(at).unwrap_or(0));
        }
        for (slot, (first, pages)) in SLOTS.iter().enumerate() {
            let slot = u8::try_from(slot).expect("three");
            self.add_slot(slot);
            self.move_slot(slot, false);
            if !locked {
                let maps = vec![u32::MAX; usize::try_from(*pages).expect("small")];
                self.set(*first, &maps, 1);
            }
        }
        for slot in 0..3 {
            let id = SlotId(slot);
            let token = self.machine.domain_mut().remove_slot(Normal, id).expect("there is one");
            let _done = self.machine.complete(token);
        }
        let domain = self.machine.domain();
        assert_eq!(domain.retired_frames(), 0);
        let left_restricted = domain.next_restricted(gfn(0)).is_some();
        if !locked && !left_restricted {
            let ept_root = usize::from(domain.ept(Normal).is_some());
            assert_eq!(domain.frames().frames_in_use(), 1 + ept_root, "frames are left");
        }
    }
}
