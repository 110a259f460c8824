//! JSON Schemas of what this program reads and writes: `subpage schema`.

use std::io::{self, Write};

use clap::ValueEnum;
use schemars::JsonSchema;
#[cfg(feature = "kvm")]
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
#[cfg(feature = "kvm")]
use subpage_kvm::control::protocol::{Refusal, Reply, Request};
use subpage_trap::Record;

use crate::{check, events, kit, plan, policy, record_report};
#[cfg(feature = "kvm")]
use crate::{ctl, top};

/// Version of JSON Schema that is written.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What there is a schema of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemaChoice {
    /// One line of `guard`, `plan`, `record` or `check` with `--json`, or of `top` or `ctl SOCKET watch` with it
    Events,
    /// A policy, as any reader of TOML gives it
    Policy,
    /// One line over the control socket, a request or a reply; or of `ctl list --json`
    #[cfg(feature = "kvm")]
    Control,
}

/// The schema, a JSON object.
pub fn schema(of: SchemaChoice) -> Value {
    match of {
        SchemaChoice::Events => events(),
        SchemaChoice::Policy => policy::schema(DIALECT),
        #[cfg(feature = "kvm")]
        SchemaChoice::Control => control(),
    }
}

/// Writes the schema for people and for programs: over several lines.
pub fn write(out: &mut impl Write, of: SchemaChoice) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &schema(of))?;
    out.write_all(b"\n")
}

/// Without references: the types are small, and readers need no resolver.
fn settings() -> SchemaSettings {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings
}

/// The last line of `watch`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "stands for lines that the control server writes")]
struct End {
    v: u32,
    r#type: EndType,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[allow(dead_code, reason = "stands for a text")]
enum EndType {
    End,
}

fn events() -> Value {
    let mut generator = settings().for_serialize().into_generator();
    let mut kinds = vec![
        Record::line_schema(&mut generator),
        events::line_schema(&mut generator),
        plan::line_schema(&mut generator),
        check::line_schema(&mut generator),
        record_report::line_schema(&mut generator),
        kit::line_schema(&mut generator),
        #[cfg(feature = "kvm")]
        top::line_schema(&mut generator),
        End::json_schema(&mut generator),
    ];
    for kind in &mut kinds {
        kind.remove("$schema");
    }
    json!({
        "$schema": DIALECT,
        "title": format!("Subpage events, version {}", events::VERSION),
        "description": "One line. New types and fields may come without a new version.",
        "anyOf": kinds,
    })
}

#[cfg(feature = "kvm")]
fn control() -> Value {
    let requests = Request::json_schema(&mut settings().for_deserialize().into_generator());
    let mut generator: SchemaGenerator = settings().for_serialize().into_generator();
    let answer = |ok: bool, content: schemars::Schema| {
        json!({
            "type": "object",
            "properties": { "ok": { "const": ok } },
            "required": ["ok"],
            "allOf": [content],
        })
    };
    let reply = answer(true, Reply::json_schema(&mut generator));
    let refusal = answer(false, Refusal::json_schema(&mut generator));
    let failure = answer(false, ctl::Failed::json_schema(&mut generator));
    let guest = ctl::GuestLine::json_schema(&mut generator);
    json!({
        "$schema": DIALECT,
        "title": "Subpage control protocol",
        "description": "One line: a request, or its reply; or what `ctl --json` prints if there is none. \
                        What follows `watch` are events. Of type `guest`: what `ctl list --json` prints.",
        "anyOf": [requests, reply, refusal, failure, guest],
    })
}
