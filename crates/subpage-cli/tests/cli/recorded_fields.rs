//! Fields of what a trace names, with the debug information of the program that was recorded.

use std::fs;

use subpage_trace::{
    BuildId, Header, Name, NameKind, Names as RecordedNames, TraceWriter, Write as TraceWrite,
};

use crate::fields::file;
use crate::place::{Place, status};

/// A trace of a program that lay 0x1000_0000 from where its file says, which wrote to two fields.
fn record(place: &Place, table_length: u64) {
    record_build(place, table_length, None);
}

/// The same of a program whose build has a number.
fn record_build(place: &Place, table_length: u64, build: Option<BuildId>) {
    let name = |name: &str, start: u64, length, kind| Name {
        name: name.to_owned(),
        start: start + 0x1000_0000,
        length,
        kind,
    };
    let names = RecordedNames::new([
        name("table", 0x20_1240, table_length, NameKind::Object),
        name("twin", 0x20_1180, 24, NameKind::Object),
        name("program:.data", 0x20_1140, 0x1c8, NameKind::Section),
        // No symbol, whatever symbols there are.
        name("scalar", 0x4000_0000, 4096, NameKind::Heap),
    ]);
    let header = Header { command: vec!["./places".to_owned()], names, build, ..Header::default() };
    let file = fs::File::create(place.path("places.sptrace")).expect("file");
    let mut writer = TraceWriter::new(file, &header).expect("header");
    for address in [0x1020_12b0, 0x1020_12e0, 0x1020_1180] {
        writer.write(TraceWrite { pc: 0x1020_0100, address, size: 4 }).expect("write");
    }
    writer.finish().expect("end");
}

/// `guard`, `plan` and `policy check` of a trace know the fields of the program that was recorded.
#[test]
fn fields_of_a_recorded_program_are_known() {
    let place = Place::new();
    record(&place, 192);
    let program = file("dwarf5.elf");
    let program = program.to_str().expect("text");
    place.policy(
        "p.toml",
        "version = 1\n[[rule]]\nname = \"a\"\nrange = \"table[2].next.flags\"\n\
         [[rule]]\nname = \"b\"\nregion = \"table[3].next\"\noffset = 2\nlength = 1\naction = \"log\"\n",
    );
    let check = ["policy", "check", "p.toml", "places.sptrace"];
    let output = place.run(&[&check[..], &["--symbols", program]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("0x102012b0..0x102012b4") && text.contains("0x102012e2..0x102012e3"),
        "{text}"
    );
    let output = place.run(&check);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status(&output), 2);
    assert!(
        errors.contains("p.toml:4:9") && errors.contains("the fields and elements of `table`"),
        "{errors}"
    );
    let guard = ["guard", "-p", "p.toml", "--json", "places.sptrace"];
    let output = place.run(&[&guard[..], &["--symbols", program]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(status(&output), 3);
    assert_eq!(text.matches("\"type\":\"denied\"").count(), 1, "{text}");
    assert_eq!(text.matches("\"type\":\"logged\"").count(), 1, "{text}");
    let plan = ["plan", "places.sptrace", "--range", "twin.flags", "--json"];
    let output = place.run(&[&plan[..], &["--symbols", program]].concat());
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    // Another program, and another build of this one.
    for (trace_length, file_name, told) in [
        (192, "rust.elf", "is not the program that was recorded"),
        (96, "dwarf5.elf", "of another build than the program that was recorded: `table`"),
    ] {
        record(&place, trace_length);
        let other = file(file_name);
        let output =
            place.run(&[&check[..], &["--symbols", other.to_str().expect("text")]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), 2);
        assert!(errors.contains(told), "{errors}");
    }
}

/// A rebuild may have the same symbols in the same places, and other fields.
#[test]
fn another_build_is_refused_by_its_number() {
    let place = Place::new();
    place
        .policy("p.toml", "version = 1\n[[rule]]\nname = \"a\"\nrange = \"table[2].next.flags\"\n");
    // The same program, its debug information included, linked with two numbers.
    for (recorded, given, status_of) in [
        (Some(1), "number-1.elf", 0),
        (Some(2), "number-1.elf", 2),
        // One of the two does not say.
        (Some(2), "dwarf5.elf", 0),
        (None, "number-1.elf", 0),
    ] {
        let build = recorded.and_then(|number| BuildId::new(&[0, 0, 0, 0, 0, 0, 0, number]));
        record_build(&place, 192, build);
        let given = file(given);
        let arguments = ["policy", "check", "p.toml", "places.sptrace", "--symbols"];
        let output = place.run(&[&arguments[..], &[given.to_str().expect("text")]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(status(&output), status_of, "{recorded:?} {errors}");
        assert_eq!(
            errors.contains("its build ID is not that of the trace"),
            status_of == 2,
            "{errors}"
        );
    }
}
