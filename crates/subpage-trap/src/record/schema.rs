//! The JSON Schema of records and their lines.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::Record;
use super::json::{Bytes, Line, Object};

/// Types of the lines of events.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[allow(dead_code, reason = "stands for texts")]
pub(super) enum LineType {
    Denied,
    Logged,
    AllowedOnce,
}

/// What a rule does with a write.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
#[allow(dead_code, reason = "stands for texts")]
pub(super) enum ActionWord {
    Log,
    AllowOnce,
    Deny,
    Stop,
}

impl JsonSchema for Bytes<'_> {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9a-f]{2})+$" })
    }
}

impl JsonSchema for Record {
    fn schema_name() -> Cow<'static, str> {
        "Record".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Object::json_schema(generator)
    }
}

impl Record {
    /// The schema of what [`Record::line`] gives.
    pub fn line_schema(generator: &mut SchemaGenerator) -> Schema {
        Line::json_schema(generator)
    }
}
