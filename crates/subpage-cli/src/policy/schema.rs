//! The JSON Schema of a policy.
//!
//! Written by hand, as the reader is: it tells all mistakes at once, each where it is. The keys are
//! the reader's own lists.

use serde_json::{Map, Value, json};
use subpage::rules::{Action, Moment};

use super::draft::TOP_KEYS;
use super::rule::{RANGE_KEYS, RULE_KEYS};
use super::{FORMAT_VERSION, MAX_RULES};

/// The schema of a policy, in a dialect of JSON Schema.
pub fn schema(dialect: &str) -> Value {
    let rules = json!({
        "type": "array", "maxItems": MAX_RULES,
        "items": {
            "type": "object",
            "properties": properties(RULE_KEYS, rule_key),
            "required": ["name"],
            "additionalProperties": false,
            "oneOf": [
                { "required": ["range"] },
                { "required": ["region"] },
                // Of the guest, or of one file: with both keys, both of these hold.
                { "required": ["symbol"], "oneOf": [
                    { "required": ["symbol"] }, { "required": ["elf", "map"] },
                ] },
            ],
        },
    });
    let top = |key: &str| match key {
        "version" => json!({ "const": FORMAT_VERSION }),
        "include" => json!({
            "type": "array", "items": { "type": "string", "minLength": 1 },
        }),
        "rule" => rules.clone(),
        _ => unreachable!("`{key}` has no schema"),
    };
    json!({
        "$schema": dialect,
        "title": "Subpage policy, version 1",
        "type": "object",
        "properties": properties(TOP_KEYS, top),
        "required": ["version"],
        "anyOf": [{ "required": ["rule"] }, { "required": ["include"] }],
        "additionalProperties": false,
    })
}

fn properties(keys: &[&str], schema: impl Fn(&str) -> Value) -> Map<String, Value> {
    keys.iter().map(|key| ((*key).to_owned(), schema(key))).collect()
}

/// A number, or one in quotes.
fn number() -> Value {
    json!({ "type": ["integer", "string"] })
}

fn rule_key(key: &str) -> Value {
    match key {
        "name" => json!({ "type": "string", "minLength": 1, "maxLength": 62 }),
        "range" => json!({ "anyOf": [
            { "type": "string" },
            {
                "type": "object",
                "properties": properties(RANGE_KEYS, |_| number()),
                "required": ["start"],
                "additionalProperties": false,
                "oneOf": [{ "required": ["end"] }, { "required": ["length"] }],
            },
        ] }),
        "region" | "symbol" | "elf" | "map" => json!({ "type": "string", "minLength": 1 }),
        "address" => json!({ "enum": ["virtual", "physical", "kernel"] }),
        "bias" | "offset" | "length" | "owner" => number(),
        "action" => json!({ "enum": Action::ALL.map(Action::word) }),
        "arm" => json!({ "enum": Moment::ALL.map(Moment::word) }),
        "locked" => json!({ "type": "boolean" }),
        _ => unreachable!("`{key}` has no schema"),
    }
}
