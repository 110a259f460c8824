//! Our own Valgrind tool, beside lackey and by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread;

use subpage_trace::{RecordError, Recorded, Recording, Told, Tool, ToolChoice, ToolError, record};
use tempfile::TempDir;

use crate::processes::by_process;
use crate::recording::{NO_SIGNAL, cache, compile, folder, have, read, recording};

/// Records with our own tool; nothing, with a word, where that cannot be built.
fn own(output: &Path, request: &Recording<'_>) -> Option<(Recorded, PathBuf)> {
    if !(have("valgrind") && have("cc")) {
        return None;
    }
    let recorded = record(output, request, |_| {}).expect("recorded");
    match &recorded.tool {
        Some(Tool::Own { folder }) => {
            let folder = folder.clone();
            Some((recorded, folder))
        }
        Some(Tool::Lackey { reason: Some(reason) }) => {
            let expected = matches!(**reason, ToolError::Missing { .. } | ToolError::Machine);
            assert!(expected, "{reason}");
            println!("skipped: {reason}");
            None
        }
        other => panic!("{other:?}"),
    }
}

/// Stores of many forms: of each size, masked, locked, of strings, of the x87 and with all state.
const FORMS: &str = r#"
#include <immintrin.h>
#include <string.h>
#include <stdlib.h>
char b[8192] __attribute__((aligned(64)));
long v;
__attribute__((target("avx2"))) static void avx(void) {
    __m256i a = _mm256_set1_epi8(3);
    _mm256_store_si256((void *)b, a);
    _mm256_storeu_si256((void *)(b + 61), a);
    _mm256_stream_si256((void *)(b + 64), a);
    _mm256_maskstore_epi32((int *)(b + 128), _mm256_set_epi32(-1, 0, -1, 0, 0, -1, 0, -1), a);
}
int main(int argc, char **argv) {
    char *d = b, *s = b + 50;
    long n = 100;
    if (__builtin_cpu_supports("avx2")) avx();
    _mm_maskmoveu_si128(_mm_setzero_si128(), _mm_set1_epi8(-128), b + 300);
    __asm__ volatile("lock xaddq %0, %1" : : "r"(1L), "m"(v));
    __asm__ volatile("xchgq %0, %1" : : "r"(3L), "m"(v));
    __sync_bool_compare_and_swap(&v, 3, 4);
    __sync_bool_compare_and_swap(&v, 3, 4);
    __asm__ volatile("movl $0, %%eax; movl $0, %%edx; cmpxchg16b %0" : : "m"(b[512])
                     : "rax", "rdx", "rbx", "rcx");
    __asm__ volatile("fxsave %0; fnstenv %1; fldpi; fstpt %2" : : "m"(b[1024]), "m"(b[2048]), "m"(b[2148]));
    __asm__ volatile("fld1; fstpl %0; stmxcsr %1" : : "m"(b[2148]), "m"(b[2200]));
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0));
    d = b, n = 10;
    __asm__ volatile("rep movsq" : "+D"(d), "+c"(n), "+S"(s));
    __asm__ volatile("btsq $3, %0; movnti %1, %0" : : "m"(v), "r"(5L));
    memset(b, 1, 3000);
    memmove(b + 1, b, 2000);
    return b[3] != 1;
}
"#;

#[test]
fn needs_valgrind_the_writes_are_those_of_lackey() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    let Some((_, lib)) = own(&output, &recording(Path::new("/bin/true"), &[], &NO_SIGNAL)) else {
        return;
    };
    // Both with the same environment, which lies on the stack.
    let valgrind = folder.path().join("valgrind");
    let script = format!("#!/bin/sh\nVALGRIND_LIB='{}' exec valgrind \"$@\"\n", lib.display());
    fs::write(&valgrind, script).expect("writable");
    fs::set_permissions(&valgrind, fs::Permissions::from_mode(0o755)).expect("ours");
    let forms = compile(&folder, FORMS, &["-w"]);
    let shell = "x=a; for i in 1 2 3; do x=$x$i; done; exec \"$0\"";
    for (program, arguments) in [
        (Path::new("/bin/true"), vec![]),
        (&forms, vec![]),
        (Path::new("/bin/sh"), vec!["-c", shell, forms.to_str().expect("UTF-8")]),
    ] {
        let traces = [ToolChoice::Own, ToolChoice::Lackey].map(|tool| {
            let mut request = recording(program, &arguments, &NO_SIGNAL);
            request.valgrind = (&valgrind).into();
            request.tool = tool;
            let recorded = record(&output, &request, |_| {}).expect("recorded");
            assert!(recorded.status.is_some_and(|status| status.success()), "{arguments:?}");
            let is_own = matches!(recorded.tool, Some(Tool::Own { .. }));
            assert_eq!(is_own, tool == ToolChoice::Own);
            assert_eq!(recorded.is_whole, is_own.then_some(true));
            by_process(&output)
        });
        let [(own_header, own), (header, lackey)] = traces;
        assert_eq!(own.len(), lackey.len(), "{arguments:?}");
        for (own, lackey) in own.iter().zip(&lackey) {
            let first = own.iter().zip(lackey).position(|(own, lackey)| own != lackey);
            assert_eq!((first, own.len()), (None, lackey.len()), "{arguments:?}");
        }
        assert_eq!(own_header.names, header.names);
        assert_eq!(own_header.code, header.code);
    }
}

/// A child ends it from outside, so that the tool cannot tell of the end.
#[test]
fn needs_valgrind_a_program_that_is_killed_from_outside_is_not_whole() {
    let folder = folder();
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let source = "#include <signal.h>\n#include <unistd.h>
        volatile long x[2];
        int main(void) {
            int ends[2];
            char byte = 0;
            if (pipe(ends) != 0) return 1;
            if (fork() == 0) { read(ends[0], &byte, 1); kill(getppid(), SIGKILL); _exit(0); }
            x[0] = 1;
            if (write(ends[1], &byte, 1) != 1) return 2;
            for (;;) x[1]++;
        }";
    let program = compile(&folder, source, &[]);
    let output = folder.path().join("out.sptrace");
    let Some((recorded, _)) = own(&output, &recording(&program, &[], &NO_SIGNAL)) else { return };
    assert_eq!(recorded.status.and_then(|status| status.signal()), Some(9));
    assert_eq!(recorded.is_whole, Some(false));
    let (header, writes) = read(&output);
    let x = header.names.find("x").expect("named").start;
    // What the child has seen of it came after the store.
    assert_eq!(writes.iter().filter(|write| write.address == x).count(), 1);
}

#[test]
fn needs_valgrind_what_the_kernel_writes_is_recorded_if_asked_for() {
    let folder = folder();
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let source = "#include <fcntl.h>\n#include <unistd.h>
        char text[4096] __attribute__((aligned(64)));
        int main(int argc, char **argv) { return read(open(argv[1], O_RDONLY), text, 4096) != 300; }";
    let program = compile(&folder, source, &[]);
    let input = folder.path().join("input");
    fs::write(&input, [7; 300]).expect("writable");
    let output = folder.path().join("out.sptrace");
    for kernel_writes in [false, true] {
        let arguments = [input.to_str().expect("UTF-8")];
        let request = Recording { kernel_writes, ..recording(&program, &arguments, &NO_SIGNAL) };
        if !kernel_writes && own(&output, &request).is_none() {
            return;
        }
        let recorded = record(&output, &request, |_| {}).expect("recorded");
        assert_eq!(recorded.is_whole, Some(true));
        let (header, writes) = read(&output);
        let text = header.names.find("text").expect("named").start;
        let into = writes.iter().filter(|write| (text..text + 4096).contains(&write.address));
        let into: Vec<_> = into.map(|write| (write.pc, write.address - text, write.size)).collect();
        let expected = [(0, 0, 64), (0, 64, 64), (0, 128, 64), (0, 192, 64), (0, 256, 44)];
        assert_eq!(into, if kernel_writes { &expected[..] } else { &[] });
    }
    // Lackey does not see them, and nobody is told otherwise.
    let cache = shared_cache(&folder);
    let request = Recording {
        kernel_writes: true,
        cache: Some(cache),
        ..recording(&program, &[], &NO_SIGNAL)
    };
    let error = record(&output, &request, |_| {}).expect_err("no such tool");
    assert!(matches!(error, RecordError::Tool(ToolError::NotPrivate { .. })), "{error}");
}

/// A cache that others can write to.
fn shared_cache(folder: &TempDir) -> PathBuf {
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).expect("a folder");
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).expect("ours");
    cache
}

#[test]
fn needs_valgrind_code_that_others_can_change_is_not_run() {
    let folder = folder();
    if !have("valgrind") || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let output = folder.path().join("out.sptrace");
    let cache = Some(shared_cache(&folder));
    let request = Recording { cache, ..recording(Path::new("/bin/true"), &[], &NO_SIGNAL) };
    let mut told = 0;
    let recorded = record(&output, &request, |what| {
        if let Told::Tool(tool) = what {
            assert!(matches!(tool, Tool::Lackey { reason: Some(_) }), "{tool:?}");
            told += 1;
        }
    });
    let recorded = recorded.expect("lackey records");
    assert_eq!(told, 1);
    let Some(Tool::Lackey { reason: Some(reason) }) = recorded.tool else { panic!("no reason") };
    assert!(matches!(*reason, ToolError::NotPrivate { .. }), "{reason}");
    assert!(recorded.writes > 0 && recorded.is_whole.is_none());
}

/// Every one of several that build it at once has a whole one, and no half is left.
#[test]
fn needs_valgrind_it_is_built_by_several_at_once() {
    let folder = folder();
    let output = folder.path().join("out.sptrace");
    let program = Path::new("/bin/true");
    if own(&output, &recording(program, &[], &NO_SIGNAL)).is_none() {
        return;
    }
    let cache = folder.path().join("new/cache");
    thread::scope(|scope| {
        for number in 0..3 {
            let cache = Some(cache.clone());
            let output = folder.path().join(format!("{number}.sptrace"));
            scope.spawn(move || {
                let request = Recording {
                    cache,
                    tool: ToolChoice::Own,
                    ..recording(program, &[], &NO_SIGNAL)
                };
                let recorded = record(&output, &request, |_| {}).expect("recorded");
                assert_eq!(recorded.is_whole, Some(true));
            });
        }
    });
    assert_eq!(fs::read_dir(&cache).expect("it is there").count(), 1);
    // One that was damaged by hand is not run, either.
    let tool = fs::read_dir(&cache).expect("there").next().expect("one").expect("read").path();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o777)).expect("ours");
    let request = Recording {
        cache: Some(cache),
        tool: ToolChoice::Own,
        ..recording(program, &[], &NO_SIGNAL)
    };
    let error = record(&output, &request, |_| {}).expect_err("anybody can change it");
    assert!(matches!(error, RecordError::Tool(ToolError::NotPrivate { .. })), "{error}");
}

/// A program may write to the recorder's socket itself: what it makes up is counted and harms nobody.
#[test]
fn needs_valgrind_made_up_packets_are_counted() {
    let folder = folder();
    if !(have("valgrind") && have("cc")) {
        return;
    }
    let source = r#"
        #include <string.h>
        #include <unistd.h>
        volatile long x;
        int main(void) {
            unsigned char packet[32] = "\0SST\1";
            x = 1;
            for (int fd = 3; fd < 64; fd++) {
                write(fd, "\0SST\7", 5);
                memset(packet + 16, 0xff, 16);
                write(fd, packet, 32);
            }
            x = 2;
            return 0;
        }
    "#;
    let program = compile(&folder, source, &["-w"]);
    let output = folder.path().join("out.sptrace");
    let Some((recorded, _)) = own(&output, &recording(&program, &[], &NO_SIGNAL)) else { return };
    assert!(recorded.text.malformed > 0);
    assert_eq!(recorded.is_whole, Some(false), "a store too many came");
    let (header, writes) = read(&output);
    let x = header.names.find("x").expect("named").start;
    assert_eq!(writes.iter().filter(|write| write.address == x).count(), 2);
    assert!(cache().is_dir());
}
