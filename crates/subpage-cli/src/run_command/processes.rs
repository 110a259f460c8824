//! The VMM's process and those that it starts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;

/// Between two looks at a process that seems to be unguarded.
const MOMENT: Duration = Duration::from_millis(5);

/// The program that a shell would start.
pub(super) fn find_program(program: &OsStr) -> Result<PathBuf, Failure> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return Ok(path.to_owned());
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&search)
        .map(|directory| directory.join(path))
        .find(is_program)
        .ok_or_else(|| Failure::Input(format!("no program {} in PATH", path.display())))
}

/// Asks a process to end.
pub(super) fn terminate(process: u32) {
    send(process, Signal::TERM);
}

/// Ends a process.
pub(super) fn kill(process: u32) {
    send(process, Signal::KILL);
}

fn send(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // One that has ended needs none.
        let _ = kill_process(pid, signal);
    }
}

/// A process, this one or one that it has started, that has a machine of KVM, and not the library.
pub(super) fn unguarded(process: u32) -> Option<u32> {
    let is_unguarded = |process| has_machine(process) && !has_library(process);
    family(process).into_iter().find(|process| {
        // One that is just executing another program has the old one's descriptors for a moment.
        is_unguarded(*process) && {
            thread::sleep(MOMENT);
            is_unguarded(*process)
        }
    })
}

/// A process, this one or one that it has started, that has a processor of KVM.
pub(super) fn with_processor(process: u32) -> Option<u32> {
    family(process).into_iter().find(|process| has_processor(*process))
}

/// The process and all that it has started, as far as they can be seen.
fn family(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let mut at = 0;
    while let Some(parent) = all.get(at) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<u32> = children
            .flat_map(|list| {
                list.split_whitespace().filter_map(|it| it.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        // A process appears once.
        all.extend(children.into_iter().filter(|child| *child != process));
        at += 1;
        if at > 1000 {
            break;
        }
    }
    all
}

fn has_machine(process: u32) -> bool {
    has_descriptor(process, |target| target == b"anon_inode:kvm-vm")
}

fn has_processor(process: u32) -> bool {
    has_descriptor(process, |target| target.starts_with(b"anon_inode:kvm-vcpu:"))
}

fn has_descriptor(process: u32, is_it: impl Fn(&[u8]) -> bool) -> bool {
    let links = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .any(|target| is_it(target.as_os_str().as_bytes()))
}

fn has_library(process: u32) -> bool {
    // What cannot be read has ended, or is another user's.
    fs::read_to_string(format!("/proc/{process}/maps"))
        .map_or(true, |maps| maps.contains("libsubpage_interpose.so"))
}
