//! Recording a whole machine: a program that takes QEMU's place and sends what a plugin would.

use std::path::Path;

use subpage_trace::{Machine, Names, RecordError, Write, record_machine};

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
