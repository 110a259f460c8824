//! The documentation: rustdoc without warnings (one check), and every page's links (one each).

use anyhow::{Result, ensure};

use super::Plan;
use crate::{count::Count, markdown, session::Session};

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let mut command = plan.cargo(&["doc", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "--deny warnings");
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
    }
    let mut count = Count::check(finished.ending.success());
    count += links(session, plan)?;
    Ok(count)
}

fn links(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let root = plan.workspace.root();
    let mut pages = markdown::pages(root)?;
    pages.extend(markdown::pages(&root.join("docs"))?);
    for group in ["crates", "examples"] {
        let Ok(directories) = root.join(group).read_dir() else {
            continue;
        };
        let mut directories = directories.collect::<Result<Vec<_>, _>>()?;
        directories.sort_by_key(std::fs::DirEntry::path);
        for directory in directories {
            pages.extend(markdown::pages(&directory.path())?);
        }
    }
    ensure!(!pages.is_empty(), "there is no Markdown page in {}", root.display());
    let mut count = Count::default();
    for page in &pages {
        let broken = markdown::broken_links(root, page)?;
        count += Count::check(broken.is_empty());
        for link in broken {
            let page = page.strip_prefix(root).unwrap_or(page);
            session.say(&format!("   {}: broken link {link}", page.display()))?;
        }
    }
    session.say(&format!("   pages whose links were followed: {}", pages.len()))?;
    Ok(count)
}
