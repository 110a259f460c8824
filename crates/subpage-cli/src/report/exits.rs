//! The exits at both granularities, as bars.

use maud::{Markup, html};

use crate::closing_table::{page_remark, sub_page_remark};
use crate::summary::Summary;
use crate::terminal::{grouped, ratio};

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
        div.bars role="img" aria-label=(label) {
            (bar("page", "Page granularity", page, page.max(sub_page), &page_remark(summary)))
            (bar("sub", "Sub-page granularity", sub_page, page.max(sub_page), &sub_page_remark(summary)))
        }
    }
}

fn bar(class: &str, name: &str, exits: u64, most: u64, remark: &str) -> Markup {
    #[allow(clippy::cast_precision_loss)]
    let share = if most == 0 { 0.0 } else { exits as f64 / most as f64 * 100.0 };
    // A bar of something is never invisible.
    let share = if exits == 0 { 0.0 } else { share.max(0.4) };
    html! {
        div.bar {
            span { (name) }
            span.track { span class=(format!("fill {class}")) style=(format!("width:{share:.1}%")) {} }
            span.number { b { (grouped(exits)) } " " span.soft { (remark) } }
        }
    }
}
