//! The guest in `examples/kernel`: with its policy's rule, without it, and built anew.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object::{Object as _, ObjectSymbol as _};
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_kvm::boot::Request;
use subpage_kvm::event::{Received, Subscription};
use subpage_kvm::vm::{Configuration, Ending, TrapChoice, Vm};
use subpage_trap::{Record, Verdict};

/// The symbol that the policy protects, and the one next to it that is written all the time.
const PATH: &str = "modprobe_path";
const COUNTER: &str = "syscall_count";

/// System calls that the guest serves.
const CALLS: u64 = 20_003;

/// Longer than the guest runs, on a slow machine too.
const LIMIT: Duration = Duration::from_secs(120);

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/kernel").join(file)
}

/// Whether there is a KVM to test with. Tells the reason if not, once a test.
fn kvm() -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// Where a symbol of an ELF file lies; its segments are linked at their physical addresses.
fn symbol(image: &Path, name: &str) -> ByteRange {
    let bytes = std::fs::read(image).expect("the guest can be read");
    let file = object::File::parse(bytes.as_slice()).expect("it is an ELF file");
    let symbol = file.symbol_by_name(name).expect("the symbol is there");
    ByteRange::new(Gpa::new(symbol.address()), symbol.size()).expect("it has bytes")
}

/// What a guest sends to its serial port.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a run came to.
struct Run {
    printed: String,
    events: Vec<Arc<Record>>,
    calls: u64,
    path: [u8; 16],
}

/// Runs an image to its end, guarded or not.
fn run(image: &Path, trap: TrapChoice, guarded: bool) -> Run {
    let console = Console::default();
    let configuration = Configuration { memory: 16 << 20, trap, ..Configuration::default() };
    let mut vm = Vm::new(&configuration, Box::new(console.clone())).expect("a machine");
    let request =
        Request { image, initrd: None, command_line: "", load_address: None, slide: None, cpus: 1 };
    vm.load(&request).expect("a guest");
    let path = symbol(image, PATH);
    if guarded {
        let rule = Rule {
            name: RuleName::new("modprobe path").expect("a name"),
            range: path,
            owner: Owner::HOST,
            action: Action::Deny,
            locked: false,
        };
        vm.add_rules(&[rule]).expect("memory of the guest");
    }
    let subscription = vm.subscribe(1024);
    vm.start().expect("threads");
    let ending = vm.wait(LIMIT);
    assert_eq!(ending, Some(Ending::Exited { code: 0 }));
    let mut calls = [0; 8];
    vm.ram().read(symbol(image, COUNTER).first(), &mut calls).expect("memory");
    let mut after = [0; 16];
    vm.ram().read(path.first(), &mut after).expect("memory");
    let printed = console.0.lock().expect("no writer panics").clone();
    Run {
        printed: String::from_utf8(printed).expect("the guest prints ASCII"),
        events: events(&subscription),
        calls: u64::from_le_bytes(calls),
        path: after,
    }
}

fn events(subscription: &Subscription) -> Vec<Arc<Record>> {
    let mut events = Vec::new();
    while let Some(delivery) = subscription.next(Some(Duration::ZERO)) {
        match delivery {
            Received::Event(event) => events.push(event),
            Received::Armed(arming) => panic!("{arming:?}"),
            Received::Dropped(lost) => panic!("{lost} events lost"),
            Received::Closed => break,
        }
    }
    events
}

/// The lines that the guest prints, if the module's loader is this program.
fn lines(loader: &str) -> String {
    format!(
        "process 101: getpid, 5000 times\n\
         process 102: setrlimit of resource 7\n\
         process 102: getpid, 5000 times\n\
         process 666: setrlimit of resource 8\n\
         process 101: getpid, 10000 times\n\
         process 666: socket of protocol 44\n\
         kernel: protocol 44 needs a module, run as root: {loader}\n\
         kernel: 20003 system calls served\n"
    )
}

fn exploit_succeeds_only_unguarded(image: &Path) {
    let run_unguarded = run(image, TrapChoice::Slots, false);
    assert_eq!(run_unguarded.printed, lines("/tmp/evil"));
    assert_eq!(&run_unguarded.path, b"/tmp/evil\0\0\0\0\0\0\0");
    assert_eq!((run_unguarded.calls, run_unguarded.events.len()), (CALLS, 0));

    for trap in [TrapChoice::Slots, TrapChoice::Mprotect] {
        let guarded = run(image, trap, true);
        assert_eq!(guarded.printed, lines("/sbin/modprobe"), "{trap:?}");
        assert_eq!(&guarded.path, b"/sbin/modprobe\0\0", "{trap:?}");
        assert_eq!(guarded.calls, CALLS, "every count took effect");
        let told: Vec<_> = guarded
            .events
            .iter()
            .map(|it| (it.event.verdict, it.event.gpa.as_u64(), it.event.bytes.as_slice()))
            .collect();
        let path = symbol(image, PATH).first().as_u64();
        let expected: [(_, _, &[u8]); 2] =
            [(Verdict::Denied, path, b"/tmp/evi"), (Verdict::Denied, path + 8, b"l\0\0\0\0\0\0\0")];
        assert_eq!(told, expected, "{trap:?}");
    }
}

#[test]
fn the_guest_has_the_symbols_that_its_policy_names_on_one_page() {
    let image = example("guest.elf");
    let (path, counter) = (symbol(&image, PATH), symbol(&image, COUNTER));
    assert_eq!((path.bytes(), counter.bytes()), (128, 8));
    assert_eq!(path.first().gfn(), counter.first().gfn(), "path and counter share a page");
    let policy = std::fs::read_to_string(example("policy.toml")).expect("it can be read");
    assert!(policy.contains(&format!("\nregion = {PATH:?}\n")), "{policy}");
}

#[test]
fn the_exploit_succeeds_only_unguarded() {
    if kvm() {
        exploit_succeeds_only_unguarded(&example("guest.elf"));
    }
}

/// Needs `cc` and `ld`, as rustc itself does to link.
#[test]
fn a_guest_built_from_the_source_behaves_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("guest.elf");
    let built = Command::new("sh").arg(example("build.sh")).arg(&image).output().expect("sh runs");
    let told = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "the guest cannot be built: {told}");
    if kvm() {
        exploit_succeeds_only_unguarded(&image);
    }
}
