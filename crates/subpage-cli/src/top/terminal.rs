//! The terminal: taken, drawn to, and always given back.

use std::io::{self, BufWriter, Stdout, Write};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use ratatui::crossterm::{execute, style};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};
use rustix::process::{Signal, getpgrp, getsid, kill_current_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::{flag, low_level};

/// What a terminal that does not know its size is taken for, as a serial line.
const UNKNOWN: (u16, u16) = (80, 24);

/// Signals that end this program.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Set while the terminal is ours, so that a panic knows whether there is something to give back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A terminal that is ours until this is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    signals: Signals,
}

/// What signals have asked for.
pub(super) struct Signals {
    ended: Vec<(i32, Arc<AtomicBool>)>,
    stop: Arc<AtomicBool>,
    panicked: Arc<AtomicBool>,
}

impl Signals {
    /// Catches what ends or stops this program. The second of those that end it does so at once: nothing
    /// may read what is drawn any more.
    fn catch() -> io::Result<Self> {
        let mut ended = Vec::new();
        for signal in ENDING {
            let flag = Arc::new(AtomicBool::new(false));
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))?;
            flag::register(signal, Arc::clone(&flag))?;
            ended.push((signal, flag));
        }
        let stop = Arc::new(AtomicBool::new(false));
        flag::register(SIGTSTP, Arc::clone(&stop))?;
        let panicked = Arc::new(AtomicBool::new(false));
        let (seen, before) = (Arc::clone(&panicked), panic::take_hook());
        // Whichever thread it is, its story is to be read.
        panic::set_hook(Box::new(move |what| {
            give_back();
            seen.store(true, Ordering::SeqCst);
            before(what);
        }));
        Ok(Self { ended, stop, panicked })
    }

    /// The signal that is to end this program.
    pub(super) fn ending(&self) -> Option<i32> {
        let set = |(_, flag): &&(i32, Arc<AtomicBool>)| flag.load(Ordering::SeqCst);
        self.ended.iter().find(set).map(|(signal, _)| *signal)
    }

    /// Whether a thread has panicked, whose story stands on the terminal.
    pub(super) fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn take(color: bool) -> io::Result<Self> {
        let signals = Signals::catch()?;
        // It would decide for itself by NO_COLOR.
        style::force_color_output(color);
        take()?;
        let backend = CrosstermBackend::new(BufWriter::new(io::stdout()));
        let viewport = Viewport::Fixed(area());
        match Terminal::with_options(backend, TerminalOptions { viewport }) {
            Ok(terminal) => Ok(Self { terminal, signals }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    pub(super) const fn signals(&self) -> &Signals {
        &self.signals
    }

    /// What the person does, if it is within so much time.
    pub(super) fn event(patience: Duration) -> io::Result<Option<Event>> {
        match event::poll(patience) {
            Ok(true) => event::read().map(Some),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Draws.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        let wanted = area();
        if self.terminal.get_frame().area() != wanted {
            self.terminal.resize(wanted)?;
        }
        self.terminal.draw(draw)?;
        Ok(())
    }

    /// Draws everything anew the next time.
    pub(super) fn redraw(&mut self) -> io::Result<()> {
        self.terminal.clear()
    }

    /// Stops this program and its group, as a shell's Ctrl-Z does; whether there is a shell that could
    /// let it go on.
    pub(super) fn suspend() -> bool {
        has_shell() && kill_current_process_group(Signal::TSTP).is_ok()
    }

    /// If this program was told to stop, gives the terminal back, stops, and takes it again once it is
    /// continued; whether it was.
    pub(super) fn stop_if_told(&mut self) -> io::Result<bool> {
        if !self.signals.stop.swap(false, Ordering::SeqCst) || !has_shell() {
            return Ok(false);
        }
        give_back();
        low_level::emulate_default_handler(SIGTSTP)?;
        take()?;
        self.redraw()?;
        Ok(true)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whether a shell with jobs has started this program. Where none has, as over `ssh HOST -t subpage top`, the
/// system itself would let nobody stop it by SIGTSTP.
fn has_shell() -> bool {
    getsid(None).is_ok_and(|session| session != getpgrp())
}

fn area() -> Rect {
    let (width, height) = match size() {
        Ok((0, _) | (_, 0)) | Err(_) => UNKNOWN,
        Ok(size) => size,
    };
    Rect::new(0, 0, width, height)
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, Hide).inspect_err(|_| give_back())
}

/// Gives the terminal back, once.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Each is tried: where one fails, the others may work.
        let _ = execute!(io::stdout(), Show);
        let _ = execute!(io::stdout(), LeaveAlternateScreen);
        let _ = disable_raw_mode();
        let _ = io::stdout().flush();
    }
}
