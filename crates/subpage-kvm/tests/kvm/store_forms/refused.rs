//! Stores that cannot be decided about: the guest ends, and its bytes are as they were.

use iced_x86::code_asm::{CodeAssembler, eax, rbx, rdi, xmm1, xmm2, ymm1, ymm2, ymmword_ptr};
use subpage::rules::Action;
use subpage_kvm::vm::{Ending, TrapChoice};

use crate::guest::{Guest, PAGE, assemble, both_ways, exit, kvm};
use crate::privilege::{LEVELS, Level, enable_avx, place_first};

type Refused = (&'static str, fn(&mut CodeAssembler));

#[rustfmt::skip] // a table
const REFUSED: &[Refused] = &[
    ("maskmovdqu", |a| a.maskmovdqu(xmm1, xmm2).unwrap()),
    ("vmaskmovps", |a| a.vmaskmovps(ymmword_ptr(rdi), ymm2, ymm1).unwrap()),
    ("xsave", |a| a.xsave(rdi + 0).unwrap()),
];

/// Sets RDI to the page and EAX to a mask of x87 and SSE, and all bits of the registers under test.
fn prepare(a: &mut CodeAssembler) {
    a.mov(rdi, PAGE).unwrap();
    a.mov(rbx, PAGE).unwrap();
    a.mov(eax, 3).unwrap();
}

#[test]
fn masked_stores_end_the_guest_with_their_bytes_and_leave_memory() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            for (name, store) in REFUSED {
                let mut guest = Guest::new(&configuration, |code| {
                    prepare(code);
                    store(code);
                    exit(code, 0);
                });
                place_first(&guest, level);
                guest.vm.with_processors(|processors| {
                    enable_avx(processors[0]);
                    let mut extended = processors[0].extended().unwrap();
                    extended.0[160..416].fill(0xff);
                    extended.0[512..520].copy_from_slice(&7_u64.to_le_bytes());
                    extended.0[576..832].fill(0xff);
                    processors[0].set_extended(&extended).unwrap();
                });
                let before = [0x5a; 0x1000];
                guest.write(PAGE, &before);
                guest.guard(PAGE, 8, Action::Deny);
                let ending = guest.run();
                let context = format!("{name}, {:?} at {level:?}: {ending}", configuration.trap);
                assert!(guest.read(PAGE) == before, "{context}");
                let bytes = assemble(0, store);
                if let Ending::Failed(failure) = &ending {
                    let prepared = assemble(0, prepare).len() as u64;
                    assert_eq!(failure.rip, Some(crate::guest::CODE + prepared), "{context}");
                    assert_eq!(failure.instruction, bytes, "{context}");
                } else {
                    // A KVM whose emulator gives #UD for what it does not know.
                    let native = configuration.trap == TrapChoice::View && level == Level::User;
                    assert!(!native && matches!(ending, Ending::TripleFault { .. }), "{context}");
                }
            }
        }
    }
}
