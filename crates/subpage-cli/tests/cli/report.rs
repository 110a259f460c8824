//! The report page.

use subpage_cli::report;

use crate::runs;

#[test]
fn golden_report() {
    crate::assert_golden("report/counter.html", &report::render(&runs::counter().summary));
}

/// Writes the made-up runs' pages into the directory that `SUBPAGE_REPORTS` names, to be looked at.
#[test]
fn pages_hold_their_promises() {
    for (name, run) in [
        ("counter", runs::counter()),
        ("quiet", runs::quiet()),
        ("thirty", runs::thirty()),
        ("live", runs::live()),
    ] {
        let page = report::render(&run.summary);
        for forbidden in
            ["<script", "onload=\"", "http://", "https://", "url(", "@import", "\u{202e}"]
        {
            assert!(!page.contains(forbidden), "{name} contains {forbidden}");
        }
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{name}");
        if let Some(directory) = std::env::var_os("SUBPAGE_REPORTS") {
            let path = std::path::Path::new(&directory).join(format!("{name}.html"));
            report::write(&run.summary, &path).expect("written");
        }
    }
    assert!(
        report::render(&runs::thirty().summary).contains("&lt;script&gt;alert(1)&lt;/script&gt;")
    );
    assert!(report::render(&runs::quiet().summary).contains("Nothing was denied"));
    let live = report::render(&runs::live().summary);
    for told in
        ["4 writes trapped", "The run ended: processor 1 cannot continue", "~0x4011d6", "on KVM"]
    {
        assert!(live.contains(told), "{told}");
    }
    let mut several = runs::thirty().summary;
    for rule in &mut several.rules {
        rule.denied = 0;
    }
    (several.rules[0].denied, several.rules[1].denied) = (2, 3);
    let page = report::render(&several);
    assert!(page.contains("5 writes denied") && page.contains(" by 2 rules, 3 of them by "));
}

/// What maps deny, no rule has denied, and it is told first all the same.
#[test]
fn the_headline_knows_access_maps() {
    let mut summary = runs::live().summary;
    let by_rules: u64 = summary.rules.iter().map(|rule| rule.denied).sum();
    let headline = |summary: &_| {
        let page = report::render(summary);
        let start = page.find("<h1").expect("a headline");
        page[start..].split("</h1>").next().expect("it ends").to_owned()
    };
    summary.live.as_mut().expect("a guest on KVM").denied_by_maps = 1_015;
    let mixed = headline(&summary);
    assert!(mixed.contains(&format!("1,0{} writes denied", 15 + by_rules)), "{mixed}");
    assert!(mixed.contains(", 1,015 of them by access maps"), "{mixed}");
    summary.rules.iter_mut().for_each(|rule| rule.denied = 0);
    let maps = headline(&summary);
    assert!(maps.contains("1,015 writes denied") && maps.contains(" by access maps"), "{maps}");
}

#[test]
fn a_report_is_whole_or_not_there() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("report.html");
    let summary = runs::quiet().summary;
    report::write(&summary, &path).expect("written");
    report::write(&summary, &path).expect("written over");
    assert_eq!(std::fs::read_to_string(&path).expect("report"), report::render(&summary));
    let taken = directory.path().join("taken");
    std::fs::create_dir(&taken).expect("directory");
    assert!(report::write(&summary, &taken).is_err());
    assert!(report::write(&summary, &directory.path().join("missing/report.html")).is_err());
    let names: Vec<_> = std::fs::read_dir(directory.path()).expect("directory").collect();
    assert_eq!(names.len(), 2, "a temporary file is left behind");
}
