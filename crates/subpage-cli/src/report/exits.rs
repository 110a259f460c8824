//! The exits at both granularities, as bars.

use maud::{Markup, html};

use crate::closing_table::{page_remark, sub_page_remark};
use crate::summary::Summary;
use crate::terminal::{grouped, ratio};

/// Widths in the drawing's own units.
const LABEL: f64 = 150.0;
const BAR: f64 = 560.0;
const HEIGHT: f64 = 26.0;

pub(super) fn section(summary: &Summary) -> Markup {
    let (page, sub_page) = (summary.exits_page, summary.exits_sub_page);
    let label = format!(
        "{} exits with page granularity, {} with sub-page granularity: {}",
        grouped(page),
        grouped(sub_page),
        ratio(page, sub_page)
    );
    html! {
        h2 { "What the policy costs" }
        p.soft {
            "VM exits for the same writes and the same rules: when only whole pages can be \
             protected, every write to a guarded page exits; with sub-page permissions only those \
             to a guarded sub-page do."
            @if summary.live.is_some() {
                " This run was on KVM, which protects whole pages: the first bar is what it did \
                 cost, the second what a processor with sub-page permissions would leave."
            }
        }
        div.scroll { svg.legend viewBox="0 0 1020 84" role="img" aria-label=(label) {
            (bar(8.0, "page", "Page granularity", page, page.max(sub_page), &page_remark(summary)))
            (bar(48.0, "sub", "Sub-page granularity", sub_page, page.max(sub_page), &sub_page_remark(summary)))
        } }
    }
}

fn bar(y: f64, class: &str, name: &str, exits: u64, most: u64, remark: &str) -> Markup {
    #[allow(clippy::cast_precision_loss)]
    let share = if most == 0 { 0.0 } else { exits as f64 / most as f64 };
    // A bar of something is never invisible.
    let width = if exits == 0 { 0.0 } else { (share * BAR).max(2.0) };
    let middle = y + HEIGHT / 2.0 + 4.0;
    html! {
        text x="0" y=(middle) { (name) }
        rect class=(class) x=(LABEL) y=(y) width=(format!("{width:.1}")) height=(HEIGHT) rx="3" {
            title { (name) ": " (grouped(exits)) " exits" }
        }
        text x=(format!("{:.1}", LABEL + width + 10.0)) y=(middle) {
            tspan font-weight="600" { (grouped(exits)) }
            tspan class="soft" dx="8" { (remark) }
        }
    }
}
