//! Prints results: tables for people, JSON for programs.

use std::io::Write;

use clap::ValueEnum;
use serde_json::{Value, json};

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Format {
    /// Columns, for people.
    Table,
    /// One JSON value, for programs.
    Json,
}

/// A line, or several.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// A list: one row per entry.
pub(crate) fn rows(list: &Value, columns: &[&str], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return print(&serde_json::to_string_pretty(list)?);
    }
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    let row = |entry: &Value| columns.iter().map(|column| cell(&entry[*column])).collect::<Vec<_>>();
    let mut lines = vec![header];
    lines.extend(list.as_array().into_iter().flatten().map(row));
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        print(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// One thing: a line per field.
pub(crate) fn one(value: &Value, fields: &[&str], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return print(&serde_json::to_string_pretty(value)?);
    }
    let width = fields.iter().map(|field| field.len()).max().unwrap_or(0);
    fields.iter().try_for_each(|field| print(&format!("{field:width$}  {}", cell(&value[*field]))))
}

/// What was done.
pub(crate) fn done(text: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Table => print(text),
        Format::Json => print(&json!({ "done": text }).to_string()),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) if fields.values().all(Value::is_number) => {
            fields.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) => {
            let id = fields.get("id").map(cell).unwrap_or_default();
            let off = fields.get("enabled") == Some(&Value::Bool(false));
            if off { format!("{id} (disabled)") } else { id }
        }
        other => other.to_string(),
    }
}
