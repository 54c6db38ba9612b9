//! JSON values as HCL expressions. HCL takes JSON's objects and lists; only `${` and `%{` inside strings mean something.

use serde_json::Value;

/// A string literal.
pub(super) fn string(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    quoted.replace("${", "\\u0024{").replace("%{", "\\u0025{")
}

/// `value` as an expression whose lines after the first begin with `indent` spaces.
pub(super) fn expression(value: &Value, indent: usize) -> String {
    let (inner, outer) = (" ".repeat(indent + 2), " ".repeat(indent));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut text = "{\n".to_owned();
            for (name, value) in fields {
                text += &format!("{inner}{} = {}\n", string(name), expression(value, indent + 2));
            }
            text + &outer + "}"
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            let mut text = "[\n".to_owned();
            for item in items {
                text += &format!("{inner}{},\n", expression(item, indent + 2));
            }
            text + &outer + "]"
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| expression(item, indent)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::String(text) => string(text),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_hcl_is_escaped() {
        assert_eq!(string("a${b}%{c}\"\\\n"), "\"a\\u0024{b}\\u0025{c}\\\"\\\\\\n\"");
        let value = serde_json::json!({"a": ["x", "y"], "b": [{"c": true}], "d": {}});
        let want = "{\n  \"a\" = [\"x\", \"y\"]\n  \"b\" = [\n    {\n      \"c\" = true\n    },\n  ]\n  \"d\" = {}\n}";
        assert_eq!(expression(&value, 0), want);
    }
}
