//! What there is to tell of debuggers, until somebody asks for it.

use subpage::address::ByteRange;

use super::{Vm, VmShared};

/// Most that waits to be told.
const MOST: usize = 64;

/// Most bytes of a debugger's write that are told.
const MOST_BYTES: usize = 64;

/// Something about a debugger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebuggerNews {
    /// What has happened.
    pub message: String,
    /// What it has written, if it has.
    pub write: Option<DebuggerWrite>,
}

/// A debugger's write to the guest's memory, which no rule is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebuggerWrite {
    /// Where.
    pub range: ByteRange,
    /// The first of the bytes, at most 64.
    pub bytes: Vec<u8>,
    /// Names of the rules in force that guard some of the bytes.
    pub rules: Vec<String>,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct News {
    waiting: Vec<DebuggerNews>,
    lost: u64,
}

impl News {
    pub(super) fn add(&mut self, news: DebuggerNews) {
        if self.waiting.len() < MOST {
            self.waiting.push(news);
        } else {
            self.lost += 1;
        }
    }

    /// Takes what waits, and how much there was no room for.
    pub(super) fn take(&mut self) -> Vec<DebuggerNews> {
        let mut taken = std::mem::take(&mut self.waiting);
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            let message = format!("what a debugger has done {lost} more times is not told");
            taken.push(DebuggerNews { message, write: None });
        }
        taken
    }
}

impl VmShared {
    /// Takes note of something about debuggers for whoever asks for it.
    pub(crate) fn debugger_says(&self, message: String) {
        self.add_news(DebuggerNews { message, write: None });
    }

    /// Takes note of what a debugger has written.
    pub(crate) fn debugger_has_written(&self, range: ByteRange, bytes: &[u8]) {
        let guard = self.guard();
        let meets = |rule: &ByteRange| rule.first() <= range.last() && range.first() <= rule.last();
        let rules: Vec<String> = guard
            .domain()
            .rules()
            .iter()
            .filter(|active| active.armed && meets(&active.rule.range))
            .map(|active| active.rule.name.to_string())
            .collect();
        drop(guard);
        let first = range.first().as_u64();
        let mut message = format!("a debugger has written {} bytes at {first:#x}", range.bytes());
        if !rules.is_empty() {
            let names: Vec<String> = rules.iter().map(|name| format!("{name:?}")).collect();
            message.push_str(", which no rule was asked about: ");
            message.push_str(&names.join(", "));
        }
        let bytes = bytes[..bytes.len().min(MOST_BYTES)].to_vec();
        let write = Some(DebuggerWrite { range, bytes, rules });
        self.add_news(DebuggerNews { message, write });
    }
}

impl Vm {
    /// What is to be told of debuggers and was not yet.
    pub fn debugger_news(&self) -> Vec<DebuggerNews> {
        self.shared().take_news()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let mut news = News::default();
        for number in 0..MOST + 2 {
            news.add(DebuggerNews { message: number.to_string(), write: None });
        }
        let taken = news.take();
        assert_eq!(taken.len(), MOST + 1);
        assert_eq!(taken[MOST].message, "what a debugger has done 2 more times is not told");
        assert!(news.take().is_empty());
    }
}
