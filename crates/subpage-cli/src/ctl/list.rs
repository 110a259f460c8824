//! The running guests of this user.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use subpage_kvm::control::protocol::{Reply, Request, Shown};
use subpage_kvm::control::{Client, ClientError, default_sockets};

use super::Unanswered;
use crate::events::VERSION;
use crate::failure::Failure;
use crate::terminal::style::{DENIED, HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, Output, bytes, grouped, printable};

/// How long a guest may take to answer if nobody says.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most guests that are asked at the same time.
const AT_ONCE: usize = 32;

/// A running guest.
struct Guest {
    socket: String,
    /// Its state, or why there is no answer.
    answer: Result<Box<Shown>, String>,
}

/// The same as a line for programs.
#[derive(Serialize, JsonSchema)]
pub(crate) struct GuestLine<'a> {
    v: u32,
    r#type: LineType,
    /// Path of its control socket.
    socket: &'a str,
    /// Why it does not answer; the fields of its state are missing then.
    error: Option<&'a str>,
    #[serde(flatten)]
    shown: Option<&'a Shown>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LineType {
    Guest,
}

/// Prints every running guest, also one that does not answer within `patience`.
pub(super) fn run(
    json: bool,
    patience: Option<Duration>,
    out: &mut Output,
) -> Result<(), Unanswered> {
    let guests = ask_all(&default_sockets(), patience.unwrap_or(PATIENCE))?;
    if json {
        for Guest { socket, answer } in &guests {
            let line = GuestLine {
                v: VERSION,
                r#type: LineType::Guest,
                socket,
                error: answer.as_ref().err().map(String::as_str),
                shown: answer.as_deref().ok(),
            };
            serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        return Ok(());
    }
    Ok(write_text(out, &guests)?)
}

fn write_text(out: &mut dyn Write, guests: &[Guest]) -> io::Result<()> {
    use Align::{Left, Right};
    if guests.is_empty() {
        return writeln!(
            out,
            "no guest of yours runs (those started with `--control` elsewhere are not listed)"
        );
    }
    let mut table = Columns::new(&[Left, Left, Right, Right, Right, Right]);
    let headings = ["socket", "state", "cpus", "memory", "rules", "trapped writes"];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for Guest { socket, answer } in guests {
        let socket = (printable(socket).into_owned(), NAME);
        let Ok(shown) = answer else {
            let unknown = || ("–".to_owned(), QUIET);
            let state = ("does not answer".to_owned(), DENIED);
            table.row([socket, state, unknown(), unknown(), unknown(), unknown()]);
            continue;
        };
        table.row([
            socket,
            (printable(&shown.state).into_owned(), PLAIN),
            (shown.cpus.to_string(), PLAIN),
            (bytes(shown.memory), QUIET),
            (grouped(shown.rules.len() as u64), PLAIN),
            (grouped(shown.writes), PLAIN),
        ]);
    }
    table.write(out, 0)
}

/// The guests behind the sockets, in their order, asked at the same time: one that is stopped makes
/// the others wait for as long as it is waited for, and not longer.
fn ask_all(sockets: &[PathBuf], patience: Duration) -> Result<Vec<Guest>, Failure> {
    let mut guests = Vec::new();
    for some in sockets.chunks(AT_ONCE) {
        let asked: io::Result<Vec<_>> = thread::scope(|scope| {
            let begin = |socket: &PathBuf| {
                let socket = socket.clone();
                let ask = move || (ask(&socket, patience), socket);
                thread::Builder::new().spawn_scoped(scope, ask)
            };
            let asked: io::Result<Vec<ScopedJoinHandle<_>>> = some.iter().map(begin).collect();
            Ok(asked?.into_iter().map(|one| one.join().expect("it does not panic")).collect())
        });
        let asked = asked.map_err(|error| {
            Failure::Internal(format!("cannot start a thread to ask a guest: {error}"))
        })?;
        guests.extend(asked.into_iter().filter_map(|(answer, socket)| {
            Some(Guest { socket: socket.display().to_string(), answer: answer? })
        }));
    }
    Ok(guests)
}

/// The state of the guest at a socket, or why there is none; nothing if no process serves it any more.
fn ask(socket: &Path, patience: Duration) -> Option<Result<Box<Shown>, String>> {
    let asked = Client::connect(socket, patience)
        .and_then(|mut client| client.request(&Request::Show))
        .and_then(|reply| match reply {
            Reply::Shown(shown) => Ok(shown),
            _ => Err(ClientError::Answer { reason: "it shows no state".to_owned() }),
        });
    match asked {
        Err(ClientError::Connect { cause, .. })
            if matches!(cause.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) =>
        {
            None
        }
        // A process that ends takes its socket away.
        Err(ClientError::Closed | ClientError::Connection(_)) if !socket.exists() => None,
        answer => Some(answer.map_err(|error| error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_is_said_in_words() {
        let mut text = Vec::new();
        write_text(&mut text, &[]).expect("memory");
        assert_eq!(
            String::from_utf8(text).expect("text"),
            "no guest of yours runs (those started with `--control` elsewhere are not listed)\n"
        );
    }
}
