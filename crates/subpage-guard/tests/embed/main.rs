//! A guest that another program runs, guarded: by the example, and by a loop with two processors.

mod concurrent;

#[allow(dead_code, reason = "the example has a `main` of its own")]
#[path = "../../examples/own_loop.rs"]
mod own_loop;

use subpage_trap::Verdict;

/// Whether there is KVM to run guests on; says so if there is not.
fn has_kvm() -> bool {
    let has = kvm_ioctls::Kvm::new().is_ok();
    if !has {
        println!("skipped: this machine has no /dev/kvm");
    }
    has
}

#[test]
fn the_example_keeps_what_it_guards_and_nothing_else() {
    if !has_kvm() {
        return;
    }
    let outcome = own_loop::run().expect("the guest runs to its end");
    assert_eq!(outcome.status, 7);
    let word = |at: usize| u32::from_le_bytes(outcome.data[at..at + 4].try_into().expect("four"));
    // The neighbours of the guarded bytes, in the same page.
    assert_eq!((word(0x00), word(0x04)), (0x1111_1111, 1));
    assert!(outcome.data[0x70..0x80].iter().all(|byte| *byte == 0x33), "the device's, permitted");
    assert!(outcome.data[0x80..0x100].iter().all(|byte| *byte == 0), "guarded");
    let told: Vec<_> =
        outcome.events.iter().map(|event| (event.event.gpa.as_u64(), event.event.length)).collect();
    assert_eq!(told, [(0x3080, Some(4)), (0x3084, Some(4)), (0x3080, Some(16))]);
    for event in &outcome.events {
        assert_eq!(event.event.verdict, Verdict::Denied);
        assert_eq!(event.rule_name.as_deref(), Some("table"));
    }
    assert_eq!(outcome.events[0].event.bytes, [0x22; 4]);
    assert_eq!(outcome.events[2].event.origin.rip, None, "a device has no instruction");
}
