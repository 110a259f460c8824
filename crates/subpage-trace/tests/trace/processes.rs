//! Recordings of a program that becomes another one, or starts some.

use std::fs;
use std::path::Path;

use subpage_trace::{Header, Recording, TraceReader, Write, record};

use crate::recording::{NO_SIGNAL, compile, folder, have, read, recording};

#[test]
fn needs_valgrind_forked_children_do_not_mix_in() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = r"
        #include <fcntl.h>
        #include <unistd.h>
        volatile int parents, childs;
        int main(int argc, char **argv) {
            pid_t pid = fork();
            for (int i = 0; i < 5000; i++) if (pid == 0) childs = i; else parents = i;
            if (pid != 0) return 3;
            close(1);
            close(2);
            for (int i = 0; i < 3000; i++) {
                if (access(argv[1], F_OK) != 0) return 0;
                usleep(10000);
            }
            close(creat(argv[2], 0666));
            return 0;
        }
    ";
    let program = compile(&folder, source, &[]);
    let output = folder.path().join("out.sptrace");
    // The child lives on and holds the socket open; that must not hold the recorder up.
    let (go_on, late) = (folder.path().join("go on"), folder.path().join("late"));
    fs::write(&go_on, "").expect("writable");
    let arguments = [go_on.to_str().expect("UTF-8"), late.to_str().expect("UTF-8")];
    let recorded = record(&output, &recording(&program, &arguments, &NO_SIGNAL), |_| {});
    assert!(!late.exists(), "the recorder waited for the child");
    fs::remove_file(&go_on).expect("there");
    let recorded = recorded.expect("recorded");
    assert_eq!(recorded.status.and_then(|s| s.code()), Some(3));
    assert_eq!(recorded.text.malformed, 0);
    let (header, writes) = read(&output);
    let count = |name| {
        let start = header.names.find(name).expect("named").start;
        writes.iter().filter(|w| w.address == start).count()
    };
    assert_eq!((count("parents"), count("childs")), (5000, 0));
}

/// The writes of each process, by its place.
pub(crate) fn by_process(path: &Path) -> (Header, Vec<Vec<Write>>) {
    let mut reader = TraceReader::new(fs::File::open(path).expect("there")).expect("a trace");
    let mut all = vec![Vec::new(); reader.header().processes.len().max(1)];
    let mut block = Vec::new();
    while reader.next_block(&mut block).expect("undamaged") {
        all[usize::from(reader.process())].extend(&block);
    }
    (reader.header().clone(), all)
}

/// Before, in a child and after an exec; the trace knew the first only.
const BECOMES: &str = r#"
#include <sys/wait.h>
#include <unistd.h>
volatile long counts[64];
static void count(int which, int times) { for (int i = 0; i < times; i++) counts[which]++; }
int main(int argc, char **argv) {
    if (argc == 3) { count(3, 90); return 0; }
    if (argc == 2) { count(2, 700); return 6; }
    count(1, 500);
    if (fork() == 0) { count(4, 40); execl(argv[0], argv[0], "the", "child", NULL); }
    wait(NULL);
    execl(argv[0], argv[0], "again", NULL);
}
"#;

#[test]
fn needs_valgrind_an_exec_is_followed_and_children_if_asked_for() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let program = compile(&folder, BECOMES, &[]);
    let path = program.to_str().expect("UTF-8");
    let output = folder.path().join("out.sptrace");
    for (children, expected) in [
        (false, vec![("", [500, 0, 0, 0]), (" again", [0, 700, 0, 0])]),
        (
            true,
            vec![
                ("", [500, 0, 0, 0]),
                ("", [0, 0, 0, 40]),
                (" the child", [0, 0, 90, 0]),
                (" again", [0, 700, 0, 0]),
            ],
        ),
    ] {
        let request = Recording { children, ..recording(&program, &[], &NO_SIGNAL) };
        let recorded = record(&output, &request, |_| {}).expect("recorded");
        assert_eq!(recorded.status.and_then(|s| s.code()), Some(6));
        assert_eq!(recorded.processes, expected.len());
        assert_eq!(recorded.processes_left_out, usize::from(!children));
        assert!(recorded.nameless.is_none(), "{:?}", recorded.nameless);
        let (header, writes) = by_process(&output);
        assert_eq!(usize::from(header.main), expected.len() - 1);
        assert_eq!(header.command, [path]);
        let counts = header.names.find("counts").expect("named").start;
        let found = header.processes.iter().zip(&writes).map(|(process, writes)| {
            let count = |at: u64| writes.iter().filter(|w| w.address == counts + 8 * at).count();
            (process.command.strip_prefix(path).expect("it"), [1, 2, 3, 4].map(count))
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
        let parents: Vec<_> = header.processes.iter().map(|process| process.parent).collect();
        if children {
            assert_eq!(parents, [None, Some(0), Some(1), Some(0)]);
            let child = &header.processes[2];
            assert_ne!(child.pid, header.processes[0].pid);
            assert_eq!(child.names.find("counts").expect("named").start, counts);
        }
    }
}

/// A child that prints a little all the time held the recorder up for minutes.
#[test]
fn needs_valgrind_a_child_that_outlives_the_program_is_not_waited_for() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = r"
        #include <fcntl.h>
        #include <unistd.h>
        volatile long x;
        int main(int argc, char **argv) {
            if (fork() != 0) { x = 1; return 4; }
            close(1);
            close(2);
            for (int i = 0; i < 1200; i++) {
                x++;
                if (access(argv[1], F_OK) != 0) return 0;
                usleep(50000);
            }
            close(creat(argv[2], 0666));
            return 0;
        }
    ";
    let program = compile(&folder, source, &[]);
    let output = folder.path().join("out.sptrace");
    let (go_on, late) = (folder.path().join("go on"), folder.path().join("late"));
    fs::write(&go_on, "").expect("writable");
    let arguments = [go_on.to_str().expect("UTF-8"), late.to_str().expect("UTF-8")];
    let request = Recording { children: true, ..recording(&program, &arguments, &NO_SIGNAL) };
    let recorded = record(&output, &request, |_| {});
    let waited = late.exists();
    // This ends the child, if the closed socket did not.
    fs::remove_file(&go_on).expect("there");
    assert!(!waited, "the recorder waited for the child");
    let recorded = recorded.expect("recorded");
    assert_eq!(recorded.status.and_then(|s| s.code()), Some(4));
    let (header, writes) = by_process(&output);
    let x = header.names.find("x").expect("named").start;
    assert_eq!(writes[0].iter().filter(|w| w.address == x).count(), 1, "all of its text is read");
}

/// A program that was built while the one that runs it was recorded was taken for a changed one.
#[test]
fn needs_valgrind_a_program_that_is_built_meanwhile_has_names() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = "volatile long built; int main(void) { built = 1; return 9; }";
    let program = compile(&folder, source, &[]);
    let copy = folder.path().join("copy");
    let script = format!("cp '{}' '{}' && exec '{1}'", program.display(), copy.display());
    let output = folder.path().join("out.sptrace");
    let request = recording(Path::new("/bin/sh"), &["-c", &script], &NO_SIGNAL);
    let recorded = record(&output, &request, |_| {}).expect("recorded");
    assert_eq!(recorded.status.and_then(|s| s.code()), Some(9));
    assert!(recorded.nameless.is_none(), "{:?}", recorded.nameless);
    let (header, writes) = by_process(&output);
    let built = header.names.find("built").expect("named").start;
    assert!(writes[usize::from(header.main)].iter().any(|w| w.address == built));
}
