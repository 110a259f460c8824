//! The documentation: rustdoc without warnings (one check); every page's links, and what it should link
//! (one each); the table of contents; what code cites; the site (one each).

use anyhow::{Result, ensure};

use super::Plan;
use crate::{
    book::{self, citations, pages, summary},
    count::Count,
    markdown,
    session::Session,
};

/// Names of what others have made, and where that is told. A page that uses a name links it once.
const OUTSIDE: [(&str, &[&str]); 14] = [
    ("SDM", &["https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm"]),
    ("KVM", &["https://docs.kernel.org/virt/kvm/", "https://lore.kernel.org/kvm/"]),
    ("KVM series", &["https://lore.kernel.org/kvm/"]),
    ("Bochs", &["https://bochs.sourceforge.io", "https://github.com/bochs-emu/Bochs"]),
    ("QEMU", &["https://www.qemu.org"]),
    ("Valgrind", &["https://valgrind.org"]),
    ("GRUB", &["https://www.gnu.org/software/grub/"]),
    ("Multiboot2", &["https://www.gnu.org/software/grub/manual/multiboot2/"]),
    ("HVMI", &["https://github.com/bitdefender/hvmi"]),
    ("Napoca", &["https://github.com/bitdefender/napoca"]),
    ("loom", &["https://docs.rs/loom"]),
    ("Prometheus", &["https://prometheus.io"]),
    ("TOML", &["https://toml.io"]),
    ("JSON Schema", &["https://json-schema.org"]),
];

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let mut command = plan.cargo(&["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
    }
    let mut count = Count::check(finished.ending.success());
    count += every_page(session, plan)?;
    let root = plan.workspace.root();
    count += said(session, "docs/SUMMARY.md", &summary::faults(root)?)?;
    count += said(session, "cited", &citations::faults(root)?)?;
    count += site(session, plan)?;
    Ok(count)
}

fn every_page(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let root = plan.workspace.root();
    let mut pages = pages::all(root)?;
    ensure!(!pages.is_empty(), "there is no Markdown page in {}", root.display());
    let contents = root.join(summary::PLACE);
    pages.push(contents.clone());
    let mut count = Count::default();
    for page in &pages {
        let broken = markdown::broken_links(root, page)?;
        let broken = broken.iter().map(|link| format!("broken link {link}"));
        // All that the contents say leads to a page.
        let names: &[_] = if *page == contents { &[] } else { &OUTSIDE };
        let unlinked = markdown::unlinked_names(page, names)?;
        let unlinked = unlinked.iter().map(|name| format!("{name} is nowhere linked"));
        let faults: Vec<_> = broken.chain(unlinked).collect();
        let page = page.strip_prefix(root).unwrap_or(page);
        count += said(session, &page.display().to_string(), &faults)?;
    }
    session.say(&format!("   pages whose links were followed: {}", pages.len()))?;
    Ok(count)
}

/// One check, whose faults are said.
fn said(session: &mut Session<'_>, place: &str, faults: &[String]) -> Result<Count> {
    for fault in faults {
        session.say(&format!("   {place}: {fault}"))?;
    }
    Ok(Count::check(faults.is_empty()))
}

fn site(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    match book::program() {
        Ok(program) => {
            let faults = book::build(session, &plan.workspace, &program)?;
            Ok(Count::check(faults == Some(0)))
        }
        Err(reason) => {
            session.say(&format!("   the site is skipped: {reason}"))?;
            Ok(Count::SKIPPED)
        }
    }
}
