//! A stream that is written by a thread of its own, so that nobody waits for its reader.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Output;

/// Bytes of this program's lines that may wait before it should add none.
const LINES_ROOM: usize = 1 << 20;

/// Bytes of a guest's console that may wait. What is beyond that is not taken.
const CONSOLE_ROOM: usize = 1 << 20;

/// Bytes that are written at once: as many as a pipe takes whole.
const PIECE: usize = 4096;

/// How often somebody who waits looks whether there is still reason to.
const TICK: Duration = Duration::from_millis(20);

/// How long a queue that is dropped waits for its reader.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Whose text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lines,
    Console,
}

struct State {
    waiting: VecDeque<(Kind, Vec<u8>)>,
    /// Bytes that wait or are being written.
    lines: usize,
    console: usize,
    /// When something was last written, or began to wait.
    moved: Instant,
    closed: bool,
    /// Somebody has waited for the reader long enough.
    abandoned: bool,
    failure: Option<Arc<io::Error>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What waits to be written to a stream.
///
/// Dropping the last of its clones waits a moment for what is left.
#[derive(Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    _last: Arc<Last>,
}

/// Ends the thread when nobody has the queue any more.
struct Last(Arc<Shared>);

impl Queue {
    /// Begins to write to a stream.
    pub(super) fn new(out: Output) -> io::Result<Self> {
        let state = State {
            waiting: VecDeque::new(),
            lines: 0,
            console: 0,
            moved: Instant::now(),
            closed: false,
            abandoned: false,
            failure: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("output".to_owned()).spawn(move || writer.write_all(out))?;
        Ok(Self { _last: Arc::new(Last(Arc::clone(&shared))), shared })
    }

    /// Adds lines of this program, whether there is room or not.
    pub(super) fn push_lines(&self, bytes: &[u8]) {
        let mut state = self.shared.state();
        state.lines += bytes.len();
        self.push(state, Kind::Lines, bytes);
    }

    /// Adds text of a guest's console; the caller has asked whether there is room.
    pub(super) fn push_console(&self, bytes: &[u8]) {
        let mut state = self.shared.state();
        state.console += bytes.len();
        self.push(state, Kind::Console, bytes);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, kind: Kind, bytes: &[u8]) {
        if state.lines + state.console == bytes.len() {
            state.moved = Instant::now();
        }
        state.waiting.push_back((kind, bytes.to_vec()));
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Whether this program should add lines.
    pub(super) fn has_room(&self) -> bool {
        self.shared.state().lines < LINES_ROOM
    }

    /// Waits a moment for room.
    pub(super) fn wait_for_room(&self, at_most: Duration) {
        let state = self.shared.state();
        let full = |state: &mut State| state.lines >= LINES_ROOM;
        drop(self.shared.changed.wait_timeout_while(state, at_most, full));
    }

    /// Whether there is room for the text of a console; after some was refused, for a good part.
    pub(super) fn has_console_room(&self, bytes: usize, was_full: bool) -> bool {
        let room = if was_full { CONSOLE_ROOM / 2 } else { CONSOLE_ROOM };
        self.shared.state().console + bytes <= room
    }

    /// Whether something waits, and the reader has taken nothing for so long.
    pub(super) fn is_stalled(&self, time: Duration) -> bool {
        self.shared.state().is_stalled(time)
    }

    /// Waits until all is written, or `give_up` says that it is enough; how many bytes are left.
    pub(super) fn finish(&self, give_up: impl FnMut() -> bool) -> usize {
        self.shared.finish(give_up)
    }

    /// Why nothing more is written, unless the reader has gone.
    pub(super) fn failure(&self) -> Option<Arc<io::Error>> {
        self.shared.state().failure.clone()
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if !self.0.state().abandoned {
            let until = Instant::now() + LAST_WAIT;
            self.0.finish(|| Instant::now() >= until);
        }
        self.0.state().closed = true;
        // The thread may sit in a write for as long as this process lives: nobody waits for it.
        self.0.changed.notify_all();
    }
}

impl State {
    fn left(&self) -> usize {
        self.lines + self.console
    }

    fn is_stalled(&self, time: Duration) -> bool {
        self.left() > 0 && self.moved.elapsed() >= time
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, mut give_up: impl FnMut() -> bool) -> usize {
        let mut state = self.state();
        while state.left() > 0 && !give_up() {
            let waited = self.changed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.abandoned = state.left() > 0;
        state.left()
    }

    /// The thread's life.
    fn write_all(&self, mut out: Output) {
        loop {
            let mut state = self.state();
            while state.waiting.is_empty() {
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // Small ones together.
            let mut taken = Vec::new();
            let mut bytes = 0;
            while let Some((_, next)) = state.waiting.front() {
                if bytes > 0 && bytes + next.len() > PIECE {
                    break;
                }
                bytes += next.len();
                taken.extend(state.waiting.pop_front());
            }
            drop(state);
            if let [(kind, long)] = &taken[..] {
                for piece in long.chunks(PIECE) {
                    // Its errors are remembered, and what follows is dropped.
                    let _ = out.write_all(piece).and_then(|()| out.flush());
                    self.written(&[(*kind, piece.len())], &out);
                }
                continue;
            }
            let _ = taken.iter().try_for_each(|(_, text)| out.write_all(text));
            let _ = out.flush();
            let lengths: Vec<_> = taken.iter().map(|(kind, text)| (*kind, text.len())).collect();
            self.written(&lengths, &out);
        }
    }

    fn written(&self, lengths: &[(Kind, usize)], out: &Output) {
        let mut state = self.state();
        for (kind, bytes) in lengths {
            match kind {
                Kind::Lines => state.lines -= bytes,
                Kind::Console => state.console -= bytes,
            }
        }
        state.moved = Instant::now();
        if state.failure.is_none() {
            state.failure = out.failure();
        }
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};

    use super::*;

    fn queue(out: impl Write + Send + 'static) -> Queue {
        Queue::new(Output::new(Box::new(out), false)).expect("a thread")
    }

    /// A reader that takes nothing keeps nobody, and gets everything once it reads.
    #[test]
    fn nobody_waits_for_the_reader() {
        let (mut reader, writer) = pipe().expect("a pipe");
        let queue = queue(writer);
        let mut sent = Vec::new();
        let mut line = 0_u32;
        while queue.has_room() {
            line += 1;
            let text = format!("line {line}\n");
            queue.push_lines(text.as_bytes());
            sent.extend_from_slice(text.as_bytes());
        }
        assert!(sent.len() >= LINES_ROOM);
        queue.wait_for_room(Duration::ZERO);
        assert!(!queue.has_room());
        assert!(queue.has_console_room(CONSOLE_ROOM, false), "the console has room of its own");
        assert!(queue.finish(|| true) > 0);
        assert!(queue.is_stalled(Duration::ZERO));
        let mut read = vec![0; sent.len()];
        reader.read_exact(&mut read).expect("all of it");
        assert!(read == sent);
        assert_eq!(queue.finish(|| false), 0);
        assert!(queue.has_room() && !queue.is_stalled(Duration::ZERO));
        assert!(queue.failure().is_none());
    }

    #[test]
    fn a_console_that_was_full_waits_for_a_good_part() {
        let (_reader, writer) = pipe().expect("a pipe");
        let queue = queue(writer);
        let text = vec![b'x'; CONSOLE_ROOM * 3 / 4];
        assert!(queue.has_console_room(text.len(), false));
        queue.push_console(&text);
        assert!(queue.has_console_room(1, false));
        assert!(!queue.has_console_room(1, true));
        assert!(!queue.has_console_room(text.len(), false));
        assert!(queue.has_room(), "lines have room of their own");
    }

    #[test]
    fn a_stream_that_fails_is_told_and_takes_the_rest() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let queue = queue(Full);
        for _ in 0..10_000 {
            queue.push_lines(b"a line\n");
        }
        assert_eq!(queue.finish(|| false), 0);
        let failure = queue.failure().expect("it is full");
        assert_eq!(failure.kind(), io::ErrorKind::StorageFull);
    }
}
