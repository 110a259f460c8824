//! The hypervisor's command line: `memory=32 cpus=2 denied=skip spp=on events=serial -- GUEST'S OWN`.

use subpage_trap::Response;
use thiserror::Error;

/// What the hypervisor was told at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options<'a> {
    /// `memory=MIB`: memory of the guest in MiB; without it, all that is left.
    pub memory: Option<u64>,
    /// `cpus=N`: processors to wait for and to use; without it, those that come at once.
    pub processors: Option<usize>,
    /// `denied=skip` or `denied=fault`: what becomes of an instruction whose write is denied by a
    /// rule that does not say so itself.
    pub denied: Response,
    /// `spp=off`: decide in software although the processor could.
    pub use_spp: bool,
    /// `ept-ad=on|off`: whether EPT's accessed and dirty flags are used, if the processor has them. Without
    /// it they are for a small guest, and not for a Linux kernel, where each walk of a guarded page table
    /// would count as a write to it.
    pub use_accessed_dirty: Option<bool>,
    /// `events=serial`: print a line for each event; otherwise for the first of each rule of the host,
    /// and at each power of ten of them.
    pub print_events: bool,
    /// `console=com1|com2|e9`: the UART of the hypervisor's lines besides port E9H. Without it COM1, and
    /// with a Linux kernel, whose COM1 is its own, none.
    pub console: Option<Console>,
    /// Everything after ` -- `.
    pub guest: &'a str,
}

/// Where the hypervisor's lines go besides port E9H.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The first serial port.
    Com1,
    /// The second one.
    Com2,
    /// Nowhere.
    DebugOutput,
}

/// A word of the command line that means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "command line: {word:?} is no option; there are memory=MIB, cpus=N (1 to 16), denied=skip|fault, \
     spp=on|off, ept-ad=on|off, events=serial|ring, console=com1|com2|e9, and `-- ` before the guest's own"
)]
pub struct BadOption<'a> {
    /// The word.
    pub word: &'a str,
}

impl<'a> Options<'a> {
    /// Reads a command line; the first word may be the program's name (it has no `=`).
    pub fn parse(line: &'a str) -> Result<Self, BadOption<'a>> {
        let (own, guest) = match line.split_once("--") {
            Some((own, guest)) => (own, guest.trim()),
            None => (line, ""),
        };
        let mut options = Self {
            memory: None,
            processors: None,
            denied: Response::Skip,
            use_spp: true,
            use_accessed_dirty: None,
            print_events: false,
            console: None,
            guest,
        };
        for (position, word) in own.split_ascii_whitespace().enumerate() {
            let bad = BadOption { word };
            let Some((key, value)) = word.split_once('=') else {
                if position == 0 {
                    continue;
                }
                return Err(bad);
            };
            match (key, value) {
                ("memory", _) => {
                    let mib = value.parse().ok().filter(|mib| (1..=1 << 20).contains(mib));
                    options.memory = Some(mib.ok_or(bad)?);
                }
                ("cpus", _) => {
                    let count = value.parse().ok();
                    let count = count.filter(|n| (1..=super::MAX_PROCESSORS).contains(n));
                    options.processors = Some(count.ok_or(bad)?);
                }
                ("denied", "skip") => options.denied = Response::Skip,
                ("denied", "fault") => options.denied = Response::Fault,
                ("spp", "on") => options.use_spp = true,
                ("spp", "off") => options.use_spp = false,
                ("ept-ad", "on") => options.use_accessed_dirty = Some(true),
                ("ept-ad", "off") => options.use_accessed_dirty = Some(false),
                ("events", "serial") => options.print_events = true,
                ("events", "ring") => options.print_events = false,
                ("console", "com1") => options.console = Some(Console::Com1),
                ("console", "com2") => options.console = Some(Console::Com2),
                ("console", "e9") => options.console = Some(Console::DebugOutput),
                _ => return Err(bad),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_read() {
        let options = Options::parse(
            "subpage memory=32 cpus=4 denied=fault spp=off ept-ad=off events=serial \
             console=com2 -- run=a b",
        )
        .expect("all are options");
        let expected = Options {
            memory: Some(32),
            processors: Some(4),
            denied: Response::Fault,
            use_spp: false,
            use_accessed_dirty: Some(false),
            print_events: true,
            console: Some(Console::Com2),
            guest: "run=a b",
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_means_nothing_is_named() {
        for word in ["memory=", "memory=0", "cpus=17", "cpus=x", "spp=maybe", "quiet=1"] {
            assert_eq!(Options::parse(word), Err(BadOption { word }));
        }
        assert_eq!(Options::parse("a b"), Err(BadOption { word: "b" }));
    }
}
