//! Running a program under Valgrind, whose tool writes to a socket that tells who wrote it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use command_fds::CommandFdExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use rustix::net::sockopt::{set_socket_passcred, set_socket_send_buffer_size};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, SocketFlags,
    SocketType, recvmsg, shutdown, socketpair,
};
use rustix::process::{Pid, Signal, getpgrp, kill_process};

use crate::address_space::stack_size;
use crate::processes::TextSource;
use crate::record::{RecordError, Recording};
use crate::tool::Tool;

/// How soon a signal is noticed while the program prints nothing, and its end while others print.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a machine may take to end that was asked to.
const TIME_TO_END: Duration = Duration::from_secs(10);
/// While the address space is not known: so little that the program cannot run to its end.
const SMALL_BUFFER: usize = 4096;
const LARGE_BUFFER: usize = 1 << 20;

/// A running Valgrind. Dropping it ends the program.
pub(crate) struct Traced<'a> {
    child: Child,
    text: OwnedFd,
    /// The other end, as long as its buffer is small.
    log: Option<OwnedFd>,
    signal: &'a AtomicUsize,
    began: SystemTime,
    /// A first signal has come.
    asked: bool,
    checked: Instant,
    /// Bytes of text still to be read, once the program has ended: what it left in the socket. Text that
    /// comes after that is of processes that outlive it.
    left: Option<usize>,
    /// When it was asked to end.
    ending: Option<Instant>,
    /// Messages on the socket stay whole.
    packets: bool,
}

impl<'a> Traced<'a> {
    /// Starts `program`, which must be what [`find_program`] gave.
    pub(crate) fn start(
        recording: &Recording<'a>,
        program: &Path,
        tool: &Tool,
    ) -> Result<Self, RecordError> {
        let Recording { valgrind, arguments, children, signal, .. } = recording;
        let failed = |source| RecordError::Start { source };
        let is_own = matches!(tool, Tool::Own { .. });
        // Our own tool sends packets, which stay whole.
        let kind = if is_own { SocketType::SEQPACKET } else { SocketType::STREAM };
        let (text, log) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .map_err(|errno| failed(errno.into()))?;
        // Each message comes with the number of the process that wrote it, so that several can share
        // the socket: those that the program becomes by exec, and those that it starts.
        set_socket_passcred(&text, true).map_err(|errno| failed(errno.into()))?;
        // A hint only: on failure a program of a few instructions may end before it is looked at. Our
        // own tool looks itself.
        let buffer = if is_own { LARGE_BUFFER } else { SMALL_BUFFER };
        let _ = set_socket_send_buffer_size(&log, buffer);
        let mut command = Command::new(valgrind);
        let yes_or_no = |yes| if yes { "yes" } else { "no" };
        command
            .args(["--command-line-only=yes", "--vgdb=no"])
            .arg(joined("--tool=", tool.name()))
            // Without it an exec would leave Valgrind, and the recording with it.
            .arg("--trace-children=yes")
            .arg(format!("--child-silent-after-fork={}", yes_or_no(!*children)))
            .arg(format!("--main-stacksize={}", stack_size()))
            .arg(format!("--log-fd={}", log.as_raw_fd()));
        match tool {
            Tool::Own { folder } => {
                command
                    .env("VALGRIND_LIB", folder)
                    // Above it Valgrind 3.19 ends itself at a block with x87 and a masked vector store.
                    .arg("--vex-iropt-level=1")
                    .arg(format!("--stores-fd={}", log.as_raw_fd()))
                    .arg(format!("--recorder={}", std::process::id()))
                    .arg(format!("--children={}", yes_or_no(*children)))
                    .arg(format!("--kernel-writes={}", yes_or_no(recording.kernel_writes)));
            }
            Tool::Lackey { .. } => {
                command.args(["--trace-mem=yes", "--basic-counts=no"]);
            }
        }
        command.arg("--").arg(program).args(arguments);
        Self::spawn(command, (text, log), is_own, signal)
    }

    /// Starts a whole machine: QEMU, with a plugin that sends packets.
    pub(crate) fn start_machine(
        mut command: Command,
        plugin: &Path,
        signal: &'a AtomicUsize,
    ) -> Result<Self, RecordError> {
        let failed = |errno: rustix::io::Errno| RecordError::Start { source: errno.into() };
        let kind = SocketType::SEQPACKET;
        let (text, log) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
        set_socket_passcred(&text, true).map_err(failed)?;
        let _ = set_socket_send_buffer_size(&log, LARGE_BUFFER);
        let mut option = joined("file=", plugin.as_os_str());
        option.push(format!(",stores={}", log.as_raw_fd()));
        command.arg("-plugin").arg(option);
        Self::spawn(command, (text, log), true, signal)
    }

    /// Starts it with one end of a socket.
    fn spawn(
        mut command: Command,
        (text, log): (OwnedFd, OwnedFd),
        is_own: bool,
        signal: &'a AtomicUsize,
    ) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Start { source };
        let program = command.get_program().to_string_lossy().into_owned();
        let ours = log.try_clone().map_err(failed)?;
        // Under its own number: mapped to another, it might take the place of the descriptor by
        // which `spawn` learns that the program cannot be run.
        command.preserved_fds(vec![log]);
        let began = SystemTime::now();
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RecordError::ValgrindMissing { program },
            _ => failed(source),
        })?;
        // The command holds our copy of the socket's end; the text would never end.
        drop(command);
        Ok(Self {
            child,
            text,
            log: Some(ours).filter(|_| !is_own),
            signal,
            began,
            asked: false,
            checked: Instant::now(),
            left: None,
            ending: None,
            packets: is_own,
        })
    }

    /// Listens no longer, so that nobody waits to be heard, and asks it to end; [`wait`](Self::wait) ends
    /// it if it does not.
    pub(crate) fn ask_to_end(&mut self) -> io::Result<()> {
        self.ending = Some(Instant::now());
        shutdown(&self.text, Shutdown::Read)?;
        if self.child.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        }
        Ok(())
    }

    /// Waits for the end of the program. Signals are taken as during the recording, so that one that goes
    /// on without writing can be ended; one that was asked to end is ended after ten seconds.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let is_late = self.ending.is_some_and(|asked| asked.elapsed() >= TIME_TO_END);
            if is_late || self.is_to_end()? {
                self.child.kill()?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PATIENCE);
        }
    }

    /// Looks whether the program has ended, and if so, how much text it left.
    fn check(&mut self) -> io::Result<()> {
        self.checked = Instant::now();
        if self.left.is_none() && self.child.try_wait()?.is_some() {
            let left = ioctl_fionread(&self.text)?;
            self.left = Some(usize::try_from(left).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    fn read(&self, out: &mut [u8]) -> io::Result<Option<(u32, usize)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut out = [IoSliceMut::new(out)];
        let length = match recvmsg(&self.text, &mut out, &mut control, RecvFlags::empty()) {
            Ok(message) => message.bytes,
            // Some writer ended with text of ours unread; there is none.
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let pid = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(who) => {
                u32::try_from(who.pid.as_raw_nonzero().get()).ok()
            }
            _ => None,
        });
        // An empty message is no end: that one comes from nobody.
        if length == 0 && (pid.is_none() || !self.packets) {
            return Ok(None);
        }
        let pid = pid.ok_or_else(|| io::Error::other("the system does not say who wrote"))?;
        Ok(Some((pid, length)))
    }

    /// Takes a signal: the program gets the first one, if it has not already, and ends itself; the
    /// second one ends it.
    fn is_to_end(&mut self) -> io::Result<bool> {
        let number = self.signal.swap(0, Ordering::Relaxed);
        if number == 0 {
            return Ok(false);
        }
        let first = !std::mem::replace(&mut self.asked, true);
        self.check()?;
        if self.left.is_some() {
            return Ok(false);
        }
        if !first {
            self.child.kill()?;
            return Ok(true);
        }
        let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
        if let Some(signal) = signal.filter(|signal| !came_from_the_terminal(*signal)) {
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(false)
    }
}

impl TextSource for Traced<'_> {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn began(&self) -> SystemTime {
        self.began
    }

    fn hurry(&mut self) {
        if let Some(log) = self.log.take() {
            // Only for speed.
            let _ = set_socket_send_buffer_size(&log, LARGE_BUFFER);
        }
    }

    fn receive(&mut self, out: &mut [u8]) -> io::Result<Option<(u32, usize)>> {
        let patience = Timespec::try_from(PATIENCE).expect("a tenth of a second fits");
        loop {
            if self.is_to_end()? {
                return Ok(None);
            }
            if self.checked.elapsed() >= PATIENCE {
                self.check()?;
            }
            let most = self.left.unwrap_or(out.len()).min(out.len());
            if most == 0 {
                return Ok(None);
            }
            let mut fds = [PollFd::new(&self.text, PollFlags::IN)];
            match poll(&mut fds, Some(&patience)) {
                // Its text is there when it has ended. None is: the count was wrong.
                Ok(0) if self.left.is_some() => return Ok(None),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => {
                    let text = self.read(&mut out[..most])?;
                    if let (Some(left), Some((_, length))) = (&mut self.left, text) {
                        *left -= length;
                    }
                    return Ok(text);
                }
                Err(errno) => return Err(errno.into()),
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

fn joined(option: &str, value: &OsStr) -> OsString {
    let mut joined = OsString::from(option);
    joined.push(value);
    joined
}

/// Whether a signal like this one has reached every process of our group, the program included: the
/// terminal sends it so (Ctrl-C, a closed window).
fn came_from_the_terminal(signal: Signal) -> bool {
    let in_front = || {
        let terminal = std::fs::File::open("/dev/tty").ok()?;
        Some(rustix::termios::tcgetpgrp(terminal).ok()? == getpgrp())
    };
    matches!(signal, Signal::INT | Signal::HUP) && in_front() == Some(true)
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
