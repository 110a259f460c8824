//! What the guest is asked to do.

/// A request of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Name all tests.
    List,
    /// Run the test of this name.
    Run(&'a str),
    /// Measure.
    Bench,
}

/// The first request among the words of `text`; words that are none belong to others.
pub fn parse(text: &str) -> Option<Request<'_>> {
    text.split_ascii_whitespace().find_map(|word| match word {
        "list" => Some(Request::List),
        "bench" => Some(Request::Bench),
        _ => word.strip_prefix("run=").filter(|name| !name.is_empty()).map(Request::Run),
    })
}

#[cfg(test)]
mod tests {
    use super::{Request, parse};

    #[test]
    fn words_are_found_wherever_they_stand() {
        assert_eq!(parse("list"), Some(Request::List));
        assert_eq!(parse("  quiet run=kvm_selftest list"), Some(Request::Run("kvm_selftest")));
        assert_eq!(parse("x\tbench"), Some(Request::Bench));
        assert_eq!(parse("run= listing benches"), None);
        assert_eq!(parse(""), None);
    }
}
