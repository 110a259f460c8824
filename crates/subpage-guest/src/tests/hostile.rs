//! Hostile hypercalls: every one is refused with an error, and changes nothing (contract C2).

use subpage_vmx::abi::{Call, RuleRequest, query};
use zerocopy::{FromZeros, IntoBytes};

use crate::hypervisor::test_hooks::{Counter, growth};
use crate::hypervisor::{
    Action, Events, Harvest, Rule, Tracking, add_rule, add_rule_at, call, call_with_registers,
    drain_events, errno, get_access, lock_rule, query, remove_rule, set_access,
};
use crate::memory::{Bytes, PAGE, frames};
use crate::test;

/// Addresses where no guest memory is, or not enough of it.
fn wild_addresses() -> [u64; 12] {
    let end = frames::end();
    [
        end,
        end - 1,
        end - 8,
        end + PAGE,
        0x4000_0000,
        0xfee0_0000,
        0xffff_fff8,
        1 << 39,
        (1 << 48) - 8,
        1 << 52,
        u64::MAX - 7,
        u64::MAX,
    ]
}

/// Numbers without a call are ENOSYS, and no call changes a register but RAX.
fn unknown_calls() {
    let arguments = [0x1111, 0x2222, 0x3333, 0x4444];
    let numbers = (10..300).chain([0x1000, 0x7fff, 0x80ff, 0xffff, 1 << 32, 1 << 63, u64::MAX]);
    for number in numbers {
        let (result, after) = call_with_registers(number, arguments);
        assert_eq!((result, after), (errno::ENOSYS, arguments), "call {number:#x}");
    }
    for number in 0..10 {
        let arguments = [u64::MAX - number, 1, 0, u64::MAX];
        let (result, after) = call_with_registers(number, arguments);
        // Reading events reads none, if there is none, whatever the address.
        let refused = result < 0 || number == Call::ReadEvents.0 && result == 0;
        assert!(refused, "call {number} with wild arguments: {result}");
        assert_eq!(after, arguments, "call {number}");
    }
    assert_eq!(query(query::VERSION), i64::from(subpage_vmx::abi::VERSION));
    assert_eq!(query(query::MEMORY), frames::end() as i64);
    assert_eq!(query(5), errno::EINVAL);
    assert_eq!(query(u64::MAX), errno::EINVAL);
}
test!(unknown_calls);

/// Structures and buffers at wild addresses.
fn wild_buffers() {
    let page = frames::page();
    set_access(page, 0);
    drain_events();
    page.write(0, 1_u64);
    let tracking = Tracking::start(frames::page().part(0, PAGE));
    let rules = Counter::Rules.get();
    for address in wild_addresses() {
        for number in [Call::GetAccess.0, Call::SetAccess.0, Call::AddRule.0] {
            let result = call(number, [address, 0, 0, 0]);
            assert_eq!(result, errno::EFAULT, "call {number} with {address:#x}");
        }
        let result = call(Call::ReadEvents.0, [address, 4, 0, 0]);
        assert_eq!(result, errno::EFAULT, "events to {address:#x}");
        for room in [1, u64::MAX, u64::MAX / 16] {
            let result = call(Call::Harvest.0, [tracking.0, address, room, 0]);
            assert!(result == 0 || result == errno::EFAULT, "harvest to {address:#x}: {result}");
        }
        for number in [Call::RemoveRule.0, Call::LockRule.0, Call::Untrack.0] {
            let result = call(number, [address, 0, 0, 0]);
            assert!(result < 0, "call {number} of {address:#x}: {result}");
        }
        for length in [8, PAGE, 1 << 40, u64::MAX] {
            let result = call(Call::Track.0, [address, length, 0, 0]);
            assert!(result < 0 || address < frames::end(), "tracking {address:#x}: {result}");
        }
    }
    let own = frames::pages(2);
    for length in [0, frames::end(), 1 << 40, u64::MAX - own.address(), u64::MAX] {
        let result = call(Call::Track.0, [own.address(), length, 0, 0]);
        assert!(result < 0, "tracking {length:#x} bytes: {result}");
    }
    for room in [u64::MAX, u64::MAX / 168 + 1, 1 << 60] {
        let result = call(Call::ReadEvents.0, [own.address(), room, 0, 0]);
        assert!(result == 1 || result < 0, "room for {room:#x} events: {result}");
        if result == 1 {
            page.write(0, 1_u64);
        }
    }
    assert_eq!(Counter::Rules.get(), rules);
    assert_eq!(Events::with_room(4).take(), 1, "the event has waited");
}
test!(wild_buffers);

/// Requests with a bad header.
fn bad_requests() {
    let page = frames::page();
    let request = frames::pages(2);
    let end = frames::end() / PAGE;
    let set = |gfn: u64, pages: u32, flags: u32| {
        request.write(0, gfn);
        request.write(8, pages);
        request.write(12, flags);
        request.write(16, 0_u64);
        let results = [Call::SetAccess.0, Call::GetAccess.0]
            .map(|number| call(number, [request.address(), 0, 0, 0]));
        assert_eq!(results[0], results[1], "gfn {gfn:#x}, {pages} pages, flags {flags:#x}");
        results[0]
    };
    assert_eq!(set(page.gfn(), 1, 1), errno::EINVAL);
    assert_eq!(set(page.gfn(), 1, 1 << 31), errno::EINVAL);
    assert_eq!(set(page.gfn(), 513, 0), errno::EINVAL);
    assert_eq!(set(page.gfn(), u32::MAX, 0), errno::EINVAL);
    assert_eq!(set(page.gfn(), 0, 0), 0);
    assert_eq!(set(u64::MAX, 1, 0), errno::EINVAL);
    assert_eq!(set(u64::MAX / PAGE, 2, 0), errno::EINVAL);
    assert_eq!(set(end, 1, 0), errno::EFAULT);
    assert_eq!(set(end - 1, 2, 0), errno::EFAULT);
    assert_eq!(get_access(page), !0);
    assert_eq!(get_access(Bytes::low(PAGE, PAGE)), !0);
    // A request that begins in memory and whose map does not end there.
    let last = end * PAGE - 16;
    let tail = frames::again_at_end(16);
    assert_eq!(tail.address(), last);
    tail.write(0, page.gfn());
    tail.write(8, 1_u32);
    tail.write(12, 0_u32);
    assert_eq!(call(Call::SetAccess.0, [last, 0, 0, 0]), errno::EFAULT);
    assert_eq!(call(Call::GetAccess.0, [last, 0, 0, 0]), errno::EFAULT);
    assert_eq!(get_access(page), !0);
    // Unaligned is as good as aligned, across a page end too.
    let odd = request.part(PAGE - 13, 20);
    odd.write(0, page.gfn());
    odd.write(8, 1_u32);
    odd.write(12, 0_u32);
    odd.write(16, 0xfff0_0000_u32);
    assert_eq!(call(Call::SetAccess.0, [odd.address(), 0, 0, 0]), 1);
    assert_eq!(get_access(page), 0xfff0_0000);
}
test!(bad_requests);

/// Makes a good request bad.
type Change = fn(&mut RuleRequest);

/// Rules with a bad field.
fn bad_rules() {
    let page = frames::page();
    let request = frames::page();
    let rules = Counter::Rules.get();
    let add = |change: Change| {
        let mut rule = RuleRequest::new_zeroed();
        rule.gpa = page.address().into();
        rule.bytes = 8.into();
        rule.action = 2.into();
        rule.name_length = 4.into();
        rule.name[..4].copy_from_slice(b"name");
        change(&mut rule);
        request.write_all(rule.as_bytes());
        add_rule_at(request.address())
    };
    let bad: [(&str, Change); 13] = [
        ("no bytes", |rule| rule.bytes = 0.into()),
        ("wraps", |rule| rule.bytes = u64::MAX.into()),
        ("beyond every width", |rule| rule.gpa = (1 << 52).into()),
        ("action", |rule| rule.action = 4.into()),
        ("response", |rule| rule.response = 3.into()),
        ("flags", |rule| rule.flags = 2.into()),
        ("reserved", |rule| rule.reserved = 1.into()),
        ("no name", |rule| rule.name_length = 0.into()),
        ("long name", |rule| rule.name_length = 63.into()),
        ("very long name", |rule| rule.name_length = u16::MAX.into()),
        ("no UTF-8", |rule| rule.name[0] = 0xff),
        ("a control character", |rule| rule.name[1] = 0x1b),
        ("more name than it says", |rule| rule.name[20] = b'x'),
    ];
    for (what, change) in bad {
        assert_eq!(add(change), errno::EINVAL, "{what}");
    }
    assert_eq!(Counter::Rules.get(), rules);
    assert_eq!(get_access(page), !0);
    assert!(add(|_| ()) > 0);
    assert_eq!(get_access(page), !1);
}
test!(bad_rules);

/// The hypervisor writes nothing for a guest that the guest may not write itself (contract C4).
fn buffers_in_protected_bytes() {
    let page = frames::page();
    let target = frames::page();
    page.fill(0x33);
    set_access(target, 0);
    set_access(page, !(1 << 2));
    drain_events();
    target.write(0, 1_u64);
    let before = page.digest();
    for offset in [0x100, 0x180 - 1, 0x100 - 159, 0x100 - 8] {
        let result = call(Call::ReadEvents.0, [page.address() + offset, 1, 0, 0]);
        assert_eq!(result, errno::EFAULT, "events at {offset:#x}");
        assert_eq!(page.digest(), before, "events at {offset:#x}");
    }
    let events = Events::with_room(64);
    let count = events.take();
    assert!(count >= 1);
    assert_eq!(events.get(0).gpa.get(), target.address(), "the event has waited");
    // A request whose map would be filled in protected bytes.
    let request = page.part(0x100 - 16, 20);
    request.part(0, 16).fill(0);
    request.write(0, target.gfn());
    request.write(8, 1_u32);
    assert_eq!(call(Call::GetAccess.0, [request.address(), 0, 0, 0]), errno::EFAULT);
    assert_eq!(request.read::<u32>(16), 0x3333_3333);
    // Where it is only read it may lie anywhere.
    assert_eq!(call(Call::SetAccess.0, [request.address(), 0, 0, 0]), 1);
    assert_eq!(get_access(target), 0x3333_3333);
    let written = frames::page();
    let tracking = Tracking::start(written);
    written.write(0, 1_u64);
    let result = call(Call::Harvest.0, [tracking.0, page.address() + 0x100, 4, 0]);
    assert_eq!(result, errno::EFAULT);
    let mut harvest = Harvest::with_room(4);
    assert_eq!(tracking.harvest(&mut harvest), 1, "the failed harvest took nothing");
    assert_eq!(harvest.written(written), 1);
}
test!(buffers_in_protected_bytes);

/// Rules without end: refused at a limit, and room comes back when one goes.
fn too_many_rules() {
    let page = frames::page();
    let mut first = 0;
    let mut count = 0_u64;
    let rule = Rule::new("one of many", page.part(0, 8), Action::Deny);
    let request = rule.request_page();
    loop {
        let result = add_rule_at(request.address());
        if result < 0 {
            assert_eq!(result, errno::ENOSPC);
            break;
        }
        if count == 0 {
            first = result as u64;
        }
        count += 1;
        assert!(count <= 100_000, "there is no limit");
    }
    assert!(count >= 64, "{count} rules are few");
    assert_eq!(remove_rule(first), 0);
    assert!(remove_rule(first) < 0);
    assert!(lock_rule(first) < 0);
    assert!(add_rule(&rule) > first);
    assert_eq!(add_rule_at(request.address()), errno::ENOSPC);
    let denied = growth(Counter::Denied, || page.write(0, 1_u64));
    assert_eq!(denied, 1);
}
test!(too_many_rules; limit = 60);
