//! What a rule of eight bytes costs while 64 GiB are tracked, and what a harvest does, against the same
//! with nothing tracked.

use std::io;
use std::time::{Duration, Instant};

use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_bench::report::Record;
use subpage_bench::rounds::Ratio;
use subpage_kvm::vm::{Configuration, TrapChoice, Vm, nowhere};

use crate::guest::{self, Image, Level, Work};
use crate::rows::Out;

pub(crate) const NAME: &str = "change_while_tracking";

/// How much is tracked; the guest never touches most of it, so the host has no memory for that.
const TRACKED: u64 = 64 << 30;

/// Memory begins behind the devices again: all from there on is tracked.
const TRACKED_FROM: u64 = 4 << 30;

/// Where the rule's eight bytes are: in memory that is not tracked.
const RULE: u64 = 0x60_0000;

/// Calls that are timed, and those before them that are not.
const CALLS: usize = 500;
const WARM_UP: usize = 20;

/// The ratio that a rule should cost at most.
const TARGET: f64 = 2.0;

pub(crate) fn run(out: &mut Out) -> io::Result<()> {
    let (plain, tracking) = (machine(), machine());
    let began = Instant::now();
    let range = ByteRange::new(Gpa::new(TRACKED_FROM), TRACKED).expect("memory");
    let track = tracking.track(range).expect("memory of the guest");
    let took = began.elapsed();
    let mut rounds: Vec<[f64; 3]> = (0..WARM_UP + CALLS)
        .map(|round| {
            // In turns, first one and then the other.
            let first = if round % 2 == 0 { Some(rule(&tracking)) } else { None };
            let bare = rule(&plain);
            let tracked = first.unwrap_or_else(|| rule(&tracking));
            let began = Instant::now();
            tracking.harvest(track).expect("it is tracked");
            [tracked, bare, microseconds(began.elapsed())]
        })
        .skip(WARM_UP)
        .collect();
    for vm in [&plain, &tracking] {
        if let Some(ending) = vm.wait(Duration::ZERO) {
            panic!("{ending}");
        }
    }
    let mut median = |of: fn(&[f64; 3]) -> f64| {
        rounds.sort_unstable_by(|a, b| of(a).total_cmp(&of(b)));
        let at = |part: usize| of(&rounds[part]);
        (at(CALLS / 2), at(CALLS / 20), at(CALLS * 19 / 20))
    };
    let (tracked, ..) = median(|round| round[0]);
    let (bare, ..) = median(|round| round[1]);
    let (harvest, ..) = median(|round| round[2]);
    let (ratio, min, max) = median(|round| round[0] / round[1]);
    let record = Record::new(NAME, "us", tracked, "nothing tracked", bare)
        .with_cost(Ratio { median: ratio, min, max }, Some(TARGET))
        .with_note("a rule of 8 bytes, 64 GiB tracked, mprotect, 1 processor");
    out.print(&record)?;
    out.print(
        &Record::figure(NAME, "us", harvest)
            .with("track_us", microseconds(took))
            .with_note("a harvest of these 64 GiB, of which nothing was written"),
    )
}

/// A guest that runs in memory of its own and touches nothing of what is tracked.
fn machine() -> Vm {
    let memory = TRACKED + (3 << 30);
    let trap = TrapChoice::Mprotect;
    let configuration = Configuration { cpus: 1, memory, trap, ..Configuration::default() };
    let mut vm = Vm::new(&configuration, nowhere()).expect("a machine");
    vm.load(&Image::new(Work::Plain).request(1)).expect("a flat guest");
    guest::write_tables(vm.ram());
    // Without end, as far as this is concerned.
    guest::set_count(vm.ram(), u32::MAX);
    vm.with_processors(|processors| {
        let from = processors[0].fd.get_sregs().expect("registers");
        let (registers, special) = guest::start(Level::User, &from);
        processors[0].start_at(&registers, |_| special).expect("registers that can be set");
    });
    vm.start().expect("threads");
    vm
}

/// Adds a rule and removes it; how long the first takes.
fn rule(vm: &Vm) -> f64 {
    let rule = Rule {
        name: RuleName::new("eight bytes").expect("a name"),
        range: ByteRange::new(Gpa::new(RULE), 8).expect("eight bytes"),
        owner: Owner::HOST,
        action: Action::Deny,
        locked: false,
    };
    let began = Instant::now();
    let id = vm.add_rules(&[rule]).expect("memory of the guest");
    let took = began.elapsed();
    vm.remove_rule(id, Owner::HOST).expect("it is there");
    microseconds(took)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
