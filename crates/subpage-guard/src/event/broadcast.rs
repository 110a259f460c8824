//! Events to any number of subscribers, none of which can hold up the guest or another one.
//!
//! Each subscriber has a bounded queue. A slow subscriber loses the newest events, and is told how
//! many at the place in the sequence where they are missing. A broadcast channel such as tokio's
//! counts losses too, but drops the oldest events and needs an asynchronous runtime to wait with a
//! time limit; `std`'s mutex and condition variable do without.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subpage_trap::Record;

use super::Arming;

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// The next event.
    Event(Arc<Record>),
    /// Rules came into force. Never lost: a rule does so once.
    Armed(Arc<Arming>),
    /// So many events are missing here, because the subscriber did not keep up. At least 1.
    Dropped(u64),
    /// No event will come any more.
    Closed,
}

/// What waits for its subscriber.
#[derive(Debug)]
struct Waiting {
    /// Events lost between the one before and this one.
    missed: u64,
    what: Published,
}

#[derive(Debug, Clone)]
enum Published {
    Event(Arc<Record>),
    Armed(Arc<Arming>),
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Events lost since the last one in `waiting`.
    missed: u64,
    /// All events lost so far.
    dropped: u64,
    closed: bool,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Subscribers {
    queues: Vec<Arc<Queue>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    subscribers: Mutex<Subscribers>,
    dropped: AtomicU64,
}

/// Sends each published event to every subscriber.
///
/// Dropping it closes it.
#[derive(Debug, Default)]
pub struct Broadcast {
    shared: Arc<Shared>,
}

/// One subscriber's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

/// The guard, also if a thread that held it panicked: every state below is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broadcast {
    /// No subscriber yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the event into every subscriber's queue, or counts it as lost where a queue is full.
    ///
    /// Waits for no subscriber: the locks are only ever held to move one pointer. All subscribers get
    /// events in the same order, that of these calls; who numbers events and wants them to arrive in
    /// the order of their numbers publishes under the lock that numbers them.
    #[allow(clippy::needless_pass_by_value)] // The publisher is done with the event.
    pub fn publish(&self, event: Arc<Record>) {
        let subscribers = lock(&self.shared.subscribers);
        if subscribers.closed {
            return;
        }
        for queue in &subscribers.queues {
            if !queue.push(&event) {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Puts an arming into every subscriber's queue, also where that is full: rules arm once each, so
    /// there are few.
    pub fn publish_arming(&self, arming: &Arc<Arming>) {
        for queue in &lock(&self.shared.subscribers).queues {
            queue.put(&mut lock(&queue.state), Published::Armed(Arc::clone(arming)));
        }
    }

    /// A new subscriber of every event from now on, of which at most `capacity` wait (at least 1).
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        let mut subscribers = lock(&self.shared.subscribers);
        let queue = Arc::new(Queue {
            state: Mutex::new(State { closed: subscribers.closed, ..State::default() }),
            ready: Condvar::new(),
            capacity: capacity.max(1),
        });
        if !subscribers.closed {
            subscribers.queues.push(Arc::clone(&queue));
        }
        Subscription { shared: Arc::clone(&self.shared), queue }
    }

    /// No event comes any more: each subscriber gets what waits for it, then [`Received::Closed`].
    pub fn close(&self) {
        let mut subscribers = lock(&self.shared.subscribers);
        subscribers.closed = true;
        for queue in subscribers.queues.drain(..) {
            lock(&queue.state).closed = true;
            queue.ready.notify_all();
        }
    }

    /// Events lost so far, summed over all subscribers, those included that are gone.
    pub fn dropped_total(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        lock(&self.shared.subscribers).queues.len()
    }
}

impl Drop for Broadcast {
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    /// Whether there was room.
    fn push(&self, event: &Arc<Record>) -> bool {
        let mut state = lock(&self.state);
        if state.waiting.len() >= self.capacity {
            state.missed = state.missed.saturating_add(1);
            state.dropped = state.dropped.saturating_add(1);
            return false;
        }
        self.put(&mut state, Published::Event(Arc::clone(event)));
        true
    }

    fn put(&self, state: &mut State, what: Published) {
        let missed = std::mem::take(&mut state.missed);
        state.waiting.push_back(Waiting { missed, what });
        self.ready.notify_one();
    }
}

impl State {
    fn take(&mut self) -> Option<Received> {
        let missed = match self.waiting.front_mut() {
            Some(first) => &mut first.missed,
            None => &mut self.missed,
        };
        match std::mem::take(missed) {
            0 => match self.waiting.pop_front() {
                Some(Waiting { what: Published::Event(event), .. }) => Some(Received::Event(event)),
                Some(Waiting { what: Published::Armed(arming), .. }) => {
                    Some(Received::Armed(arming))
                }
                None => self.closed.then_some(Received::Closed),
            },
            lost => Some(Received::Dropped(lost)),
        }
    }
}

impl Subscription {
    /// What comes next, after at most `timeout` (`None`: without limit). `None` if nothing came.
    pub fn next(&self, timeout: Option<Duration>) -> Option<Received> {
        // A time that cannot be expressed is forever.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.queue.state);
        loop {
            if let Some(delivery) = state.take() {
                return Some(delivery);
            }
            state = match deadline {
                None => self.queue.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.queue.ready.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Ends the subscription: what waits is forgotten, and every [`next`](Self::next), also one in
    /// another thread that waits just now, gives [`Received::Closed`].
    pub fn end(&self) {
        let mut subscribers = lock(&self.shared.subscribers);
        subscribers.queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        drop(subscribers);
        let mut state = lock(&self.queue.state);
        state.waiting.clear();
        state.missed = 0;
        state.closed = true;
        drop(state);
        self.queue.ready.notify_all();
    }

    /// Events that this subscriber lost so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.queue.state).dropped
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread;
    use std::time::Duration;

    use subpage_trap::When;

    use super::super::tests::record;
    use super::super::{ArmedBy, Arming};
    use super::{Broadcast, Received, Subscription};

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    fn publish(broadcast: &Broadcast, numbers: impl IntoIterator<Item = u64>) {
        for seq in numbers {
            broadcast.publish(Arc::new(record(seq)));
        }
    }

    /// Everything that waits: the numbers of events, 0 for an arming, and `-n` for n lost ones.
    fn waiting(subscription: &Subscription) -> Vec<i64> {
        let mut all = Vec::new();
        loop {
            match subscription.next(AT_ONCE) {
                Some(Received::Event(event)) => all.push(i64::try_from(event.seq).expect("small")),
                Some(Received::Dropped(lost)) => all.push(-i64::try_from(lost).expect("small")),
                Some(Received::Armed(_)) => all.push(0),
                Some(Received::Closed) | None => return all,
            }
        }
    }

    #[test]
    fn everybody_gets_everything_in_order() {
        let broadcast = Broadcast::new();
        publish(&broadcast, [1]);
        let first = broadcast.subscribe(10);
        publish(&broadcast, [2]);
        let second = broadcast.subscribe(10);
        publish(&broadcast, [3, 4]);
        assert_eq!(broadcast.subscribers(), 2);
        assert_eq!(waiting(&first), [2, 3, 4]);
        assert_eq!(waiting(&second), [3, 4]);
        assert_eq!(first.next(AT_ONCE), None);
        assert_eq!(broadcast.dropped_total(), 0);
    }

    #[test]
    fn losses_are_told_where_they_happened() {
        let broadcast = Broadcast::new();
        let slow = broadcast.subscribe(2);
        let quick = broadcast.subscribe(100);
        publish(&broadcast, 1..=5);
        assert!(matches!(slow.next(AT_ONCE), Some(Received::Event(event)) if event.seq == 1));
        publish(&broadcast, [6, 7]);
        assert_eq!(waiting(&slow), [2, -3, 6, -1]);
        publish(&broadcast, [8]);
        assert_eq!(waiting(&slow), [8]);
        assert_eq!(waiting(&quick), (1..=8).collect::<Vec<_>>());
        assert_eq!(slow.dropped(), 4);
        assert_eq!(quick.dropped(), 0);
        drop(slow);
        assert_eq!(broadcast.dropped_total(), 4);
        assert_eq!(broadcast.subscribers(), 1);
    }

    #[test]
    fn an_arming_stands_in_its_place_and_is_never_lost() {
        let broadcast = Broadcast::new();
        let slow = broadcast.subscribe(1);
        let arming = Arming { rules: Vec::new(), by: ArmedBy::Command, when: When::Unknown };
        publish(&broadcast, 1..=3);
        broadcast.publish_arming(&Arc::new(arming));
        publish(&broadcast, [4]);
        assert_eq!(waiting(&slow), [1, -2, 0, -1]);
        assert_eq!(slow.dropped(), 3);
        broadcast.close();
        assert!(waiting(&slow).is_empty());
    }

    #[test]
    fn a_queue_of_nothing_holds_one() {
        let broadcast = Broadcast::new();
        let subscription = broadcast.subscribe(0);
        publish(&broadcast, [1, 2]);
        assert_eq!(waiting(&subscription), [1, -1]);
    }

    #[test]
    fn closing_gives_the_rest_first() {
        let broadcast = Broadcast::new();
        let subscription = broadcast.subscribe(1);
        publish(&broadcast, [1, 2]);
        broadcast.close();
        publish(&broadcast, [3]);
        assert_eq!(waiting(&subscription), [1, -1]);
        assert_eq!(subscription.next(None), Some(Received::Closed));
        assert_eq!(subscription.next(None), Some(Received::Closed));
        assert_eq!(broadcast.subscribe(1).next(None), Some(Received::Closed));
        assert_eq!(broadcast.subscribers(), 0);
    }

    #[test]
    fn ending_forgets_the_rest() {
        let broadcast = Broadcast::new();
        let subscription = broadcast.subscribe(1);
        publish(&broadcast, [1, 2]);
        subscription.end();
        assert_eq!(subscription.next(None), Some(Received::Closed));
        publish(&broadcast, [3]);
        assert_eq!(subscription.next(None), Some(Received::Closed));
        assert_eq!(broadcast.subscribers(), 0);
    }

    #[test]
    fn who_waits_is_woken() {
        let broadcast = Broadcast::new();
        let subscription = broadcast.subscribe(4);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let first = subscription.next(None);
                (first, subscription.next(Some(Duration::MAX)))
            });
            publish(&broadcast, [1]);
            subscription_is_empty(&subscription);
            broadcast.close();
            let (first, second) = waiter.join().expect("the waiter does not panic");
            assert!(matches!(first, Some(Received::Event(event)) if event.seq == 1));
            assert_eq!(second, Some(Received::Closed));
        });
        let other = Broadcast::new();
        let ended = other.subscribe(1);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| ended.next(None));
            ended.end();
            assert_eq!(waiter.join().expect("no panic"), Some(Received::Closed));
        });
        let ended = other.subscribe(1);
        drop(other);
        assert_eq!(ended.next(None), Some(Received::Closed));
    }

    fn subscription_is_empty(subscription: &Subscription) {
        while !super::lock(&subscription.queue.state).waiting.is_empty() {
            thread::yield_now();
        }
    }

    /// Several publishers, one subscriber that reads and one that never does.
    #[test]
    fn nothing_is_lost_uncounted_between_threads() {
        const EACH: u64 = 5_000;
        let broadcast = Broadcast::new();
        let reader = broadcast.subscribe(16);
        let dead = broadcast.subscribe(3);
        let start = Barrier::new(3);
        let (seen, lost) = thread::scope(|scope| {
            let counter = scope.spawn(|| {
                let (mut seen, mut lost) = (0_u64, 0_u64);
                loop {
                    match reader.next(None) {
                        Some(Received::Event(_)) => seen += 1,
                        Some(Received::Dropped(some)) => lost += some,
                        Some(Received::Armed(_)) => panic!("nothing was armed"),
                        Some(Received::Closed) | None => return (seen, lost),
                    }
                }
            });
            let publishers = [0, 1, 2].map(|publisher| {
                let (start, broadcast) = (&start, &broadcast);
                scope.spawn(move || {
                    start.wait();
                    publish(broadcast, publisher * EACH..(publisher + 1) * EACH);
                })
            });
            for publisher in publishers {
                publisher.join().expect("publishers do not panic");
            }
            broadcast.close();
            counter.join().expect("the reader does not panic")
        });
        assert_eq!(seen + lost, 3 * EACH);
        assert_eq!(reader.dropped(), lost);
        assert_eq!(dead.dropped(), 3 * EACH - 3);
        assert_eq!(broadcast.dropped_total(), lost + dead.dropped());
    }
}
