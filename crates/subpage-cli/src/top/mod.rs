//! `subpage top`: a running guest, as it changes.
//!
//! The model is what is shown and what keys do to it; the view makes cells of it; both are functions. The
//! terminal and the connections are thin, and each waits for a bounded time only.

mod inbox;
mod json;
mod model;
mod source;
mod terminal;
mod text;
mod view;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{Event, KeyEventKind};
use signal_hook::low_level;
use subpage_kvm::control::default_sockets;

use self::inbox::Inbox;
pub(crate) use self::json::line_schema;
use self::model::{Ask, Link, Model, Tone};
use self::source::Source;
use self::terminal::Screen;
use self::view::{Theme, draw};
use crate::command_line::TopArguments;
use crate::failure::{Failure, Status};
use crate::terminal::{ColorWhen, Glyphs, Output, has_color, printable};

/// How long a key is waited for before there may be something else to show.
const TICK: Duration = Duration::from_millis(100);

/// How often the view is drawn although nothing came: it tells how long nothing has come.
const PULSE: Duration = Duration::from_secs(1);

/// Runs the command.
pub fn run(
    arguments: &TopArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Status, Failure> {
    let socket = match &arguments.socket {
        Some(socket) => socket.clone(),
        None => the_only(&default_sockets(), arguments.timeout)?,
    };
    let began = Instant::now();
    if arguments.once || arguments.json {
        return follow(arguments, &socket, began, out);
    }
    check_terminal(&socket)?;
    // What is wrong at the start is an error like any other, not a view without anything in it.
    let mut client =
        source::connect(&socket, arguments.timeout).map_err(|error| Failure::bad(&error))?;
    let first = source::look(&mut client, began).map_err(|error| Failure::bad(&error))?;
    drop(client);
    let source = start(arguments, &socket, began)?;
    let mut model = Model::new(&socket.display().to_string(), arguments.interval);
    model.look(first);
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| env::var(name).ok());
    let glyphs = Glyphs::of_locale(locale.each_ref().map(Option::as_deref));
    let theme = Theme { color: has_color(color), glyphs };
    let failed = |error: io::Error| Failure::Output(error.to_string());
    let mut screen = Screen::take(theme.color).map_err(failed)?;
    let ended_by = view_until_end(&mut screen, &mut model, &source, theme, began);
    // Before anything is said.
    let panicked = screen.signals().has_panicked();
    drop(screen);
    if panicked {
        return Err(Failure::Internal("a part of the view has stopped: see above".to_owned()));
    }
    if let Some(signal) = ended_by.map_err(failed)? {
        // As if it had not been caught: whoever waits sees by which signal this program ended.
        low_level::emulate_default_handler(signal).map_err(failed)?;
    }
    Ok(Status::Clean)
}

fn start(arguments: &TopArguments, socket: &Path, began: Instant) -> Result<Source, Failure> {
    Source::start(socket, arguments.interval, arguments.timeout, began)
        .map_err(|error| Failure::Internal(format!("cannot start a thread: {error}")))
}

/// Draws until the person, or a signal, ends it; which signal.
fn view_until_end(
    screen: &mut Screen,
    model: &mut Model,
    source: &Source,
    theme: Theme,
    began: Instant,
) -> io::Result<Option<i32>> {
    let mut drawn: Option<Instant> = None;
    let mut changed = true;
    loop {
        changed |= take_in(&source.inbox, model, began);
        if changed || drawn.is_none_or(|at| at.elapsed() >= PULSE) {
            let now = began.elapsed();
            screen.draw(|frame| draw(frame.buffer_mut(), model, theme, now))?;
            drawn = Some(Instant::now());
            changed = false;
        }
        let mut patience = TICK;
        while let Some(event) = Screen::event(patience)? {
            changed = true;
            // What came together is drawn once.
            patience = Duration::ZERO;
            let Event::Key(key) = event else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match model.key(key) {
                None => {}
                Some(Ask::Quit) => return Ok(None),
                Some(Ask::Suspend) if Screen::suspend() => break,
                Some(Ask::Suspend) => {
                    let text = "no shell has started this program: nobody could let it go on";
                    model.say(text, Tone::Bad, began.elapsed());
                }
                Some(Ask::Redraw) => screen.redraw()?,
                Some(Ask::Request { request, done }) => source.ask(request, done),
            }
        }
        changed |= screen.stop_if_told()?;
        if screen.signals().has_panicked() {
            return Ok(None);
        }
        if let Some(signal) = screen.signals().ending() {
            return Ok(Some(signal));
        }
    }
}

/// Whether there was something. A view that is frozen still tells what became of a request.
fn take_in(inbox: &Inbox, model: &mut Model, began: Instant) -> bool {
    let waiting = if model.frozen { inbox.take_done() } else { inbox.take() };
    let some = !waiting.is_empty();
    waiting.into_model(model, began.elapsed());
    some
}

/// Prints lines: one after each interval, or only the first.
fn follow(
    arguments: &TopArguments,
    socket: &Path,
    began: Instant,
    out: &mut Output,
) -> Result<Status, Failure> {
    let mut model = Model::new(&socket.display().to_string(), arguments.interval);
    let mut client =
        source::connect(socket, arguments.timeout).map_err(|error| Failure::bad(&error))?;
    model.look(source::look(&mut client, began).map_err(|error| Failure::bad(&error))?);
    let source = start(arguments, socket, began)?;
    let mut told = model.state.as_ref().map(|state| state.at);
    loop {
        thread::sleep(TICK.min(arguments.interval));
        take_in(&source.inbox, &mut model, began);
        let state = model.state.as_ref().expect("the first look");
        let due = told.is_none_or(|at| state.at.saturating_sub(at) >= arguments.interval);
        let over = model.ended || matches!(model.link, Link::Gone(_));
        if due || over {
            told = Some(state.at);
            if arguments.json {
                json::write(out, &model)?;
            } else {
                text::write(out, &model)?;
            }
            out.flush()?;
        }
        if let (Link::Gone(reason), false) = (&model.link, model.ended) {
            return Err(Failure::Input(reason.clone()));
        }
        // One that ends closes its connections, which the other thread may see first.
        if let (Link::Troubled(reason), false) = (&model.link, model.ended) {
            return Err(Failure::Input(reason.clone()));
        }
        if over || out.is_gone() || due && arguments.once {
            return Ok(Status::Clean);
        }
    }
}

/// Refuses a terminal that cannot be drawn on, and says what to do.
fn check_terminal(socket: &Path) -> Result<(), Failure> {
    let name = env::var("TERM").unwrap_or_default();
    let what = if !io::stdout().is_terminal() {
        "standard output is no terminal".to_owned()
    } else if name.is_empty() {
        "TERM is not set, so that nobody knows what this terminal can do".to_owned()
    } else if name == "dumb" {
        "this terminal cannot be drawn on (TERM=dumb)".to_owned()
    } else {
        return Ok(());
    };
    let socket = socket.display();
    Err(Failure::Input(format!(
        "{what}: `subpage top {socket} --once` prints what there is to see as text, `--json` a line after \
         each interval, and `subpage ctl {socket} watch` the events"
    )))
}

/// The socket of the only guest that runs.
fn the_only(sockets: &[PathBuf], patience: Duration) -> Result<PathBuf, Failure> {
    let answers = |socket: &&PathBuf| {
        let asked = source::connect(socket, patience);
        asked.and_then(|mut client| source::look(&mut client, Instant::now())).is_ok()
    };
    let running: Vec<_> = sockets.iter().filter(answers).collect();
    match running[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::Input(
            "no guest of yours runs; name the socket of one that was started with `--control`"
                .to_owned(),
        )),
        [first, ..] => Err(Failure::Input(format!(
            "{} guests of yours run: say which, for example `subpage top {}`; `subpage ctl list` lists them",
            running.len(),
            printable(&first.display().to_string()),
        ))),
    }
}
