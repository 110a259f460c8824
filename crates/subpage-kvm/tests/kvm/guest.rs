//! A guest assembled by a test: what it runs, and running it to its end.

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use iced_x86::code_asm::CodeAssembler;
use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_kvm::boot::Request;
use subpage_kvm::event::{Arming, Received, Subscription};
use subpage_kvm::vm::{Configuration, Ending, TrapChoice, Vm, nowhere};
use subpage_trap::Record;

/// Where test code is loaded and begins.
pub(crate) const CODE: u64 = 0x20_0000;

/// A page that tests guard.
pub(crate) const PAGE: u64 = 0x40_0000;

/// A page that they do not.
pub(crate) const PLAIN: u64 = 0x41_0000;

/// The port that ends a guest with a status.
pub(crate) const EXIT_PORT: u32 = 0xf4;

/// Longer than any test's guest runs, on a slow machine too: a guest that does not end has failed.
const LIMIT: Duration = Duration::from_secs(120);

/// Whether there is a KVM to test with. Tells the reason if not, once a test.
pub(crate) fn kvm() -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// How many of so many random cases run: all, or one in `SUBPAGE_TEST_SHARE` where a processor is
/// emulated.
pub(crate) fn share(cases: u64) -> u64 {
    let one_in = std::env::var("SUBPAGE_TEST_SHARE");
    let one_in: u64 = one_in.map_or(1, |text| text.parse().expect("a number"));
    cases.div_ceil(one_in.max(1))
}

/// A guest and its events.
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    events: Subscription,
    heard: Mutex<Heard>,
}

/// What a guest's subscription has given, and nobody has asked for yet.
#[derive(Default)]
struct Heard {
    events: Vec<Arc<Record>>,
    armings: Vec<Arc<Arming>>,
}

impl Guest {
    /// A machine with a guest whose first processor starts at `code`.
    pub(crate) fn new(
        configuration: &Configuration,
        code: impl FnOnce(&mut CodeAssembler),
    ) -> Self {
        Self::from_bytes(configuration, &assemble(CODE, code))
    }

    pub(crate) fn from_bytes(configuration: &Configuration, code: &[u8]) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(code).expect("room for it");
        let mut vm = Vm::new(configuration, nowhere()).expect("a machine");
        vm.load(&request(file.path(), configuration.cpus)).expect("a flat guest");
        Self::of(vm)
    }

    /// A machine that has its guest.
    pub(crate) fn of(vm: Vm) -> Self {
        let events = vm.subscribe(1 << 16);
        Self { vm, events, heard: Mutex::default() }
    }

    /// Guards bytes.
    pub(crate) fn guard(&self, start: u64, bytes: u64, action: Action) {
        self.vm.add_rules(&[rule("rule", start, bytes, action)]).expect("memory of the guest");
    }

    /// Number of the newest rule.
    pub(crate) fn rules(&self) -> u64 {
        use subpage_kvm::control::{RequestHandler as _, protocol::Reply, protocol::Request};
        let Ok(Reply::Shown(shown)) = self.vm.request_handler().perform(Request::Show) else {
            panic!("show is never refused")
        };
        shown.rules.iter().map(|rule| rule.rule).max().expect("a rule")
    }

    /// Sets the map of a page.
    pub(crate) fn map(&self, gpa: u64, map: u32) {
        let gfn = Gpa::new(gpa).gfn();
        self.vm.set_access(gfn, &[AccessMap::from_bits(map)]).expect("memory of the guest");
    }

    /// Runs to the end.
    pub(crate) fn run(&mut self) -> Ending {
        self.vm.start().expect("threads");
        self.end()
    }

    /// Waits for the end of a guest that runs.
    pub(crate) fn end(&self) -> Ending {
        let Some(ending) = self.vm.wait(LIMIT) else { panic!("the guest does not end") };
        ending
    }

    /// Runs to an exit with status 0.
    pub(crate) fn run_well(&mut self) {
        let ending = self.run();
        assert_eq!(ending, Ending::Exited { code: 0 }, "{ending}");
    }

    /// All events so far, each once.
    pub(crate) fn events(&self) -> Vec<Arc<Record>> {
        std::mem::take(&mut self.hear().events)
    }

    /// What came into force so far, each once.
    pub(crate) fn armings(&self) -> Vec<Arc<Arming>> {
        std::mem::take(&mut self.hear().armings)
    }

    fn hear(&self) -> MutexGuard<'_, Heard> {
        let mut heard = self.heard.lock().unwrap();
        while let Some(delivery) = self.events.next(Some(Duration::ZERO)) {
            match delivery {
                Received::Event(event) => heard.events.push(event),
                Received::Armed(arming) => heard.armings.push(arming),
                Received::Dropped(lost) => panic!("{lost} events lost"),
                Received::Closed => break,
            }
        }
        heard
    }

    pub(crate) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.vm.ram().read(Gpa::new(gpa), &mut bytes).expect("memory");
        bytes
    }

    pub(crate) fn word(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa))
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.vm.ram().write(Gpa::new(gpa), bytes).expect("memory");
    }
}

pub(crate) fn request(image: &Path, cpus: u32) -> Request<'_> {
    Request { image, initrd: None, command_line: "", load_address: Some(CODE), slide: None, cpus }
}

pub(crate) fn rule(name: &str, start: u64, bytes: u64, action: Action) -> Rule {
    Rule {
        name: RuleName::new(name).expect("a name"),
        range: ByteRange::new(Gpa::new(start), bytes).expect("a range"),
        owner: Owner::HOST,
        action,
        locked: false,
    }
}

pub(crate) fn gfn(gpa: u64) -> Gfn {
    Gpa::new(gpa).gfn()
}

/// Machine code at an address.
pub(crate) fn assemble(at: u64, code: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64-bit code");
    code(&mut assembler);
    assembler.assemble(at).expect("code that can be encoded")
}

/// One processor, trapping as it does by default for one.
pub(crate) fn small() -> Configuration {
    Configuration { memory: 16 << 20, ..Configuration::default() }
}

/// The ways to trap, each for one processor.
/// Where the processor runs the guest's kernel itself, that is `mprotect` alone.
pub(crate) fn both_ways() -> Vec<Configuration> {
    let ways = if subpage_kvm::probe::is_native() {
        &[TrapChoice::Mprotect][..]
    } else {
        &[TrapChoice::Slots, TrapChoice::Mprotect]
    };
    ways.iter().map(|&trap| Configuration { trap, ..small() }).collect()
}

/// Stores of 8 bytes at these addresses, in order, and a normal end. Each value is its number, from 1.
pub(crate) fn stores(code: &mut CodeAssembler, addresses: &[u64]) {
    use iced_x86::code_asm::{qword_ptr, rax, rbx};
    for (number, address) in (1_u64..).zip(addresses) {
        code.mov(rbx, *address).expect("code");
        code.mov(rax, number).expect("code");
        code.mov(qword_ptr(rbx), rax).expect("code");
    }
    exit(code, 0);
}

/// Ends the guest with AL as status.
pub(crate) fn exit(code: &mut CodeAssembler, status: u32) {
    use iced_x86::code_asm::{al, dx, eax, edx};
    code.mov(eax, status).expect("code");
    code.mov(edx, EXIT_PORT).expect("code");
    code.out(dx, al).expect("code");
}
