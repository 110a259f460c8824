//! Requests over the control socket, and what the run's end has to know of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use subpage_kvm::control::RequestHandler;
use subpage_kvm::control::protocol::{NewRule, Refusal, Reply, Request};
use subpage_kvm::event::Subscription;
use subpage_kvm::vm::VmRequestHandler;

use crate::new_file::same_file;

/// Passes requests on to the machine and remembers some of them.
pub(super) struct RequestLog {
    handler: VmRequestHandler,
    added: Mutex<Vec<(u64, NewRule)>>,
    stop: AtomicBool,
    /// Files that no saved guest may replace.
    kept: Vec<PathBuf>,
}

impl RequestLog {
    /// `kept`: files that no saved guest may replace.
    pub(super) fn new(handler: VmRequestHandler, kept: Vec<PathBuf>) -> Self {
        Self { handler, added: Mutex::default(), stop: AtomicBool::new(false), kept }
    }

    /// The rules that were added so far, removed ones included, with their numbers.
    pub(super) fn added(&self) -> Vec<(u64, NewRule)> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether somebody has asked for the end.
    pub(super) fn stop_is_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl RequestHandler for RequestLog {
    fn perform(&self, request: Request) -> Result<Reply, Refusal> {
        let new = if let Request::Add(new) = &request { Some(new.clone()) } else { None };
        let stop = request == Request::Stop;
        if let Request::Save { path } = &request {
            let kept = self.kept.iter().map(PathBuf::as_path);
            if let Some(file) = same_file(Path::new(path), kept) {
                let error = format!(
                    "{path} is the same file as {}, which the guest was started with: name another",
                    file.display()
                );
                return Err(Refusal { code: "EINVAL".to_owned(), error });
            }
        }
        let reply = self.handler.perform(request)?;
        if let (Some(new), Reply::Rule { rule }) = (new, &reply) {
            self.added.lock().unwrap_or_else(PoisonError::into_inner).push((*rule, new));
        }
        if stop {
            self.stop.store(true, Ordering::SeqCst);
        }
        Ok(reply)
    }

    fn subscribe(&self) -> Subscription {
        self.handler.subscribe()
    }
}
