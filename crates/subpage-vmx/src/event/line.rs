//! An event as one line of text for the serial port.

use core::fmt;

use subpage_trap::{Digits, Event, When};

use super::{DATA_BYTES, EventOutcome, Named};

/// An event with its number, shown as one line without a line end.
///
/// The verdict comes first, in the words of `docs/events.md`, then `key=value` pairs; what is not
/// known is left out. Addresses and bytes are hexadecimal, lengths are decimal.
#[derive(Debug)]
pub struct Line<'a, B> {
    /// Number of the event.
    pub sequence: u64,
    /// The event.
    pub event: &'a Event<B>,
    /// Name of the rule; a [`RuleName`](subpage::rules::RuleName) has no control characters.
    pub name: Option<&'a subpage::rules::RuleName>,
    /// How many events of the rule there were, where not all of them are shown.
    pub met: Option<u64>,
    /// What the guest's kernel calls where it came from.
    pub named: Named<'a>,
}

impl<B: AsRef<[u8]>> fmt::Display for Line<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.event;
        let (verdict, then) = match EventOutcome::of(event) {
            EventOutcome::LetThrough => ("logged", None),
            EventOutcome::Skipped => ("denied", Some("skip")),
            EventOutcome::GeneralProtection => ("denied", Some("#GP")),
            EventOutcome::Stopped => ("stopped", None),
        };
        write!(f, "event {} {verdict}", self.sequence)?;
        match (event.rule, self.name) {
            (Some(rule), Some(name)) => write!(f, " rule={} \"{name}\"", rule.0)?,
            (Some(rule), None) => write!(f, " rule={}", rule.0)?,
            (None, _) => write!(f, " map")?,
        }
        write!(f, " gpa={:#x}", event.gpa.as_u64())?;
        if let Some(length) = event.length {
            write!(f, " length={length}")?;
        }
        write!(f, " at={:#x}", event.at.as_u64())?;
        if let Some(gla) = event.gla {
            write!(f, " gla={gla:#x}")?;
        }
        let origin = event.origin;
        if let Some(rip) = origin.rip {
            write!(f, " rip={rip:#x}")?;
        }
        if let Some(cr3) = origin.cr3 {
            write!(f, " cr3={cr3:#x}")?;
        }
        write!(f, "{}", self.named)?;
        if let Some(cpl) = origin.cpl {
            write!(f, " cpl={cpl}")?;
        }
        write!(f, " cpu={}", origin.vcpu)?;
        if let Some(qualification) = event.qualification {
            write!(f, " qualification={qualification:#x}")?;
        }
        if !event.instruction.is_empty() {
            write!(f, " instruction={}", Digits(&event.instruction))?;
        }
        let bytes = event.bytes.as_ref();
        if !bytes.is_empty() {
            write!(f, " data={}", Digits(&bytes[..bytes.len().min(DATA_BYTES)]))?;
        }
        if let Some(then) = then {
            write!(f, " then={then}")?;
        }
        for (condition, word) in
            [(event.during_delivery, " delivery"), (event.in_software, " software")]
        {
            if condition {
                f.write_str(word)?;
            }
        }
        if let When::Counter(counter) = event.when {
            write!(f, " tsc={counter:#x}")?;
        }
        if let Some(met) = self.met.filter(|met| *met > 1) {
            write!(f, " met={met}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use subpage::rules::RuleName;
    use subpage_linux::{Memory, RuntimeAddress, Slide, names};
    use subpage_trap::Verdict;

    use super::super::samples;
    use super::*;

    #[test]
    fn all_fields_in_one_line() {
        let event = samples::full();
        let name = RuleName::new("helper path").expect("a name");
        let line = Line {
            sequence: 12,
            event: &event,
            name: Some(&name),
            met: Some(1),
            named: Named::default(),
        };
        let line = line.to_string();
        assert_eq!(
            line,
            "event 12 denied rule=3 \"helper path\" gpa=0x8001fc length=8 at=0x800200 \
             gla=0xffff8000008001fc rip=0x201234 cr3=0x300000 cpl=3 cpu=2 qualification=0x5aa \
             instruction=488918 data=01020304050607f8 then=#GP delivery tsc=0x112233445566"
        );
    }

    /// A program's name cannot end its quotes, or the line.
    #[test]
    fn function_and_task_stand_behind_the_address_space() {
        const GS: u64 = 0xFFFF_8880_3E60_0000;
        struct Words;
        impl Memory for Words {
            fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
                let bytes: &[u8] = match address.as_u64() - GS {
                    0x100 | 0x104 => &7_u32.to_le_bytes(),
                    0x10 | 0x108 => &(GS + 0x100).to_le_bytes(),
                    0x110 => b"a\" then=no\n\\\0???",
                    _ => return false,
                };
                buffer.copy_from_slice(&bytes[..buffer.len()]);
                true
            }
        }
        let mut names = names::MAGIC.to_vec();
        names.resize(64, 0);
        for (at, number) in [(24, 1_u32), (28, 0), (32, 4), (36, 0x10), (40, 8), (56, 0x10)] {
            names[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let names = names::KernelNames::read(&names).expect("no function, but tasks");
        let task = names.tasks().and_then(|tasks| tasks.current(&Words, GS, Slide::ZERO));
        let event = samples::full();
        let named = Named { function: Some(("memcpy", 18)), task };
        let line = Line { sequence: 12, event: &event, name: None, met: None, named }.to_string();
        let told = " cr3=0x300000 function=memcpy+0x12 pid=7 comm=\"a\\x22 then=no\\x0a\\x5c\" \
                    task=0xffff88803e600100 cpl=3 ";
        assert!(line.contains(told), "{line}");
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let mut event = samples::sparse();
        let line = |event: &super::super::Event<'_>| {
            Line { sequence: 1, event, name: None, met: None, named: Named::default() }.to_string()
        };
        assert_eq!(line(&event), "event 1 logged rule=7 gpa=0x1000 at=0x1000 cpu=0 software");
        event.rule = None;
        event.in_software = false;
        event.verdict = Verdict::Stopped;
        assert_eq!(line(&event), "event 1 stopped map gpa=0x1000 at=0x1000 cpu=0");
        event.verdict = Verdict::Denied;
        assert!(line(&event).ends_with("cpu=0 then=skip"));
        let line = Line {
            sequence: 1,
            event: &event,
            name: None,
            met: Some(1000),
            named: Named::default(),
        };
        assert!(line.to_string().ends_with("cpu=0 then=skip met=1000"));
    }
}
