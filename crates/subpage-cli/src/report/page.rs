//! The page from top to bottom.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{exits, heat_map};
use crate::closing_table::{page_remark, rate, sub_page_remark, title};
use crate::events::{RunHeader, ShownWarning, shown_warnings};
use crate::summary::{LiveSummary, RuleSummary, Summary};
use crate::terminal::{bytes, grouped, plural, printable, ratio};
use subpage_trap::{Address, Dump, Record, When};

/// Nothing may be loaded and nothing may run, whatever a hostile name would try.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(super) fn render(summary: &Summary) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_POLICY);
                title { "Subpage: " (printable(&summary.guest)) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    (headline(summary))
                    (key_numbers(summary))
                    (exits::section(summary))
                    (most_expensive(summary))
                    (rules(&summary.rules))
                    (heat_map::section(summary))
                    (first_denials(summary))
                    footer {
                        (origin(summary))
                        "Written by subpage " (summary.header.tool_version)
                        ". The page is complete in itself: it loads nothing and runs nothing. \
                         A page of memory has 4096 bytes, a sub-page 128."
                    }
                }
            }
        }
    }
}

/// Where the page comes from.
fn origin(summary: &Summary) -> Markup {
    let RunHeader { host, command, policy_sha256, started, .. } = &summary.header;
    html! {
        p.text {
            "Begun " (started.to_string())
            @if let Some(host) = host { " on " (printable(host)) }
            ": " code { (printable(&command.join(" "))) }
            @if let Some(sum) = policy_sha256 { ". SHA-256 of the policy: " code { (sum) } }
        }
    }
}

fn headline(summary: &Summary) -> Markup {
    let denied = summary.denied();
    let mut guilty: Vec<&RuleSummary> =
        summary.rules.iter().filter(|rule| rule.denied > 0).collect();
    guilty.sort_by_key(|rule| std::cmp::Reverse(rule.denied));
    let by_rules: u64 = guilty.iter().map(|rule| rule.denied).sum();
    html! {
        p.kicker.text {
            "Guarded run of " span.mono { (printable(&summary.guest)) }
            " under " span.mono { (printable(&summary.policy)) }
        }
        @match guilty[..] {
            [] if denied == 0 => h1 { span.good { "Nothing was denied" } },
            [] => h1 {
                span.bad { (grouped(denied)) " " (plural(denied, "write")) " denied" }
                " by access maps"
            },
            _ if by_rules < denied => h1 {
                span.bad { (grouped(denied)) " writes denied" }
                ", " (grouped(denied - by_rules)) " of them by access maps"
            },
            [one] => h1.text {
                span.bad { (grouped(denied)) " " (plural(denied, "write")) " denied" }
                " by " (printable(&one.name))
            },
            [most, ..] => h1.text {
                span.bad { (grouped(denied)) " writes denied" }
                " by " (grouped(guilty.len() as u64)) " rules, "
                (grouped(most.denied)) " of them by " (printable(&most.name))
            },
        }
        p.soft {
            (grouped(summary.writes))
            @if summary.live.is_some() { " writes trapped and were checked against " }
            @else { " writes were checked against " }
            (grouped(summary.rules.len() as u64)) " " (plural(summary.rules.len() as u64, "rule"))
            @if denied == 0 { ". All of them took effect." }
            @else { ". A denied write left every byte as it was." }
            @if let Some(write) = summary.stopped_at {
                " The guest was stopped at write " (grouped(write)) "."
            }
            @if let Some(live) = &summary.live { " " (ending(live)) }
        }
        @if !summary.warnings.is_empty() {
            ul { @for shown in shown_warnings(&summary.warnings) {
                li.text {
                    @match shown {
                        ShownWarning::Whole(warning) => {
                            "Warning: " (printable(&warning.message)) "; "
                            (printable(&warning.help)) "."
                        },
                        ShownWarning::More(count) => { (ShownWarning::more(count)) "." },
                    }
                }
            } }
        }
    }
}

/// How a guest on KVM ended, and what the page cannot show of it.
fn ending(live: &LiveSummary) -> Markup {
    html! {
        "The run ended: " (printable(&live.message)) "."
        @if live.denied_by_maps > 0 {
            " Access maps denied " (grouped(live.denied_by_maps)) " of the writes, no rule."
        }
        @if live.events_dropped > 0 {
            " The guest made " (grouped(live.events_dropped)) " events faster than they could be \
             taken; the rules count them, the rest of the page lacks them."
        }
        @if live.console_dropped > 0 {
            " Of the guest's console " (bytes(live.console_dropped)) " were not shown."
        }
    }
}

fn card(label: &str, value: &str, remark: &str, class: &str) -> Markup {
    html! {
        div.card { dt { (label) } dd { span class=(class) { (value) } small { (remark) } } }
    }
}

fn key_numbers(summary: &Summary) -> Markup {
    let (denied, logged) = (summary.denied(), summary.logged());
    let speed = summary.elapsed.map(|time| format!(" in {:.2} s", time.as_secs_f64()));
    let live = summary.live.is_some();
    // On KVM whole pages trap, so sub-pages are what would be saved.
    let (exits, remark, saving) = if live {
        (summary.exits_page, page_remark(summary), "SPP would save")
    } else {
        (summary.exits_sub_page, sub_page_remark(summary), "Exits saved")
    };
    html! {
        dl.cards {
            (card(if live { "Trapped writes" } else { "Writes" }, &grouped(summary.writes),
                &format!("{}{}", bytes(summary.bytes), speed.unwrap_or_default()), ""))
            (card("Denied", &grouped(denied), "had no effect", if denied > 0 { "bad" } else { "good" }))
            (card("Logged", &grouped(logged), "took effect, reported", ""))
            (card("Guarded", &grouped(summary.sub_pages_protected),
                &format!("{} in {} {}", plural(summary.sub_pages_protected, "sub-page"),
                    grouped(summary.pages_protected), plural(summary.pages_protected, "page")), ""))
            (card("VM exits", &grouped(exits), &remark, ""))
            (card(saving, &saved(summary.exits_page, summary.exits_sub_page),
                "page ÷ sub-page granularity", ""))
        }
    }
}

/// The ratio, in one word where there is none: a card is narrow.
fn saved(page: u64, sub_page: u64) -> String {
    match (page, sub_page) {
        (0, 0) => "none".to_owned(),
        (_, 0) => "all".to_owned(),
        _ => ratio(page, sub_page),
    }
}

fn most_expensive(summary: &Summary) -> Markup {
    let rules = summary.most_expensive();
    if rules.is_empty() {
        return html! {};
    }
    let timed = rules.iter().any(|rule| rule.exits_per_second.is_some());
    html! {
        h2 { (capital(title(rules.len()))) }
        p.soft {
            "Exits: writes to a page of the rule while it was in force, each counted for every rule \
             in its pages. Alone: of these, those to a page of no other rule, which would not exit \
             without this one. Sub-page, own: of the exits, those to a sub-page of it and to its bytes."
        }
        div.scroll { table {
            thead { tr {
                th { "Rule" } th.n { "Exits" } @if timed { th.n { "A second" } }
                th.n { "Alone" } th.n { "Sub-page" } th.n { "Own" } th.n { "Denied" } th { "Hottest page" }
            } }
            tbody { @for rule in rules { tr {
                td.name { (printable(&rule.name)) }
                td.n { (grouped(rule.exits)) }
                @if timed { td.n { @if let Some(exits) = rule.exits_per_second { (rate(exits)) } } }
                td.n { (grouped(rule.exits_alone)) }
                td.n { (grouped(rule.checked)) }
                td.n { (grouped(rule.own())) }
                td class=(if rule.denied > 0 { "n denied" } else { "n zero" }) { (grouped(rule.denied)) }
                td.nowrap { @if let Some(hot) = rule.hottest_page {
                    code { (hot.page) } " " span.soft { (grouped(hot.writes)) " writes" }
                } }
            } } }
        } }
    }
}

/// The text as a heading begins.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn rules(rules: &[RuleSummary]) -> Markup {
    html! {
        h2 { "Rules" }
        p.soft {
            "Checked: writes that touched a sub-page of the rule. Allowed: they touched none of its \
             bytes. Overruled: a stronger rule, or an access map, decided."
        }
        div.scroll { table {
            thead { tr {
                th { "Rule" } th { "Action" } th { "Guards" }
                th.n { "Checked" } th.n { "Allowed" } th.n { "Overruled" } th.n { "Logged" } th.n { "Denied" }
                th { "First denial" }
            } }
            tbody { @for rule in rules { (rule_row(rule)) } }
        } }
    }
}

fn rule_row(rule: &RuleSummary) -> Markup {
    html! {
        tr.hit[rule.denied > 0] {
            td.name { (printable(&rule.name)) }
            td { span class=(format!("badge {}", rule.action)) { (rule.action) } }
            td.nowrap { code { (rule.start) } " " span.soft { (bytes(rule.length)) } }
            td.n { (grouped(rule.checked)) }
            td.n { (grouped(rule.allowed)) }
            td.n { (grouped(rule.overruled)) }
            td class=(if rule.logged > 0 { "n logged-some" } else { "n zero" }) {
                (grouped(rule.logged))
            }
            td class=(if rule.denied > 0 { "n denied" } else { "n zero" }) {
                (grouped(rule.denied))
            }
            td.nowrap {
                @if let Some(first) = &rule.first_denial {
                    "write " (grouped(first.write)) " at " code { (Address(first.event.gpa.as_u64())) }
                } @else { span.soft { "–" } }
            }
        }
    }
}

fn first_denials(summary: &Summary) -> Markup {
    if summary.first_denials.is_empty() {
        return html! {};
    }
    let shown = summary.first_denials.len() as u64;
    let known = Known::of(&summary.first_denials);
    html! {
        h2 { "First denials" }
        p.soft {
            @if shown == summary.denied() { "All of them, in order." }
            @else { "The first " (grouped(shown)) " of " (grouped(summary.denied())) ", in order." }
        }
        div.scroll { table {
            thead { tr {
                th.n { "Write" }
                @if known.times { th.n { "After" } }
                th { "Rule" } th { "Address" } th.n { "Bytes" }
                @if known.bytes { th { "Would have stored" } }
                th.n { "Sub-page" } th { "Written by" }
            } }
            tbody { @for denial in &summary.first_denials { (denial_row(denial, known)) } }
        } }
    }
}

/// What is known of some denial, and so has a column.
#[derive(Clone, Copy)]
struct Known {
    times: bool,
    bytes: bool,
}

impl Known {
    fn of(denials: &[Record]) -> Self {
        let has_time = |denial: &Record| matches!(denial.event.when, When::Clock { .. });
        Self {
            times: denials.iter().any(has_time),
            bytes: denials.iter().any(|denial| !denial.event.bytes.is_empty()),
        }
    }
}

fn denial_row(denial: &Record, known: Known) -> Markup {
    let event = &denial.event;
    html! {
        tr {
            td.n { (grouped(denial.write)) }
            @if known.times {
                @if let When::Clock { since_start, .. } = event.when {
                    td.n.nowrap { (format!("{:.3} s", since_start.as_secs_f64())) }
                } @else { td.n {} }
            }
            td.name { (printable(denial.rule_or_map())) }
            td { code { (Address(event.gpa.as_u64())) } }
            td.n { @if let Some(length) = event.length { (length) } }
            @if known.bytes {
                td { @if !event.bytes.is_empty() { code { (Dump(&event.bytes).to_string()) } } }
            }
            td.n { (event.sub_page().index()) }
            td.text.by {
                @if let Some(pc) = denial.pc_text() { code { (pc) } } @else { span.soft { "not known" } }
                @if let Some(function) = &denial.function {
                    " in " (printable(&function.to_string()))
                }
                @if let Some(source) = &denial.source {
                    " at " (printable(&source.to_string()))
                }
                @if let Some(process) = &denial.process {
                    " in process " (printable(&process.to_string()))
                }
                @if let Some(text) = &denial.text {
                    " " code { (printable(text)) }
                }
            }
        }
    }
}
