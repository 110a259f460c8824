//! Replaying a recorded trace through rules and the processor model, on one core.

use std::hint::black_box;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_model::{Access, AccessKind, AccessOutcome, Features, Machine, Setup};
use subpage_trace::{TraceReader, Write};

use subpage_bench::report::Record;
use subpage_bench::rounds::{Rounds, timed};

pub(super) const NAME: &str = "replay";

/// The example's recording: a server's hot counters on both sides of a string that a crafted
/// request overwrites.
const TRACE: &[u8] = include_bytes!("../../../../examples/counter/counter.sptrace");

/// What is guarded, and how many writes of the recording reach it.
const GUARDED: &str = "helper_path";
const DENIED: u64 = 1;

/// Passes over the trace in one round.
const PASSES: u32 = 4;

/// Measures [`NAME`].
pub(super) fn run() -> Vec<Record> {
    let decoded = decode();
    let replayed = replay(&mut machine());
    assert_eq!(replayed, (decoded.0, DENIED), "writes replayed and denied");

    let mut machine = machine();
    let mut by_replay = || {
        timed(|| {
            for _ in 0..PASSES {
                black_box(replay(&mut machine));
            }
        })
    };
    let mut by_decode = || {
        timed(|| {
            for _ in 0..PASSES {
                black_box(decode());
            }
        })
    };
    let rounds = Rounds::run([&mut by_replay, &mut by_decode]);
    let writes = u32::try_from(decoded.0).expect("the example holds some 400,000") * PASSES;
    let million_a_second = |side| 1e3 / rounds.nanoseconds(side, writes);
    vec![
        Record::new(NAME, "M/s", million_a_second(0), "decode", million_a_second(1))
            .with_ratio(rounds.ratio(1, 0))
            .with_note("decoding included on both sides; more is better"),
    ]
}

/// A machine whose guest-physical addresses are those of the recorded program.
fn machine() -> Machine<()> {
    let trace = TraceReader::new(TRACE).expect("the example is a trace");
    let name = trace.names().find(GUARDED).expect("the example names what it guards");
    let range = ByteRange::new(Gpa::new(name.start), name.length).expect("a range");
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    let all = GfnRange::new(Gfn::new(0), Gfn::MAX.as_u64() + 1).expect("the address space");
    domain
        .add_slot(AddressSpace::Normal, SlotId(0), all, SlotFlags::default())
        .expect("the only slot");
    let setup = Setup::new(Features::new(PhysicalWidth::MAX));
    let mut machine = Machine::new(setup, domain, ()).expect("memory for the root");
    let rule = Rule {
        name: RuleName::new(GUARDED).expect("a short name"),
        range,
        owner: Owner::HOST,
        action: Action::Deny,
        locked: false,
    };
    let (_, token) = machine.domain_mut().add_rule(rule).expect("memory for a rule");
    let _done = machine.complete(token);
    machine
}

/// Performs every write; tells how many there were and how many were denied.
fn replay(machine: &mut Machine<()>) -> (u64, u64) {
    let (mut writes, mut denied) = (0, 0);
    each_block(|block| {
        writes += block.len() as u64;
        for write in block {
            let access = Access::new(AccessKind::Write, Gpa::new(write.address), write.size.into());
            let access = access.expect("a trace holds writes of 1 to 64 bytes below 2^48");
            match machine.touch(0, &access) {
                AccessOutcome::Done => {}
                AccessOutcome::Denied(_) => denied += 1,
                other => panic!("{write:?} met {other:?}"),
            }
        }
    });
    (writes, denied)
}

/// Decodes every write and sums what it holds; tells how many there were.
fn decode() -> (u64, u64) {
    let (mut writes, mut sum) = (0, 0_u64);
    each_block(|block| {
        writes += block.len() as u64;
        for write in block {
            sum = sum.wrapping_add(write.address ^ write.pc).wrapping_add(write.size.into());
        }
    });
    (writes, sum)
}

fn each_block(mut visit: impl FnMut(&[Write])) {
    let mut trace = TraceReader::new(black_box(TRACE)).expect("the example is a trace");
    let mut block = Vec::new();
    while trace.next_block(&mut block).expect("the example is not damaged") {
        visit(&block);
    }
}
