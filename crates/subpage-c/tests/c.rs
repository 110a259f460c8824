//! A C program that uses all of the header, with both libraries, and under Valgrind where there is one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The folder in which cargo left the libraries: that of this test program.
fn libraries() -> PathBuf {
    let test = env::current_exe().expect("a path");
    let folder = test.parent().expect("it lies in a folder");
    assert!(folder.join("libsubpage_c.a").exists(), "no library in {}", folder.display());
    folder.to_owned()
}

/// Compiles the program against `library` and returns where it lies.
fn compiled(folder: &Path, name: &str, library: &[String]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join(name);
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-I"])
        .arg(root.join("include"))
        .arg(root.join("examples/all.c"))
        .arg("-o")
        .arg(&program)
        .args(library)
        .output()
        .expect("the C compiler that links Rust programs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Runs a program that must end with 0, and returns what it printed.
fn output_of(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text.into_owned()
}

const EVENT: &str = r#""rule":"helper path""#;

#[test]
fn the_static_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = libraries().join("libsubpage_c.a").display().to_string();
    let program = compiled(folder.path(), "static", &[library, "-lpthread".into(), "-lm".into()]);
    assert!(output_of(Command::new(&program)).contains(EVENT));
}

#[test]
fn the_static_library_needs_valgrind() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = libraries().join("libsubpage_c.a").display().to_string();
    let program = compiled(folder.path(), "valgrind", &[library, "-lpthread".into(), "-lm".into()]);
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=all"])
        .arg(&program);
    assert!(output_of(valgrind).contains(EVENT));
}

#[test]
fn the_shared_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let libraries = libraries();
    let library = [
        format!("-L{}", libraries.display()),
        "-Wl,--as-needed".into(),
        "-l:libsubpage_c.so".into(),
    ];
    let program = compiled(folder.path(), "shared", &library);
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries);
    assert!(output_of(command).contains(EVENT));
}

/// The header is C++ as well.
#[test]
fn the_header_is_cpp() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("header.cpp");
    fs::write(&source, "#include \"subpage.h\"\nint main() { return subpage_interface() != 1; }\n")
        .expect("it can be written");
    let mut command = Command::new("c++");
    command
        .args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .arg(source);
    let Ok(output) = command.output() else {
        println!("skipped: no C++ compiler");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
