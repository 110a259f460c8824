//! What is guarded once the guest runs.

use std::fs;

use iced_x86::code_asm::{qword_ptr, rax};

use super::{DATA, Place, Running, assemble, can_run};

/// Writes three pages, of which a rule guards the first.
fn three_pages() -> Vec<u8> {
    assemble(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.mov(qword_ptr(DATA + 0x800), rax)?;
        code.mov(qword_ptr(DATA + 0x1_0100), rax)?;
        code.mov(qword_ptr(DATA + 0x2_0200), rax)?;
        code.pause()?;
        code.jmp(again)
    })
}

/// A rule that is added, and a map that is set, count and are drawn like those of the policy.
#[test]
fn what_comes_later_counts_and_is_shown() {
    if !can_run() {
        return;
    }
    let place = Place::new(&three_pages());
    let running = Running::start(&place, &["--report", "report.html"]);
    place.ask(&["set", "0x210000", "fffffffb"]);
    place.ask(&["add", "later", "0x220200+8"]);
    place.wait_for_writes(100);
    let shown = place.ask(&["show"]);
    assert_eq!(
        shown["access_maps"],
        serde_json::json!({ "pages": 1, "sub_pages": 1, "first": [{ "gfn": 0x210, "map": !4_u32 }] })
    );
    place.ask(&["stop"]);
    let mut running = running;
    let summary = loop {
        let line = running.lines.next().expect("a summary").expect("text");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if value["type"] == "summary" {
            break value;
        }
    };
    assert_eq!(running.child.wait().expect("ends").code(), Some(3));
    assert!(summary["exits_sub_page"].as_u64().expect("a number") > 50, "{summary}");
    assert_eq!(summary["sub_pages_protected"], 3, "{summary}");
    assert_eq!(summary["pages_protected"], 3, "{summary}");
    let report = fs::read_to_string(place.path("report.html")).expect("a report");
    for part in ["guarded by an access map", "guarded by later"] {
        assert!(report.contains(part), "{part}");
    }
}

/// `START+LENGTH` is a range wherever a place is taken, and the number of a page is none of its
/// addresses.
#[test]
fn a_range_names_its_pages() {
    if !can_run() {
        return;
    }
    let place = Place::new(&super::endless());
    let _running = Running::start(&place, &[]);
    let pages = |request: &[&str]| place.ask(request)["maps"].as_array().expect("maps").len();
    assert_eq!(pages(&["get", "0x200000+4096"]), 1);
    assert_eq!(pages(&["get", "0x200000..0x203000"]), 3);
    assert_eq!(pages(&["get", "0x200fff+2"]), 2);
    assert_eq!(pages(&["get", "0x200010", "2"]), 2);
    assert_eq!(place.ask(&["set", "0x210000+8192", "ffffffff", "ffffffff"])["pages"], 2);
    for (request, told) in [
        (&["get", "0x200000+4096", "2"][..], "leave the number of pages out"),
        (&["get", "0..0x40000000"], "at most 512"),
        (&["set", "0x210000+8192", "ffffffff"], "lies in 2 pages, and there is 1 map"),
        (&["set", "0x210080+128", "ffffffff"], "not the address of a page"),
    ] {
        let output = place.ctl(request);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{request:?}: {answer}");
        assert!(answer.contains(told), "{request:?}: {answer}");
    }
    let text = place.program(&["ctl", "socket", "get", "0x200"]).output().expect("starts");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("page 0x200 is at 0x200000"), "{text}");
    let listed = place.program(&["ctl", "list", "show"]).output().expect("starts");
    assert!(String::from_utf8_lossy(&listed.stderr).contains("takes no request"));
}

/// What this program does not guard exactly, it says.
#[test]
fn slots_for_several_processors_are_warned_of() {
    if !can_run() {
        return;
    }
    let place = Place::new(&super::endless());
    let warned = |more: &[&str]| {
        let output = place.run(&[&["--strict", "--timeout", "0.2"], more].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        errors.contains("lose updates")
    };
    // Where the processor runs a guest's kernel itself, pages never trap by slots.
    assert_eq!(warned(&["--trap", "slots", "--cpus", "2"]), !subpage_kvm::probe::is_native());
    assert!(!warned(&["--trap", "slots"]));
    assert!(!warned(&["--trap", "mprotect", "--cpus", "2"]));
    // A guest that goes on may trap by slots, too.
    let running = Running::start(&place, &["--trap", "mprotect", "--cpus", "2"]);
    place.ask(&["save", "saved"]);
    place.ask(&["stop"]);
    running.end();
    let restored =
        ["guard", "--restore", "saved", "--trap", "slots", "--strict", "--timeout", "0.2"];
    let output = place.program(&restored).output().expect("starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.contains("lose updates"), !subpage_kvm::probe::is_native(), "{errors}");
}
