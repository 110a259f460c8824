//! Staying with a guest until its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use subpage_kvm::event::{Arming, Received, Subscription};
use subpage_kvm::metrics::Metrics;
use subpage_kvm::vm::{StopCause, Vm};
use subpage_trap::{Armed, Record};

use super::count::Count;
use super::ending::{Cut, RunEnd};
use super::request_log::RequestLog;
use crate::command_line::OnStop;
use crate::events::{
    DebuggerEvent, DroppedEvent, EventWriter, FailedEvent, HeldEvent, NoticeEvent,
};
use crate::failure::Failure;
use crate::terminal::style::LOGGED;
use crate::terminal::{ColorWhen, Lines, Screen, tell};

/// How long an event is waited for before anything else is looked at.
const TICK: Duration = Duration::from_millis(20);

/// How long a reader that takes nothing keeps events waiting, while the guest runs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one keeps this program when somebody has asked for the end.
const GRACE: Duration = Duration::from_secs(2);

/// What else may end a run.
pub(super) struct Limits {
    /// When the guest's time is up.
    pub(super) deadline: Option<Instant>,
    /// Set when this program is told to end.
    pub(super) interrupted: Arc<AtomicBool>,
    /// A guest that cannot continue is kept until somebody ends it.
    pub(super) keeps_failed: bool,
    /// What becomes of one that a rule stops.
    pub(super) on_stop: OnStop,
    /// Where gdb is waited for.
    pub(super) gdb: Option<String>,
    /// Where `subpage ctl` reaches the guest.
    pub(super) control: String,
}

impl Limits {
    pub(super) fn cut(&self) -> Option<Cut> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Some(Cut::Interrupted);
        }
        self.deadline.is_some_and(|at| Instant::now() >= at).then_some(Cut::TimedOut)
    }
}

/// How much longer the output may wait for its reader.
#[derive(Default)]
pub(super) struct Grace {
    /// When it is over, once somebody has asked for the end.
    until: Option<Instant>,
}

impl Grace {
    /// Somebody has asked for the end.
    fn begin(&mut self) {
        self.until.get_or_insert_with(|| Instant::now() + GRACE);
    }

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Waits until everything is written, or it is over; how many bytes are left.
    ///
    /// A guest that has ended by itself leaves its output to its reader, as any program does that
    /// writes into a pipe, until somebody asks for the end.
    pub(super) fn finish(&mut self, limits: &Limits, screen: &Screen) -> usize {
        screen.finish(|| {
            if limits.cut().is_some() {
                self.begin();
            }
            self.is_over()
        })
    }
}

/// Passes events on to the reader, and counts them.
pub(super) struct Teller<'a> {
    pub(super) count: &'a mut Count,
    pub(super) events: &'a mut EventWriter<Lines>,
    pub(super) screen: &'a Screen,
    pub(super) metrics: Arc<Metrics>,
    pub(super) color: ColorWhen,
    /// Events that were lost and not yet told.
    missed: u64,
    /// Bytes of the console that were counted, and that were told.
    console: (u64, u64),
    /// It has been said that standard output takes no more.
    failed: bool,
}

impl<'a> Teller<'a> {
    pub(super) fn new(
        count: &'a mut Count,
        events: &'a mut EventWriter<Lines>,
        screen: &'a Screen,
        metrics: Arc<Metrics>,
        color: ColorWhen,
    ) -> Self {
        Self { count, events, screen, metrics, color, missed: 0, console: (0, 0), failed: false }
    }

    /// Waits a moment where the output has no room and its reader still takes some of it: false if
    /// there was need to.
    fn has_room(&self, grace: &Grace) -> bool {
        // What makes few lines needs no room: all of it is counted.
        if !self.events.shows_all() || grace.is_over() || self.screen.has_room() {
            return true;
        }
        !self.screen.wait_for_room(TICK, PATIENCE)
    }

    fn event(&mut self, record: &Record) -> io::Result<()> {
        self.count.event(record);
        if self.events.shows_all() && !self.screen.has_room() {
            self.missed(1);
            return Ok(());
        }
        self.tell_missed()?;
        self.events.write(record)
    }

    fn missed(&mut self, events: u64) {
        self.count.dropped(events);
        self.missed += events;
    }

    fn tell_missed(&mut self) -> io::Result<()> {
        let events = std::mem::take(&mut self.missed);
        let events = (events > 0).then_some(events);
        self.events.dropped(&DroppedEvent { events, ..DroppedEvent::default() })
    }

    /// What the console has lost, and whether the output still works.
    fn look(&mut self) -> io::Result<()> {
        let lost = self.screen.console_lost();
        let (counted, told) = self.console;
        if lost > counted {
            self.count.console_dropped(lost - counted);
            self.metrics.console_dropped(lost - counted);
            self.console.0 = lost;
        }
        if lost > told && !self.screen.loses_console() {
            let console_bytes = Some(lost - told);
            self.events.dropped(&DroppedEvent { console_bytes, ..DroppedEvent::default() })?;
            self.console.1 = lost;
        }
        if let Some(failure) = self.screen.failure().filter(|_| !self.failed) {
            self.failed = true;
            let text = "nothing more is printed, and the guest continues";
            let note = format!(
                "{LOGGED}note:{LOGGED:#} cannot write to standard output: {failure}; {text}\n"
            );
            tell(self.color, note);
        }
        Ok(())
    }

    /// Tells what has come into force.
    fn armed(&mut self, arming: &Arming) -> io::Result<()> {
        self.events.armed(&Armed::from(arming))
    }

    /// Tells what is slow. Where the output has no room, it waits in the machine, which keeps a few.
    fn notices(&mut self, vm: &Vm) -> io::Result<()> {
        if !self.screen.has_room() {
            return Ok(());
        }
        vm.notices().iter().try_for_each(|notice| self.events.notice(&NoticeEvent::from(notice)))
    }

    /// What is still to be told when the guest has ended.
    fn end(&mut self, vm: &Vm) -> io::Result<()> {
        self.tell_missed()?;
        self.notices(vm)?;
        let dropped = vm.notices_dropped() + vm.notices().len() as u64;
        if dropped > 0 {
            self.count.notices_dropped(dropped);
            let notices = Some(dropped);
            self.events.dropped(&DroppedEvent { notices, ..DroppedEvent::default() })?;
        }
        self.screen.end_console();
        self.look()
    }
}

/// Tells of each rule that has stopped the guest, or saves and ends it.
fn look_at_stops(vm: &Vm, limits: &Limits, teller: &mut Teller<'_>) -> Result<(), Failure> {
    for stop in vm.take_rule_stops() {
        let StopCause::Rule(event) = &stop.cause else { continue };
        if let OnStop::Save(file) = &limits.on_stop {
            vm.hold();
            // A file that is not written must not keep the guest.
            let saved = vm.save(file);
            vm.end_stopped(Arc::clone(event));
            return saved.map(drop).map_err(|error| Failure::bad(&error));
        }
        teller.events.held(&HeldEvent {
            message: stop.to_string(),
            control: limits.control.clone(),
            gdb: limits.gdb.clone(),
        })?;
    }
    Ok(())
}

/// Shows and counts every event until the guest has ended and all of them are.
pub(super) fn supervise(
    vm: &Vm,
    request_log: &RequestLog,
    subscription: &Subscription,
    limits: &Limits,
    grace: &mut Grace,
    mut teller: Teller<'_>,
) -> Result<RunEnd, Failure> {
    let mut cut = None;
    let mut end = None;
    let mut kept = false;
    let mut looked = Instant::now();
    loop {
        if teller.has_room(grace) {
            match subscription.next(Some(TICK)) {
                Some(Received::Event(event)) => teller.event(&event)?,
                Some(Received::Armed(arming)) => teller.armed(&arming)?,
                Some(Received::Dropped(dropped)) => teller.missed(dropped),
                Some(Received::Closed) => break,
                // A prompt has no end of line that would show it.
                None => teller.screen.flush(),
            }
        }
        if looked.elapsed() >= TICK {
            looked = Instant::now();
            teller.look()?;
        }
        if limits.cut().is_some() || request_log.stop_is_asked() {
            grace.begin();
        }
        teller.notices(vm)?;
        for news in vm.debugger_news() {
            teller.events.debugger(&DebuggerEvent::from(&news))?;
        }
        look_at_stops(vm, limits, &mut teller)?;
        if end.is_some() {
            continue;
        }
        if cut.is_none() {
            cut = limits.cut();
            if cut.is_some() {
                vm.stop();
            }
        }
        let Some(ending) = vm.wait(Duration::ZERO) else { continue };
        let run_end = RunEnd::of(&ending, cut);
        if limits.keeps_failed
            && ending.is_failure()
            && cut.is_none()
            && !request_log.stop_is_asked()
        {
            if !kept {
                kept = true;
                let control = limits.control.clone();
                teller.events.failed(&FailedEvent { message: run_end.message, control })?;
            }
            continue;
        }
        // When all processors can be held, none of them is about to report something.
        vm.with_processors(|_| ());
        vm.close_events();
        end = Some(run_end);
    }
    teller.end(vm)?;
    Ok(end.expect("events end when the guest has"))
}
