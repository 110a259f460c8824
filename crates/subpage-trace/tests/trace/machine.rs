//! Recording a whole machine: a program that takes QEMU's place and sends what a plugin would.

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use subpage_trace::{
    Machine, Names, RecordError, Recording, ToolChoice, Write, record, record_machine,
};

use crate::recording::{NO_SIGNAL, cache, compile, folder, have, read};

/// Sends packets of 100 stores each, as many as the first argument says, and the end.
const QEMU: &str = r#"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
static struct { uint32_t magic, kind; uint64_t total, records[200]; } p = {0x54535300, 1, 0, {0}};
int main(int argc, char **argv) {
    int to = atoi(strstr(argv[argc - 1], "stores=") + 7);
    for (int i = 0; i < atoi(argv[1]); i++) {
        for (int j = 0; j < 100; j++) {
            p.records[2 * j] = 0xffff81000000 | 4ULL << 48;
            p.records[2 * j + 1] = 0x1000 + 4 * p.total++;
        }
        if (send(to, &p, sizeof p, MSG_NOSIGNAL) < 0) return 0;
    }
    p.kind = 3;
    if (argv[2][0] == 'e') send(to, &p, 16, MSG_NOSIGNAL);
    return 0;
}
"#;

fn machine(program: &Path, arguments: &[&str]) -> Machine<'static> {
    Machine {
        program: program.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        names: Names::default(),
        limit: None,
        cache: Some(cache()),
        signal: &NO_SIGNAL,
    }
}

#[test]
fn a_machine_is_recorded_to_its_end_or_its_limit() {
    if !have("cc") {
        return;
    }
    let folder = folder();
    let program = compile(&folder, QEMU, &["-w"]);
    let output = folder.path().join("out.sptrace");
    let recorded = record_machine(&output, &machine(&program, &["3", "end"]), |_| {});
    let recorded = recorded.expect("recorded");
    assert_eq!((recorded.writes, recorded.is_whole), (300, Some(true)));
    let (header, writes) = read(&output);
    assert!(header.is_machine);
    let expected = (0..300).map(|number| Write {
        pc: 0xffff_ffff_8100_0000,
        address: 0x1000 + 4 * number,
        size: 4,
    });
    assert!(writes.into_iter().eq(expected));
    // More than the socket holds: the machine must not wait for one that listens no longer.
    let limited = Machine { limit: Some(250), ..machine(&program, &["100000", "end"]) };
    let recorded = record_machine(&output, &limited, |_| {}).expect("recorded");
    assert_eq!((recorded.writes, recorded.is_whole, recorded.is_limited), (250, None, true));
    assert_eq!(read(&output).1.len(), 250);
}

/// As the plugin does with a store of which QEMU knows no address: it counts, and does not come.
#[test]
fn stores_without_an_address_are_told() {
    if !have("cc") {
        return;
    }
    let folder = folder();
    let lossy = QEMU.replace("if (send(to", "p.total += 7; if (send(to");
    assert_ne!(lossy, QEMU);
    let program = compile(&folder, &lossy, &["-w"]);
    let output = folder.path().join("out.sptrace");
    let recorded = record_machine(&output, &machine(&program, &["3", "end"]), |_| {});
    let recorded = recorded.expect("recorded");
    assert_eq!((recorded.writes, recorded.missing), (300, 21));
    assert_eq!((recorded.is_whole, recorded.text.malformed), (Some(false), 0));
}

#[test]
fn a_wrapper_that_does_not_exec_is_named() {
    if !have("cc") {
        return;
    }
    let folder = folder();
    let program = compile(&folder, QEMU, &["-w"]);
    let output = folder.path().join("out.sptrace");
    let script = format!("{} \"$@\"; true", program.display());
    let wrapper = machine(Path::new("/bin/sh"), &["-c", &script, "sh", "3", "end"]);
    let error = record_machine(&output, &wrapper, |_| {}).expect_err("another process");
    assert!(matches!(error, RecordError::OtherProcess { .. }), "{error}");
    assert!(!output.exists());
    let script = format!("exec {} \"$@\"", program.display());
    let wrapper = machine(Path::new("/bin/sh"), &["-c", &script, "sh", "3", "end"]);
    assert_eq!(record_machine(&output, &wrapper, |_| {}).expect("recorded").writes, 300);
}

#[test]
fn a_signal_before_the_start_ends_it() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    let signal = AtomicUsize::new(2);
    let machine = Machine { signal: &signal, ..machine(Path::new("/bin/true"), &[]) };
    let error = record_machine(&output, &machine, |_| {}).expect_err("it was ended");
    assert!(matches!(error, RecordError::Cancelled), "{error}");
    // Not with another tool, either, because the compiler of ours was ended.
    let recording = Recording {
        program: "/bin/true".into(),
        arguments: Vec::new(),
        // It tells no version.
        valgrind: "/bin/true".into(),
        children: false,
        kernel_writes: false,
        tool: ToolChoice::Auto,
        cache: Some(cache()),
        signal: &signal,
    };
    let error = record(&output, &recording, |_| {}).expect_err("it was ended");
    assert!(matches!(error, RecordError::Cancelled), "{error}");
    assert!(!output.exists());
}

#[test]
fn options_that_the_recorder_sets_are_refused() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    for option in ["-accel", "--enable-kvm", "-icount"] {
        let machine = machine(Path::new("/bin/true"), &["-m", "256", option, "kvm"]);
        let error = record_machine(&output, &machine, |_| {}).expect_err("refused");
        assert!(matches!(&error, RecordError::MachineOption { option: o } if o == option));
    }
    assert!(!output.exists());
}
