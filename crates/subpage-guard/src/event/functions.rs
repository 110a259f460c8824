//! Names of the guest's functions and source lines.

use std::fmt;
use std::ops::Range;

use subpage_trap::{Function, SourceLine};

/// The source lines of a guest's image.
pub trait Lines: fmt::Debug + Send + Sync {
    /// The line that the instruction at the linear address `rip` comes from, if known. Asked for each
    /// event while its processor waits.
    fn find(&self, rip: u64) -> Option<SourceLine>;
}

/// The functions of a guest's image, by which the instructions of events are named, and its source
/// lines.
#[derive(Debug, Default)]
pub struct Functions {
    /// Ascending by their first byte.
    named: Vec<(Range<u64>, String)>,
    /// Code as the image has it: the address of its first byte, and its bytes.
    code: Vec<(u64, Vec<u8>)>,
    lines: Option<Box<dyn Lines>>,
}

impl Functions {
    /// Functions with the linear addresses of their bytes, and the image's code with the linear
    /// address of each piece.
    pub fn new(mut named: Vec<(Range<u64>, String)>, code: Vec<(u64, Vec<u8>)>) -> Self {
        named.sort_unstable_by(|(one, name), (other, other_name)| {
            (one.start, one.end, name).cmp(&(other.start, other.end, other_name))
        });
        Self { named, code, lines: None }
    }

    /// The same with these source lines.
    #[must_use]
    pub fn with_lines(self, lines: Box<dyn Lines>) -> Self {
        Self { lines: Some(lines), ..self }
    }

    /// Whether nothing can be named.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty() || self.named.is_empty() && self.lines.is_none()
    }

    /// The function that holds the instruction at `rip`, and the source line that it comes from.
    ///
    /// Neither is told where the image has other bytes there than `instruction`: another program may
    /// run at the same addresses, and the guest may have moved or changed its code.
    pub(crate) fn find(
        &self,
        rip: u64,
        instruction: &[u8],
    ) -> (Option<Function>, Option<SourceLine>) {
        let is_ours = self.code.iter().any(|(first, bytes)| {
            let offset = rip.checked_sub(*first).and_then(|offset| usize::try_from(offset).ok());
            let there = offset.and_then(|offset| bytes.get(offset..));
            there.is_some_and(|there| there.starts_with(instruction))
        });
        if !is_ours || instruction.is_empty() {
            return (None, None);
        }
        let after = self.named.partition_point(|(range, _)| range.start <= rip);
        let function = self.named[..after].last().filter(|(range, _)| range.contains(&rip));
        let function = function
            .map(|(range, name)| Function { name: name.clone(), offset: rip - range.start });
        (function, self.lines.as_ref().and_then(|lines| lines.find(rip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction has the line of its address.
    #[derive(Debug)]
    struct ByAddress;

    impl Lines for ByAddress {
        fn find(&self, rip: u64) -> Option<SourceLine> {
            Some(SourceLine { file: "all.c".to_owned(), line: u32::try_from(rip).ok()? })
        }
    }

    #[test]
    fn a_line_is_told_where_the_bytes_are_those_of_the_image() {
        let code = vec![(0x1000, (0..0x10).collect())];
        let functions = Functions::new(Vec::new(), code);
        assert_eq!(functions.find(0x1004, &[4]), (None, None));
        let functions = functions.with_lines(Box::new(ByAddress));
        let line = |rip, bytes: &[u8]| functions.find(rip, bytes).1.map(|it| it.to_string());
        assert_eq!(line(0x1004, &[4]).as_deref(), Some("all.c:4100"));
        assert_eq!(line(0x1004, &[5]), None, "other bytes");
        assert_eq!(line(0x1004, &[]), None, "the instruction was not found");
        assert_eq!(line(0x2000, &[0]), None);
    }

    #[test]
    fn a_name_is_given_where_the_bytes_are_those_of_the_image() {
        let named = vec![
            (0x1008..0x1010, "second".to_owned()),
            (0x1000..0x1004, "first".to_owned()),
            (0x9000..0x9008, "outside of the code".to_owned()),
        ];
        let code = vec![(0x1000, (0..0x10).collect()), (u64::MAX - 1, vec![1, 2])];
        let functions = Functions::new(named, code);
        let find = |rip, bytes: &[u8]| functions.find(rip, bytes).0.map(|it| it.to_string());
        assert_eq!(find(0x1000, &[0, 1]).as_deref(), Some("first+0x0"));
        assert_eq!(find(0x1003, &[3]).as_deref(), Some("first+0x3"));
        assert_eq!(find(0x100a, &[10, 11, 12]).as_deref(), Some("second+0x2"));
        assert_eq!(find(0x1004, &[4]), None, "between two functions");
        assert_eq!(find(0x0fff, &[0]), None);
        assert_eq!(find(0x1000, &[0x90]), None, "other bytes");
        assert_eq!(find(0x100f, &[15, 16]), None, "more than the image has");
        assert_eq!(find(0x1000, &[]), None, "the instruction was not found");
        assert_eq!(find(0x9000, &[0]), None);
        assert_eq!(find(u64::MAX, &[2]), None);
        assert_eq!(Functions::default().find(0x1000, &[0]), (None, None));
    }
}
