//! The `subpage` command: all of it is in the library.

use std::panic::catch_unwind;
use std::process::ExitCode;

use subpage_cli::failure::Status;

fn main() -> ExitCode {
    // A broken invariant has told its story on standard error; what is left is the status.
    catch_unwind(|| subpage_cli::run::run(std::env::args_os())).unwrap_or(Status::Internal).into()
}
