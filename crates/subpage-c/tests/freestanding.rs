//! A C program without a C library over the library without `std`: built, linked, run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// As for an image without an operating system; procedural macros keep the flags of this machine.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-C panic=abort";

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The library without `std`, built by the cargo that built this test.
fn library() -> PathBuf {
    // Of its own, since cargo locks a folder while it builds there and this test may run within.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
    run(Command::new(env!("CARGO"))
        .args(["rustc", "--package=subpage-c", "--lib", "--no-default-features", "--locked"])
        // A shared library needs the system's; `cargo rustc` can leave it out.
        .arg("--crate-type=staticlib")
        .arg(format!("--target={TARGET}"))
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS));
    folder.join(TARGET).join("debug/libsubpage_c.a")
}

#[test]
fn without_a_c_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("freestanding");
    run(Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-ffreestanding", "-fno-builtin"])
        .args([
            "-fno-stack-protector",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--gc-sections",
            "-I",
        ])
        .arg(root.join("include"))
        .arg(root.join("examples/freestanding.c"))
        .arg(library())
        .arg("-o")
        .arg(&program));
    run(&mut Command::new(&program));
    // Nothing of an operating system's is in it: no interpreter, no library to load.
    let bytes = fs::read(&program).expect("it is there");
    assert!(!bytes.windows(11).any(|part| part == b"ld-linux-x8"), "it asks for a loader");
}
