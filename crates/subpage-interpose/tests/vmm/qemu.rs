//! QEMU as Debian has it, with the library: a guest of a few instructions, started by multiboot.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, dword_ptr, dx, ecx, edi, esi};
use subpage_guard::control::Client;

use super::run::{Rule, configure, library};

/// Where the guest is loaded, and begins.
const CODE: u32 = 0x10_0000;
/// Where its data is.
const DATA: u32 = 0x30_0000;
/// Bytes that it prints.
const PRINTED: u32 = 0x300;
/// How often it counts.
const COUNTS: u32 = 1000;

const SECRET: Rule =
    Rule { name: "secret", start: DATA as u64 + 0x100, length: 128, action: "deny" };

/// 32-bit code that waits for a byte on the serial line, stores, prints what there is, and ends QEMU.
fn code() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(edi, DATA)?;
    let mut wait = a.create_label();
    a.mov(dx, 0x3fdu32)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(wait)?;
    a.mov(dword_ptr(edi + 0xfc), 0x4141_4141)?;
    a.mov(dword_ptr(edi + 0x100), 0x4242_4242)?;
    a.mov(byte_ptr(edi + 0x17f), 0x43)?;
    a.lock().inc(dword_ptr(edi + 0x104))?;
    a.mov(dword_ptr(edi + 0x180), 0x4444_4444)?;
    a.mov(ecx, COUNTS)?;
    let mut count = a.create_label();
    a.set_label(&mut count)?;
    a.lock().inc(dword_ptr(edi + 0x200))?;
    a.dec(ecx)?;
    a.jnz(count)?;
    a.mov(esi, edi)?;
    a.mov(ecx, PRINTED)?;
    a.mov(dx, 0x3f8u32)?;
    let mut print = a.create_label();
    a.set_label(&mut print)?;
    a.lodsb()?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jnz(print)?;
    a.mov(dx, 0xf4u32)?;
    a.out(dx, al)?;
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.hlt()?;
    a.jmp(end)?;
    a.assemble((CODE + 12).into())
}

/// An ELF32 file with a multiboot header in front of the code.
fn image() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    let mut loaded: Vec<u8> = Vec::new();
    for word in [MAGIC, 0, 0u32.wrapping_sub(MAGIC)] {
        loaded.extend(word.to_le_bytes());
    }
    loaded.extend(code().expect("instructions that exist"));
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let size = u32::try_from(loaded.len()).expect("small");
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2);
    half(&mut file, 3);
    for value in [1, CODE + 12, 52, 0, 0] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    // One segment: everything, to be read, written and executed.
    for value in [1, 0x1000, CODE, CODE, size, size, 7, 0x1000] {
        word(&mut file, value);
    }
    file.resize(0x1000, 0);
    file.extend(loaded);
    file
}

/// QEMU of this machine, or the one that the suite `lab` has unpacked.
fn qemu() -> Option<Command> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let unpacked = std::fs::read_dir(cache.join("subpage")).ok().and_then(|all| {
        let roots = all.flatten().map(|entry| entry.path().join("qemu"));
        roots.filter(|root| root.join("usr/bin/qemu-system-x86_64").is_file()).max()
    });
    if let Some(root) = unpacked {
        let libraries = root.join("lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        let mut search = libraries.into_os_string();
        search.push(":");
        search.push(root.join("usr/lib/x86_64-linux-gnu"));
        command.arg("--library-path").arg(search).arg(root.join("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        return Some(command);
    }
    let search = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&search).map(|it| it.join("qemu-system-x86_64"));
    program.into_iter().find(|path| Path::is_file(path)).map(Command::new)
}

#[test]
fn a_guest_of_qemu() {
    if let Err(error) = std::fs::File::open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm cannot be opened: {error}");
        return;
    }
    let Some(mut command) = qemu() else {
        eprintln!("skipped: no qemu-system-x86_64 (`cargo xtask test lab` fetches one)");
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = directory.path().join("guest.elf");
    std::fs::write(&kernel, image()).expect("a file");
    command
        .args(["-M", "microvm,accel=kvm", "-cpu", "max,-arch-capabilities", "-m", "64"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
        .arg(&kernel)
        .env("LD_PRELOAD", library())
        .env("SUBPAGE_RUN", configure(directory.path(), &[SECRET], "judged"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("QEMU starts");
    let socket = directory.path().join("socket");
    let began = Instant::now();
    let client = loop {
        match Client::connect(&socket, Duration::from_secs(30)) {
            Ok(client) => break client,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(60), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let events = client.watch().expect("events");
    child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("QEMU reads");
    let mut printed = Vec::new();
    child.stdout.as_mut().expect("a pipe").read_to_end(&mut printed).expect("a pipe");
    let _ = child.wait().expect("a process");
    let denied = events
        .map_while(Result::ok)
        .filter(|line| line.object.get("type").is_some_and(|kind| kind == "denied"))
        .count();
    assert_eq!(printed.len(), PRINTED as usize, "{printed:?}");
    let word = |at: usize| u32::from_le_bytes(printed[at..at + 4].try_into().expect("four"));
    assert_eq!(word(0xfc), 0x4141_4141, "before");
    assert_eq!(printed[0x100..0x180], [0; 128], "guarded");
    assert_eq!(word(0x180), 0x4444_4444, "behind");
    assert_eq!(word(0x200), COUNTS, "locked");
    assert_eq!(denied, 3, "events of two plain stores and a locked one");
}
