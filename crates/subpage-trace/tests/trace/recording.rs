//! Recording real programs under Valgrind, and what is left when it goes wrong.
//!
//! Tests that need Valgrind or a C compiler say so and pass where there is none.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use subpage_trace::{
    Header, NameKind, Progress, RecordError, Recorded, Recording, Told, ToolChoice, TraceReader,
    Write, import, record,
};
use tempfile::TempDir;

static NEVER: AtomicBool = AtomicBool::new(false);
pub(crate) static NO_SIGNAL: AtomicUsize = AtomicUsize::new(0);

/// Whether a tool runs here; prints why a test is skipped if not.
pub(crate) fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skipped: `{tool}` is not installed");
    }
    found
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn entries(folder: &TempDir) -> Vec<OsString> {
    let entries = fs::read_dir(folder.path()).expect("readable");
    let mut names: Vec<_> = entries.map(|e| e.expect("readable").file_name()).collect();
    names.sort();
    names
}

pub(crate) fn recording<'a>(
    program: &Path,
    arguments: &[&str],
    signal: &'a AtomicUsize,
) -> Recording<'a> {
    Recording {
        program: program.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        valgrind: "valgrind".into(),
        children: false,
        kernel_writes: false,
        tool: ToolChoice::Auto,
        cache: Some(cache()),
        signal,
    }
}

/// Where the tests keep our own tool.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

pub(crate) fn compile(folder: &TempDir, source: &str, flags: &[&str]) -> PathBuf {
    let (input, output) = (folder.path().join("program.c"), folder.path().join("program"));
    fs::write(&input, source).expect("writable");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-g"]).args(flags).arg(&input).arg("-o").arg(&output);
    assert!(cc.status().expect("cc runs").success());
    output
}

pub(crate) fn read(path: &Path) -> (Header, Vec<Write>) {
    let mut reader = TraceReader::new(fs::File::open(path).expect("there")).expect("a trace");
    let (mut all, mut block) = (Vec::new(), Vec::new());
    while reader.next_block(&mut block).expect("undamaged") {
        all.extend(&block);
    }
    (reader.header().clone(), all)
}

/// Writes that a run must show: 1,000 into an object, a pattern of sizes, heap and stack.
const PROGRAM: &str = r#"
#include <stdlib.h>
volatile int counter __attribute__((aligned(64)));
volatile long zeroed[16];
static volatile char text[32] = "text";
int main(int argc, char **argv) {
    volatile char *heap = malloc(100000);
    volatile char stack[20000];
    for (int i = 0; i < 1000; i++) counter = i;
    for (int i = 0; i < 16; i++) zeroed[i] = i;
    text[7] = 'x';
    heap[99999] = 1;
    for (int i = 0; i < 20000; i += 1000) stack[i] = 1;
    return argc == 2 ? atoi(argv[1]) : 0;
}
"#;

fn check(recorded: &Recorded, path: &Path) {
    let (header, writes) = read(path);
    assert_eq!(recorded.writes, writes.len() as u64);
    assert_eq!(recorded.file_bytes, fs::metadata(path).expect("there").len());
    assert_eq!((recorded.text.malformed, recorded.names_left_out), (0, 0));
    assert!(recorded.nameless.is_none(), "{:?}", recorded.nameless);
    assert_eq!(recorded.names, header.names.len());
    assert_eq!(header.command[1..], ["7"]);
    let into = |name: &str| {
        let name = header.names.find(name).unwrap_or_else(|e| panic!("{e}"));
        let inside = |w: &&Write| (name.start..name.start + name.length).contains(&w.address);
        (name.clone(), writes.iter().filter(inside).copied().collect::<Vec<_>>())
    };
    let (counter, written) = into("counter");
    assert_eq!((counter.length, counter.kind, counter.start % 64), (4, NameKind::Object, 0));
    assert_eq!(written.len(), 1000);
    assert!(written.iter().all(|w| *w == Write { size: 4, ..written[0] } && w.pc != 0));
    let place = header.code.find(written[0].pc).expect("it was compiled with -g");
    assert_eq!(place.function.map(|(name, _)| name), Some("main"));
    let (path, line) = place.line.expect("known");
    let text = PROGRAM.lines().nth(line as usize - 1).expect("a line of it");
    assert!(path.ends_with("program.c") && text.contains("counter = i"), "{path}:{line}");
    let (zeroed, written) = into("zeroed");
    let addresses: Vec<_> = written.iter().map(|w| (w.address - zeroed.start, w.size)).collect();
    assert_eq!(addresses, (0..16).map(|i| (8 * i, 8)).collect::<Vec<_>>());
    let (text, written) = into("text");
    let addresses: Vec<_> = written.iter().map(|w| (w.address - text.start, w.size)).collect();
    assert_eq!(addresses, [(7, 1)]);
    let (data, _) = into("program:.data");
    assert!(data.kind == NameKind::Section && data.start <= text.start);
    let (bss, written) = into("program:.bss");
    assert!(bss.start <= zeroed.start && written.len() >= 1016);
    let (heap, written) = into("heap");
    assert!(heap.length >= 100_000 && !written.is_empty(), "{heap:?}");
    let (stack, written) = into("stack");
    assert!(stack.length >= 20_000 && written.len() >= 20, "{stack:?}");
}

#[test]
fn needs_valgrind_a_program_and_its_names_wherever_it_is_loaded() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    for flags in [&["-pie", "-fPIE"][..], &["-no-pie"], &["-static"], &["-static-pie"]] {
        let folder = folder();
        let program = compile(&folder, PROGRAM, flags);
        let output = folder.path().join("out.sptrace");
        fs::write(&output, "an older file").expect("writable");
        let mut last = Progress { writes: 0, text_bytes: 0, trace_bytes: 0 };
        let recorded = record(&output, &recording(&program, &["7"], &NO_SIGNAL), |told| {
            let now = match told {
                Told::Progress(now) => now,
                Told::Tool(_) => return,
                Told::Message(_) => panic!("valgrind says {told:?}"),
            };
            assert!(now.writes >= last.writes && now.text_bytes >= last.text_bytes);
            last = now;
        });
        let recorded = recorded.unwrap_or_else(|e| panic!("{flags:?}: {e}"));
        assert_eq!(recorded.status.and_then(|s| s.code()), Some(7), "{flags:?}");
        assert!(last.text_bytes > 0);
        check(&recorded, &output);
        assert_eq!(entries(&folder), ["out.sptrace", "program", "program.c"]);
    }
}

/// Everything the program does ends before the first text would be read without care.
#[test]
fn needs_valgrind_a_program_of_a_few_instructions_has_names() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = r#"
        long object = 1;
        void _start(void) {
            object = 2;
            __asm__ volatile("syscall" : : "a"(60), "D"(0) : "rcx", "r11", "memory");
        }
    "#;
    if cfg!(not(target_arch = "x86_64")) {
        println!("skipped: the program is written for x86-64");
        return;
    }
    let program = compile(&folder, source, &["-static", "-nostdlib"]);
    let output = folder.path().join("out.sptrace");
    let recorded =
        record(&output, &recording(&program, &[], &NO_SIGNAL), |_| {}).expect("recorded");
    assert_eq!(recorded.status.and_then(|s| s.code()), Some(0));
    let (header, writes) = read(&output);
    if recorded.nameless.is_some() {
        // Valgrind ran to its end before the first look: said, not guessed.
        assert!(header.names.iter().all(|n| n.kind != NameKind::Object));
        return;
    }
    let object = header.names.find("object").expect("named").start;
    assert!(writes.iter().any(|w| w.address == object && w.size == 8));
}

#[test]
fn needs_valgrind_a_program_that_is_killed_says_so_and_its_writes_are_kept() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = "#include <signal.h>\nint x; int main(void) { x = 1; raise(SIGKILL); return 0; }";
    let program = compile(&folder, source, &[]);
    let output = folder.path().join("out.sptrace");
    let recorded =
        record(&output, &recording(&program, &[], &NO_SIGNAL), |_| {}).expect("recorded");
    assert_eq!(recorded.status.and_then(|s| s.signal()), Some(9));
    assert!(!read(&output).1.is_empty());
}

/// Waits until something is so, a minute at most: what comes then tells that it was not.
fn until(so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first signal is the program's; what was recorded is kept whether it ends itself or not.
#[test]
fn needs_valgrind_a_stop_on_request_keeps_what_was_recorded() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    // One ends itself, one is busy and one sleeps and prints nothing: the last two have to be ended.
    for (handler, body, signals, code) in [
        ("end", "while (!ended) { x++; usleep(1000); }", 1, Some(5)),
        ("SIG_IGN", "for (;;) x++;", 2, None),
        ("SIG_IGN", "for (;;) sleep(60);", 2, None),
    ] {
        let folder = folder();
        let source = format!(
            "#include <fcntl.h>\n#include <signal.h>\n#include <unistd.h>
             volatile long x; volatile int ended;
             void end(int s) {{ ended = 1; }}
             int main(int argc, char **argv) {{
                 signal(SIGTERM, {handler}); x = 1; close(creat(argv[1], 0666));
                 {body} return 5; }}"
        );
        let program = compile(&folder, &source, &[]);
        let (output, ready) = (folder.path().join("out.sptrace"), folder.path().join("ready"));
        let arguments = [ready.to_str().expect("UTF-8")];
        let signal = AtomicUsize::new(0);
        let recorded = thread::scope(|scope| {
            scope.spawn(|| {
                until(|| ready.exists());
                for _ in 0..signals {
                    signal.store(15, Ordering::Relaxed);
                    until(|| signal.load(Ordering::Relaxed) == 0);
                }
            });
            record(&output, &recording(&program, &arguments, &signal), |_| {}).expect("recorded")
        });
        assert_eq!(recorded.status.and_then(|s| s.code()), code, "{body}");
        let (header, writes) = read(&output);
        let x = header.names.find("x").expect("named").start;
        assert!(writes.iter().any(|w| w.address == x), "{body}");
    }
}

/// Valgrind's own words tell why a recording ends early.
#[test]
fn needs_valgrind_what_valgrind_says_is_told() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = "int main(void) { return 0; }\n__asm__(\".globl odd\\nodd: rdpid %rax\\n\");";
    let source = source.replace("return 0;", "void odd(void); odd(); return 0;");
    let program = compile(&folder, &source, &[]);
    let output = folder.path().join("out.sptrace");
    let mut messages = Vec::new();
    let recorded = record(&output, &recording(&program, &[], &NO_SIGNAL), |told| {
        if let Told::Message(message) = told {
            messages.push(message.to_owned());
        }
    });
    let recorded = recorded.expect("what came before is recorded");
    assert!(!recorded.status.expect("of a program").success());
    assert!(recorded.stops_early(), "{messages:#?}");
    assert!(messages.iter().any(|m| m.contains("unhandled instruction")), "{messages:#?}");
    assert!(
        messages.iter().all(|m| !m.starts_with("==") && !m.contains("Copyright")),
        "{messages:#?}"
    );
}

/// A program that handles SIGILL tries what its processor knows, and goes on; one that ends by a signal
/// of its own has ended.
#[test]
fn needs_valgrind_a_program_that_ends_itself_is_recorded_to_its_end() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    for (source, signal) in [
        (
            "#include <setjmp.h>\n#include <signal.h>\nstatic sigjmp_buf back;
             static void handle(int n) { siglongjmp(back, n); }
             int main(void) { signal(SIGILL, handle);
                 if (sigsetjmp(back, 1) == 0) __builtin_trap();
                 return 0; }",
            None,
        ),
        ("#include <stdlib.h>\nint main(void) { abort(); }", Some(6)),
    ] {
        let program = compile(&folder, source, &[]);
        let output = folder.path().join("out.sptrace");
        let recorded = record(&output, &recording(&program, &[], &NO_SIGNAL), |_| {});
        let recorded = recorded.expect("it is recorded");
        assert_eq!(recorded.status.expect("of a program").signal(), signal);
        assert!(!recorded.stops_early());
    }
}

/// The names were read by path after the program had ended: those of another program.
#[test]
fn needs_valgrind_a_program_that_is_rebuilt_meanwhile_keeps_its_own_names() {
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let folder = folder();
    let source = |data: &str| {
        format!(
            "#include <fcntl.h>\n#include <unistd.h>\n{data}
             int main(int argc, char **argv) {{
                 secret[1] = 7; counter[1]++; close(creat(argv[1], 0666));
                 for (int i = 0; i < 3000 && access(argv[2], F_OK) != 0; i++) usleep(10000);
                 return 0; }}"
        )
    };
    let (first, second) = (
        "volatile long secret[64]={1}; volatile long counter[64]={2};",
        "volatile long more[99]={3}; volatile long counter[64]={2}; volatile long secret[64]={1};",
    );
    let program = compile(&folder, &source(first), &["-no-pie"]);
    let (ready, go_on) = (folder.path().join("ready"), folder.path().join("go on"));
    let output = folder.path().join("out.sptrace");
    let arguments = [ready.to_str().expect("UTF-8"), go_on.to_str().expect("UTF-8")];
    let recorded = thread::scope(|scope| {
        scope.spawn(|| {
            until(|| ready.exists());
            compile(&folder, &source(second), &["-no-pie"]);
            fs::write(&go_on, "").expect("writable");
        });
        record(&output, &recording(&program, &arguments, &NO_SIGNAL), |_| {}).expect("recorded")
    });
    assert!(recorded.nameless.is_none(), "{:?}", recorded.nameless);
    let (header, writes) = read(&output);
    let secret = header.names.find("secret").expect("named");
    assert!(header.names.find("more").is_err());
    assert!(writes.iter().any(|w| w.address == secret.start + 8 && w.size == 8));
}

#[test]
fn what_is_missing_is_named() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    let mut request = recording(Path::new("/bin/sh"), &[], &NO_SIGNAL);
    request.valgrind = "valgrind-that-is-not-there".into();
    let error = record(&output, &request, |_| {}).expect_err("no valgrind");
    assert_eq!(
        error.to_string(),
        "cannot find `valgrind-that-is-not-there`; \
         recording needs Valgrind: install the package `valgrind`"
    );
    let plain = folder.path().join("plain");
    fs::write(&plain, "text").expect("writable");
    for program in [Path::new("program-that-is-not-there"), &plain, folder.path()] {
        let error =
            record(&output, &recording(program, &[], &NO_SIGNAL), |_| {}).expect_err("none");
        assert!(matches!(error, RecordError::ProgramMissing { .. }), "{error}");
    }
    let program = Path::new("/bin/sh");
    for output in [folder.path().to_owned(), folder.path().join("no/such/folder/out")] {
        let error =
            record(&output, &recording(program, &[], &NO_SIGNAL), |_| {}).expect_err("none");
        assert!(matches!(error, RecordError::Output { .. }), "{error}");
    }
    assert_eq!(entries(&folder), ["plain"]);
}

#[test]
fn needs_valgrind_a_program_that_valgrind_cannot_start_leaves_nothing() {
    if !have("valgrind") {
        return;
    }
    let folder = folder();
    let program = folder.path().join("broken");
    fs::write(&program, "#!/no/such/interpreter\n").expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("own file");
    let output = folder.path().join("out.sptrace");
    let error = record(&output, &recording(&program, &[], &NO_SIGNAL), |_| {}).expect_err("broken");
    assert!(matches!(error, RecordError::Nothing { .. }), "{error}");
    assert_eq!(entries(&folder), ["broken"]);
}

#[test]
fn a_text_becomes_a_trace() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    let text = "==1== Lackey\nI  400100,4\n S 601000,8\nI  400104,3\n M 601008,4\n S nonsense\n";
    let header = Header { command: vec!["demo".into()], ..Header::default() };
    let recorded = import(&output, text.as_bytes(), &header, &NEVER, |_| {}).expect("recorded");
    assert_eq!((recorded.writes, recorded.status), (2, None));
    assert_eq!((recorded.text.malformed, &recorded.text.malformed_lines[..]), (1, &[6][..]));
    let expected = [
        Write { pc: 0x40_0100, address: 0x60_1000, size: 8 },
        Write { pc: 0x40_0104, address: 0x60_1008, size: 4 },
    ];
    assert_eq!(read(&output), (header, expected.to_vec()));
}

#[test]
fn a_text_that_is_none_or_fails_leaves_the_older_file() {
    struct Failing(bool);
    impl std::io::Read for Failing {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            let text = b" S 601000,8\n";
            out[..text.len()].copy_from_slice(text);
            Ok(text.len())
        }
    }
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    fs::write(&output, "older").expect("writable");
    let header = Header::default();
    let error = import(&output, &b"no access\n"[..], &header, &NEVER, |_| {}).expect_err("none");
    assert!(matches!(error, RecordError::NoAccess { lines: 1 }), "{error}");
    let error = import(&output, Failing(false), &header, &NEVER, |_| {}).expect_err("fails");
    assert!(matches!(error, RecordError::Text { .. }), "{error}");
    let cancelled = AtomicBool::new(true);
    let error = import(&output, &b" S 1,1\n"[..], &header, &cancelled, |_| {}).expect_err("stop");
    assert!(matches!(error, RecordError::Cancelled), "{error}");
    assert_eq!(fs::read(&output).expect("there"), b"older");
    assert_eq!(entries(&folder), ["out.sptrace"]);
}
