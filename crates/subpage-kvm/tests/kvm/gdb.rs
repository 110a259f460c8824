//! An unmodified gdb on guests: its breakpoints, steps and watchpoints, and what it may do wrong.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, byte_ptr, qword_ptr, rax, rbx, rcx, rdi};
use subpage::rules::Action;
use subpage_kvm::gdb::DebuggerAddress;
use subpage_kvm::vm::Ending;

use crate::guest::{CODE, Guest, PAGE, PLAIN, both_ways, exit, kvm};

/// Longer than any of the sessions takes.
const LIMIT: Duration = Duration::from_secs(100);

/// Whether there are a KVM and a gdb to test with.
fn gdb() -> bool {
    if !kvm() {
        return false;
    }
    let found = Command::new("gdb").arg("--version").output().is_ok_and(|it| it.status.success());
    if !found {
        println!("skipped: there is no gdb");
    }
    found
}

/// A guest that waits for a debugger before its first instruction, and where.
fn waiting(guest: &mut Guest) -> String {
    guest.vm.hold();
    let free: DebuggerAddress = "0".parse().unwrap();
    let address = guest.vm.wait_for_debuggers(&free).unwrap();
    guest.vm.start().unwrap();
    address.to_string()
}

/// Runs gdb with commands, at the guest.
fn run_gdb(address: &str, commands: &str) -> String {
    let start =
        ["set confirm off", "set pagination off", "set width 0", "set architecture i386:x86-64"];
    let target = format!("target remote {address}");
    let lines: Vec<&str> =
        start.into_iter().chain([target.as_str()]).chain(commands.lines()).collect();
    let mut command = Command::new("gdb");
    command.args(["-nx", "-nh", "-batch"]);
    let mut script = tempfile::NamedTempFile::new().unwrap();
    if lines.len() > 100 {
        std::io::Write::write_all(&mut script, lines.join("\n").as_bytes()).unwrap();
        command.arg("-x").arg(script.path());
    } else {
        // What fails is no reason to leave out what follows.
        command.args(lines.iter().flat_map(|line| ["-ex", line]));
    }
    let mut gdb = command
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut out, mut errors) = (gdb.stdout.take().unwrap(), gdb.stderr.take().unwrap());
    let read = std::thread::spawn(move || std::io::read_to_string(&mut errors).unwrap());
    let told = std::thread::spawn(move || std::io::read_to_string(&mut out).unwrap());
    let began = Instant::now();
    while gdb.try_wait().unwrap().is_none() {
        if began.elapsed() > LIMIT {
            gdb.kill().unwrap();
            gdb.wait().unwrap();
            panic!("gdb does not end: {}{}", told.join().unwrap(), read.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    format!("{}{}", told.join().unwrap(), read.join().unwrap())
}

/// Watched places lie 16 bytes apart, eight bytes each.
pub(crate) const WATCHED: u64 = 10_000;
pub(crate) const fn place(number: u64) -> u64 {
    PAGE + number * 16
}

/// Stores beside watched bytes, and to some of them.
pub(crate) fn stores(code: &mut CodeAssembler) {
    let store = |code: &mut CodeAssembler, at: u64, value: u64| {
        code.mov(rbx, at).unwrap();
        code.mov(rax, value).unwrap();
        code.mov(qword_ptr(rbx), rax).unwrap();
        code.nop().unwrap();
    };
    // Neighbours of all of them.
    let mut again = code.create_label();
    code.mov(rbx, PAGE + 8).unwrap();
    code.mov(rcx, WATCHED).unwrap();
    code.set_label(&mut again).unwrap();
    code.mov(qword_ptr(rbx), rcx).unwrap();
    code.add(rbx, 16).unwrap();
    code.dec(rcx).unwrap();
    code.jnz(again).unwrap();
    store(code, place(5000), 0x51);
    store(code, place(5000) + 8, 0x52);
    store(code, PLAIN - 8, 0x53);
    // The last byte of one alone.
    code.mov(rbx, place(9999) + 7).unwrap();
    code.mov(byte_ptr(rbx), 1).unwrap();
    code.nop().unwrap();
    store(code, place(0), 0x54);
    exit(code, 0);
}

#[test]
fn ten_thousand_watchpoints_stop_at_the_right_stores_and_no_others() {
    if !gdb() {
        return;
    }
    // gdb takes half a minute for it: in the other way to trap, packets alone set as many.
    for configuration in both_ways().into_iter().take(1) {
        let mut guest = Guest::new(&configuration, stores);
        let address = waiting(&mut guest);
        let mut commands = String::new();
        for number in 0..WATCHED {
            writeln!(commands, "watch *(unsigned long*){:#x}", place(number)).unwrap();
        }
        commands.push_str("continue\ncontinue\ncontinue\ncontinue\n");
        let told = run_gdb(&address, &commands);
        let stops: Vec<&str> = told
            .lines()
            .skip_while(|line| !line.starts_with("Hardware watchpoint 10000:"))
            .skip(1)
            .filter(|line| !line.is_empty() && !line.starts_with("0x"))
            .collect();
        let expected = [
            "Hardware watchpoint 5001: *(unsigned long*)0x413880",
            "Old value = 0",
            "New value = 81",
            "Hardware watchpoint 10000: *(unsigned long*)0x4270f0",
            "Old value = 0",
            "New value = 72057594037927936",
            "Hardware watchpoint 1: *(unsigned long*)0x400000",
            "Old value = 0",
            "New value = 84",
        ];
        assert_eq!(stops[..expected.len().min(stops.len())], expected, "{}", stops.join("\n"));
        assert!(told.contains("[Inferior 1 (process 1) exited normally]"), "{}", stops.join("\n"));
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert!(guest.events().is_empty(), "watchpoints are no rules");
    }
}

/// A guest for the other sessions: a store, a call, and a store that the guard denies.
fn plain(code: &mut CodeAssembler) {
    code.mov(rbx, PAGE).unwrap();
    code.mov(rax, 7_u64).unwrap();
    code.mov(qword_ptr(rbx), rax).unwrap();
    code.mov(qword_ptr(rbx + 0x800), rax).unwrap();
    code.mov(rcx, qword_ptr(rbx + 0x900)).unwrap();
    exit(code, 0);
}

/// Behind which instruction of it.
const AT: [u64; 6] = [CODE, CODE + 10, CODE + 20, CODE + 23, CODE + 30, CODE + 37];

#[test]
fn it_breaks_steps_reads_and_writes() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, plain);
        guest.guard(PAGE, 8, Action::Deny);
        let address = waiting(&mut guest);
        let told = run_gdb(
            &address,
            &format!(
                "break *{:#x}\ncontinue\nprint $rax\nx/1xb {:#x}\nstepi\nstepi\nprint/x $rip\n\
                 print *(long*){:#x}\nprint *(long*){:#x}\nset var *(long*){:#x} = 99\n\
                 set var $rax = 5\nstepi\nprint $rcx\ninfo threads\ncontinue\n",
                AT[2],
                AT[2],
                PAGE,
                PAGE + 0x800,
                PAGE + 0x900,
            ),
        );
        for line in [
            "Breakpoint 1, 0x0000000000200014 in ?? ()",
            "$1 = 7",
            // The guest's own byte, not the breakpoint's.
            "0x200014:\t0x48",
            "$2 = 0x20001e",
            "$3 = 0",
            "$4 = 7",
            "$5 = 99",
            "* 1    Thread 1.1 (vcpu 0) 0x0000000000200025 in ?? ()",
            "[Inferior 1 (process 1) exited normally]",
        ] {
            assert!(told.lines().any(|it| it == line), "{line:?} is not in:\n{told}");
        }
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert_eq!(guest.events().len(), 1, "the guest's own store");
    }
}

/// Eight hardware breakpoints: four in debug registers, the others in memory, which looks the same.
#[test]
fn more_than_four_hardware_breakpoints_stop_it() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            for _ in 0..8 {
                code.nop().unwrap();
            }
            exit(code, 0);
        });
        let address = waiting(&mut guest);
        let mut commands = String::new();
        for at in 1..8 {
            writeln!(commands, "hbreak *{:#x}", CODE + at).unwrap();
        }
        for _ in 0..8 {
            commands.push_str("continue\nprintf \"at %lx\\n\", $rip\n");
        }
        let told = run_gdb(&address, &commands);
        let at: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("at ")).collect();
        let expected: Vec<String> = (1..8).map(|at| format!("{:x}", CODE + at)).collect();
        assert_eq!(at, expected, "{told}");
    }
}

/// What a condition or another rule says of a store changes nothing about what the guest does.
#[test]
fn watchpoints_deny_nothing_and_conditions_are_gdbs() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            let mut again = code.create_label();
            code.mov(rbx, PAGE).unwrap();
            code.mov(rcx, 50_u64).unwrap();
            code.set_label(&mut again).unwrap();
            code.inc(qword_ptr(rbx + 0x100)).unwrap();
            code.dec(rcx).unwrap();
            code.jnz(again).unwrap();
            // Denied, and so no store.
            code.mov(qword_ptr(rbx), rbx).unwrap();
            exit(code, 0);
        });
        guest.guard(PAGE, 8, Action::Deny);
        let address = waiting(&mut guest);
        let told = run_gdb(
            &address,
            &format!(
                "watch *(long*){:#x} if *(long*){:#x} == 42\nwatch *(long*){PAGE:#x}\ncontinue\n\
                 print $rcx\ncontinue\n",
                PAGE + 0x100,
                PAGE + 0x100,
            ),
        );
        assert!(told.contains("Old value = 41\nNew value = 42"), "{told}");
        // Between the store and the decrement.
        assert!(told.contains("$1 = 9\n"), "{told}");
        assert!(told.contains("exited normally"), "{told}");
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
        assert_eq!((guest.word(PAGE), guest.word(PAGE + 0x100)), (0, 50));
    }
}

/// One store that several watchpoints watch, and a string of them: each change is told.
#[test]
fn a_store_to_several_watchpoints_is_told_of_each() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rdi, PAGE).unwrap();
            code.mov(rax, 0x0202_0202_0101_0101_u64).unwrap();
            code.mov(qword_ptr(rdi), rax).unwrap();
            code.mov(rcx, 4_u64).unwrap();
            code.rep().stosb().unwrap();
            exit(code, 0);
        });
        let address = waiting(&mut guest);
        let (first, second) = (PAGE, PAGE + 4);
        let mut commands = format!("watch *(int*){first:#x}\nwatch *(int*){second:#x}\n");
        commands.push_str(&"continue\n".repeat(4));
        let told = run_gdb(&address, &commands);
        let values: Vec<&str> = told.lines().filter(|line| line.starts_with("New")).collect();
        let (low, high) = (0x0101_0101, 0x0202_0202);
        let expected = [format!("New value = {low}"), format!("New value = {high}")];
        assert_eq!(values, expected, "{told}");
        assert!(told.contains("exited normally"), "{told}");
    }
}

#[test]
fn what_cannot_be_watched_is_refused_and_tables_can_be() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.mov(qword_ptr(rbx + 0x10), rbx).unwrap();
            exit(code, 0);
        });
        let tables =
            guest.vm.with_processors(|processors| processors[0].interrupted().unwrap().state.cr3);
        let address = waiting(&mut guest);
        let none = configuration.memory + 0x1000;
        let told = run_gdb(
            &address,
            &format!(
                "watch *(long*){none:#x}\ncontinue\ndelete\nwatch *(long*){tables:#x}\n\
                 rwatch *(long*){PAGE:#x}\ncontinue\ndelete 3\nset max-value-size unlimited\n\
                 watch *(long*){:#x}\ncontinue\ncontinue\n",
                PAGE + 0x10,
            ),
        );
        assert!(told.contains("Could not insert hardware watchpoint 1"), "{told}");
        assert!(told.contains("Could not insert hardware watchpoint 3"), "{told}");
        assert!(told.contains("Hardware watchpoint 4: *(long*)0x400010"), "{told}");
        assert!(told.contains("exited normally"), "{told}");
        assert_eq!(guest.end(), Ending::Exited { code: 0 });
    }
}

/// Counts without end.
fn endless(code: &mut CodeAssembler) {
    let mut again = code.create_label();
    code.mov(rbx, PAGE).unwrap();
    code.set_label(&mut again).unwrap();
    code.inc(qword_ptr(rbx)).unwrap();
    code.jmp(again).unwrap();
}

fn runs(guest: &Guest) {
    let before = guest.word(PAGE);
    let began = Instant::now();
    while guest.word(PAGE) == before {
        assert!(began.elapsed() < LIMIT, "the guest does not go on");
        std::thread::yield_now();
    }
}

#[test]
fn a_debugger_that_goes_leaves_nothing_behind() {
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, endless);
        let address = waiting(&mut guest);
        for how in ["detach\n", "disconnect\n", ""] {
            let told = run_gdb(
                &address,
                &format!(
                    "watch *(long*){PAGE:#x}\nbreak *{:#x}\ncontinue\ncontinue\n{how}",
                    CODE + 10,
                ),
            );
            assert!(
                told.contains("Breakpoint 2") || told.contains("Hardware watchpoint 1"),
                "{told}"
            );
            runs(&guest);
            assert_eq!(guest.vm.trapped_pages(), 0, "watchpoints are gone");
            assert!(guest.vm.held().is_none());
            assert_eq!(guest.read(CODE + 10), [0x48], "breakpoints are gone");
        }
        let told = run_gdb(&address, "kill\n");
        assert_eq!(guest.end(), Ending::Requested, "{told}");
    }
}

#[test]
fn garbage_and_a_second_debugger_are_turned_away() {
    use std::io::{Read as _, Write as _};
    if !gdb() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, endless);
        let address = waiting(&mut guest);
        let mut first = std::net::TcpStream::connect(&address).unwrap();
        let said = b"$?#3f";
        first.write_all(said).unwrap();
        let mut answer = [0; 4];
        first.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[..2], b"+$", "the first is served");
        let told = run_gdb(&address, "continue\n");
        assert!(told.contains("another debugger has this guest"), "{told}");
        // Packets that are too long, or of no protocol, and none at all.
        drop(first);
        runs(&guest);
        let mut garbage = vec![b'$'; 100_000];
        garbage.extend(b"vCont;c:p1.99;z#00$Z2,fffffffffffffff0,ffffffffffffffff#00$M0,ffffff:#");
        for bytes in [&garbage[..], b"\xff\0\x01\x80", b"", b"$vCont;", b"$k#00"] {
            let mut stream = std::net::TcpStream::connect(&address).unwrap();
            let _ = stream.write_all(bytes);
            drop(stream);
            runs(&guest);
        }
        // What has no end is not kept.
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut endless = vec![b'x'; 1 << 20];
        endless[0] = b'$';
        let _ = stream.write_all(&endless);
        if let Err(error) = stream.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "it is turned away");
        }
        runs(&guest);
        assert_eq!(guest.vm.wait(Duration::ZERO), None, "it still runs");
        let began = Instant::now();
        while !guest.vm.debugger_news().iter().any(|news| news.message.contains("goes on")) {
            assert!(began.elapsed() < LIMIT, "nobody tells that a debugger is gone");
        }
        guest.vm.stop();
    }
}
