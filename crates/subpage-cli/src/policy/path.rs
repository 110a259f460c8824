//! Fields and indices behind a name: `.field` and `[3]`.

use super::number::parse_number;

/// Most fields and indices behind a name.
pub(super) const MAX_STEPS: usize = 64;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'t> {
    /// `.field`
    Field(&'t str),
    /// `[index]`
    Index(u64),
}

/// The steps of a path, which begins with `.` or `[`; none if it is not one.
pub(super) fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    let mut rest = path.trim();
    while !rest.is_empty() {
        if steps.len() == MAX_STEPS {
            return None;
        }
        let step = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let field = after[..end].trim();
            rest = &after[end..];
            let is_name = !field.is_empty() && !field.contains([']', '+', ' ']);
            Step::Field(Some(field).filter(|_| is_name)?)
        } else {
            let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
            rest = after.trim_start();
            Step::Index(parse_number(index.trim()).and_then(|it| u64::try_from(it).ok())?)
        };
        steps.push(step);
    }
    Some(steps)
}

/// Every way to take a text apart into a name and a path behind it, the longest name first.
pub(super) fn splits(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = text.rmatch_indices(['.', '[']).map(|(at, _)| at);
    ends.take(MAX_STEPS).map(|at| (text[..at].trim_end(), &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_fields_and_indices() {
        use Step::{Field, Index};
        assert_eq!(
            steps(".a[0x10].b [2][3]").as_deref(),
            Some(&[Field("a"), Index(16), Field("b"), Index(2), Index(3)][..])
        );
        for wrong in
            ["a", ".", ".a.", "..a", "[", "[]", "[1", "[x]", "[-1]", "[1]x", ".a]", "[1].", ".a b"]
        {
            assert_eq!(steps(wrong), None, "{wrong}");
        }
        assert_eq!(steps(&"[0]".repeat(MAX_STEPS)).map(|it| it.len()), Some(MAX_STEPS));
        assert_eq!(steps(&"[0]".repeat(MAX_STEPS + 1)), None);
    }

    #[test]
    fn the_longest_name_comes_first() {
        let all: Vec<_> = splits("x.0[1].b").collect();
        assert_eq!(all, [("x.0[1]", ".b"), ("x.0", "[1].b"), ("x", ".0[1].b")]);
        assert_eq!(splits("x").count(), 0);
        assert_eq!(splits(&".".repeat(1000)).count(), MAX_STEPS);
    }
}
