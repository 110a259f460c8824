//! The schemas, against everything that the golden files hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use subpage_cli::schema::{SchemaChoice, schema};

use crate::golden;
use crate::place::{Place, status};

/// The keys of an object that a schema knows, if the value fits it. Every keyword that the schemas
/// have is judged, and another one is a failure of the test. `where_from` is for messages.
fn fits(schema: &Value, value: &Value) -> Option<BTreeSet<String>> {
    let schema = match schema {
        Value::Bool(all) => return all.then(BTreeSet::new),
        Value::Object(schema) => schema,
        other => panic!("{other} is no schema"),
    };
    let mut known = BTreeSet::new();
    for (keyword, wanted) in schema {
        known.extend(keyword_fits(schema, keyword, wanted, value)?);
    }
    Some(known)
}

fn keyword_fits(
    schema: &Map<String, Value>,
    keyword: &str,
    wanted: &Value,
    value: &Value,
) -> Option<BTreeSet<String>> {
    let list = || wanted.as_array().expect("a list");
    let branches = || list().iter().filter_map(|branch| fits(branch, value)).collect::<Vec<_>>();
    let none = |right: bool| right.then(BTreeSet::new);
    match keyword {
        "$schema" | "title" | "description" | "default" | "format" | "readOnly" => none(true),
        "type" => {
            let is = |name: &Value| match name.as_str().expect("a name") {
                "null" => value.is_null(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                "string" => value.is_string(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("type {other}"),
            };
            none(wanted.as_array().map_or_else(|| is(wanted), |names| names.iter().any(is)))
        }
        "const" => none(value == wanted),
        "enum" => none(list().contains(value)),
        "minimum" => none(value.as_f64().is_none_or(|v| v >= wanted.as_f64().expect("a number"))),
        "maximum" => none(value.as_f64().is_none_or(|v| v <= wanted.as_f64().expect("a number"))),
        "minLength" | "maxLength" | "minItems" | "maxItems" => {
            let length = value.as_str().map(str::len).or(value.as_array().map(Vec::len));
            let bound = usize::try_from(wanted.as_u64().expect("a number")).expect("small");
            none(length.is_none_or(|length| {
                if keyword.starts_with("min") { length >= bound } else { length <= bound }
            }))
        }
        "pattern" => none(value.as_str().is_none_or(|text| {
            let hex = |text: &str| {
                !text.is_empty() && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
            };
            match wanted.as_str().expect("a pattern") {
                "^0x[0-9a-f]{1,16}$" => {
                    text.strip_prefix("0x").is_some_and(|t| t.len() <= 16 && hex(t))
                }
                "^([0-9a-f]{2})+$" => text.len() % 2 == 0 && hex(text),
                "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z$" => {
                    let form = "0000-00-00T00:00:00.000000Z";
                    let fits = |(c, form): (char, char)| match form {
                        '0' => c.is_ascii_digit(),
                        _ => c == form,
                    };
                    text.len() == form.len() && text.chars().zip(form.chars()).all(fits)
                }
                other => panic!("pattern {other}"),
            }
        })),
        "required" => none(value.as_object().is_none_or(|object| {
            list().iter().all(|key| object.contains_key(key.as_str().expect("a key")))
        })),
        "properties" => {
            let Some(object) = value.as_object() else { return none(true) };
            let properties = wanted.as_object().expect("properties");
            let mut known = BTreeSet::new();
            for (key, wanted) in properties {
                if let Some(value) = object.get(key) {
                    all_known(wanted, value)?;
                    known.insert(key.clone());
                }
            }
            Some(known)
        }
        "additionalProperties" | "unevaluatedProperties" => {
            assert_eq!(wanted, &json!(false), "nothing else is in use");
            let Some(object) = value.as_object() else { return none(true) };
            // Beside `properties` and what other keywords know.
            let rest: Map<_, _> = schema
                .iter()
                .filter(|(keyword, _)| !keyword.ends_with("Properties"))
                .map(|(keyword, wanted)| (keyword.clone(), wanted.clone()))
                .collect();
            let known = fits(&Value::Object(rest), value)?;
            none(object.keys().all(|key| known.contains(key)))
        }
        "items" => {
            value.as_array().into_iter().flatten().try_for_each(|item| all_known(wanted, item))?;
            none(true)
        }
        "anyOf" => {
            let fitting = branches();
            (!fitting.is_empty()).then(|| fitting.into_iter().flatten().collect())
        }
        "oneOf" => match &branches()[..] {
            [one] => Some(one.clone()),
            _ => None,
        },
        "allOf" => {
            let fitting = branches();
            (fitting.len() == list().len()).then(|| fitting.into_iter().flatten().collect())
        }
        other => panic!("the test does not know the keyword `{other}`"),
    }
}

/// Whether a value fits, and the schema has all of its keys: one that it lacks is a fault of ours,
/// though readers have to skip it.
pub(crate) fn all_known(schema: &Value, value: &Value) -> Option<()> {
    let known = fits(schema, value)?;
    let object = value.as_object();
    object.is_none_or(|object| object.keys().all(|key| known.contains(key))).then_some(())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("readable");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}

/// Every line of every golden file that is a JSON object.
fn golden_objects() -> Vec<(PathBuf, Value)> {
    let folders = files(&golden("")).into_iter().filter(|path| path.is_dir());
    let paths = folders.flat_map(|folder| files(&folder));
    let mut found = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("text");
        for line in text.lines().filter(|line| line.starts_with('{')) {
            // The measured time is taken out of some.
            let line = line.replace("\"elapsed_seconds\":TIME", "\"elapsed_seconds\":0.5");
            let value = serde_json::from_str(&line);
            found.push((
                path.clone(),
                value.unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display())),
            ));
        }
    }
    found
}

/// The keys that the schema has for a denied write.
fn events_schema_keys(events: &Value) -> BTreeSet<String> {
    let all = golden_objects();
    let (_, denied) = all.iter().find(|(_, object)| object["type"] == "denied").expect("one");
    fits(events, denied).expect("it fits")
}

#[test]
fn every_golden_object_fits_its_schema() {
    let (events, control) = (schema(SchemaChoice::Events), schema(SchemaChoice::Control));
    let (mut types, mut known) = (BTreeSet::new(), BTreeSet::new());
    let mut replies = 0;
    for (path, object) in golden_objects() {
        let schema = if let Some(kind) = object["type"].as_str() {
            types.insert(kind.to_owned());
            let fields = object.as_object().expect("an object").iter();
            let fields = fields.filter(|(_, value)| !value.is_null() && kind == "denied");
            known.extend(fields.map(|(key, _)| key.clone()));
            &events
        } else {
            replies += 1;
            &control
        };
        assert!(all_known(schema, &object).is_some(), "{}: {object}", path.display());
    }
    let types: Vec<_> = types.iter().map(String::as_str).collect();
    for kind in ["start", "denied", "logged", "summary", "error", "plan_page", "process", "end"] {
        assert!(types.contains(&kind), "no golden file has {kind}: {types:?}");
    }
    // Of an event every field, save that of a processor's counter, which no program here has.
    let all = events_schema_keys(&events);
    let missing: Vec<_> = all.difference(&known).map(String::as_str).collect();
    assert_eq!(missing, ["qualification", "time_stamp_counter"]);
    assert!(replies > 5);
}

/// A schema that everything fits would be no test.
#[test]
fn what_is_no_event_does_not_fit() {
    let events = schema(SchemaChoice::Events);
    let objects = golden_objects();
    let (_, denied) = objects.iter().find(|(_, o)| o["type"] == "denied").expect("one");
    let fits = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut other = denied.clone();
        change(other.as_object_mut().expect("an object"));
        all_known(&events, &other).is_some()
    };
    assert!(fits(&|_| ()));
    for (key, value) in [
        ("type", json!("denid")),
        ("gpa", json!(4096)),
        ("gpa", json!("4096")),
        ("verdict", json!("blocked")),
        ("action", json!("allow_once")),
        ("length", json!("8")),
        ("bytes", json!("0")),
        ("time", json!(1_764_216_000)),
        ("time", json!("2025-11-27T04:00:00Z")),
        ("source", json!(7)),
        ("process", json!("server")),
        ("more", json!(1)),
    ] {
        assert!(
            !fits(&|object| drop(object.insert(key.to_owned(), value.clone()))),
            "{key}: {value}"
        );
    }
    for key in denied.as_object().expect("an object").keys() {
        assert!(!fits(&|object| drop(object.remove(key))), "without {key}");
    }
}

#[test]
fn requests_and_replies_fit() {
    let control = schema(SchemaChoice::Control);
    for (line, fit) in [
        (json!({"op": "show"}), true),
        (json!({"op": "get", "gfn": 1, "pages": 2}), true),
        (json!({"op": "remove", "rule": "a name"}), true),
        (json!({"op": "add", "name": "x", "start": 1, "length": 2, "action": "deny"}), true),
        (
            json!({"op": "add", "name": "x", "start": 1, "length": 2, "action": "deny", "o": 1}),
            false,
        ),
        (json!({"op": "get", "gfn": 1}), false),
        (json!({"op": "got"}), false),
        (json!({"ok": true}), true),
        (json!({"ok": true, "rule": 7}), true),
        (json!({"ok": false, "code": "EPERM", "error": "locked"}), true),
        (json!({"ok": false}), false),
    ] {
        assert_eq!(all_known(&control, &line).is_some(), fit, "{line}");
    }
}

/// The reader takes what the schema takes, and refuses keys that the schema refuses.
#[test]
fn policies_fit_their_schema() {
    let policy = schema(SchemaChoice::Policy);
    let fits = |path: &Path| {
        let text = fs::read_to_string(path).expect("text");
        let value: toml::Table = toml::from_str(&text).expect("TOML");
        all_known(&policy, &serde_json::to_value(value).expect("JSON")).is_some()
    };
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for path in [
        golden("policy/valid.toml"),
        examples.join("counter/policy.toml"),
        examples.join("kernel/policy.toml"),
        examples.join("hypervisor/policy.toml"),
    ] {
        assert!(fits(&path), "{}", path.display());
    }
    for name in ["keys", "types", "one-bracket", "not-a-list", "empty"] {
        assert!(!fits(&golden(&format!("policy/{name}.toml"))), "{name}");
    }
}

#[test]
fn the_command_prints_them() {
    let place = Place::new();
    for of in ["events", "policy", "control"] {
        let output = place.run(&["schema", of]);
        assert_eq!(status(&output), 0);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(value["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}
