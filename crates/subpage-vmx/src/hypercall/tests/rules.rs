//! `AddRule`, `RemoveRule` and `LockRule`.

use subpage::access::AccessMap;
use subpage::domain::Decision;
use subpage_trap::Response;

use super::*;
use crate::hypercall::{GUEST, MAX_RULES};

fn id(result: i64) -> u64 {
    u64::try_from(result).expect("a rule")
}

#[test]
fn a_rule_is_added_with_all_that_it_says() {
    let mut guest = Guest::new();
    for (action, expected) in
        [(0, Action::Log), (1, Action::AllowOnce), (2, Action::Deny), (3, Action::Stop)]
    {
        let gpa = 0x4000 + 0x100 * u64::from(action);
        let mut request = rule(gpa, 5);
        request.action = action.into();
        request.flags = (action & 1).into();
        request.response = (action % 3).into();
        request.name[5..7].copy_from_slice("\u{e9}".as_bytes());
        request.name_length = 7.into();
        let number = RuleId(id(guest.add(&request)));
        let active = *guest.domain.rules().get(number).expect("the rule");
        let name = RuleName::new("guest\u{e9}").expect("a name");
        let locked = action & 1 == 1;
        let added = Rule { name, range: range(gpa, 5), owner: GUEST, action: expected, locked };
        assert_eq!(active.rule, added);
        let response = [None, Some(Response::Skip), Some(Response::Fault)][action as usize % 3];
        assert_eq!(guest.ledger.responses.of(number), response);
    }
    assert!(!guest.write(0x4204, 1));
    assert!(guest.write(0x4205, 1), "finer than a sub-page");
    assert!(guest.heard.is_empty(), "the guest's own writes are the hypervisor's to tell");
}

#[test]
fn the_longest_name_and_the_shortest() {
    let mut guest = Guest::new();
    let mut request = rule(0x4000, 1);
    request.name = [b'n'; 64];
    request.name[62..].fill(0);
    request.name_length = 62.into();
    assert_eq!(guest.add(&request), 1);
    request.name[1..].fill(0);
    request.name_length = 1.into();
    assert_eq!(guest.add(&request), 2);
}

#[test]
fn malformed_requests_are_refused() {
    let mut guest = Guest::new();
    let invalid: [fn(&mut RuleRequest); 17] = [
        |r| r.action = 4.into(),
        |r| r.action = u32::MAX.into(),
        |r| r.response = 3.into(),
        |r| r.flags = 2.into(),
        |r| r.flags = 0x8000_0001.into(),
        |r| r.reserved = 1.into(),
        |r| r.name_length = 0.into(),
        |r| r.name_length = 4.into(),
        |r| r.name_length = 63.into(),
        |r| r.name_length = u16::MAX.into(),
        |r| r.name[63] = 1,
        |r| r.name[1] = 0xFF,
        |r| r.name[1] = b'\n',
        |r| r.bytes = 0.into(),
        |r| r.gpa = (1 << 48).into(),
        |r| r.bytes = u64::MAX.into(),
        |r| (r.gpa, r.bytes) = (u64::MAX.into(), u64::MAX.into()),
    ];
    for (number, break_it) in invalid.into_iter().enumerate() {
        let mut request = rule(0x4000, 8);
        break_it(&mut request);
        assert_eq!(guest.add(&request), error(Errno::Invalid), "case {number}");
    }
    // Not all of it is memory of the guest.
    for (gpa, bytes) in
        [(RAM * PAGE, 1), (RAM * PAGE - 1, 2), (0, (1 << 48) - 1), ((1 << 48) - 1, 1)]
    {
        assert_eq!(guest.add(&rule(gpa, bytes)), error(Errno::Fault));
    }
    // Not all of the request is.
    for address in [RAM * PAGE, RAM * PAGE - 95, END * PAGE - 1, 1 << 48, u64::MAX - 3] {
        guest.fails(Call::AddRule, &[address], Errno::Fault);
    }
    assert!(guest.domain.rules().is_empty());
    assert_eq!(guest.add(&rule(0x4000, 1)), 1, "no number is used up");
}

#[test]
fn a_request_is_read_once() {
    let mut guest = Guest::new();
    assert_eq!(guest.add(&rule(0x4000, 1)), 1);
    let reads = guest.memory.reads.borrow();
    let start = usize::try_from(REQUEST).expect("small");
    assert!(reads.iter().enumerate().all(|(at, count)| {
        *count == u8::from((start..start + size_of::<RuleRequest>()).contains(&at))
    }));
}

#[test]
fn a_guest_has_at_most_1024_rules() {
    let mut guest = Guest::new();
    guest.host_rule(0x4000, 1, Action::Deny);
    guest.host_rule_of(0x4000, 1, Action::Deny, GUEST);
    for number in 1..MAX_RULES as u64 {
        assert_eq!(id(guest.add(&rule(0x4000 + number, 1))), number + 2);
    }
    guest.fails(Call::AddRule, &[REQUEST], Errno::NoSpace);
    assert_eq!(guest.call(Call::RemoveRule, &[100]), 0);
    assert!(guest.add(&rule(0x4000, 1)) > 0);
}

#[test]
fn only_its_own_rules_go() {
    let mut guest = Guest::new();
    let host = guest.host_rule(0x4000, 128, Action::Deny).0;
    let other = guest.host_rule_of(0x4100, 128, Action::Deny, Owner(2)).0;
    for number in [host, other] {
        guest.fails(Call::RemoveRule, &[number], Errno::NotPermitted);
        guest.fails(Call::LockRule, &[number], Errno::NotPermitted);
    }
    for number in [0, 99, u64::MAX] {
        guest.fails(Call::RemoveRule, &[number], Errno::NoEntry);
        guest.fails(Call::LockRule, &[number], Errno::NoEntry);
    }
    // A weaker rule over the host's changes nothing about it, before and after it goes.
    let mut request = rule(0x4000, 4096);
    request.action = 0.into();
    request.response = 1.into();
    let mine = id(guest.add(&request));
    assert!(!guest.write(0x4000, 1));
    assert_eq!(guest.ledger.responses.of(RuleId(mine)), Some(Response::Skip));
    assert_eq!(guest.call(Call::RemoveRule, &[mine]), 0);
    assert_eq!(guest.ledger.responses.of(RuleId(mine)), None);
    assert_eq!(guest.ledger.responses.count(), 0);
    assert!(!guest.write(0x4000, 1));
    guest.fails(Call::RemoveRule, &[mine], Errno::NoEntry);
}

#[test]
fn a_locked_rule_stays() {
    let mut guest = Guest::new();
    let mine = id(guest.add(&rule(0x4000, 128)));
    assert_eq!(guest.call(Call::LockRule, &[mine]), 0);
    guest.fails(Call::RemoveRule, &[mine], Errno::NotPermitted);
    assert_eq!(guest.call(Call::LockRule, &[mine]), 0, "twice does no harm");
    let mut request = rule(0x4100, 128);
    request.flags = 1.into();
    request.response = 2.into();
    let born_locked = id(guest.add(&request));
    guest.fails(Call::RemoveRule, &[born_locked], Errno::NotPermitted);
    let response = guest.ledger.responses.of(RuleId(born_locked));
    assert_eq!(response, Some(Response::Fault));
    assert!(!guest.write(0x4100, 1));
}

/// A lack of memory at any point leaves neither rule nor response.
#[test]
fn out_of_frames_changes_nothing() {
    let mut failures = 0;
    for left in 0.. {
        let mut guest = Guest::new();
        guest.domain.frames().left.set(Some(left));
        let before = guest.state();
        let mut request = rule(0x4000, 0x2000);
        request.response = 1.into();
        let result = guest.add(&request);
        if result == 1 {
            break;
        }
        failures += 1;
        assert_eq!(result, error(Errno::NoMemory));
        assert!(guest.state() == before);
        guest.domain.frames().left.set(None);
        assert_eq!(guest.add(&request), 1);
    }
    assert!(failures > 2, "tables for the first rule need frames");
}

#[test]
fn a_stop_rule_stops() {
    let mut guest = Guest::new();
    let mut request = rule(0x4000, 1);
    request.action = 3.into();
    let number = RuleId(id(guest.add(&request)));
    let decision = guest.domain.check_write(SPACE, range(0x4000, 1));
    let denied = Decision::Denied { rule: Some(number), at: Gpa::new(0x4000), stop: true };
    assert_eq!(decision, denied);
    assert_eq!(guest.domain.permitted(Gfn::new(4)), AccessMap::from_bits(!1));
}
