//! How long it takes to set the access map of one page while processors are in the guest.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use subpage::access::AccessMap;
use subpage_bench::report::Record;
use subpage_kvm::trap::TrapBy;
use subpage_kvm::vm::{Configuration, Vm, nowhere};

use crate::guarded::choice;
use crate::guest::{self, DENIED, Image, Level, Work};
use crate::rows::{Out, measurable};

pub(crate) const NAME: &str = "set_latency";

const MEMORY: u64 = 16 << 20;

/// Calls that are timed, and those before them that are not.
const CALLS: usize = 1000;
const WARM_UP: usize = 20;

pub(crate) fn run(out: &mut Out) -> io::Result<()> {
    for (by, cpus, note) in [
        (TrapBy::Slots, 1, "read-only slots, 1 processor"),
        (TrapBy::Mprotect, 1, "mprotect, 1 processor"),
        (TrapBy::Mprotect, 2, "mprotect, 2 processors"),
        (TrapBy::Mprotect, 4, "mprotect, 4 processors"),
    ] {
        if measurable(out, NAME, by, note)? {
            out.print(&measure(by, cpus).with_note(note))?;
        }
    }
    Ok(())
}

/// A page is closed and opened in turns, which is all that a call can have to do.
fn measure(by: TrapBy, cpus: u32) -> Record {
    let trap = choice(by);
    let configuration = Configuration { cpus, memory: MEMORY, trap, ..Configuration::default() };
    let mut vm = Vm::new(&configuration, nowhere()).expect("a machine");
    vm.load(&Image::new(Work::Plain).request(cpus)).expect("a flat guest");
    guest::write_tables(vm.ram());
    // Without end, as far as this is concerned.
    guest::set_count(vm.ram(), u32::MAX);
    vm.with_processors(|processors| {
        let from = processors[0].fd.get_sregs().expect("registers");
        for processor in processors {
            let apic_base = processor.fd.get_sregs().expect("registers").apic_base;
            let (registers, mut special) = guest::start(Level::User, &from);
            special.apic_base = apic_base;
            processor.start_at(&registers, |_| special).expect("registers that can be set");
            let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            processor.fd.set_mp_state(running).expect("a processor can run");
        }
    });
    vm.start().expect("threads");
    let maps = [AccessMap::from_bits(!(1 << DENIED)), AccessMap::ALL];
    let mut microseconds: Vec<f64> = (0..WARM_UP + CALLS)
        .map(|call| {
            let began = Instant::now();
            vm.set_access(guest::guarded_page(), &[maps[call % 2]]).expect("memory of the guest");
            began.elapsed().as_secs_f64() * 1e6
        })
        .skip(WARM_UP)
        .collect();
    if let Some(ending) = vm.wait(Duration::ZERO) {
        panic!("{ending}");
    }
    microseconds.sort_unstable_by(f64::total_cmp);
    Record::figure(NAME, "us", microseconds[CALLS / 2])
        .with("p99", microseconds[CALLS * 99 / 100])
        .with("processors", cpus.into())
}
