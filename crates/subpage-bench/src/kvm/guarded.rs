//! A guest in the VMM, driven round by round: its serial port waits for the word to begin.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_kvm::trap::TrapBy;
use subpage_kvm::vm::{Configuration, TrapChoice, Vm};

use crate::debugger::Debugger;
use crate::guest::{self, BEGIN, DENIED, END, Image, Level, Work};

/// Longer than a round takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest in the VMM.
pub(crate) struct Guarded {
    // In this order: without `go` the guest does not wait, and can be ended.
    go: Sender<()>,
    done: Receiver<Duration>,
    vm: Vm,
    debugger: Option<Debugger>,
}

impl Guarded {
    pub(crate) fn new(by: TrapBy, level: Level, work: Work, memory: u64) -> Self {
        let (go, wait) = channel();
        let (tell, done) = channel();
        let rounds = Rounds { wait, tell, began: None };
        let trap = choice(by);
        let configuration = Configuration { cpus: 1, memory, trap, ..Configuration::default() };
        let mut vm = Vm::new(&configuration, Box::new(rounds)).expect("a machine");
        vm.load(&Image::new(work).request(1)).expect("a flat guest");
        guest::write_tables(vm.ram());
        vm.with_processors(|processors| {
            let special = processors[0].fd.get_sregs().expect("registers");
            let (registers, special) = guest::start(level, &special);
            processors[0].start_at(&registers, |_| special).expect("registers that can be set");
        });
        Self { go, done, vm, debugger: None }
    }

    /// Denies one sub-page of the guarded page.
    pub(crate) fn restrict(&self) {
        let map = AccessMap::from_bits(!(1 << DENIED));
        self.vm.set_access(guest::guarded_page(), &[map]).expect("memory of the guest");
    }

    /// Adds rules of one sub-page each, every second page from an address on.
    pub(crate) fn add_rules(&self, from: u64, rules: u64) {
        let rules: Vec<_> = (0..rules)
            .map(|number| Rule {
                name: RuleName::new(&format!("rule {number}")).expect("a name"),
                range: ByteRange::new(Gpa::new(from + number * 0x2000), 128).expect("a sub-page"),
                owner: Owner::HOST,
                action: Action::Deny,
                locked: false,
            })
            .collect();
        self.vm.add_rules(&rules).expect("memory of the guest");
    }

    pub(crate) fn start(&mut self) {
        self.vm.start().expect("threads");
    }

    /// Starts it under a debugger that watches one byte of each of so many pages, from an address on. How
    /// long the debugger takes for that, from the first watchpoint until the guest runs.
    pub(crate) fn start_watched(&mut self, from: u64, watchpoints: u64) -> Duration {
        self.vm.hold();
        let free = "0".parse().expect("a port");
        let address = self.vm.wait_for_debuggers(&free).expect("a free port").to_string();
        self.start();
        let mut debugger = Debugger::attach(&address);
        let began = Instant::now();
        for number in 0..watchpoints {
            debugger.ask(&format!("Z2,{:x},1", from + number * 0x1000));
        }
        debugger.send("vCont;c");
        while self.vm.held().is_some() {
            std::thread::yield_now();
        }
        let took = began.elapsed();
        self.debugger = Some(debugger);
        took
    }

    pub(crate) fn set_count(&self, count: u32) {
        guest::set_count(self.vm.ram(), count);
    }

    /// Lets a round begin that nobody waits for.
    ///
    /// # Panics
    /// If the guest has ended.
    pub(crate) fn begin(&self) {
        self.go.send(()).expect("the guest waits");
    }

    /// One round.
    ///
    /// # Panics
    /// If the guest ends or takes too long for it.
    pub(crate) fn round(&self) -> Duration {
        self.begin();
        let Ok(took) = self.done.recv_timeout(LIMIT) else {
            match self.vm.wait(Duration::ZERO) {
                Some(ending) => panic!("{ending}"),
                None => panic!("the guest does not end its round"),
            }
        };
        took
    }

    /// Writes that trapped so far.
    pub(crate) fn trapped(&self) -> u64 {
        self.vm.trap_counts().writes()
    }
}

/// The choice of exactly this way to trap.
pub(crate) const fn choice(by: TrapBy) -> TrapChoice {
    match by {
        TrapBy::Slots => TrapChoice::Slots,
        TrapBy::Mprotect => TrapChoice::Mprotect,
    }
}

/// Takes the guest's serial output, in the processor's own thread.
struct Rounds {
    wait: Receiver<()>,
    tell: Sender<Duration>,
    began: Option<Instant>,
}

impl Write for Rounds {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            match byte {
                // Either fails when nobody wants rounds any more.
                BEGIN => self.began = self.wait.recv().ok().map(|()| Instant::now()),
                END => {
                    if let Some(began) = self.began.take() {
                        let _ = self.tell.send(began.elapsed());
                    }
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
