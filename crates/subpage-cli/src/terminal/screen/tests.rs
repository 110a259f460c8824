//! What reaches the streams.

use super::*;

/// A stream that is looked at later.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seen {
    /// All of it, when it is written.
    fn text(&self, screen: &Screen) -> String {
        assert_eq!(screen.finish(|| false), 0);
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

fn output(seen: &Seen, terminal: bool) -> Output {
    Output::new(Box::new(seen.clone()), terminal)
}

fn screen(seen: &Seen) -> Screen {
    Screen::of(output(seen, false), None).expect("a thread")
}

#[test]
fn lines_are_never_torn() {
    let seen = Seen::default();
    let screen = screen(&seen);
    let (mut lines, mut console) = (screen.lines(), screen.console());
    let mut play = || -> io::Result<()> {
        write!(console, "booting\r\nstar")?;
        write!(lines, "denied ")?;
        write!(console, "ted\r\n")?;
        write!(lines, "a\ndenied b\n")?;
        // Only a prompt that is seen is left in the middle of its line.
        write!(console, "login: ")?;
        writeln!(lines, "denied c")?;
        screen.flush();
        writeln!(lines, "denied d")?;
        write!(console, "root\r\n\r")?;
        screen.flush();
        writeln!(lines, "denied e")?;
        write!(console, "# ")?;
        screen.end_console();
        writeln!(lines, "the end")
    };
    play().expect("memory");
    assert_eq!(
        seen.text(&screen),
        "guest| booting\nguest| started\ndenied a\ndenied b\ndenied c\nguest| login: \ndenied d\n\
         guest| root\ndenied e\nguest| # \nthe end\n"
    );
}

#[test]
fn streams_apart_are_left_alone_unless_one_screen_shows_both() {
    for (terminal, console_text) in
        [(false, "guest| login: more"), (true, "guest| login: \nguest| more")]
    {
        let (seen, apart) = (Seen::default(), Seen::default());
        let screen = Screen::of(output(&seen, terminal), Some(output(&apart, terminal)));
        let screen = screen.expect("threads");
        let (mut lines, mut console) = (screen.lines(), screen.console());
        let mut play = || -> io::Result<()> {
            write!(console, "login: ")?;
            screen.flush();
            writeln!(lines, "{{}}")?;
            write!(console, "more")?;
            screen.flush();
            Ok(())
        };
        play().expect("memory");
        assert_eq!(
            (seen.text(&screen).as_str(), apart.text(&screen).as_str()),
            ("{}\n", console_text)
        );
        screen.end_console();
        assert_eq!(apart.text(&screen), format!("{console_text}\n"));
    }
}

/// A line of a megabyte in pieces of a few bytes, as an encoder writes it: looking through all of
/// it at every piece would take an hour.
#[test]
fn a_long_line_comes_in_small_pieces() {
    let seen = Seen::default();
    let screen = screen(&seen);
    let mut lines = screen.lines();
    for _ in 0..4 << 20 {
        write!(lines, "[1,").expect("memory");
    }
    writeln!(lines).expect("memory");
    assert_eq!(seen.text(&screen).len(), (12 << 20) + 1);
}

#[test]
fn a_line_without_end_is_not_kept_for_ever() {
    let seen = Seen::default();
    let screen = screen(&seen);
    let mut console = screen.console();
    for _ in 0..=2 * LONGEST_PARTIAL {
        console.write_all(b"x").expect("memory");
    }
    assert_eq!(seen.text(&screen).len(), MARK.len() + 2 * LONGEST_PARTIAL);
}

/// A line that looks like one of this program is one of the guest all the same.
#[test]
fn a_guest_does_not_forge_lines() {
    let seen = Seen::default();
    let screen = screen(&seen);
    let (mut lines, mut console) = (screen.lines(), screen.console());
    for forged in ["denied\n", "x\rdenied\n", "\u{1b}[1Gdenied\n", "\u{8}\u{8}\u{8}denied\n", "pro"]
    {
        write!(console, "{forged}").expect("memory");
    }
    writeln!(lines, "true").expect("memory");
    writeln!(console, "denied").expect("memory");
    let text = seen.text(&screen);
    assert_eq!(text.lines().filter(|line| !line.starts_with(MARK)).collect::<Vec<_>>(), ["true"]);
}

/// What a terminal would wrap has its mark in each row, whatever it is made of.
#[test]
fn a_long_line_does_not_wrap_without_its_mark() {
    let seen = Seen::default();
    let screen = screen(&seen);
    screen.lock().columns = Some(|| 20);
    let (mut lines, mut console) = (screen.lines(), screen.console());
    writeln!(console, "{:13}denied: forged", "").expect("memory");
    writeln!(console, "{}\tdenied", "界".repeat(9)).expect("memory");
    write!(console, "{:12}", "").expect("memory");
    screen.flush();
    writeln!(console, "xdenied: in parts").expect("memory");
    writeln!(lines, "{:40}denied", "").expect("memory");
    let text = seen.text(&screen);
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with(MARK)).collect();
    assert_eq!(rows.len(), text.lines().count() - 1, "{text}");
    for row in rows {
        let columns: usize = row.chars().map(|one| one.width().unwrap_or(8)).sum();
        assert!(columns <= 20, "{row:?}");
    }
}

/// Nothing continues behind the end of a line: the next one begins in its own row, which the mark opens.
#[test]
fn a_line_that_ends_leaves_no_empty_row() {
    let seen = Seen::default();
    let screen = screen(&seen);
    screen.lock().columns = Some(|| 20);
    let (mut lines, mut console) = (screen.lines(), screen.console());
    let mut play = || -> io::Result<()> {
        // As many columns as there are behind the mark.
        writeln!(console, "{}", "x".repeat(13))?;
        writeln!(console, "full\n\n0123456\n\ttab first")?;
        write!(console, "{}", "y".repeat(13))?;
        screen.flush();
        // A line of this program ends that of the console.
        writeln!(lines, "denied")?;
        writeln!(console, "more")
    };
    play().expect("memory");
    assert_eq!(
        seen.text(&screen),
        "guest| xxxxxxxxxxxxx\nguest| full\nguest| \nguest| 0123456\nguest| \ttab f\n\
         guest| irst\nguest| yyyyyyyyyyyyy\ndenied\nguest| more\n"
    );
}

/// A file of its own has the guest's lines as they are, but for what is filtered out.
#[test]
fn a_file_of_its_own_has_no_marks() {
    let (seen, apart) = (Seen::default(), Seen::default());
    let screen = Screen::of(output(&seen, false), Some(output(&apart, false)));
    let screen = screen.expect("threads");
    screen.lock().mark = "";
    let mut console = screen.console();
    write!(console, "booting\r\n\u{1b}[2Jlogin: ").expect("memory");
    screen.end_console();
    assert_eq!(
        (seen.text(&screen).as_str(), apart.text(&screen).as_str()),
        ("", "booting\nlogin: \n")
    );
}

/// A guest that prints while nobody reads is not held up; what is lost is told in its place.
#[test]
fn a_console_that_nobody_reads_loses_text_and_says_so() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let screen = Screen::of(Output::new(Box::new(writer), false), None).expect("a thread");
    let (mut lines, mut console) = (screen.lines(), screen.console());
    let mut sent = 0_u64;
    while !screen.loses_console() || sent < 4 << 20 {
        sent += 1;
        writeln!(console, "line {sent:12}").expect("memory");
    }
    assert!(screen.has_room(), "lines of this program find room");
    writeln!(lines, "denied").expect("memory");
    let read = std::thread::spawn(move || io::read_to_string(reader).expect("text"));
    assert_eq!(screen.finish(|| false), 0);
    writeln!(console, "after").expect("memory");
    assert!(!screen.loses_console());
    let lost = screen.console_lost();
    drop((lines, console, screen));
    let text = read.join().expect("no panic");
    let text = anstream::adapter::strip_str(&text).to_string();
    let shown = text.lines().filter(|line| line.starts_with("guest| line ")).count() as u64;
    assert_eq!(shown + lost / 18, sent);
    let end: Vec<_> = text.lines().rev().take(3).collect();
    assert_eq!((end[0], end[2]), ("guest| after", "denied"));
    assert!(end[1].contains("bytes of the guest's console lost here"), "{}", end[1]);
}
