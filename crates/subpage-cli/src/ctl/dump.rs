//! Memory of a guest into a file, in as many requests as it takes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use subpage_kvm::control::protocol::{Reply, Request};
use subpage_kvm::control::{Client, ClientError};

use super::{Unanswered, write_answer};
use crate::ctl::ReplyLine;
use crate::failure::Failure;
use crate::terminal::style::QUIET;
use crate::terminal::{Output, bytes, printable};

/// Bytes of one request.
const PIECE: u64 = 64 << 10;

/// Writes memory to a new file. On an error there is none.
pub(super) fn run(
    client: &mut Client,
    (start, length): (u64, u64),
    path: &Path,
    json: bool,
    out: &mut Output,
) -> Result<(), Unanswered> {
    let failed = |error| Failure::input(format_args!("cannot write {}", path.display()), &error);
    let file = File::create_new(path).map_err(failed)?;
    let written = copy(client, (start, length), path, BufWriter::new(file));
    if let Err(error) = written {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    if json {
        write_answer(out, &ReplyLine { ok: true, fields: Dumped { dumped: length } })?;
    } else {
        let name = path.display().to_string();
        writeln!(out, "{}  {QUIET}{}{QUIET:#}", printable(&name), bytes(length))?;
    }
    Ok(())
}

/// What a dump gave.
#[derive(serde::Serialize)]
struct Dumped {
    /// Bytes of the file.
    dumped: u64,
}

fn copy(
    client: &mut Client,
    (start, length): (u64, u64),
    path: &Path,
    mut file: BufWriter<File>,
) -> Result<(), Unanswered> {
    let failed = |error| Failure::input(format_args!("cannot write {}", path.display()), &error);
    let mut done = 0;
    while done < length {
        let piece = PIECE.min(length - done);
        let Some(from) = start.checked_add(done) else {
            return Err(Failure::Input("the place lies beyond all memory".to_owned()).into());
        };
        let Reply::Memory { bytes } =
            client.request(&Request::Read { start: from, length: piece })?
        else {
            return Err(ClientError::Answer { reason: "it is not memory".to_owned() }.into());
        };
        let read = decode(&bytes).filter(|read| read.len() as u64 == piece);
        let Some(read) = read else {
            return Err(ClientError::Answer { reason: "it is not the bytes".to_owned() }.into());
        };
        file.write_all(&read).map_err(failed)?;
        done += piece;
    }
    Ok(file.flush().map_err(failed)?)
}

/// Bytes from hexadecimal digits.
fn decode(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    digits.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pair_of_digits_is_no_byte() {
        assert_eq!(decode("00ff7A"), Some(vec![0, 0xff, 0x7a]));
        assert_eq!(decode(""), Some(Vec::new()));
        for wrong in ["0", "0g", "+1", "é"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }
}
