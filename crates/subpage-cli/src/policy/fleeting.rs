//! Parts of a kernel's image that are not where a list of symbols says once it runs.

use super::NamedRange;

pub(super) const PER_PROCESSOR: &str = "it is per-processor data (__per_cpu_start to \
    __per_cpu_end): each processor has a copy elsewhere, and the one in the image is freed after the \
    start; give the `range` of the copy that you mean";

pub(super) const INIT: &str = "it is for the kernel's start only (__init_begin to __init_end): its \
    memory is freed and holds other data then; if you mean it all the same, give its `range`";

/// What is in the image for the start only. The list names the bounds.
#[derive(Debug, Default)]
pub(super) struct Fleeting {
    per_cpu: Bounds,
    init: Bounds,
}

#[derive(Debug, Default)]
struct Bounds {
    start: Option<u64>,
    end: Option<u64>,
}

impl Bounds {
    fn hold(&self, value: u64) -> bool {
        matches!((self.start, self.end), (Some(start), Some(end)) if (start..end).contains(&value))
    }
}

impl Fleeting {
    /// Looks whether a symbol is one of the bounds.
    pub(super) fn note(&mut self, name: &[u8], value: u64) {
        let bound = match name {
            b"__per_cpu_start" => &mut self.per_cpu.start,
            b"__per_cpu_end" => &mut self.per_cpu.end,
            b"__init_begin" => &mut self.init.start,
            b"__init_end" => &mut self.init.end,
            _ => return,
        };
        bound.get_or_insert(value);
    }

    /// Moves the names without a lasting place from `ranges` to `unplaced`; `value` gives the symbol's
    /// own value.
    pub(super) fn leave_out(
        &self,
        ranges: &mut Vec<NamedRange>,
        unplaced: &mut Vec<(String, &'static str)>,
        value: impl Fn(&NamedRange) -> u64,
    ) {
        ranges.retain_mut(|range| {
            let Some(reason) = self.reason(value(range)) else { return true };
            unplaced.push((std::mem::take(&mut range.name), reason));
            false
        });
    }

    /// Why the symbol with this value has no lasting place.
    pub(super) fn reason(&self, value: u64) -> Option<&'static str> {
        if self.per_cpu.hold(value) {
            return Some(PER_PROCESSOR);
        }
        self.init.hold(value).then_some(INIT)
    }
}
