//! The clients that are connected, and how they are sent away.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event::Subscription;

/// What a client's thread does.
#[derive(Debug)]
pub(super) enum Activity {
    /// It waits for a request, or reads or writes one.
    Talking,
    /// It has a request performed.
    Performing,
    /// It writes events.
    Watching(Arc<Subscription>),
}

#[derive(Debug)]
struct Client {
    stream: Arc<UnixStream>,
    activity: Activity,
}

#[derive(Debug, Default)]
struct Table {
    stopping: bool,
    next: u64,
    /// By age.
    clients: BTreeMap<u64, Client>,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Connections {
    table: Mutex<Table>,
    changed: Condvar,
}

/// A client's place among them. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place<'a> {
    connections: &'a Connections,
    number: u64,
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A thread that panicked leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all are to go.
    pub(super) fn stopping(&self) -> bool {
        self.table().stopping
    }

    /// A place for a client, if there are fewer than `max` and the server is not stopping. Of `max`
    /// clients the oldest that has nothing done for it makes room: connections that say nothing must
    /// not keep their owner out.
    pub(super) fn admit(&self, stream: &Arc<UnixStream>, max: usize) -> Option<Place<'_>> {
        let mut table = self.table();
        if table.stopping {
            return None;
        }
        if table.clients.len() >= max {
            let idle = |client: &Client| matches!(client.activity, Activity::Talking);
            let (&oldest, _) = table.clients.iter().find(|(_, client)| idle(client))?;
            let client = table.clients.remove(&oldest)?;
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        let number = table.next;
        table.next += 1;
        let client = Client { stream: Arc::clone(stream), activity: Activity::Talking };
        table.clients.insert(number, client);
        Some(Place { connections: self, number })
    }

    /// Waits for `time`, or until the server stops.
    pub(super) fn pause(&self, time: Duration) {
        let table = self.table();
        let waited = self.changed.wait_timeout_while(table, time, |table| !table.stopping);
        drop(waited);
    }

    /// Sends all clients away. A request in progress is finished and answered; a client that reads or
    /// watches ends at once; who is blocked, because its client does not read, ends after `grace`.
    pub(super) fn stop(&self, grace: Duration) {
        let mut table = self.table();
        table.stopping = true;
        self.changed.notify_all();
        for client in table.clients.values() {
            match &client.activity {
                Activity::Watching(subscription) => subscription.end(),
                // No more requests. An answer on its way still arrives.
                Activity::Talking | Activity::Performing => {
                    let _ = client.stream.shutdown(Shutdown::Read);
                }
            }
        }
        let waited =
            self.changed.wait_timeout_while(table, grace, |table| !table.clients.is_empty());
        let table = waited.unwrap_or_else(PoisonError::into_inner).0;
        for client in table.clients.values() {
            if !matches!(client.activity, Activity::Performing) {
                let _ = client.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Place<'_> {
    /// Says what the client's thread does from now on. False if the server is stopping, or the client
    /// had to make room: then the thread is to end, after the answer that it may still owe.
    pub(super) fn set(&self, activity: Activity) -> bool {
        let mut table = self.connections.table();
        let stopping = table.stopping;
        let Some(client) = table.clients.get_mut(&self.number) else { return false };
        client.activity = activity;
        !stopping
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let client = self.connections.table().clients.remove(&self.number);
        drop(client);
        self.connections.changed.notify_all();
    }
}
