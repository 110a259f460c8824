//! How long handling a trapped write takes, and the clock that tells.
//!
//! Counts are plain atomic numbers beside each other: at an exit the processor's caches and
//! translations are the guest's, so what costs is how many places are touched.
//!
//! Unsafe because the time-stamp counter is read.
#![allow(unsafe_code)]

use std::fs;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[cfg(feature = "metrics")]
use super::encode::Text;

/// Upper bounds of the buckets in nanoseconds: 1 µs to 10 ms.
const BOUNDS: [u64; 13] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];

/// Times, by bucket, and their sum.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The last one has no upper bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Times {
    pub(super) fn observe(&self, nanoseconds: u64) {
        let bucket = BOUNDS.partition_point(|bound| nanoseconds > *bound);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many were observed.
    #[cfg(feature = "metrics")]
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Writes all of it, in seconds.
    #[cfg(feature = "metrics")]
    pub(super) fn write(&self, text: &mut Text, name: &str, help: &str) {
        text.family(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        for (number, here) in counts.into_iter().enumerate() {
            count += here;
            let bound = BOUNDS.get(number).map_or("+Inf".to_owned(), |bound| seconds(*bound));
            text.labelled(&bucket, ("le", &bound), count);
        }
        let sum = seconds(self.nanoseconds.load(Ordering::Relaxed));
        text.sample(&format!("{name}_sum"), sum);
        text.sample(&format!("{name}_count"), count);
    }
}

/// Nanoseconds as a number of seconds.
#[cfg(feature = "metrics")]
#[allow(clippy::cast_precision_loss, reason = "the format's numbers are such; exact up to 2^53")]
fn seconds(nanoseconds: u64) -> String {
    (nanoseconds as f64 / 1e9).to_string()
}

/// A clock for short times.
///
/// Where the kernel's clock is the time-stamp counter, this is the same counter without the kernel's
/// pages around it: right after an exit those are in no cache, and asking the kernel for the time
/// would take longer than some of what is timed.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The time-stamp counter.
    Counter(TickLength),
    /// The kernel's.
    Kernel,
}

/// How long a tick of the time-stamp counter is, in nanoseconds of which each has 2^32 parts.
#[derive(Debug, Clone, Copy)]
pub struct TickLength(u64);

impl TickLength {
    const fn of_khz(khz: NonZeroU32) -> Self {
        Self((1_000_000 << 32) / khz.get() as u64)
    }

    fn nanoseconds(self, ticks: u64) -> u64 {
        let parts = u128::from(ticks) * u128::from(self.0);
        u64::try_from(parts >> 32).unwrap_or(u64::MAX)
    }
}

/// A reading of a [`Clock`].
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// Of the time-stamp counter.
    Counter(u64),
    /// Of the kernel's clock.
    Kernel(Instant),
}

impl Clock {
    /// The best one there is. `khz` is the frequency of the time-stamp counter, if KVM knows it.
    pub fn new(khz: Option<u32>) -> Self {
        const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let counts = fs::read_to_string(SOURCE).is_ok_and(|source| source.trim() == "tsc");
        match khz.and_then(NonZeroU32::new) {
            // The kernel vouches for it: constant, and the same on all processors.
            Some(khz) if counts => Self::Counter(TickLength::of_khz(khz)),
            _ => Self::Kernel,
        }
    }

    /// A reading.
    pub fn now(self) -> Moment {
        match self {
            // SAFETY: reads a counter. Linux does not forbid it unless prctl has asked for that,
            // and then the kernel's clock would not work in this process either.
            Self::Counter(_) => Moment::Counter(unsafe { core::arch::x86_64::_rdtsc() }),
            Self::Kernel => Moment::Kernel(Instant::now()),
        }
    }

    /// Nanoseconds since an earlier reading of this clock.
    pub fn since(self, earlier: Moment) -> u64 {
        match (self, earlier, self.now()) {
            (Self::Counter(tick), Moment::Counter(earlier), Moment::Counter(now)) => {
                tick.nanoseconds(now.saturating_sub(earlier))
            }
            (_, Moment::Kernel(earlier), Moment::Kernel(now)) => {
                u64::try_from(now.duration_since(earlier).as_nanos()).unwrap_or(u64::MAX)
            }
            _ => unreachable!("a clock keeps its kind"),
        }
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_that_ends_with_it() {
        let times = Times::default();
        for nanoseconds in [0, 1_000, 1_001, 10_000_000, 10_000_001] {
            times.observe(nanoseconds);
        }
        let mut text = Text::default();
        times.write(&mut text, "times", "Times.");
        let lines = text.lines().split_off(2);
        let counts: Vec<_> =
            lines[..14].iter().map(|line| line.rsplit_once(' ').expect("a sample").1).collect();
        assert_eq!(counts, ["2", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "4", "5"]);
        assert!(lines[12].starts_with("times_bucket{le=\"0.01\"} "), "{}", lines[12]);
        assert_eq!(lines[14..], ["times_sum 0.020002002", "times_count 5"]);
        assert_eq!(times.count(), 5);
    }

    #[test]
    fn no_time_is_too_long() {
        let times = Times::default();
        times.observe(u64::MAX);
        assert_eq!(times.count(), 1);
    }

    /// To a thousandth, up to a day, and beyond that without wrapping.
    #[test]
    fn ticks_are_nanoseconds() {
        for khz in [1, 999_999, 1_000_000, 2_445_428, u32::MAX] {
            let tick = TickLength::of_khz(NonZeroU32::new(khz).expect("not 0"));
            for ticks in [0, 1, 1000, 1 << 32, u64::from(khz) * 1000 * 86_400] {
                let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
                let told = u128::from(tick.nanoseconds(ticks));
                assert!(
                    told <= exact && exact - told <= 1 + exact / 1_000,
                    "{khz}: {told}, {exact}"
                );
            }
        }
        let slowest = TickLength::of_khz(NonZeroU32::MIN);
        assert_eq!(slowest.nanoseconds(u64::MAX), u64::MAX);
    }

    /// Both clocks see a sleep, to which the kernel adds what it wants.
    #[test]
    fn clocks_run_forward() {
        for clock in [Clock::Kernel, Clock::new(None)] {
            let before = clock.now();
            thread::sleep(Duration::from_millis(2));
            assert!(clock.since(before) >= 2_000_000, "{clock:?}");
        }
        // 2 GHz: whatever the counter's true frequency, time does not run backwards.
        let khz = NonZeroU32::new(2_000_000).expect("not 0");
        let clock = Clock::Counter(TickLength::of_khz(khz));
        let before = clock.now();
        thread::sleep(Duration::from_millis(2));
        assert!(clock.since(before) > 0);
    }
}
