//! The running guests of this user.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use subpage_kvm::control::protocol::{Reply, Request, Shown};
use subpage_kvm::control::{Client, default_sockets};

use super::Unanswered;
use crate::terminal::style::{HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, Output, bytes, grouped, printable};

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A guest that answers.
#[derive(Serialize)]
struct Guest<'a> {
    socket: &'a str,
    #[serde(flatten)]
    shown: &'a Shown,
}

/// Prints every guest that answers.
pub(super) fn run(json: bool, out: &mut Output) -> Result<(), Unanswered> {
    use Align::{Left, Right};
    let found: Vec<_> = default_sockets()
        .into_iter()
        .filter_map(|socket| ask(&socket).map(|shown| (socket.display().to_string(), shown)))
        .collect();
    if json {
        for (socket, shown) in &found {
            serde_json::to_writer(&mut *out, &Guest { socket, shown })
                .map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        return Ok(());
    }
    if found.is_empty() {
        writeln!(out, "no guest of yours runs, but for those whose `--control` is elsewhere")?;
        return Ok(());
    }
    let mut table = Columns::new(&[Left, Left, Right, Right, Right, Right]);
    let headings = ["socket", "state", "cpus", "memory", "rules", "trapped writes"];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for (socket, shown) in &found {
        table.row([
            (printable(socket).into_owned(), NAME),
            (printable(&shown.state).into_owned(), PLAIN),
            (shown.cpus.to_string(), PLAIN),
            (bytes(shown.memory), QUIET),
            (grouped(shown.rules.len() as u64), PLAIN),
            (grouped(shown.writes), PLAIN),
        ]);
    }
    table.write(out, 0)?;
    Ok(())
}

/// The state of the guest at a socket; none if its process was killed or does not answer.
fn ask(socket: &Path) -> Option<Shown> {
    match Client::connect(socket, PATIENCE).ok()?.request(&Request::Show) {
        Ok(Reply::Shown(shown)) => Some(*shown),
        _ => None,
    }
}
