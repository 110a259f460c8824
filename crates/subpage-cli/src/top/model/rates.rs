//! Counts that only grow, as rates.

/// A count and how fast it grows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Count {
    /// Since the guest's start.
    pub(crate) total: u64,
    /// In a second, over the last interval; none before there are two looks.
    pub(crate) rate: Option<f64>,
}

impl Count {
    /// The first look.
    pub(crate) const fn first(total: u64) -> Self {
        Self { total, rate: None }
    }

    /// The next look, after so many seconds. What has become fewer, as no honest count does, has not
    /// grown.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(crate) fn next(self, total: u64, seconds: f64) -> Self {
        let rate = total.saturating_sub(self.total) as f64 / seconds;
        Self { total, rate: rate.is_finite().then_some(rate) }
    }

    /// The rate as a count, rounded up: what happens at all is not nothing.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    pub(crate) fn rate_class(self) -> u64 {
        self.rate.map_or(0, |rate| rate.ceil() as u64)
    }
}

/// Orders by rate and then by total, the highest first.
pub(crate) fn hottest_first(a: Count, b: Count) -> std::cmp::Ordering {
    let rate = |count: Count| count.rate.unwrap_or_default();
    rate(b).total_cmp(&rate(a)).then(b.total.cmp(&a.total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_difference_over_the_time() {
        let count = Count::first(10);
        assert_eq!((count.rate, count.rate_class()), (None, 0));
        assert_eq!(count.next(20, 2.0), Count { total: 20, rate: Some(5.0) });
        assert_eq!(count.next(11, 4.0).rate_class(), 1);
        assert_eq!(count.next(0, 1.0).rate, Some(0.0), "a hostile server counts backwards");
        assert_eq!(count.next(20, 0.0).rate, None);
        assert_eq!(count.next(u64::MAX, 1e-9).rate_class(), u64::MAX);
    }
}
