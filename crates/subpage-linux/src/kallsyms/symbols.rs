//! What a symbol is, and where its bytes are.

use std::ops::Range;

use super::Kallsyms;
use crate::address::LinkAddress;

/// Where the bytes of a symbol are once the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In the kernel's image, for as long as it runs.
    Image,
    /// In the image for the start only (`__init_begin` to `__init_end`): freed then.
    Init,
    /// Each processor has a copy elsewhere (`__per_cpu_start` to `__per_cpu_end`).
    PerProcessor,
    /// Outside the image: a constant, or the mark at its end.
    Outside,
}

/// A symbol of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'k> {
    /// Of printable ASCII characters, at most [`super::MAX_NAME_BYTES`].
    pub name: &'k str,
    /// As `nm` prints it: `T` and `t` code, `D` and `d` data, `R` and `r` constants, `B` and `b` data that
    /// begins as zeros, `A` absolute, `V` and `W` weak; in lower case if it is of one file.
    pub kind: char,
    /// Before KASLR.
    pub address: LinkAddress,
    /// Bytes to the next symbol of another address, where that is in the same segment: the symbol itself
    /// may be shorter, by what aligns the next one and by what has no name.
    pub length: Option<u64>,
    /// Where the bytes are.
    pub placement: Placement,
}

/// Ranges that the table itself names.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    per_cpu: Range<u64>,
    init: Range<u64>,
    image: Range<u64>,
}

impl Bounds {
    pub(super) fn of(kallsyms: &Kallsyms) -> Self {
        let address = |name| Some(kallsyms.find(name)?.address.as_u64());
        let range = |start, end| address(start).zip(address(end)).map_or(0..0, |(s, e)| s..e);
        let first = kallsyms.segments.iter().map(|segment| segment.start).min().unwrap_or(0);
        let last = kallsyms.segments.iter().map(|segment| segment.end).max().unwrap_or(0);
        Self {
            per_cpu: range("__per_cpu_start", "__per_cpu_end"),
            init: range("__init_begin", "__init_end"),
            image: first..last,
        }
    }

    pub(super) fn placement(&self, address: u64) -> Placement {
        if self.per_cpu.contains(&address) {
            Placement::PerProcessor
        } else if !self.image.contains(&address) {
            Placement::Outside
        } else if self.init.contains(&address) {
            Placement::Init
        } else {
            Placement::Image
        }
    }
}
