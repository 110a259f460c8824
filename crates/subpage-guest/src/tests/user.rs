//! Code at CPL 3.

use subpage_vmx::abi::Call;

use crate::hypervisor::test_hooks::{Counter, growth};
use crate::hypervisor::{
    Action, Events, Response, Rule, add_rule, call, drain_events, errno, get_access, set_access,
};
use crate::memory::{PAGE, frames};
use crate::processor::user;
use crate::test;

extern "sysv64" fn attempt(number: u64) -> u64 {
    call(number, [0, 0, 0, 0]) as u64
}

extern "sysv64" fn open(address: u64) -> u64 {
    call(Call::SetAccess.0, [address, 0, 0, 0]) as u64
}

/// No hypercall works for the user, whatever its number.
fn hypercalls_of_the_user_are_refused() {
    let page = frames::page();
    set_access(page, 0);
    for number in (0..=12).chain([0x8000, 0x8001, 0x8006, u64::MAX]) {
        let result = user::run(attempt, number);
        assert_eq!(result, Ok(errno::EPERM as u64), "call {number:#x}");
    }
    // A valid request that opens the page.
    let request = frames::page();
    request.write(0, page.gfn());
    request.write(8, 1_u32);
    request.write(16, !0_u32);
    assert_eq!(user::run(open, request.address()), Ok(errno::EPERM as u64));
    assert_eq!(get_access(page), 0);
    assert_eq!(open(request.address()), 1);
    assert_eq!(get_access(page), !0);
}
test!(hypercalls_of_the_user_are_refused);

extern "sysv64" fn write(address: u64) -> u64 {
    let page = frames::again(address, PAGE);
    page.write(0, 1_u64);
    page.increment(0x80);
    page.read(0)
}

/// A denied write of the user: skipped, and reported with its privilege level.
fn denied_write_of_the_user() {
    let page = frames::page();
    set_access(page, !1);
    drain_events();
    let denied = growth(Counter::Denied, || {
        assert_eq!(user::run(write, page.address()), Ok(0));
    });
    assert_eq!((denied, page.read::<u64>(0x80)), (1, 1));
    let event = Events::with_room(4).only();
    assert_eq!((event.cpl, event.cpu.get()), (3, 0));
    assert_eq!(event.gpa.get(), page.address());
    assert_eq!(event.qualification.get() & 0x18a, 0x18a);
}
test!(denied_write_of_the_user);

/// #GP in code of the user.
fn fault_of_the_user() {
    let page = frames::page();
    let rule = Rule::new("gp", page.part(0, 8), Action::Deny);
    add_rule(&Rule { response: Response::Fault, ..rule });
    drain_events();
    let exception = user::run(write, page.address()).expect_err("the write faults");
    assert_eq!((exception.vector, exception.error), (13, 0));
    let event = Events::with_room(4).only();
    assert_eq!((event.cpl, event.rip.get(), event.outcome.get()), (3, exception.rip, 2));
    assert_eq!(page.read::<u64>(0x80), 0);
    assert_eq!(page.read::<u64>(0), 0);
}
test!(fault_of_the_user);
