//! From an EPT violation, as the processor reports it, to what the hypervisor does about it.

use std::error::Error;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Answer, Domain, EptViolation, HostPage, RetryState};
use subpage::ept::MemoryType;
use subpage::exit::{Delivery, EptQualification, ExitReason, VectoringInfo};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};

fn main() -> Result<(), Box<dyn Error>> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable()?;
    let page = Gfn::new(1);
    domain.add_slot(Normal, SlotId(0), GfnRange::one(page), SlotFlags::default())?;
    let host = HostPage {
        hpa: Hpa::new(0x4000_0000),
        size: PageSize::Size4K,
        writable: true,
        executable: false,
        memory_type: MemoryType::WriteBack,
    };
    domain.map(Normal, page, host)?;
    let range = ByteRange::new(Gpa::new(0x1080), 128)?;
    let (owner, action) = (Owner::HOST, Action::Deny);
    let rule = Rule { name: RuleName::new("path")?, range, owner, action, locked: false };
    let (number, token) = domain.add_rule(rule)?;
    domain.finish(&token.without_processors());

    // Fields of the control structure, as numbers. Exit reasons are an open set.
    assert_eq!(ExitReason(48), ExitReason::EPT_VIOLATION);
    let qualification = EptQualification::from(0x18a);
    assert!(qualification.write() && qualification.readable() && !qualification.is_page_walk());

    // The write interrupted the delivery of a page fault (vector 14, with an error code).
    let vectoring = VectoringInfo::from(0x8000_0b0e);
    let exit = EptViolation {
        qualification,
        gpa: Gpa::new(0x1088),
        gla: 0xffff_8000_0000_1088,
        rip: 0xffff_8000_0010_0000,
        length: None,
        space: Normal,
        delivery: Delivery { vectoring, error_code: 2, virtual_nmis: true },
    };
    // One retry state for each processor: it tells a stale translation from a trap that stays.
    let mut retry = RetryState::default();
    let (answer, fixup) = domain.ept_violation(&mut retry, &exit);
    let Answer::Deny(denial) = answer else { return Err("the rule denies it".into()) };
    assert_eq!(denial.rule, Some(number));
    assert_eq!(denial.gla, Some(exit.gla));
    assert!(denial.during_delivery);
    // Whatever the answer, the event has to be delivered again.
    assert_eq!(fixup.reinject, Some((vectoring, 2)));

    // The next sub-page may be written, so its translation was stale: invalidate and enter again. If
    // the same instruction comes back, emulate it. Either way there is progress.
    let permitted = EptViolation { gpa: Gpa::new(0x1100), delivery: Delivery::default(), ..exit };
    assert_eq!(domain.ept_violation(&mut retry, &permitted).0, Answer::Retry);
    assert_eq!(domain.ept_violation(&mut retry, &permitted).0, Answer::Emulate);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}
