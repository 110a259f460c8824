//! The program killed while it saves.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use nix::sys::signal::Signal;

use super::{Place, Running, can_run, harmless};

/// Kills of the program, each a tenth of the file later than the one before.
const KILLS: usize = 10;

/// A guest whose file takes a while to write: bytes behind the code that nothing uses.
fn large() -> Vec<u8> {
    let mut image = harmless();
    image.resize(2 << 20, 0);
    image.resize(34 << 20, 0xa5);
    image
}

/// The file that a save is writing, or did not finish.
fn unfinished(place: &Place) -> Option<PathBuf> {
    let files = fs::read_dir(place.directory.path()).expect("directory");
    let mut names = files.map(|file| file.expect("a file").path());
    names.find(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(".subpage-save-"))
    })
}

#[test]
fn kill_9_during_save_leaves_the_file_of_the_earlier_save() {
    if !can_run() {
        return;
    }
    let place = Place::new(&large());
    let mut running = Running::start(&place, &[]);
    place.ask(&["save", "guest.state"]);
    let mut whole = fs::read(place.path("guest.state")).expect("the saved guest");
    let mut in_the_middle = 0;
    for kill in 0..KILLS {
        let mut saving = place.program(&["ctl", "socket", "--json", "save", "guest.state"]);
        let mut saving =
            saving.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let enough = whole.len() / KILLS * kill;
        // Until so much is written, or, if that was missed, until all of it is.
        while saving.try_wait().expect("a child").is_none() {
            let written = unfinished(&place).and_then(|path| fs::metadata(path).ok());
            if written.is_some_and(|file| file.len() >= enough as u64) {
                break;
            }
            thread::yield_now();
        }
        running.signal(Signal::SIGKILL);
        assert_eq!(running.child.wait().expect("ends").code(), None, "it was killed");
        let answered = saving.wait().expect("ends");
        let found = fs::read(place.path("guest.state")).expect("the saved guest");
        if let Some(rest) = unfinished(&place) {
            in_the_middle += 1;
            assert_eq!(answered.code(), Some(2), "the client is told");
            assert!(found == whole, "kill {kill}: not the earlier file");
            fs::remove_file(rest).expect("it is there");
        }
        // Whichever of the two it is, it is whole.
        whole = found;
        let arguments = ["guard", "--json", "--restore", "guest.state", "--control", "socket"];
        running = Running::of(place.program(&arguments));
        let before = place.writes();
        place.wait_for_writes(before);
    }
    assert!(in_the_middle > 0, "no kill came before the end of a save");
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0));
}
