//! `subpage ctl`: asks the process of a guest that runs on KVM, over its control socket.

mod dump;
mod heat;
mod list;
mod reply;
mod request;
mod watch;

pub(crate) use heat::cells;
pub(crate) use list::GuestLine;
pub use reply::write_text;
pub use request::request;

use std::io::{self, Write};
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use subpage::rules::Action;
use subpage_kvm::control::protocol::{Refusal, Request};
use subpage_kvm::control::{Client, ClientError};

use crate::command_line::{CtlArguments, CtlRequest};
use crate::failure::{Failure, Status};
use crate::terminal::Output;
use crate::terminal::style::QUIET;

/// Why there is no reply.
struct Unanswered {
    /// The guest's process said no.
    refusal: Option<Refusal>,
    failure: Failure,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self { refusal: None, failure }
    }
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<ClientError> for Unanswered {
    fn from(error: ClientError) -> Self {
        let failure = Failure::bad(&error);
        let refusal = match error {
            ClientError::Refused(refusal) => Some(refusal),
            _ => None,
        };
        Self { refusal, failure }
    }
}

/// A reply, or why there is none, in the form of the protocol: `docs/control.md`.
#[derive(Serialize)]
struct ReplyLine<T> {
    ok: bool,
    #[serde(flatten)]
    fields: T,
}

/// A failure that is none of the guest's process: its error has no code.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Failed<'a> {
    code: Option<()>,
    error: &'a str,
}

/// Runs the command.
///
/// With `--json`, a failure is an object on `out` as well, so that a reader need not look elsewhere.
pub fn run(arguments: &CtlArguments, out: &mut Output) -> Result<Status, Failure> {
    match ask(arguments, out) {
        Ok(()) => Ok(Status::Clean),
        Err(Unanswered { refusal, failure }) => {
            // The failure itself says more than that it cannot be written.
            let _ = match (refusal, failure.event()) {
                (Some(fields), _) if arguments.json => {
                    write_answer(out, &ReplyLine { ok: false, fields })
                }
                (None, Some(event)) if arguments.json => {
                    let fields = Failed { code: None, error: &event.message };
                    write_answer(out, &ReplyLine { ok: false, fields })
                }
                _ => Ok(()),
            };
            Err(failure)
        }
    }
}

/// Writes every event until the guest ends.
pub(crate) fn watch_all(client: Client, json: bool, mut out: Output) {
    let filter = watch::Filter { rule: None, action: None, count: None };
    // A guest that ends takes its socket along; there is nobody to tell anything else.
    let _ = watch::run(client, json, &filter, &mut out);
    let _ = out.flush();
}

fn ask(arguments: &CtlArguments, out: &mut Output) -> Result<(), Unanswered> {
    if arguments.socket == Path::new("list") && arguments.request.is_some() {
        return Err(Failure::Input(
            "`ctl list` takes no request: it lists the running guests, and `ctl SOCKET show` asks one of \
             them (a socket of the name `list` is `./list`)"
                .to_owned(),
        )
        .into());
    }
    let Some(asked) = &arguments.request else {
        if arguments.socket == Path::new("list") {
            return list::run(arguments.json, arguments.timeout, out);
        }
        let socket = arguments.socket.display();
        return Err(Failure::Input(format!(
            "what is the guest at {socket} to be asked? for example `subpage ctl {socket} show`; \
             `subpage ctl --help` lists the requests"
        ))
        .into());
    };
    let request = request(asked, arguments.symbols.as_deref())?;
    let mut client = Client::connect(&arguments.socket, arguments.patience())?;
    if let CtlRequest::Watch { rule, action, count } = asked {
        let action = action.map(|action| Action::from(action).word());
        let filter = watch::Filter { rule: rule.as_deref(), action, count: *count };
        if !arguments.json {
            watch::say_if_unknown(&mut client, &filter, out)?;
        }
        return watch::run(client, arguments.json, &filter, out);
    }
    if let (CtlRequest::Dump { file, .. }, Request::Read { start, length }) = (asked, &request) {
        return dump::run(&mut client, (*start, *length), file, arguments.json, out);
    }
    let reply = client.request(&request)?;
    if arguments.json {
        write_answer(out, &ReplyLine { ok: true, fields: &reply })?;
    } else {
        write_text(out, &request, &reply)?;
        if let Some(hint) = request::page_hint(asked) {
            writeln!(out, "{QUIET}{hint}{QUIET:#}")?;
        }
    }
    Ok(())
}

fn write_answer(out: &mut Output, answer: &ReplyLine<impl Serialize>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, answer)?;
    out.write_all(b"\n")
}
