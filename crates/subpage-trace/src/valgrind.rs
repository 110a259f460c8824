//! Running a program under Valgrind, with lackey's text on a pipe of its own.

use std::env;
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

use command_fds::CommandFdExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::fcntl_setpipe_size;

use crate::address_space::{AddressSpace, STACK_SIZE};
use crate::record::RecordError;

/// How soon a request to stop is noticed while the program prints nothing.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// While the address space is not known: so little that the program cannot run to its end.
const SMALL_PIPE: usize = 4096;
const LARGE_PIPE: usize = 1 << 20;
/// Reads of text after which the address space counts as not to be found.
const LOOKS: u32 = 64;

/// A running Valgrind; reading gives lackey's text. Dropping it ends the program.
pub(crate) struct Traced<'a> {
    child: Child,
    text: PipeReader,
    cancel: &'a AtomicBool,
    program: PathBuf,
    space: AddressSpace,
    looks: u32,
}

impl<'a> Traced<'a> {
    /// Starts `program`, which must be what [`find_program`] gave.
    pub(crate) fn start(
        valgrind: &OsStr,
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        cancel: &'a AtomicBool,
    ) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Start { source };
        let (text, log) = io::pipe().map_err(failed)?;
        // A hint only: on failure a program of a few instructions may end before it is looked at.
        let _ = fcntl_setpipe_size(&text, SMALL_PIPE);
        let mut command = Command::new(valgrind);
        command
            .args(["--command-line-only=yes", "-q", "--tool=lackey"])
            .args(["--trace-mem=yes", "--basic-counts=no", "--vgdb=no"])
            // The trace is of one process: a forked child would mix its addresses in.
            .args(["--trace-children=no", "--child-silent-after-fork=yes"])
            .arg(format!("--main-stacksize={STACK_SIZE}"))
            .arg(format!("--log-fd={}", log.as_raw_fd()))
            .arg("--")
            .arg(program)
            .args(arguments);
        // Under its own number: mapped to another, it might take the place of the descriptor by
        // which `spawn` learns that the program cannot be run.
        command.preserved_fds(vec![log.into()]);
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                RecordError::ValgrindMissing { program: valgrind.to_string_lossy().into_owned() }
            }
            _ => failed(source),
        })?;
        // The command holds our copy of the pipe's end; the text would never end.
        drop(command);
        // As the kernel names it in the mappings.
        let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
        Ok(Self { child, text, cancel, program, space: AddressSpace::default(), looks: 0 })
    }

    /// Where the program lies; nothing before the first text was read.
    pub(crate) fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Waits for the end of the program, whose text has ended.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Looks once where the program lies: Valgrind has loaded it before it prints an access.
    fn look(&mut self) {
        if self.looks < LOOKS && self.space.program.is_none() {
            self.looks += 1;
            if let Ok(space) = AddressSpace::of_process(self.child.id(), &self.program) {
                self.space = space;
            }
            if self.space.program.is_some() || self.looks == LOOKS {
                // Only for speed.
                let _ = fcntl_setpipe_size(&self.text, LARGE_PIPE);
            }
        }
    }
}

impl Read for Traced<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut has_ended = false;
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(io::Error::other("stopped on request"));
            }
            let mut fds = [PollFd::new(&self.text, PollFlags::IN)];
            match poll(&mut fds, Some(&PATIENCE)) {
                Ok(0) if has_ended => return Ok(0),
                // A process that the program left behind may hold the pipe open for ever.
                Ok(0) => has_ended = self.child.try_wait()?.is_some(),
                Ok(_) => {
                    self.look();
                    return self.text.read(out);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file that running `program` would run: a path, or found by `PATH`.
pub(crate) fn find_program(program: &OsStr) -> Result<PathBuf, RecordError> {
    let missing =
        || RecordError::ProgramMissing { program: program.to_string_lossy().into_owned() };
    let runnable = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let path = if program.as_encoded_bytes().contains(&b'/') {
        PathBuf::from(program)
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places = env::split_paths(&path).map(|folder| folder.join(program));
        places.find(|path| runnable(path)).ok_or_else(missing)?
    };
    if !runnable(&path) {
        return Err(missing());
    }
    Ok(path)
}
