//! One machine of the VMM: what is guarded in it.

mod control;
mod guard;
mod inside;
mod judge;
mod report;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use subpage_emulate::PagingFeatures;
use subpage_guard::control::Server;

use crate::configuration::{Configuration, Devices};
use crate::say::{give_up, say};
pub(crate) use guard::{Core, SPACE};
pub(crate) use inside::is_inside;
use inside::{Held, Inside};
pub(crate) use judge::Writer;
pub(crate) use report::Publisher;

/// A machine.
pub(crate) struct Machine {
    /// Everything about its memory. Held for moments, and never while the VMM's code or a call of the
    /// kernel that may block runs.
    core: Mutex<Core>,
    /// Who hears of events.
    pub(crate) publisher: Arc<Publisher>,
    /// What was handed over.
    configuration: &'static Configuration,
    /// Rules have been put in force: a processor has entered the guest.
    started: AtomicBool,
    /// A rule has stopped the guest.
    stopped: AtomicBool,
    /// Some page may be closed. Processors look at it at each exit.
    guards: AtomicBool,
    /// Processors made.
    processors: AtomicU32,
    /// What page walks go by, once a processor was told.
    paging: OnceLock<PagingFeatures>,
    server: Mutex<Option<Server>>,
}

/// All machines of this process, for writes that name an address of the VMM only.
static MACHINES: RwLock<Vec<Arc<Machine>>> = RwLock::new(Vec::new());

/// Calls `each` for every machine until it gives something.
pub(crate) fn find<T>(each: impl Fn(&Arc<Machine>) -> Option<T>) -> Option<T> {
    MACHINES.read().expect("nothing panics with it").iter().find_map(each)
}

/// Whether there is a machine that the calls of this thread may concern: those of this library, made with
/// its lock held, do not.
pub(crate) fn any() -> bool {
    ANY.load(Ordering::Relaxed) && !is_inside()
}

static ANY: AtomicBool = AtomicBool::new(false);

/// Whether a machine has the socket that was handed over.
static SERVED: AtomicBool = AtomicBool::new(false);

/// Has clients get the events that wait for them when this process ends.
#[allow(unsafe_code)]
fn leave_in_order() {
    extern "C" fn at_exit() {
        if !any() {
            return;
        }
        let _: Option<()> = find(|machine| {
            machine.publisher.broadcast.close();
            // Waits for clients to have read, for a second at most.
            drop(machine.server.lock().ok().and_then(|mut server| server.take()));
            None
        });
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a function that returns.
        let _ = unsafe { libc::atexit(at_exit) };
    });
}

/// Has children of this process, made by `fork`, do without this library: their locks may be held by
/// threads that they do not have, and machines are not theirs.
#[allow(unsafe_code)]
pub(crate) fn leave_children_alone() {
    extern "C" fn in_child() {
        ANY.store(false, Ordering::SeqCst);
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function only stores to an atomic.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

impl Machine {
    /// A machine that the VMM has just made.
    pub(crate) fn new(configuration: &'static Configuration) -> Arc<Self> {
        let publisher = Arc::new(Publisher::default());
        let trusted = configuration.devices == Devices::Trusted;
        let machine = Arc::new(Self {
            core: Mutex::new(Core::new(trusted)),
            publisher,
            configuration,
            started: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            guards: AtomicBool::new(false),
            processors: AtomicU32::new(0),
            paging: OnceLock::new(),
            server: Mutex::new(None),
        });
        {
            let _inside = Inside::enter();
            MACHINES.write().expect("nothing panics with it").push(Arc::clone(&machine));
        }
        ANY.store(true, Ordering::SeqCst);
        machine
    }

    /// What is guarded.
    ///
    /// # Panics
    /// If a thread has panicked with it: what it guards may be half changed.
    pub(crate) fn core(&self) -> Held<'_> {
        Held::new(|| self.core.lock().expect("the guard is whole"))
    }

    /// Whether devices' writes are judged.
    pub(crate) fn judges_devices(&self) -> bool {
        self.configuration.devices == Devices::Judged
    }

    /// Whether some page may be closed.
    #[inline]
    pub(crate) fn guards(&self) -> bool {
        self.guards.load(Ordering::Acquire)
    }

    /// Whether a rule has stopped the guest.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// No processor enters the guest any more. Those that are in it stay there until their next exit.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// A processor is made; its number, in the order in which they are made.
    pub(crate) fn count_processor(self: &Arc<Self>) -> u32 {
        let number = self.processors.fetch_add(1, Ordering::SeqCst);
        if number == 0 {
            self.serve();
        }
        number
    }

    /// What page walks go by.
    pub(crate) fn paging(&self) -> PagingFeatures {
        *self.paging.get_or_init(crate::processor::host_paging)
    }

    /// A processor is told its features.
    pub(crate) fn set_paging(&self, paging: PagingFeatures) {
        let _ = self.paging.set(paging);
    }

    /// A processor is about to enter the guest: the first time, rules come into force. Whatever the VMM
    /// has loaded by then, it has loaded.
    #[inline]
    pub(crate) fn enter(&self) {
        if !self.started.load(Ordering::Acquire) {
            self.start();
        }
    }

    #[cold]
    fn start(&self) {
        let mut core = self.core();
        if self.started.load(Ordering::Acquire) {
            return;
        }
        if !self.configuration.rules.is_empty() {
            self.expect_traps();
        }
        for given in &self.configuration.rules {
            let rule = control::rule_of(&given.rule);
            let added = rule.and_then(|rule| {
                core.add_rule(&rule, !given.waits).map_err(|error| control::refusal(&error))
            });
            if let Err(refusal) = added {
                give_up(&format!(
                    "the rule {:?} cannot be put in force, and the guest has not been started: {}",
                    given.rule.name, refusal.error
                ));
            }
        }
        self.started.store(true, Ordering::Release);
    }

    /// Pages are about to be closed: processors look at every exit from now on.
    fn expect_traps(&self) {
        self.guards.store(true, Ordering::SeqCst);
    }

    /// Serves the control socket.
    fn serve(self: &Arc<Self>) {
        let handler = Arc::new(control::Handler(Arc::clone(self)));
        // Of the machines with processors: VMMs make others to ask what there is.
        let is_first = !SERVED.swap(true, Ordering::SeqCst);
        let path = self.configuration.socket.as_deref().filter(|_| is_first);
        let blocked = crate::device::block_signals();
        let server = match path {
            Some(path) => Server::listen(path, handler),
            None => Server::listen_somewhere(handler),
        };
        crate::device::unblock_signals(&blocked);
        match server {
            Ok(server) => {
                if !is_first {
                    say(&format!(
                        "a further machine of this process: subpage ctl {} ...",
                        server.path().display()
                    ));
                }
                if let Some(seen) = &self.configuration.seen {
                    // Who runs the VMM sees the socket, too, unless the VMM ends at once.
                    let _ = std::fs::write(seen, b"");
                }
                *self.server.lock().expect("nothing panics with it") = Some(server);
                leave_in_order();
            }
            Err(error) => give_up(&format!("no control socket, so nothing is started: {error}")),
        }
    }
}
