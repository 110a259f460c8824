//! Names of the guest's functions.

use std::ops::Range;

use subpage_trap::Function;

/// The functions of a guest's image, by which the instructions of events are named.
#[derive(Debug, Default)]
pub struct Functions {
    /// Ascending by their first byte.
    named: Vec<(Range<u64>, String)>,
    /// Code as the image has it: the address of its first byte, and its bytes.
    code: Vec<(u64, Vec<u8>)>,
}

impl Functions {
    /// Functions with the linear addresses of their bytes, and the image's code with the linear
    /// address of each piece.
    pub fn new(mut named: Vec<(Range<u64>, String)>, code: Vec<(u64, Vec<u8>)>) -> Self {
        named.sort_unstable_by(|(one, name), (other, other_name)| {
            (one.start, one.end, name).cmp(&(other.start, other.end, other_name))
        });
        Self { named, code }
    }

    /// The function that holds the instruction at `rip`.
    ///
    /// `None` where the image has other bytes there than `instruction`: another program may run at
    /// the same addresses, and the guest may have moved or changed its code.
    pub(crate) fn find(&self, rip: u64, instruction: &[u8]) -> Option<Function> {
        let is_ours = self.code.iter().any(|(first, bytes)| {
            let offset = rip.checked_sub(*first).and_then(|offset| usize::try_from(offset).ok());
            let there = offset.and_then(|offset| bytes.get(offset..));
            there.is_some_and(|there| there.starts_with(instruction))
        });
        let last = self.named.partition_point(|(range, _)| range.start <= rip).checked_sub(1)?;
        let (range, name) = &self.named[last];
        (is_ours && !instruction.is_empty() && range.contains(&rip))
            .then(|| Function { name: name.clone(), offset: rip - range.start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_where_the_bytes_are_those_of_the_image() {
        let named = vec![
            (0x1008..0x1010, "second".to_owned()),
            (0x1000..0x1004, "first".to_owned()),
            (0x9000..0x9008, "outside of the code".to_owned()),
        ];
        let code = vec![(0x1000, (0..0x10).collect()), (u64::MAX - 1, vec![1, 2])];
        let functions = Functions::new(named, code);
        let find = |rip, bytes: &[u8]| functions.find(rip, bytes).map(|it| it.to_string());
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
        assert_eq!(Functions::default().find(0x1000, &[0]), None);
    }
}
