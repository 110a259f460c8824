//! Random calls, arguments and memory.
//!
//! Laws: no call panics. A failed call changes neither rules, maps, tracking nor responses, and
//! writes nothing. A call writes no byte that the guest could not have written itself. Nothing that
//! the host denies becomes permitted, and no rule of the host's goes.

use proptest::prelude::*;
use subpage::access::AccessMap;

use super::*;
use crate::hypercall::{GUEST, MAX_RULES, MAX_TRACKED};

/// What one step does.
#[derive(Debug, Clone)]
enum Step {
    Call {
        call: u64,
        arguments: [u64; 3],
        cpl: u8,
    },
    /// A call about one of the guest's own rules or trackings, if it has one.
    Own {
        call: Call,
        which: usize,
        at: u64,
        room: u64,
    },
    /// Puts a well-formed or nearly well-formed request for a rule at an address,
    /// and makes it.
    PutRule {
        at: u64,
        gpa: u64,
        bytes: u64,
        action: u32,
        response: u32,
        flags: u32,
        name: u16,
    },
    /// The same for a `struct kvm_subpage`.
    PutMaps {
        at: u64,
        gfn: u64,
        pages: u32,
        flags: u32,
        maps: Vec<u32>,
    },
    /// The guest writes by itself.
    Write {
        at: u64,
        bytes: u64,
    },
    /// Frames run out after some requests, or there are enough again.
    Frames(Option<usize>),
}

/// Addresses where something can lie, and others.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..END).prop_flat_map(|page| (Just(page), 0..32_u64))
            .prop_map(|(page, sub)| page * PAGE + sub * 128),
        4 => 0..END * PAGE,
        2 => Just(REQUEST),
        2 => Just(RESULT),
        1 => any::<u64>(),
        1 => (0..64_u64).prop_map(|down| u64::MAX - down),
        1 => (0..64_u64).prop_map(|down| (1 << 48) - down),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..300_u64, 3 => 0..5 * PAGE, 1 => any::<u64>()]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..12_u64, 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let argument = || prop_oneof![3 => address(), 2 => number(), 1 => length()];
    let arguments = prop_oneof![
        (address(), length(), number()).prop_map(|(a, b, c)| [a, b, c]),
        (number(), address(), length()).prop_map(|(a, b, c)| [a, b, c]),
        (argument(), argument(), argument()).prop_map(|(a, b, c)| [a, b, c]),
        Just([REQUEST, 4, 0]),
        number().prop_map(|id| [id, RESULT, 64]),
    ];
    let call = prop_oneof![12 => 0..10_u64, 1 => any::<u64>()];
    let own = prop_oneof![
        1 => Just(Call::RemoveRule),
        1 => Just(Call::LockRule),
        4 => Just(Call::Harvest),
        1 => Just(Call::Untrack),
    ];
    let cpl = prop_oneof![12 => Just(0_u8), 1 => 1..4_u8];
    prop_oneof![
        10 => (call, arguments, cpl)
            .prop_map(|(call, arguments, cpl)| Step::Call { call, arguments, cpl }),
        6 => (own, any::<usize>(), address(), prop_oneof![1 => 0..4_u64, 4 => 4..100_u64])
            .prop_map(|(call, which, at, room)| Step::Own { call, which, at, room }),
        3 => (
            prop_oneof![3 => Just(REQUEST), 1 => 0..RAM * PAGE - 128],
            address(),
            length(),
            0..5_u32,
            0..4_u32,
            prop_oneof![8 => 0..2_u32, 1 => any::<u32>()],
            prop_oneof![8 => 1..6_u16, 1 => any::<u16>()],
        )
            .prop_map(|(at, gpa, bytes, action, response, flags, name)| {
                Step::PutRule { at, gpa, bytes, action, response, flags, name }
            }),
        2 => (
            prop_oneof![3 => Just(REQUEST), 1 => 0..RAM * PAGE - 64],
            prop_oneof![8 => 0..END, 1 => any::<u64>()],
            prop_oneof![8 => 0..6_u32, 1 => any::<u32>()],
            prop_oneof![8 => Just(0), 1 => any::<u32>()],
            prop::collection::vec(any::<u32>(), 6),
        )
            .prop_map(|(at, gfn, pages, flags, maps)| {
                Step::PutMaps { at, gfn, pages, flags, maps }
            }),
        4 => (0..END * PAGE, 1..200_u64).prop_map(|(at, bytes)| Step::Write { at, bytes }),
        1 => prop_oneof![Just(None), (0..30_usize).prop_map(Some)].prop_map(Step::Frames),
    ]
}

/// A guest under rules of the host of every action, in and around where results go.
fn guarded() -> Guest {
    let mut guest = Guest::new();
    for (first, bytes, action) in [
        (RESULT + 1000, 100, Action::Deny),
        (REQUEST + 2000, 10, Action::Log),
        (0x3000, 4096, Action::AllowOnce),
        (0x2F80, 1, Action::Stop),
        (0x1_0000, 0x3000, Action::Deny),
        (RAM * PAGE - 1, 2, Action::Deny),
    ] {
        guest.host_rule(first, bytes, action);
    }
    guest.host_rule_of(0x7000, 64, Action::Deny, Owner(2));
    let (_, token) = guest.domain.track(range(0x2_0000, 1)).expect("memory");
    guest.domain.finish(&token.without_processors());
    guest
}

/// The rules that are not the guest's, without what "allow once" has used up.
fn host_rules(guest: &Guest) -> Vec<(RuleId, Rule)> {
    let others = guest.domain.rules().iter().filter(|active| active.rule.owner != GUEST);
    others.map(|active| (active.id, active.rule)).collect()
}

/// What the host's rules leave writable of each page.
fn host_permits(guest: &Guest) -> Vec<AccessMap> {
    let rules = host_rules(guest);
    let denied = |gfn: Gfn| {
        rules
            .iter()
            .filter_map(|(_, rule)| rule.range.in_page(gfn))
            .fold(AccessMap::ALL, |map, bytes| map & !AccessMap::touched_by(bytes))
    };
    (0..END).map(|gfn| denied(Gfn::new(gfn))).collect()
}

fn call(guest: &mut Guest, call: Call, arguments: &[u64]) {
    let before = guest.state();
    let memory = guest.memory.bytes.borrow().clone();
    let rules = host_rules(guest);
    let ring: Vec<u64> = guest.ledger.events.iter().map(|event| event.sequence.get()).collect();
    let failed = match guest.dispatch(call, arguments) {
        CallOutcome::Stop { .. } => true,
        CallOutcome::Done { rax } => rax.cast_signed() < 0,
        CallOutcome::Invalidate { token, then } => {
            let done = token.without_processors();
            assert!(guest.with_context(|context| then.finish(&done, context)).cast_signed() >= 0);
            false
        }
    };
    let now = guest.memory.bytes.borrow();
    if failed {
        assert!(guest.state() == before, "a failed call has changed something");
        assert!(*now == memory, "a failed call has written memory");
        let kept = guest.ledger.events.iter().map(|event| event.sequence.get()).take(ring.len());
        assert!(kept.eq(ring), "a failed call has consumed events");
    }
    let changed: Vec<u64> = (0..)
        .zip(memory.iter().zip(&*now))
        .filter_map(|(at, (old, new))| (old != new).then_some(at))
        .collect();
    if !changed.is_empty() {
        // Asked of the domain as it was before the call.
        let mut domain = Guest::new().domain;
        let token = domain.import(&before.0, u64::MAX).expect("exported");
        domain.finish(&token.without_processors());
        for at in changed {
            let decision = domain.check_write(SPACE, range(at, 1));
            assert!(decision.permits(), "byte {at:#x} was written, but {decision:?}");
            assert!(at / PAGE < SHARED, "byte {at:#x} cannot be written");
        }
    }
    drop(now);
    assert_eq!(host_rules(guest), rules, "rules of the host have changed");
    for (gfn, host) in (0..).zip(host_permits(guest)) {
        assert!(host.covers(guest.domain.permitted(Gfn::new(gfn))), "page {gfn} is loosened");
    }
    let own = guest.domain.rules().iter().filter(|active| active.rule.owner == GUEST).count();
    assert!(own <= MAX_RULES && guest.ledger.tracked.len() <= MAX_TRACKED);
    assert!(guest.ledger.responses.count() <= own);
}

fn run(guest: &mut Guest, step: Step) {
    match step {
        Step::Call { call: number, arguments, cpl } => {
            guest.cpl = cpl;
            call(guest, Call(number), &arguments);
        }
        Step::Own { call: own, which, at, room } => {
            guest.cpl = 0;
            let numbers: Vec<u64> = match own {
                Call::RemoveRule | Call::LockRule => {
                    let rules = guest.domain.rules().iter();
                    rules.filter(|active| active.rule.owner == GUEST).map(|a| a.id.0).collect()
                }
                _ => guest.ledger.tracked.iter().map(|id| id.0).collect(),
            };
            if !numbers.is_empty() {
                call(guest, own, &[numbers[which % numbers.len()], at, room]);
            }
        }
        Step::PutRule { at, gpa, bytes, action, response, flags, name } => {
            let mut request = rule(gpa, bytes);
            request.action = action.into();
            request.response = response.into();
            request.flags = flags.into();
            request.name_length = name.into();
            request.name = [0; 64];
            request.name[..usize::from(name).min(64)].fill(b'r');
            guest.memory.put(at, request.as_bytes());
            guest.cpl = 0;
            call(guest, Call::AddRule, &[at]);
        }
        Step::PutMaps { at, gfn, pages, flags, maps } => {
            let mut bytes = gfn.to_le_bytes().to_vec();
            bytes.extend([pages, flags].iter().chain(&maps).flat_map(|word| word.to_le_bytes()));
            guest.memory.put(at, &bytes);
        }
        Step::Write { at, bytes } => {
            // Without memory for tables the guest would wait, as with any failed exit.
            let _waits = guest.domain.authorize_write(SPACE, range(at, bytes));
        }
        Step::Frames(left) => guest.domain.frames().left.set(left),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_calls_keep_the_laws(steps in prop::collection::vec(step(), 1..60)) {
        let mut guest = guarded();
        for step in steps {
            run(&mut guest, step);
        }
    }
}
