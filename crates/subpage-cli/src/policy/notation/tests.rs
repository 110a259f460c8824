//! Places, right and wrong.

use super::*;

fn names() -> Names {
    let named = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
    Names::new(vec![
        named("path", 0x1000, 0x100),
        named("label", 0x2000, 0),
        named("a..b", 0x3000, 8),
        named("operator+", 0x4000, 8),
        named("libstdc++.so:.data", 0x8000, 0x100),
        named("of..two", 0x9000, 8),
        named("of..two", 0xa000, 8),
        named("0x1000..0x1080", 0xb000, 8),
        named("0x1000+8", 0xc000, 8),
        named("0x1000-0x1080", 0xd000, 8),
        named("twin", 0x5000, 8),
        named("twin", 0x6000, 8),
        named("high", 1 << 50, 8),
    ])
}

#[test]
fn every_form_of_a_place() {
    for (text, start, length) in [
        ("0x1000..0x1080", 0x1000, 0x80),
        ("4096 .. 0x1080", 0x1000, 0x80),
        ("0x1000+128", 0x1000, 0x80),
        ("0x1000 + 0x10 + 8", 0x1010, 8),
        ("0x1000+0x10..0x1020", 0x1010, 0x10),
        ("path", 0x1000, 0x100),
        ("path+0x80", 0x1080, 0x80),
        (" path + 8 + 16 ", 0x1008, 16),
        ("path..0x1010", 0x1000, 0x10),
        ("path+8..path+0x10", 0x1008, 8),
        ("path..label", 0x1000, 0x1000),
        ("label+0+8", 0x2000, 8),
        ("label+4+8", 0x2004, 8),
        ("a..b", 0x3000, 8),
        ("operator+", 0x4000, 8),
        // Names with `+` and `..` behind, before and between other parts.
        ("path..operator+", 0x1000, 0x3000),
        ("path+8..operator++4", 0x1008, 0x2ffc),
        ("0x1000+8..a..b", 0x1008, 0x1ff8),
        ("a..b+4", 0x3004, 4),
        ("a..b + 2 + 3", 0x3002, 3),
        ("operator++4", 0x4004, 4),
        ("a..b..operator+", 0x3000, 0x1000),
        ("a..b+2..operator++3", 0x3002, 0x1001),
        ("libstdc++.so:.data+8", 0x8008, 0xf8),
        // To the end of a name, and from a name of unknown length on.
        ("path..path+0x100", 0x1000, 0x100),
        ("label+0x100..0x3000", 0x2100, 0xf00),
    ] {
        let range = ByteRange::new(Gpa::new(start), length).expect("a range");
        assert_eq!(place(text, &names(), ""), Ok(range), "{text}");
    }
    assert_eq!(address("path+8", &names(), ""), Ok(Gpa::new(0x1008)));
    assert_eq!(address("0x10", &names(), ""), Ok(Gpa::new(0x10)));
    assert_eq!(address("operator+", &names(), ""), Ok(Gpa::new(0x4000)));
    assert_eq!(address("operator++4", &names(), ""), Ok(Gpa::new(0x4004)));
}

#[test]
fn what_is_no_place_is_said_in_words() {
    for (text, part) in [
        ("", "no address and no name"),
        ("0x1000", "no length"),
        ("0x1000+0", "the length is 0"),
        ("path+0+0", "the length is 0"),
        ("0x1000+x", "the length `x`"),
        ("path+-1", "the offset `-1`"),
        ("path+1+2+3", "too many numbers"),
        ("path+1+2..3", "not both"),
        ("0x1080..0x1000", "ends before it begins"),
        ("0x1000..0x1000", "has no byte"),
        ("path+0x100", "beyond the end of `path`, which has 256 bytes"),
        ("path+8+0xf9", "beyond the end"),
        ("label", "how long"),
        ("label+4", "how long"),
        ("pth", "no name `pth`; the nearest known: `path`"),
        ("nothing..0x10", "no name `nothing`; look there"),
        ("0x1000-0x1080", "neither a number nor a name"),
        ("twin", "2 things are called `twin`; give the address of one: 0x5000"),
        ("high", "48"),
        ("of..two", "2 things are called `of..two`; give the address of one: 0x9000"),
        ("of..two+4", "2 things are called `of..two`"),
        ("path..of..two", "2 things are called `of..two`"),
        ("path+0x100..0x110000", "beyond the end of `path`"),
        ("path+0x1000..0x110000", "beyond the end of `path`"),
        ("path..path+0x101", "beyond the end of `path`"),
        ("a..c+4", "no name `a`"),
        ("0xffffffffffffffff+1..0x10", "beyond 2^64"),
        ("0xffffffffffff+2", "beyond the address space"),
        ("0..0x1000000000001", "beyond the address space"),
    ] {
        let wrong = place(text, &names(), "look there").expect_err(text).to_string();
        assert!(wrong.contains(part), "{text}: {wrong}");
    }
    assert!(address("path+8+8", &names(), "").is_err());
    assert!(address("0x1000000000000", &names(), "").is_err());
    for (text, part) in [("path+0x100", "beyond the end"), ("of..two", "2 things")] {
        let wrong = address(text, &names(), "").expect_err(text).to_string();
        assert!(wrong.contains(part), "{text}: {wrong}");
    }
}

/// Where the names of a trace could turn the text into something else than it says.
#[test]
fn numbers_come_before_names_and_two_readings_are_none() {
    let of = |text| place(text, &names(), "").map(|range| range.first().as_u64());
    assert_eq!(of("0x1000..0x1080"), Ok(0x1000));
    assert_eq!(of("0x1000+8"), Ok(0x1000));
    assert_eq!(of("0x1000+8..path+0x20"), Ok(0x1008));
    assert_eq!(of("0x800..0x1000+8"), Ok(0x800));
    assert!(of("0x1000-0x1080").is_err());
    let address = |text| address(text, &names(), "").map(Gpa::as_u64);
    assert_eq!(address("0x1000+8"), Ok(0x1008));
    assert!(address("0x1000..0x1080").is_err());
    let named = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
    // The reading that is beyond the end of its name is one, too.
    for length in [8, 2] {
        let names = Names::new(vec![
            named("a", 0x1000, 8),
            named("b", 0x2000, 8),
            named("a..b", 0x3000, length),
        ]);
        let wrong = place("a..b+4", &names, "").expect_err("two ways").to_string();
        assert!(wrong.contains("in 2 ways") && wrong.contains("`a..b` or with `a`"), "{wrong}");
        assert_eq!(place("a..b", &names, "").map(ByteRange::first), Ok(Gpa::new(0x3000)));
    }
}

/// No name can make these right, except one that contains `+` or `..`.
#[test]
fn a_wrong_form_is_wrong_without_names() {
    for (text, wrong, may_be_another) in [
        ("", "no address and no name", false),
        ("0x1000-0x1080", "neither a number nor a name", false),
        ("128bytes", "neither a number nor a name", false),
        ("x+y+z+1..2", "not both", true),
        ("x+y", "the offset `y`", true),
        ("x+1+0", "the length is 0", true),
        ("..0x10", "no address and no name", true),
        ("x..", "no address and no name", true),
        ("0x1000..x+y", "the offset `y`", true),
    ] {
        let message = check_form(text).expect_err(text).to_string();
        assert!(message.contains(wrong), "{text}: {message}");
        assert_eq!(may_be_another_form(text), may_be_another, "{text}");
    }
    for text in ["x", "x+1", "x+1+2", "x..y", "x+1..y+2", "0x10..x", "7z:.data+1", "a..b..c"] {
        assert_eq!(check_form(text), Ok(()), "{text}");
    }
}

/// A hostile text with many places to split is read in time linear in its length.
#[test]
fn many_dots_end() {
    for part in ["..", "a..", "1..", "+", "x+"] {
        let text = part.repeat(200_000) + "x";
        assert!(place(&text, &names(), "").is_err(), "{part}");
    }
}

#[test]
fn numbers_alone_need_no_names() {
    for (text, numeric) in [
        ("0x1000..0x1080", true),
        ("0x1000+128", true),
        ("0x1000 + 0x10 .. 0x2000", true),
        ("path", false),
        ("0x1000..path", false),
        ("", false),
        ("0x1000-0x1080", false),
    ] {
        assert_eq!(is_numeric(text), numeric, "{text}");
    }
}
