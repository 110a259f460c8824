//! What is shown, and what keys do to it: no terminal, no clock, no socket.

mod events;
mod keys;
mod pages;
mod rates;
mod rules;

use std::time::Duration;

use serde_json::{Map, Value};
use subpage_kvm::control::protocol::{HeatPage, Shown};

pub(crate) use self::events::{EventRow, Events, KEPT, Tone};
pub(crate) use self::keys::{Ask, Overlay};
pub(crate) use self::pages::{HeatMode, PageRow};
pub(crate) use self::rates::Count;
pub(crate) use self::rules::{RuleOrder, RuleRow};
use crate::terminal::printable;

/// Characters of a name that are kept.
const NAME_CHARACTERS: usize = 120;

/// How long a message is shown.
const MESSAGE: Duration = Duration::from_secs(6);

/// How long after its time an answer is called late.
const LATE: Duration = Duration::from_secs(2);

/// A look at the counts of a guest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Look {
    /// When, since this program began.
    pub(crate) at: Duration,
    pub(crate) shown: Box<Shown>,
    /// None if the guest's process is of a version that has none.
    pub(crate) heat: Option<Heat>,
}

/// The answer to `heat`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Heat {
    pub(crate) hottest: Vec<HeatPage>,
    pub(crate) counted: u64,
    pub(crate) omitted: u64,
}

/// Whether the guest's process answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Link {
    /// As far as is known.
    #[default]
    Answers,
    /// It did not in time, or not as the protocol has it; it is asked again.
    Troubled(String),
    /// It is there no more.
    Gone(String),
}

/// The parts of the view that have rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pane {
    #[default]
    Rules,
    Pages,
    Events,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Printable.
    pub(crate) socket: String,
    interval: Duration,
    pub(crate) state: Option<State>,
    pub(crate) rules: Vec<RuleRow>,
    pub(crate) pages: Vec<PageRow>,
    /// Pages with counts and touches without, as the guest's process tells; none if it has no heat.
    pub(crate) heat: Option<(u64, u64)>,
    pub(crate) events: Events,
    pub(crate) link: Link,
    /// The guest has ended.
    pub(crate) ended: bool,
    pub(crate) focus: Pane,
    pub(crate) order: RuleOrder,
    pub(crate) mode: HeatMode,
    /// Selected by their numbers; none: the first row, whatever it is.
    rule: Option<u64>,
    page: Option<u64>,
    /// Selected by its index; none: the hottest of the page.
    cell: Option<usize>,
    event: Option<u64>,
    pub(crate) overlay: Overlay,
    /// New looks and events wait until the view goes on.
    pub(crate) frozen: bool,
    message: Option<(String, Tone, Duration)>,
    seen_before: u64,
}

/// The state of the guest as a whole. All of its texts are printable.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// When the guest's process told it.
    pub(crate) at: Duration,
    /// Seconds since the look before.
    pub(crate) seconds: Option<f64>,
    pub(crate) word: String,
    /// Why it is held, or has failed.
    pub(crate) reason: Option<String>,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    pub(crate) trapped_pages: u64,
    pub(crate) writes: Count,
}

impl Model {
    /// Nothing is known yet.
    pub(crate) fn new(socket: &str, interval: Duration) -> Self {
        Self { socket: clip(socket), interval, ..Self::default() }
    }

    /// Takes a look in.
    pub(crate) fn look(&mut self, look: Look) {
        let Look { at, shown, heat } = look;
        let before = self.state.as_ref();
        let seconds = before.map(|state| at.saturating_sub(state.at).as_secs_f64());
        let writes = before.map(|state| state.writes).zip(seconds);
        let writes = writes.map_or(Count::first(shown.writes), |(before, seconds)| {
            before.next(shown.writes, seconds)
        });
        self.state = Some(State {
            at,
            seconds,
            word: clip(&shown.state),
            reason: shown.failure.or(shown.held).map(|reason| clip(&reason)),
            cpus: shown.cpus,
            memory: shown.memory,
            trapped_pages: shown.trapped_pages,
            writes,
        });
        self.rules = rules::rows(&self.rules, &shown.rules, seconds);
        let complete = self.heat.is_some_and(|(counted, _)| counted <= self.pages.len() as u64);
        self.heat = heat.as_ref().map(|heat| (heat.counted, heat.omitted));
        let hottest = heat.map(|heat| heat.hottest).unwrap_or_default();
        self.pages = pages::rows(&self.pages, &hottest, seconds, complete);
        self.sort();
        if let Some(seconds) = seconds {
            let before = Count::first(self.seen_before);
            self.events.rate = before.next(self.events.seen(), seconds).rate;
        }
        self.seen_before = self.events.seen();
        self.link = Link::Answers;
    }

    fn sort(&mut self) {
        rules::sort(&mut self.rules, self.order);
        pages::sort(&mut self.pages, self.mode);
    }

    /// Takes a line of the watched connection in.
    pub(crate) fn event(&mut self, object: &Map<String, Value>) {
        if object.get("type").is_some_and(|kind| kind == "end") {
            self.ended = true;
        }
        self.events.line(object);
    }

    /// Says something for a while.
    pub(crate) fn say(&mut self, text: &str, tone: Tone, now: Duration) {
        self.message = Some((clip(text), tone, now));
    }

    /// What there is to say now.
    pub(crate) fn message(&self, now: Duration) -> Option<(&str, Tone)> {
        let (text, tone, at) = self.message.as_ref()?;
        (now.saturating_sub(*at) < MESSAGE).then_some((text.as_str(), *tone))
    }

    /// How long the guest's process has not answered, if it is late.
    pub(crate) fn silent_for(&self, now: Duration) -> Option<Duration> {
        if self.ended || self.frozen || matches!(self.link, Link::Gone(_)) {
            return None;
        }
        let at = self.state.as_ref().map_or(Duration::ZERO, |state| state.at);
        let age = now.saturating_sub(at);
        (age > self.interval.saturating_add(LATE)).then_some(age)
    }

    /// The row of the selected rule, if there is a rule.
    pub(crate) fn rule_index(&self) -> usize {
        self.rule.and_then(|id| self.rules.iter().position(|row| row.id == id)).unwrap_or(0)
    }

    /// The row of the selected page.
    pub(crate) fn page_index(&self) -> usize {
        self.page.and_then(|gfn| self.pages.iter().position(|row| row.gfn == gfn)).unwrap_or(0)
    }

    /// The selected sub-page of a page.
    pub(crate) fn cell_of(&self, page: &PageRow) -> usize {
        let heat = |cell: &usize| self.mode.heat(page.sub_pages[*cell]);
        // Of several the first.
        let hottest = || (0..page.sub_pages.len()).rev().max_by_key(heat).unwrap_or(0);
        self.cell.unwrap_or_else(hottest)
    }

    /// The row of the selected event.
    pub(crate) fn event_index(&self) -> usize {
        let position = |number| self.events.rows().iter().position(|row| row.number == number);
        // What has been dropped was the oldest.
        self.event
            .map_or(0, |number| position(number).unwrap_or(self.events.rows().len().max(1) - 1))
    }

    /// The names of the rules with bytes in a sub-page, at most so many, and how many there are.
    pub(crate) fn names_of(&self, bytes: (u64, u64), most: usize) -> (Vec<&str>, usize) {
        let mut names = Vec::new();
        let mut count = 0;
        for row in self.rules.iter().filter(|row| row.touches(bytes.0, bytes.1)) {
            count += 1;
            if names.len() < most {
                names.push(row.name.as_str());
            }
        }
        (names, count)
    }
}

/// A text of a few words from a guest or a server, printable.
pub(crate) fn clip(text: &str) -> String {
    clip_to(text, NAME_CHARACTERS)
}

/// The first characters of a text, printable.
fn clip_to(text: &str, characters: usize) -> String {
    // What is cut away is not escaped: it may be a mebibyte.
    let end = text.char_indices().nth(characters);
    let cut = end.map_or(text, |(end, _)| &text[..end]);
    let more = if end.is_some() { "…" } else { "" };
    format!("{}{more}", printable(cut))
}

#[cfg(test)]
pub(crate) mod tests;
