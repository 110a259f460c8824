//! What a key does.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use subpage_kvm::control::protocol::{Request, RuleRef};

use super::{EventRow, Model, Pane};
use crate::heat::CELLS;

/// Rows that a page key steps over.
const PAGE: usize = 10;

/// What lies over the panes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Overlay {
    /// Nothing.
    #[default]
    None,
    /// What keys do.
    Help,
    /// A question; the answer yes asks the guest's process.
    Confirm {
        /// What is asked.
        question: String,
        /// What is done then.
        request: Request,
        /// What is said when it is done.
        done: String,
    },
    /// All about an event.
    Event(Box<EventRow>),
}

/// What is to be done outside of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ask {
    /// End this program.
    Quit,
    /// Stop this program as a shell's Ctrl-Z does.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Ask the guest's process, and say so when it is done.
    Request {
        /// What.
        request: Request,
        /// What is said when it is done.
        done: String,
    },
}

impl Model {
    /// Takes a key in.
    pub(crate) fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Some(Ask::Quit),
            KeyCode::Char('z') if control => return Some(Ask::Suspend),
            KeyCode::Char('l') if control => return Some(Ask::Redraw),
            _ if control => return None,
            _ => {}
        }
        match std::mem::take(&mut self.overlay) {
            Overlay::None => self.pane_key(key.code),
            Overlay::Help | Overlay::Event(_) if key.code == KeyCode::Char('q') => Some(Ask::Quit),
            Overlay::Confirm { request, done, .. } if key.code == KeyCode::Char('y') => {
                Some(Ask::Request { request, done })
            }
            // Any other key takes it away.
            Overlay::Help | Overlay::Event(_) | Overlay::Confirm { .. } => None,
        }
    }

    fn pane_key(&mut self, code: KeyCode) -> Option<Ask> {
        match code {
            KeyCode::Char('q') => return Some(Ask::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.overlay = Overlay::Help,
            KeyCode::Tab => self.focus = self.focus.next(),
            KeyCode::BackTab => self.focus = self.focus.next().next(),
            KeyCode::Up | KeyCode::Char('k') => self.step(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.step(|at, _| at + 1),
            KeyCode::PageUp => self.step(|at, _| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.step(|at, _| at + PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.deselect(),
            KeyCode::End | KeyCode::Char('G') => self.step(|_, last| last),
            KeyCode::Left => self.step_cell(|cell| cell.saturating_sub(1)),
            KeyCode::Right => self.step_cell(|cell| (cell + 1).min(CELLS - 1)),
            KeyCode::Enter => self.open(),
            KeyCode::Char('f') => self.frozen = !self.frozen,
            KeyCode::Char('o') => {
                self.order = self.order.next();
                self.sort();
            }
            KeyCode::Char('t') => {
                self.mode = self.mode.other();
                self.sort();
            }
            KeyCode::Char('a') => return self.arm(),
            KeyCode::Char('A') => {
                let done = "all rules that waited for a command are armed".to_owned();
                return Some(Ask::Request { request: Request::Arm { rules: Vec::new() }, done });
            }
            KeyCode::Char('x') | KeyCode::Delete => self.ask_to_remove(),
            KeyCode::Char('p') => {
                let held = self.state.as_ref().is_some_and(|state| state.word == "held");
                let (request, done) = if held {
                    (Request::Resume, "the guest goes on")
                } else {
                    (
                        Request::Pause,
                        "the guest is held: p lets it go on, s executes an instruction",
                    )
                };
                return Some(Ask::Request { request, done: done.to_owned() });
            }
            KeyCode::Char('s') => {
                let done = "one instruction of processor 0".to_owned();
                return Some(Ask::Request { request: Request::Step { cpu: 0 }, done });
            }
            _ => {}
        }
        None
    }

    /// Moves the selection of the focused pane: from its row and the last one to its new row.
    fn step(&mut self, to: impl Fn(usize, usize) -> usize) {
        let (at, rows) = match self.focus {
            Pane::Rules => (self.rule_index(), self.rules.len()),
            Pane::Pages => (self.page_index(), self.pages.len()),
            Pane::Events => (self.event_index(), self.events.rows().len()),
        };
        let Some(last) = rows.checked_sub(1) else { return };
        let at = to(at, last).min(last);
        match self.focus {
            Pane::Rules => self.rule = Some(self.rules[at].id),
            Pane::Pages => self.page = Some(self.pages[at].gfn),
            Pane::Events => self.event = Some(self.events.rows()[at].number),
        }
    }

    fn step_cell(&mut self, to: impl Fn(usize) -> usize) {
        let page = self.pages.get(self.page_index());
        if let Some(page) = page.filter(|_| self.focus == Pane::Pages) {
            self.cell = Some(to(self.cell_of(page)));
        }
    }

    /// Back to the first row, whatever comes there.
    fn deselect(&mut self) {
        match self.focus {
            Pane::Rules => self.rule = None,
            Pane::Pages => (self.page, self.cell) = (None, None),
            Pane::Events => self.event = None,
        }
    }

    fn open(&mut self) {
        let row = self.events.rows().get(self.event_index());
        if let Some(row) = row.filter(|_| self.focus == Pane::Events) {
            self.overlay = Overlay::Event(Box::new(row.clone()));
        }
    }

    fn arm(&mut self) -> Option<Ask> {
        let rule = self.rules.get(self.rule_index())?;
        let request = Request::Arm { rules: vec![RuleRef::Number(rule.id)] };
        let done = match rule.waits_for {
            Some(_) => format!("{} is in force", rule.name),
            None => format!("{} was in force already", rule.name),
        };
        Some(Ask::Request { request, done })
    }

    fn ask_to_remove(&mut self) {
        let Some(rule) = self.rules.get(self.rule_index()) else { return };
        self.overlay = Overlay::Confirm {
            question: format!("remove the rule {} (number {})?", rule.name, rule.id),
            request: Request::Remove { rule: RuleRef::Number(rule.id) },
            done: format!("{} is removed", rule.name),
        };
    }
}

impl Pane {
    const fn next(self) -> Self {
        match self {
            Self::Rules => Self::Pages,
            Self::Pages => Self::Events,
            Self::Events => Self::Rules,
        }
    }
}
